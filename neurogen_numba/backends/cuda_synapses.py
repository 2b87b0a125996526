"""Sparse synapses on a GPU: a list of events for each column, rings instead of moved histories, one launch for all arcs into a current
(kernels/events.py, synapse.py), and back one for all arcs of a signal (tiles.py), or a second one for modules of very many neurons with few
synapses (wide.py)."""

from __future__ import annotations

import math

import numpy as np

from ..errors import CheckpointError
from ..kernels import events, fixed, synapse, tiles, wide
from ..kernels.launch import SIMULATED, THREADS, WARP, blocks
from ..kernels.synapse import WALKERS, Field, Share
from ..kernels.tiles import QUADS, TILERS, WORDS, Stretch
from ..kernels.wide import FANNERS, LINE, MANY_WALKERS, TIMES
from .base import Synapses, Traffic

PART = 10_240  # neurons of a current that a block holds at most
WIDE_PART = 51_200  # of a wide one: on a large card a block holds as many forward, and 16 bits can tell them apart
MANY_SHARED = 2**11  # bytes of shared memory that such a block has besides
SHORT, SHORTER = 3, 1  # synapses: short rows, on average, and such as must not be
TILE_BYTES = 4 * int(WORDS)  # of shared memory for a neuron, on the way back; forward it is a number of 4 bytes
FEW = 512  # columns: for fewer, many blocks share one
EVENTS, PASSED = 1 / 10, 1024  # share of the axons that fire, more or less; synapses that a block then passes, each thread a few
UNIT_BITS = 36  # a gradient of a single token is resolved to 2^-36 of the loss's unit
MATRIX_COLUMNS = 8  # plain values of so many columns or more go through matrices
MATRIX_BYTES = 8  # of a synapse that could be: a weight, a gradient, and a little more
MATRIX_SHARE = 1 / 64  # of the card's memory, which the matrices may take
MATRIX_PAIRS = 512  # of sources and targets, of which one has a synapse at least, where a matrix is faster than a walk


