"""Synapses in bundles on a GPU: tables, 16-bit copies of the weights, rings, launches (kernels/bundles.py, mma.py)."""

from __future__ import annotations

import math
import weakref

import numpy as np

from ..errors import ConfigError
from ..kernels import bundles, mma
from ..kernels.bundles import (
    BEGIN,
    BUNDLE_COLUMNS,
    COPY_LENGTH,
    COPY_PLACE,
    COPY_RING,
    D_PLACE,
    END,
    ENTRY_COLUMNS,
    FIRST,
    LAST,
    LATE,
    LENGTH,
    LINE,
    NUMBER,
    OUT,
    OUTPUTS,
    PLACE,
    RING,
    SIZE,
    SLICE,
    SLICE_WORDS,
    TILE_COLUMNS,
    WEIGHT,
    WORD,
)
from ..kernels.launch import SIMULATED, THREADS, blocks
from .base import Synapses, SynapticState

WRITERS = 8 if SIMULATED else THREADS  # threads of a block that copies
ENOUGH, PLENTY = 2, 8  # blocks of a launch for each multiprocessor: with fewer, tiles are made smaller; with more, wider
WIDEST = 64  # numbers of a tile


# A bundle where it lies whatever the batch: the number of its projection; its first source and first target in a column, and the first of
# its weights, in words; its delay in tokens.
ROW = np.dtype([(name, np.int64) for name in ("projection", "source", "target", "weight", "delay")])


class CudaSynapses(Synapses):
    """The bundles of all projections, and with tensor cores the weights in 16 bits, in the order of either direction.

    forward: current -> [(arc, rows)] of the projections that it reads; backward: signal -> the same of those that read it; learned and
    places: size of a bundle -> rows, and where the weights of each begin. They do so alike in `weight`, `gradient` and `read`: what the
    kernels forward and backward read, made by `refresh` from `latest`.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        tables = [parameters.table[f"{p.arc.name}.weight"] for p in projections]
        offsets = [(parameters.offset[table.name], parameters.numbers(table)) for table in tables]
        first, end = min(offset for offset, _ in offsets), max(offset + size for offset, size in offsets)
        self.weight, self.gradient = (flat[first:end] for flat in (parameters.flat_value, parameters.flat_gradient))
        self.place = {p.arc.name: offset - first for p, (offset, _) in zip(projections, offsets, strict=True)}
        self.dtype, self.kind = backend.product_dtype, backend.tile_product
        self.currents = list(dict.fromkeys(p.arc.target for p in projections))
        self.signals = list(dict.fromkeys(p.arc.source for p in projections))
        self._states = weakref.WeakSet()  # whose tables `rewire` builds again

    def wire(self):
        self._read_structure()
        self.places = {size: self.backend.asarray(rows["weight"]) for size, rows in self.learned.items()}
        if self.kind is None:
            self.read = self.weight, self.weight
        else:
            self.read = tuple(self.backend.zeros((blocks(self.weight.size, WORD), WORD), self.dtype) for _ in range(2))

    def rewire(self, gradient_only=False):
        self._read_structure()
        return gradient_only or all([state.rewire() for state in self._states])

    def _read_structure(self):
        """Rows of all bundles, from the structure of the projections."""
        self.forward, self.backward, learned = {}, {}, {}
        for number, p in enumerate(self.projections):
            arc, rows = p.arc, np.zeros(p.block.size, ROW)
            words = arc.bundle // WORD
            rows["projection"], rows["delay"] = number, p.delay.ravel()
            rows["source"] = p.block.ravel() * words
            rows["target"] = np.repeat(np.arange(arc.tiles), arc.bundles_per_tile) * words
            rows["weight"] = self.place[arc.name] // WORD + np.arange(p.block.size) * arc.bundle * words
            self.forward.setdefault(arc.target, []).append((arc, rows))
            self.backward.setdefault(arc.source, []).append((arc, rows))
            learned.setdefault(arc.bundle, []).append(rows)
        self.learned = {size: np.concatenate(parts) for size, parts in learned.items()}

    def refresh(self, weight=None):
        weight = self.latest = self.weight if weight is None else weight
        if self.kind is None:
            self.read = weight, weight
            return
        for size, places in self.places.items():
            copies = (self.backend.bits(copy) for copy in self.read)
            self.backend.launch(bundles.make_pack(size), len(places), THREADS, *copies, weight, places)

    def state(self, signals, currents, tokens, batch, learning, copied):
        state = CudaSynapticState(self, signals, currents, tokens, batch, learning, copied)
        self._states.add(state)
        return state


class CudaSynapticState(SynapticState):
    """Rings x of all signals, [lines, rows, B, LINE] each, rows = history + T: token t of the segment is in row (start + t) % rows. And
    gradients d of all currents, [lines, T, B, LINE] each. Both of the type that products multiply, one after the other in a flat array
    each."""

    direct_gradients = True

    def __init__(self, synapses, signals, currents, tokens, batch, learning, copied):
        self.synapses, self.backend, self.batch, self.sizes, self.copied = synapses, synapses.backend, batch, signals, copied
        self.rows = {name: signals[name][1] + tokens for name in synapses.signals}
        zeros = self.backend.zeros
        self.x, self._x_places = self._flat(self.rows, {name: size for name, (size, _) in signals.items()})
        self.start, self._rows = zeros(len(self.rows), "int32"), self.backend.asarray(list(self.rows.values()), "int32")
        # float16 holds 6e-8 to 65,504: a token's share of the gradient is made so much larger on its way
        self.scale = np.float32(2.0 ** (4 + math.ceil(math.log2(tokens * batch))) if synapses.dtype == "float16" else 1)
        if learning:
            self.d, self._d_places = self._flat(dict.fromkeys(synapses.currents, tokens), currents)
        self._tables = {}

    def _table(self, make, *how):
        """What `make` makes of the bundles, a tuple: made when first asked for, and again where they have become others. A recorded step
        reads the arrays that it was captured with, so their content is replaced if the shapes are the same."""
        made, table = self._tables.get((make.__name__, how), (None, None))
        if made is not self.synapses.learned:
            new = make(*how)
            if table and [np.shape(array) for array in table] == [np.shape(array) for array in new] and table[2:] == new[2:]:
                for old, array in zip(table[:2], new[:2], strict=True):
                    old[...] = array
            else:
                table = new
            self._tables[make.__name__, how] = self.synapses.learned, table
        return table

    def rewire(self):
        """Build all tables again. Returns whether each is still in its array."""
        before = {key: table[0] for key, (_, table) in self._tables.items()}
        return all([self._table(getattr(self, make), *how)[0] is before[make, how] for make, how in before])

    def _read(self, table, rows, side, place):
        """Fill a column of a table in for rows that read x ("source") or d ("target"); returns the columns of the matrices."""
        places = self._x_places if side == "source" else self._d_places
        matrices = np.array([places[getattr(p.arc, side)] for p in self.synapses.projections])[rows["projection"]]
        table[:, place] = self._place(*matrices.T[:2], WORD * rows[side]) // SLICE
        return matrices[:, 1]

    @staticmethod
    def _place(first, columns, number):
        """Index in the flat array of a number of the first column, of a matrix with `columns` columns that begins at index `first`."""
        return first + number // LINE * LINE * columns + number % LINE

    def _common(self, table, rows):
        """Fill in what tables have alike."""
        synapses = self.synapses
        table[:, WEIGHT], table[:, LATE] = rows["weight"], rows["delay"] * self.batch
        table[:, RING] = np.array([synapses.signals.index(p.arc.source) for p in synapses.projections])[rows["projection"]]

    def _learned(self, size):
        """The table of the bundles of a size, for `weight_grad`."""
        rows = self.synapses.learned[size]
        table = np.zeros((len(rows), BUNDLE_COLUMNS), np.int32)
        table[:, LENGTH] = self._read(table, rows, "source", PLACE)
        self._read(table, rows, "target", D_PLACE)
        self._common(table, rows)
        if bundles.of_block(size) > 1:  # neighbours in a block then share what they have of the same targets
            table = table[np.argsort(table[:, D_PLACE], kind="stable")]
        return (self.backend.asarray(table),)

    def _tiles(self, names, back, width, size):
        """(tiles, entries, whether some do not fill their tile) of a launch of `gather` that writes some currents, or the
        gradients of some signals, in tiles of `width` numbers; from bundles of one size alone, or of any (None)."""
        known, read, out = (self.synapses.backward, "target", "source") if back else (self.synapses.forward, "source", "target")
        tiles, entries, their_tiles = [], [], []
        for number, name in enumerate(names):
            numbers = self._numbers(name, back)
            own, first_tile = np.zeros((blocks(numbers, width), TILE_COLUMNS), np.int32), sum(map(len, tiles))
            own[:, OUT], own[:, NUMBER], own[:, SIZE], own[:, COPY_PLACE] = number, np.arange(len(own)) * width, numbers, -1
            if not back and name in self.copied:
                signal = self.copied[name]
                first, columns, _ = self._x_places[signal]
                own[:, COPY_PLACE], own[:, COPY_LENGTH] = self._place(first, columns, own[:, NUMBER]) // SLICE, columns
                own[:, COPY_RING] = self.synapses.signals.index(signal)
            tiles.append(own)
            for arc, rows in known[name]:
                if size in (None, arc.bundle):
                    slices, tile = self._slices(arc.bundle, rows, read, out, width)
                    there = tile < len(own)  # of the last bundle, perhaps not all
                    entries.append(slices[there])
                    their_tiles.append(first_tile + tile[there])
        tiles, entries, tile = np.concatenate(tiles), np.concatenate(entries), np.concatenate(their_tiles)
        tiles[:, END] = np.cumsum(np.bincount(tile, minlength=len(tiles)))
        tiles[1:, BEGIN] = tiles[:-1, END]
        mixed = bool((entries[:, LAST] - entries[:, FIRST] < width // 8).any())
        return *map(self.backend.asarray, (tiles, entries[np.argsort(tile, kind="stable")])), mixed

    def _slices(self, size, rows, read, out, width):
        """(entries, the output tile of each) of a projection's bundles. A bundle that is wider than a tile leads to several."""
        words, parts = size // WORD, max(1, size // width)
        rows = np.repeat(rows, size // SLICE * parts)
        number = np.arange(len(rows)) % (size // SLICE * parts)
        slices, part = number // parts, number % parts
        first_out = WORD * rows[out] + part * width
        rows[read] += slices * SLICE_WORDS
        # the weights of a slice lie one after the other, but those that are learned where they are read backward
        learned = self.synapses.kind is None and read == "target"
        rows["weight"] += slices * (SLICE_WORDS if learned else SLICE * words) + part * (width // 8 * 32)
        table = np.zeros((len(rows), ENTRY_COLUMNS), np.int32)
        table[:, LENGTH] = self._read(table, rows, read, PLACE)
        self._common(table, rows)
        table[:, FIRST] = first_out % width // 8
        table[:, LAST] = table[:, FIRST] + min(size, width) // 8
        return table, first_out // width

    def _flat(self, rows, sizes):
        """(array, name -> [first, columns, lines]) of matrices [rows B, sizes] one after the other."""
        regions, end = {}, 0
        for name in rows:
            regions[name] = [end, rows[name] * self.batch, blocks(sizes[name], LINE)]
            end += math.prod(regions[name][1:]) * LINE
        if end // SLICE >= 2**31:
            raise ConfigError(f"{self.batch:,} sequences: what their synapses read has {end:,} numbers, more than a GPU's tables can name")
        return self.backend.zeros(end, self.synapses.dtype), regions

    @staticmethod
    def _matrix(flat, region):
        """A region's matrix [lines, columns, LINE] in a flat array."""
        first, columns, lines = region
        return flat[first : first + lines * columns * LINE].reshape(lines, columns, LINE)

    def _ring(self, signal):
        """(ring [lines, rows B, LINE], start [1], rows) as kernels take them."""
        number = self.synapses.signals.index(signal)
        ring = self.backend.bits(self._matrix(self.x, self._x_places[signal]))
        return ring, self.start[number : number + 1], self.rows[signal]

    def _words(self, flat, size):
        """A flat array of 16-bit numbers as words of `size` bits; a float32 array unchanged."""
        return flat if self.synapses.kind is None else self.backend.bits(flat).view(f"uint{size}")

    def axon(self, signal):
        no_axon = self.backend.no_axon
        if signal not in self.rows:
            return no_axon
        ring = self.ring(signal)
        return no_axon._replace(ring=ring["value"], start=ring["start"])

    def _gather(self, outputs, back, first, x, limit, scale):
        """Overwrite some currents, or gradients of signals, name -> [C, B, N], in as many launches as have room for them."""
        known, names = (self.synapses.backward if back else self.synapses.forward), []
        for name, out in outputs.items():
            if name in known:
                names.append(name)
            else:
                out[...] = 0
        for number in range(0, len(names), OUTPUTS):
            some = tuple(names[number : number + OUTPUTS])
            sizes = sorted({arc.bundle for name in some for arc, _ in known[name]}, reverse=True)
            self._launch(some, [outputs[name] for name in some], sizes, back, first, x, limit, scale)

    def _launch(self, names, outs, sizes, back, first, x, limit, scale):
        synapses, columns = self.synapses, outs[0].shape[0] * self.batch
        copy, flat = self._words(synapses.read[1 if back else 0].reshape(-1), 64), self.backend._flat(*outs)
        arrays = *flat, *flat[:1] * (OUTPUTS - len(flat)), self._words(x, 32), self._words(x, 64), copy
        numbers = self.start, first, limit, columns, self.batch, np.float32(scale)
        if synapses.kind is None:  # one launch a size, the largest first; the others add to it
            at_once = SLICE if columns <= SLICE else bundles.COLUMNS_FP32
            for size in sizes:
                *tables, _ = self._table(self._tiles, names, back, size, size)
                kernel = bundles.make_gather_fp32(size, at_once, back, size != sizes[0])
                threads = (size // mma.EDGE) * (at_once // mma.EDGE)
                self.backend.launch(kernel, (len(tables[0]), blocks(columns, at_once)), threads, *arrays, *tables, *numbers)
            return
        width, at_once = self._tile_shape(names, back, sizes[0], columns)
        *tables, mixed = self._table(self._tiles, names, back, width, None)
        kernel = bundles.make_gather(synapses.kind, width, at_once, back, mixed)
        grid = len(tables[0]), blocks(columns, at_once)
        self.backend.launch(kernel, grid, bundles.threads_of(at_once), *arrays, *tables, *numbers)

    def _tile_shape(self, names, back, size, columns):
        """(numbers of a tile, columns of a block) of a launch: the largest that make enough blocks for the card.

        Bundles that are narrower than a tile share its block; wider ones are cut.
        """
        few, *many = bundles.COLUMNS
        if columns <= few:
            return SLICE, few
        numbers, multiprocessors = [self._numbers(name, back) for name in names], self.backend.multiprocessors

        def blocks_of(width, at_once):
            return sum(blocks(n, width) for n in numbers) * blocks(columns, at_once)

        if size == SLICE and blocks_of(WIDEST, many[-1]) >= PLENTY * multiprocessors:
            return WIDEST, many[-1]  # a block with a few slices of 16 targets spends its time on tables and stores
        forms = [(size, at_once) for at_once in reversed(many) if at_once == many[0] or columns > many[0]]
        forms += [(width, many[0]) for width in (size // 2, size // 4) if width >= SLICE]
        return next((form for form in forms if blocks_of(*form) >= ENOUGH * multiprocessors), forms[-1])

    def _numbers(self, name, back):
        """Numbers of a column of a current, or of a signal's gradient."""
        (arc, _), *_ = (self.synapses.backward if back else self.synapses.forward)[name]
        return arc.sources if back else arc.targets

    def forward(self, values, first, last):
        self._gather(values, False, first, self.x, 0, 1)

    def current_grad(self, current, first, last):
        return self._matrix(self.d, self._d_places[current]), first * self.batch, self.scale

    def set_current_grad(self, current, first, last, gradient):
        d, gradient = self.backend.bits(self._matrix(self.d, self._d_places[current])), gradient.reshape(-1, gradient.shape[2])
        grid = len(gradient), blocks(gradient.shape[1], WRITERS * bundles.OWN)
        self.backend.launch(bundles.write_gradient, grid, WRITERS, d, first * self.batch, gradient, self.scale)

    def source_grad(self, gradients, first, last, length):
        self._gather(gradients, True, first, self.d, length * self.batch, 1 / self.scale)

    def accumulate_weight_grad(self, length):
        synapses = self.synapses
        for size in synapses.learned:
            (table,) = self._table(self._learned, size)
            if synapses.kind is None:
                kernel, at_once, threads = bundles.make_weight_grad_fp32(size), 1, (size // mma.EDGE) ** 2
            else:
                kernel, at_once, threads = bundles.make_weight_grad(synapses.kind, size), bundles.of_block(size), bundles.THREADS
            arrays = self._words(self.x, 64), self._words(self.d, 64), table, self.start
            numbers = length * self.batch, self.batch, np.float32(1 / self.scale)
            self.backend.launch(kernel, blocks(len(table), at_once), threads, synapses.gradient, *arrays, *numbers)

    def advance(self, length):
        self.backend.launch(bundles.advance_rings, 1, len(self._rows), self.start, self._rows, length)

    def ring(self, signal):
        ring, start, rows = self._ring(signal)
        return {"value": self._matrix(self.x, self._x_places[signal]).reshape(len(ring), rows, self.batch, LINE), "start": start}

    def _past_rows(self, signal):
        """Rows of the ring of the tokens before the segment, the oldest first."""
        history, rows = self.sizes[signal][1], self.rows[signal]
        start = int(self.backend.to_numpy(self.start)[self.synapses.signals.index(signal)])
        return [(start - history + h) % rows for h in range(history)]

    def past(self, signal):
        size, history = self.sizes[signal]
        ring, past = self.ring(signal)["value"], self.backend.zeros((history, self.batch, size))
        for h, row in enumerate(self._past_rows(signal)):
            past[h] = ring[:, row].astype("float32").transpose(1, 0, 2).reshape(self.batch, -1)[:, :size]
        return self.backend.fetch(past)

    def set_past(self, signal, past):
        ring, size = self.ring(signal)["value"], self.sizes[signal][0]
        whole = self.backend.zeros((self.batch, len(ring) * LINE))
        for h, row in enumerate(self._past_rows(signal)):
            whole[:, :size] = self.backend.asarray(past[h], "float32")
            ring[:, row] = whole.reshape(self.batch, len(ring), LINE).transpose(1, 0, 2)

    def reset(self, sequences):
        for signal, (_, history) in self.sizes.items():
            if history:  # then somebody reads it
                self.backend.reset(self._ring(signal)[0].reshape(-1, self.batch, LINE), sequences)