class CudaSynapses(Synapses):
    """Structure, weights and tables of all sparse projections, sorted by the current that they bring.

    Plain values are never silent, so little is gained by walking their synapses one by one: those without delay are spread out as matrices,
    and cuBLAS multiplies them (`Matrix`), the fullest first, as far as there is room.
    Where a current would have to be cut into parts that make rows shorter than SHORTER, all currents with SHORT rows are `wide`: the
    way back is walked by source, not by part; and plain values without delay that have no matrix are gathered by target (`Gathered`).
    """

    def __init__(self, backend, projections, index_dtype, parameters):
        self.backend, self.index_dtype, self.parameters = backend, index_dtype, parameters
        # float16 is too short for gradients that have come a long way
        self.back_dtype = "bfloat16" if backend.product_dtype == "bfloat16" else "float32"
        plain = [p for p in projections if not p.arc.source.endswith(".axon") and p.arc.longest_delay == 0]
        self.kind = backend.bits(backend.zeros(1, self.back_dtype))  # of the numbers that tiles are made of
        self.matrices, room = {}, MATRIX_SHARE * backend.memory()[1]
        for p in sorted(plain, key=lambda p: p.arc.sources / p.arc.fan_in):
            room -= p.arc.sources * p.arc.targets * MATRIX_BYTES
            if room < 0 or p.arc.sources > p.arc.fan_in * MATRIX_PAIRS:
                break
            self.matrices[p.arc.name] = Matrix(self, p)
        offsets = [(parameters.offset[f"{p.arc.name}.weight"], p.weight.size) for p in projections]
        self.first_weight, self.end = min(start for start, _ in offsets), max(start + size for start, size in offsets)
        self.weight, self.gradient = (flat[self.first_weight : self.end] for flat in (parameters.flat_value, parameters.flat_gradient))
        self.room = self.backend.shared_memory // TILE_BYTES // 2 * 2  # neurons, for which a block has shared memory on the way back
        self.wide = set()  # while it is found out
        self.projections = projections  # until they are sorted
        rows = {p.arc.target: self._row(p.arc.target) for p in projections if p.arc.name not in self.matrices}
        if any(parts > 1 and synapses < SHORTER for parts, synapses in rows.values()):
            self.wide = {current for current, (_, synapses) in rows.items() if synapses < SHORT}
        self.gathered = {p.arc.name: Gathered(self, p) for p in plain if p.arc.target in self.wide and p.arc.name not in self.matrices}
        # signals that nobody hears otherwise need neither ring nor lists
        self.unlisted = {p.arc.source for p in plain} - {p.arc.source for p in projections if p.arc.name not in self.gathered}
        self.projections = sorted(projections, key=lambda p: (p.arc.target, p.arc.name in self.matrices))
        self.row_places = {}  # arc -> where its rows begin in row_start
        self.d_weight = None  # fixed-point gradients, made when somebody learns

    def place(self, p):
        """Where the synapses of a projection begin in weight, target and d_weight."""
        return self.parameters.offset[f"{p.arc.name}.weight"] - self.first_weight

    def parts(self, current, size):
        """(number of parts, neurons of a part) of a current, so that a part fits into a block's shared memory, forward and back."""
        parts = blocks(size, WIDE_PART if current in self.wide else min(PART, self.room))
        return parts, 2 * blocks(size, 2 * parts)  # even: numbers of 16 bits are read in pairs

    def _row(self, current):
        """(parts of a current, synapses of a row on average)."""
        arcs = [p.arc for p in self.projections if p.arc.target == current and p.arc.name not in self.matrices]
        parts = self.parts(current, arcs[0].targets)[0]
        rows = sum(arc.sources * arc.delays * parts for arc in arcs)
        return parts, sum(arc.targets * arc.synapses_per_target for arc in arcs) / rows

    def wire(self):
        row_starts, rows_end = [], 0
        target = np.zeros(self.end - self.first_weight, np.uint16)
        for p in self.projections:
            parts, part_size = self.parts(p.arc.target, p.arc.targets)
            row_starts.append(split_rows(p.arc, p.row_start, p.target, parts, part_size) + np.uint32(self.place(p)))
            self.row_places[p.arc.name] = rows_end
            rows_end += row_starts[-1].size
            target[self.place(p) :][: p.target.size] = p.target % part_size
        self.row_start, self._target = self.backend.asarray(np.concatenate(row_starts)), self.backend.asarray(target)
        self.packed = self.backend.product_dtype == "bfloat16"
        self.target = self.backend.zeros(target.size, "uint32") if self.packed else self._target
        for made in (*self.matrices.values(), *self.gathered.values()):
            made.wire()

    def refresh(self):
        if self.packed:
            size = self.target.size
            self.backend.launch(synapse.pack_synapses, blocks(size), THREADS, self.target, self._target, self.weight)
        for made in (*self.matrices.values(), *self.gathered.values()):
            made.refresh()

    def traffic(self, signals, currents, tokens, batch, chunk, learning):
        return CudaTraffic(self, signals, currents, tokens, batch, chunk, learning)


class Matrix:
    """Sparse synapses spread out as a matrix [M, N] of the products' type, and their gradient as another, float32."""

    def __init__(self, synapses, projection):
        self.backend, self.projection, self.arc = synapses.backend, projection, projection.arc
        self.dtype = synapses.back_dtype

    def allocate(self):
        self.weight = self.backend.matrix(self.arc.sources, self.arc.targets, self.dtype)
        self.gradient = self.backend.matrix(self.arc.sources, self.arc.targets)
        self.place = self.backend.zeros(self.projection.weight.size, "int64")

    def wire(self):
        self.allocate()
        arc, p, lead = self.arc, self.projection, self.weight.strides[0] // self.weight.itemsize
        source = np.repeat(np.arange(arc.sources), np.diff(p.row_start.astype(np.int64)))
        self.place[...] = self.backend.asarray(source * lead + p.target, "int64")

    def refresh(self):
        flat = self.backend.bits(self.weight.base).reshape(1, -1)
        self._each(synapse.spread_weights, flat, self.place, self.projection.weight)

    def settle(self):
        flat = self.gradient.base.reshape(-1)
        self._each(synapse.gather_gradients, self.projection.d_weight, flat, self.place)
        flat[...] = 0

    def _each(self, kernel, *arguments):
        self.backend.launch(kernel, blocks(self.place.size), THREADS, *arguments)


class Gathered:
    """Sparse synapses without delay by target: source and weight [K, N] of the K synapses of each of its N neurons (kernels/wide.py)."""

    def __init__(self, synapses, projection):
        self.backend, self.projection, self.arc = synapses.backend, projection, projection.arc

    def allocate(self):
        shape = self.arc.synapses_per_target, self.arc.targets
        self.source, self.place, self.weight = (self.backend.zeros(shape, dtype) for dtype in ("uint32", "uint32", "float32"))

    def wire(self):
        self.allocate()
        place, source = by_target(self.arc, self.projection.row_start, self.projection.target)
        self.place[...], self.source[...] = self.backend.asarray(place, "uint32"), self.backend.asarray(source, "uint32")

    def refresh(self):
        flat = self.weight.reshape(-1)
        self.backend.launch(wide.pick_weights, blocks(flat.size), THREADS, flat, self.projection.weight, self.place.reshape(-1))


def by_target(arc, row_start, target):
    """(which of the synapses belong to each neuron, and their sources), both [K, N]. Raises CheckpointError where some neuron has more of
    them than others."""
    synapses = np.argsort(target, kind="stable").reshape(arc.targets, -1)
    if (target[synapses] != np.arange(arc.targets)[:, None]).any():
        raise CheckpointError(
            f"{arc.name}: each of its {arc.targets} neurons must have {arc.synapses_per_target} synapses; use another checkpoint"
        )
    source = np.repeat(np.arange(arc.sources), np.diff(row_start.astype(np.int64)))
    return synapses.T, source[synapses.T]


def split_rows(arc, row_start, target, parts, part_size):
    """row_start with an entry for every row and part. Raises CheckpointError where targets do not ascend within the rows."""
    if parts == 1:
        return row_start
    row = np.repeat(np.arange(row_start.size - 1), np.diff(row_start.astype(np.int64)))
    slot = row * parts + target // part_size
    if (np.diff(slot) < 0).any():
        raise CheckpointError(f"{arc.name}: the targets of a source must ascend where a module has more than {part_size} neurons")
    return np.searchsorted(slot, np.arange(parts * (row_start.size - 1) + 1)).astype(np.uint32)


def width_of(mean):
    """Threads that walk a row together: a quarter to half as many as it has synapses, a power of two."""
    return min(WARP, 2 ** max(0, math.floor(math.log2(max(1.0, mean)) - 1)))


class CudaTraffic(Traffic):
    def __init__(self, synapses, signals, currents, tokens, batch, chunk, learning):
        self.synapses, self.backend, self.batch, self.chunk = synapses, synapses.backend, batch, chunk
        zeros, asarray = self.backend.zeros, self.backend.asarray
        self.signals = signals
        plain = {p.arc.source for p in synapses.projections if not p.arc.source.endswith(".axon")}
        # plain values have no index: they come last
        order = sorted((name for name in signals if name not in synapses.unlisted), key=lambda name: name in plain)
        self.rows = {name: signals[name][1] + tokens for name in order}
        self.number = {name: number for number, name in enumerate(order)}
        self.lists, self.counts = {}, {}
        lists = counts = indices = 0
        for name in order:
            size = signals[name][0]
            self.lists[name], self.counts[name] = lists, counts
            lists += self.rows[name] * batch * size
            counts += self.rows[name] * batch * 2
            if name not in plain:
                indices = lists
        self.index = zeros(max(1, indices), synapses.index_dtype)
        self.value, self.count = zeros(max(1, lists)), zeros(max(2, counts), "int32")
        self.start = zeros(len(order), "int32")
        self.ring_rows = asarray([self.rows[name] for name in order], "int32")
        self.plain = plain
        # flags [currents, B] of those that `_receive_few` brings and that are NaN until the segment ends; last, of what nobody brings
        self.flags_of = {name: row for row, name in enumerate(currents)}
        self.spoilt = zeros((len(currents) + 1, batch), "int32")
        self.tokens = self.length = tokens
        self._table, self._factors, self._shares, self._passed = None, {}, {}, []
        self._matrices_into, self._matrices_from, self._gathered_into = {}, {}, {}
        # signals of which there are lines (kernels/wide.py), made when they are sent, and those that are sent so where there are matrices
        own = [p.arc for p in synapses.projections if p.arc.target in synapses.wide and (learning or p.arc.name in synapses.gathered)]
        self._lines = dict.fromkeys(arc.source for arc in own)
        self._always_lines = {arc.source for arc in own if arc.name not in synapses.matrices}
        self._still = zeros(1, "int32")  # where a ring begins that does not turn
        for matrix in synapses.matrices.values():
            self._matrices_into.setdefault(matrix.arc.target, []).append(matrix)
            self._matrices_from.setdefault(matrix.arc.source, []).append(matrix)
        for gathered in synapses.gathered.values():
            self._gathered_into.setdefault(gathered.arc.target, []).append(gathered)
        self.columns = tiles.columns_in(synapses.kind)  # of a tile
        self.groups = blocks(batch, TIMES * self.columns)  # of sequences, in tiles of wide modules
        if learning:
            self.units = np.float32(2.0 ** (UNIT_BITS + math.ceil(math.log2(tokens * batch))))
            if synapses.d_weight is None:
                synapses.d_weight = zeros(synapses.gradient.size, "int64")
            self._make_owed(currents)

    def _make_owed(self, currents):
        """The gradients of the currents of a whole segment: matrices [T B, N] one after the other, as the products want them."""
        self.owed_place, self.owed_lead, end = {}, {}, 0
        for name, size in currents.items():
            if name not in self.synapses.wide or name in self._matrices_into:
                self.owed_place[name], self.owed_lead[name] = end, blocks(size, self.backend.whole_rows) * self.backend.whole_rows
                end += self.tokens * self.batch * self.owed_lead[name]
        self._owed = self.backend.zeros(max(2, end), self.synapses.back_dtype)
        # of wide currents, LINE words of a tile for each neuron: [T, tiles of sequences, N] one after the other
        self.wide_place, end = {}, 0
        for name, size in currents.items():
            if name in self.synapses.wide:
                self.wide_place[name] = end
                end += self.tokens * self.groups * size
        self._wide = self.backend.zeros(max(1, end) * LINE, "uint32")
        self._nothing = self.backend.zeros(1)[:0]
        self._stretches = None

    def _owed_of(self, current, first, last, size):
        """The gradient of a current, [(last - first) B, N]."""
        place, lead, rows = self.owed_place[current], self.owed_lead[current], self.tokens * self.batch
        whole = self._owed[place : place + rows * lead].reshape(rows, lead)
        return whole[first * self.batch : last * self.batch, :size]

    def _stretches_of(self, signal):
        """A signal's rows in the table of stretches: {wide: (first, end of those that are walked where there are matrices, end of all)}."""
        self._stretch_table()
        return {wide: self._from.get((signal, wide), (0, 0, 0)) for wide in (False, True)}

    def _stretch_table(self):
        """The table of stretches (kernels/tiles.py), sorted by signal; made at first use, when the synapses are wired."""
        if self._stretches is None:
            synapses, table, self._from = self.synapses, [], {}
            order = sorted(
                synapses.projections, key=lambda p: (p.arc.source, p.arc.target in synapses.wide, p.arc.name in synapses.matrices)
            )
            for arc in (p.arc for p in order):
                is_wide = arc.target in synapses.wide
                parts, part_size = synapses.parts(arc.target, arc.targets)
                first, walked, _ = self._from.get((arc.source, is_wide), (len(table), len(table), 0))
                for d in range(arc.delays):
                    for part in range(1 if is_wide else parts):
                        row = np.zeros(len(Stretch), np.int64)
                        row[Stretch.DELAY], row[Stretch.PARTS] = arc.first_delay + d, parts
                        row[Stretch.ROW_START] = synapses.row_places[arc.name] + d * arc.sources * parts + part
                        row[Stretch.PART_SIZE] = part_size
                        if is_wide:
                            row[Stretch.OWED], row[Stretch.SIZE] = self.wide_place[arc.target], arc.targets
                        else:
                            row[Stretch.OWED] = self.owed_place[arc.target] + part * part_size
                            row[Stretch.LEAD] = self.owed_lead[arc.target]
                            row[Stretch.SIZE] = min(part_size, arc.targets - part * part_size)
                        table.append(row)
                if arc.name not in synapses.matrices:
                    walked = len(table)
                self._from[arc.source, is_wide] = first, walked, len(table)
            self._stretches = self.backend.asarray(np.stack(table))
        return self._stretches

    def _tables(self):
        """Made at first use, when the synapses are wired: the table, and for each current the range of its rows, (first, end of those that
        are walked where there are matrices, end of all), and the threads that walk a row together."""
        if self._table is None:
            synapses, table, self._pairs = self.synapses, [], {}
            for p in (p for p in synapses.projections if p.arc.name not in synapses.gathered):
                arc, source = p.arc, p.arc.source
                parts = synapses.parts(arc.target, arc.targets)[0]
                first, walked, _, synapses_, rows = self._pairs.get(arc.target, (len(table), len(table), 0, 0, 0))
                for d in range(arc.delays):
                    row = np.zeros(len(Field), np.int64)
                    row[Field.SOURCES], row[Field.PLAIN], row[Field.DELAY] = arc.sources, source in self.plain, arc.first_delay + d
                    row[Field.ROWS], row[Field.START] = self.rows[source], self.number[source]
                    row[Field.LISTS], row[Field.COUNTS] = self.lists[source], self.counts[source]
                    row[Field.ROW_START] = synapses.row_places[arc.name] + d * arc.sources * parts
                    table.append(row)
                    self._passed.append((p.weight.size / arc.delays, source in self.plain))
                if p.arc.name not in synapses.matrices:
                    walked = len(table)
                synapses_, rows = synapses_ + p.weight.size, rows + arc.sources * arc.delays * parts
                self._pairs[arc.target] = first, walked, len(table), synapses_, rows
            self._table = self.backend.asarray(np.stack(table))
        return self._table

    def _ring(self, signal):
        """(start, place in index and value, rows) as the kernels take them."""
        number = self.number[signal]
        return self.start[number : number + 1], self.lists[signal], self.rows[signal]

    def send_events(self, signal, first, last, v, dropout, graded, smooth):
        start, place, rows = self._ring(signal)
        grid, ring = (self.batch, last - first, blocks(v.shape[2], events.LISTERS * events.OWN)), (place, self.counts[signal], rows, first)
        clear = self.count, start, self.counts[signal], rows, first, self.batch
        self.backend.launch(events.clear_counts, (blocks(2 * self.batch), last - first), THREADS, *clear)
        lists = self.index, self.value, self.count, start
        self.backend.launch(events.list_events, grid, events.LISTERS, *lists, *ring, v, *dropout, graded, smooth)
        if self._as_lines(signal, last - first):
            words, start, rows = self._lines_of(signal)
            grid, kind = (blocks(v.shape[2], FANNERS), self.groups, last - first), self.synapses.kind
            self.backend.launch(wide.lay_events, grid, FANNERS, words, kind, start, rows, first, v, *dropout, graded, smooth)

    def send_values(self, signal, first, last, x):
        if self._as_lines(signal, last - first):
            self._lay_out(signal, first, x)
            if signal in self.synapses.unlisted:
                return
        if self._by_matrix(last - first) and signal in self._matrices_from:
            self.backend.round_rows(self._factor(signal, first, last), x.reshape(-1, x.shape[2]))
            if all(p.arc.name in self.synapses.matrices for p in self.synapses.projections if p.arc.source == signal):
                return  # nobody else listens
        start, place, rows = self._ring(signal)
        grid = (blocks(x.shape[2]), self.batch, last - first)
        self.backend.launch(events.list_values, grid, THREADS, self.value, start, place, rows, first, x)

    def _as_lines(self, signal, tokens):
        return signal in (self._always_lines if self._by_matrix(tokens) else self._lines)

    def _lines_of(self, signal):
        """(words, start, rows) of a signal's lines: [rows, tiles of sequences, M], in a ring that turns with that of its lists."""
        turns = signal in self.number
        rows = self.rows[signal] if turns else self.tokens
        if self._lines[signal] is None:
            self._lines[signal] = self.backend.zeros(rows * self.groups * self.signals[signal][0] * LINE, "uint32")
        return self._lines[signal], self.start[self.number[signal] :][:1] if turns else self._still, rows

    def _lay_out(self, signal, first, x):
        """The lines of plain values, or of what axons carried, x [C, B, M] from token `first` on."""
        words, start, rows = self._lines_of(signal)
        grid = blocks(x.shape[2], FANNERS), self.groups, len(x)
        self.backend.launch(wide.lay_out, grid, FANNERS, words, self.synapses.kind, 0, start, rows, first, x)

    def _by_matrix(self, tokens):
        return tokens * self.batch >= MATRIX_COLUMNS

    def _factor(self, signal, first, last):
        """Plain values of a signal, [(last - first) B, M], as the products want them."""
        if signal not in self._factors:
            dtype = self._matrices_from[signal][0].dtype
            self._factors[signal] = self.backend.matrix(self.tokens * self.batch, self.signals[signal][0], dtype)
        return self._factors[signal][first * self.batch : last * self.batch]

    def _walk(self, current, first, last):
        """What the kernels that walk the arcs into a current are told."""
        synapses = self.synapses
        table = self._tables()
        begin, walked, end, count, rows = self._pairs.get(current, (0, 0, 0, 1, 1))
        pairs = (begin, walked if self._by_matrix(last - first) else end)
        lists = (self.start, first, self.index, self.value, self.count)
        return table, *pairs, *lists, synapses.row_start, synapses.target, synapses.weight, width_of(count / rows)

    def receive(self, values, first, last):
        tokens = last - first
        few = {name: value for name, value in values.items() if tokens * self.batch < FEW or not self._fits(name, value.shape[2])}
        if few:
            self._receive_few(few, first, last)
        for current, value in values.items():
            if current not in few:
                parts, part_size = self.synapses.parts(current, value.shape[2])
                grid, walk = (self.batch, tokens, parts), self._walk(current, first, last)
                if current in self.synapses.wide:
                    *walk, _ = walk  # every thread has rows of its own
                    self.backend.launch(wide.synapse_forward_wide, grid, MANY_WALKERS, value, *walk, part_size, shared=4 * part_size)
                else:
                    self.backend.launch(synapse.synapse_forward, grid, WALKERS, value, *walk, part_size, shared=4 * part_size)
        if self._by_matrix(tokens):
            for current, value in values.items():
                for matrix in self._matrices_into.get(current, ()):
                    factor = self._factor(matrix.arc.source, first, last)
                    self.backend.product(value.reshape(-1, value.shape[2]), factor, matrix.weight, add=True)
        for current, value in values.items():
            for gathered in self._gathered_into.get(current, ()):
                grid, lines = (blocks(value.shape[2], FANNERS), self.groups, tokens), self._lines_of(gathered.arc.source)
                told = gathered.source, gathered.weight, gathered.arc.sources, first
                self.backend.launch(wide.synapse_gather, grid, FANNERS, value, self.synapses.kind, *lines, *told)

    def _fits(self, current, size):
        """Whether a block has room for the currents of a part, forward."""
        wide = current in self.synapses.wide
        return not wide or 4 * self.synapses.parts(current, size)[1] + MANY_SHARED <= self.backend.shared_memory

    def _shares_of(self, values, by_matrix):
        """Who walks what where there are few columns: the table of shares of some currents (kernels/synapse.py); None if nobody does."""
        key = *values, by_matrix
        if key not in self._shares:
            table, rows, place = self._tables(), [], 0
            for current, value in values.items():
                size, (first, walked, end, synapses, of_rows) = value.shape[2], self._pairs.get(current, (0, 0, 0, 1, 1))
                flags = self._flags(current) * self.batch
                own = (place, size, *self.synapses.parts(current, size), width_of(synapses / of_rows), flags)
                for pair in range(first, walked if by_matrix else end):
                    passed, plain = self._passed[pair]
                    of = blocks(int(passed * (1 if plain else EVENTS)), PASSED)
                    rows += [(pair, share, of, *own) for share in range(of)]
                place += size
            rows = np.array(rows, np.int64).reshape(-1, 1 + len(Share))
            shares = np.concatenate([self.backend.to_numpy(table)[rows[:, 0]], rows[:, 1:]], axis=1)
            self._shares[key] = self.backend.asarray(shares) if len(shares) else None
        return self._shares[key]

    def _flags(self, current):
        """Which row of `spoilt` has the flags of a current."""
        return self.flags_of.get(current, len(self.flags_of))

    def _receive_few(self, values, first, last):
        tokens, sizes, synapses = last - first, [value.shape[2] for value in values.values()], self.synapses
        arriving = self.backend._scratch("arriving", (tokens * self.batch * sum(sizes),), "int32")
        shares = self._shares_of(values, self._by_matrix(tokens))
        if shares is not None:
            lists = self.start, first, self.index, self.value, self.count
            walk = shares, *lists, synapses.row_start, synapses.target, synapses.weight
            added, by_column = (arriving, self.spoilt.reshape(-1)), any(current in synapses.wide for current in values)
            self.backend.launch(synapse.synapse_forward_few, (len(shares) * self.batch, tokens), WALKERS, *added, *walk, by_column)
        for (current, value), size in zip(values.items(), sizes, strict=True):
            own, arriving = arriving[: value.size].reshape(value.shape), arriving[value.size :]
            grid, flags = (blocks(size), self.batch, tokens), self.spoilt[self._flags(current)]
            self.backend.launch(synapse.take_currents, grid, THREADS, value, own, flags)

    def turn_back(self, length):
        self.length = length

    def owe(self, current, first, last, gradient):
        size = gradient.shape[2]
        if current in self.wide_place:
            grid, ring = (blocks(size, FANNERS), self.groups, last - first), (self.wide_place[current], self._still, self.tokens)
            self.backend.launch(wide.lay_out, grid, FANNERS, self._wide, self.synapses.kind, *ring, first, gradient)
        if current not in self.owed_place:
            return
        owed = self._owed_of(current, first, last, size)
        self.backend.round_rows(owed, gradient.reshape(-1, size))
        if self._by_matrix(last - first):
            for matrix in self._matrices_into.get(current, ()):
                self.backend.product(matrix.gradient, self._factor(matrix.arc.source, first, last).T, owed, add=True)

    def owed(self, signal, first, last, gradient):
        gradient[...] = 0
        self._walk_back(signal, first, last, self._by_matrix(last - first), gradient)
        if self._by_matrix(last - first):
            for matrix in self._matrices_from.get(signal, ()):
                owed = self._owed_of(matrix.arc.target, first, last, matrix.arc.targets)
                self.backend.product(gradient.reshape(-1, gradient.shape[2]), owed, matrix.weight.T, add=True)

    def _walk_back(self, signal, first, last, by_matrix, gradient):
        """Gradient [C, B, M], zeros before, of the signal's tokens through its synapses, without those that have a matrix where by_matrix,
        and that of their weights. Without `gradient`, of the weights only."""
        for is_wide, (begin, walked, end) in self._stretches_of(signal).items():
            if begin < (stop := walked if by_matrix else end):
                how = self._walk_by_source if is_wide else self._walk_by_tiles
                how(signal, first, last, gradient, (self._stretch_table(), begin, stop))

    def _walk_by_tiles(self, signal, first, last, gradient, stretches):
        """What comes back through modules that are not wide."""
        backend, synapses, batch, size, columns = self.backend, self.synapses, self.batch, self.signals[signal][0], self.columns

        def tiles_of(tokens):
            return blocks(tokens, columns) * batch

        count, ranges = tiles_of(last - first), blocks(size, synapses.room)
        span = blocks(size, ranges)
        heard = {name for name, is_wide in self._from if not is_wide}
        most = max(tiles_of(max(self.chunk, self.signals[name][1])) * self.signals[name][0] for name in heard)
        source_at, sent, total = (
            backend._scratch(f"back, {what}", (most * numbers,), dtype)[: count * size * numbers]
            for what, numbers, dtype in (("source_at", 1, "uint32"), ("sent", QUADS, "uint32"), ("total", columns, "float32"))
        )
        found = backend._scratch("back, found", (count, 2), "int32")
        found[...] = 0
        start, place, rows = self._ring(signal)
        ring = start, place, self.counts[signal], rows, signal in self.plain, self.index, self.value, self.count
        owed, lists = backend.bits(self._owed), (source_at, sent.reshape(QUADS, -1), found)
        told = *lists, owed, *ring, size, first, first if gradient is not None else last, last, batch, span
        backend.launch(tiles.list_sources, (count, ranges), TILERS, *told, shared=TILE_BYTES * span)
        own = (p.arc for p in synapses.projections if p.arc.source == signal and p.arc.target not in synapses.wide)
        room = TILE_BYTES * max(synapses.parts(arc.target, arc.targets)[1] for arc in own)
        walk = synapses.row_start, synapses.target, synapses.weight
        back = total, synapses.d_weight, owed, owed.view("uint32"), *stretches, *walk
        grid = count, max(1, backend.multiprocessors // count)
        backend.launch(tiles.synapse_backward, grid, TILERS, *back, *lists, size, first, self.length, batch, self.units, shared=room)
        if gradient is not None:
            across = count, blocks(size)
            backend.launch(tiles.hand_out, across, THREADS, gradient, total, found, source_at, owed, first, batch)

    def _walk_by_source(self, signal, first, last, gradient, stretches):
        """What comes back through wide modules, added."""
        synapses, batch, size = self.synapses, self.batch, self.signals[signal][0]
        sums = self._nothing.reshape(0, batch, size) if gradient is None else gradient
        walk = synapses.row_start, synapses.target, synapses.weight
        back = sums, synapses.d_weight, synapses.kind, self._wide, *stretches, *walk
        told = *self._lines_of(signal), signal in self.plain, size, first, self.length, batch, self.units
        grid = blocks(size, FANNERS), self.groups * (last - first)
        self.backend.launch(wide.synapse_backward_wide, grid, FANNERS, *back, *told)

    def settle(self, length):
        """The synapses' gradient, also from events before the segment; that of those events themselves goes nowhere."""
        for signal, (_, history) in self.signals.items():
            if history:
                self._walk_back(signal, -history, 0, True, None)  # what has a matrix has no delay
        x, total = self.synapses.gradient, self.synapses.d_weight
        across = (2, 8) if SIMULATED else (blocks(x.size), THREADS)
        self.backend.launch(fixed.take_fixed, *across, x, total, np.float32(1) / self.units)
        for matrix in self.synapses.matrices.values():
            matrix.settle()

    def advance(self, length):
        numbers = max(self.ring_rows.size, self.spoilt.size)
        self.backend.launch(events.turn_ring, blocks(numbers), THREADS, self.start, self.ring_rows, length, self.spoilt.reshape(-1))

    def _past_columns(self, signal):
        """(ring row, history index) of the past of a signal, oldest first."""
        history, rows = self.signals[signal][1], self.rows[signal]
        start = int(self.backend.to_numpy(self.start)[self.number[signal]])
        return [((start - history + h) % rows, h) for h in range(history)]

    def _column_arrays(self, signal, row):
        """Views of a ring's row: index [B, M] (None for plain values), value [B, M], count [B, 2]."""
        size, batch = self.signals[signal][0], self.batch
        first = self.lists[signal] + row * batch * size
        counts = self.counts[signal] + row * batch * 2
        index = None if signal in self.plain else self.index[first : first + batch * size].reshape(batch, size)
        return (
            index,
            self.value[first : first + batch * size].reshape(batch, size),
            self.count[counts : counts + 2 * batch].reshape(batch, 2),
        )

    def ring(self, signal):
        (size, _), rows, batch, counts = self.signals[signal], self.rows[signal], self.batch, self.counts[signal]
        start, place, _ = self._ring(signal)
        own = slice(place, place + rows * batch * size)
        ring = {} if signal in self.plain else {"index": self.index[own].reshape(rows, batch, size)}
        ring |= {"value": self.value[own].reshape(rows, batch, size), "start": start}
        return ring | {"count": self.count[counts : counts + rows * batch * 2].reshape(rows, batch, 2)[:, :, 0]}

    def past(self, signal):
        size, history = self.signals[signal]
        past = self.backend.zeros((history, self.batch, size))
        for row, h in self._past_columns(signal):
            index, value, count = self._column_arrays(signal, row)
            if index is None:
                past[h] = value
            else:
                self.backend.launch(events.spread_events, (blocks(size), self.batch), THREADS, past[h], index, value, count)
        return self.backend.fetch(past)

    def set_past(self, signal, past):
        for row, h in self._past_columns(signal):
            index, value, count = self._column_arrays(signal, row)
            if index is None:
                value[...] = self.backend.asarray(past[h])
                continue
            new_index, new_value = np.zeros(index.shape, index.dtype), np.zeros(value.shape, np.float32)
            new_count = np.zeros(count.shape, np.int32)
            for b in range(self.batch):
                heard = np.flatnonzero(past[h, b])
                new_count[b, 0] = heard.size
                new_index[b, : heard.size], new_value[b, : heard.size] = heard, past[h, b, heard]
            for array, values in ((index, new_index), (value, new_value), (count, new_count)):
                array[...] = self.backend.asarray(values)
        if signal in self._always_lines and len(past):
            self._lay_out(signal, -len(past), self.backend.asarray(past, "float32"))

    def forget(self, sequences):
        for signal, (size, history) in self.signals.items():
            if not history:
                continue
            rows, batch = self.rows[signal], self.batch
            if signal in self.plain:
                ring = self.value[self.lists[signal] :][: rows * batch * size]
            else:
                ring, size = self.count[self.counts[signal] :][: rows * batch * 2], 2
            self.backend.forget(ring.reshape(rows, batch, size), sequences)
        for signal in self._always_lines:
            size, history = self.signals[signal]
            if history:
                words, _, rows = self._lines_of(signal)
                grid = blocks(size, FANNERS), self.groups, rows
                self.backend.launch(wide.forget_lines, grid, FANNERS, words, self.synapses.kind, size, sequences)
