"""Synapses in bundles on a GPU: tables, 16-bit copies of the weights, rings, launches (kernels/bundles.py, mma.py)."""

from __future__ import annotations

import itertools
import math
import weakref

import numpy as np

from ..errors import ConfigError
from ..kernels import bundles, mma
from ..kernels.bundles import (
    BEGIN,
    BUNDLE_COLUMNS,
    COPY_LENGTH,
    COPY_OFFSET,
    COPY_RING,
    D_OFFSET,
    DELAY,
    END,
    ENTRY_COLUMNS,
    FIRST,
    LAST,
    LENGTH,
    LINE,
    NUMBER,
    OFFSET,
    OUT,
    OUTPUTS,
    RING,
    SCALE,
    SIZE,
    SLICE,
    SLICE_WORDS,
    TILE_COLUMNS,
    WEIGHT,
    WORD,
)
from ..kernels.codes import pack, unpack
from ..kernels.launch import SIMULATED, THREADS, blocks
from .base import Synapses, SynapticState

COPY_BLOCK_DIM = 8 if SIMULATED else THREADS  # block size of `write_gradient`
MIN_BLOCKS_PER_SM = 2  # a launch with fewer blocks per multiprocessor gets smaller tiles
MANY_BLOCKS_PER_SM = 8  # a launch with more gets wider tiles
MAX_TILE = 64  # numbers of a tile


# A bundle, independent of the batch: index of its projection; offsets of its first source and first target in a column, and of its weights,
# in words; delay in tokens; index of the scale of its codes.
ROW = np.dtype([(name, np.int64) for name in ("projection", "source", "target", "weight", "delay", "scale")])


class CudaSynapses(Synapses):
    """The bundles of all projections; with tensor cores also two 16-bit copies of the weights, one packed for each direction.

    forward: current -> [(arc, rows)] of the projections into it; backward: signal -> [(arc, rows)] of the projections that read it.
    learned, weight_offsets: size of a bundle -> its rows, and the offsets of their weights. A bundle has the same offset in `weight`,
    `gradient` and `read`. read: what the forward and the backward kernel read; `refresh` computes it from `latest`. Codes
    (kernels/codes.py) are packed once, for the forward direction only.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        part = parameters.together([f"{p.arc.name}.weight" for p in projections])
        self.weight, self.gradient, scale, weight_offsets, scale_offsets = part
        self.bits, self.scale = parameters.bits, scale if parameters.bits else backend.zeros(1)
        names = [p.arc.name for p in projections]
        self.weight_offset, self.scale_offset = (dict(zip(names, each, strict=True)) for each in (weight_offsets, scale_offsets))
        self.dtype, self.kind = backend.product_dtype, backend.tile_product
        self.currents = list(dict.fromkeys(p.arc.target for p in projections))
        self.signals = list(dict.fromkeys(p.arc.source for p in projections))
        self._states = weakref.WeakSet()  # whose tables `rewire` builds again

    def wire(self):
        self._read_structure()
        self.weight_offsets = {size: self.backend.asarray(rows["weight"]) for size, rows in self.learned.items()}
        if self.bits:
            self.read = (self._packed_codes(),)
        elif self.kind is None:
            self.read = self.weight, self.weight
        else:
            self.read = tuple(self.backend.zeros((blocks(self.weight.size, WORD), WORD), self.dtype) for _ in range(2))

    def _packed_codes(self):
        """The codes as forward kernels read them: [1, N] in the order of the checkpoint; for tensor cores in that of `make_pack`."""
        if self.kind is None:
            return self.weight.reshape(1, -1)
        stored = self.backend.to_numpy(self.weight)
        packed = np.empty_like(stored)
        for p in self.projections:
            size, first = p.arc.bundle, self.weight_offset[p.arc.name] * self.bits // 8
            part = slice(first, first + p.block.size * size * size * self.bits // 8)
            shape = p.block.size, size // SLICE, SLICE_WORDS, WORD, size // 8, 8  # bundle, slice, q, number of the word, tile, g
            by_lane = unpack(stored[part].reshape(p.block.size, -1)).reshape(shape).transpose(0, 1, 4, 5, 2, 3)
            packed[part] = pack(by_lane.reshape(p.block.size, -1), self.bits).reshape(-1)
        return self.backend.asarray(packed)

    def rewire(self):
        self._read_structure()
        return all([state.rewire() for state in self._states])

    def _read_structure(self):
        """Rows of all bundles, from the structure of the projections."""
        self.forward, self.backward, learned = {}, {}, {}
        for number, p in enumerate(self.projections):
            arc, rows = p.arc, self.rows(number, p.tile, p.block.ravel(), p.delay.ravel(), p.arc.bundle)
            rows["weight"] += self.weight_offset[arc.name] // WORD
            rows["scale"] += self.scale_offset[arc.name]
            self.forward.setdefault(arc.target, []).append((arc, rows))
            self.backward.setdefault(arc.source, []).append((arc, rows))
            learned.setdefault(arc.bundle, []).append(rows)
        self.learned = {size: np.concatenate(parts) for size, parts in learned.items()}

    @staticmethod
    def rows(projection, tile, block, delay, size):
        """Rows of bundles [size, size]; their weights follow one another, from offset 0 on."""
        rows, words = np.zeros(len(tile), ROW), size // WORD
        rows["projection"], rows["source"], rows["target"], rows["delay"] = projection, block * words, tile * words, delay
        rows["weight"], rows["scale"] = np.arange(len(rows)) * size * words, np.arange(len(rows))
        return rows

    def refresh(self, weight=None):
        if self.bits:
            return
        weight = self.latest = self.weight if weight is None else weight
        if self.kind is None:
            self.read = weight, weight
            return
        for size, weight_offsets in self.weight_offsets.items():
            copies = (self.backend.bits(copy) for copy in self.read)
            self.backend.launch(bundles.make_pack(size), len(weight_offsets), THREADS, *copies, weight, weight_offsets)

    def state(self, signals, currents, tokens, batch, learning, copied):
        state = CudaSynapticState(self, signals, currents, tokens, batch, learning, copied)
        self._states.add(state)
        return state


class CudaSynapticState(SynapticState):
    """Buffers of all signals and currents, in the dtype of the products.

    x: a flat array of rings, [lines, rows, B, LINE] each, rows = history + T; token t of the segment is in row (start + t) % rows. d: a
    flat array of the currents' gradients, [lines, T, B, LINE] each.
    """

    direct_gradients = True

    def __init__(self, synapses, signals, currents, tokens, batch, learning, copied):
        self.synapses, self.backend, self.batch, self.sizes, self.copied = synapses, synapses.backend, batch, signals, copied
        self.rows = {name: signals[name][1] + tokens for name in synapses.signals}
        zeros = self.backend.zeros
        self.x, self._x_regions = self._flat(self.rows, {name: size for name, (size, _) in signals.items()})
        self.start, self._rows = zeros(len(self.rows), "int32"), self.backend.asarray(list(self.rows.values()), "int32")
        # Loss scaling: float16 represents 6e-8 to 65,504, and the gradient of one token of a mean is small.
        self.scale = np.float32(2.0 ** (4 + math.ceil(math.log2(tokens * batch))) if synapses.dtype == "float16" else 1)
        if learning:
            self.d, self._d_regions = self._flat(dict.fromkeys(synapses.currents, tokens), currents)
        self._tables = {}
        arcs, sides = [p.arc for p in synapses.projections], {"source": self._x_regions} | ({"target": self._d_regions} if learning else {})
        self._rings = np.array([synapses.signals.index(arc.source) for arc in arcs])
        self._regions = {side: np.array([regions[getattr(arc, side)] for arc in arcs]).T for side, regions in sides.items()}

    def _table(self, make, *how):
        """The table make(*how), a tuple, cached until the synapses are wired again. A recorded step reads the arrays of its capture, so
        their content is replaced if the shapes are the same."""
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
        """Rebuild all tables. Returns whether each is still in its array."""
        before = {key: table[0] for key, (_, table) in self._tables.items()}
        return all([self._table(getattr(self, make), *how)[0] is before[make, how] for make, how in before])

    def _read(self, table, rows, side, column):
        """Fill a column of a table with the offsets that rows read in x (side "source") or d ("target"). Returns the matrices' column
        counts."""
        first, columns, _ = self._regions[side][:, rows["projection"]]
        table[:, column] = self._offset(first, columns, WORD * rows[side]) // SLICE
        return columns

    @staticmethod
    def _offset(first, columns, number):
        """Offset, in the flat array, of a number of the first column of a matrix that begins at `first` and has `columns` columns."""
        return first + number // LINE * LINE * columns + number % LINE

    def _common(self, table, rows):
        """Fill the columns that all tables share."""
        table[:, WEIGHT], table[:, DELAY] = rows["weight"], rows["delay"] * self.batch
        table[:, RING] = self._rings[rows["projection"]]

    def _learned(self, size):
        """The table of all bundles of a size, for `weight_grad`."""
        return (self._bundles(size, self.synapses.learned[size]),)

    def _bundles(self, size, rows):
        """The table of bundles of a size, for `weight_grad`."""
        table = np.zeros((len(rows), BUNDLE_COLUMNS), np.int32)
        table[:, LENGTH] = self._read(table, rows, "source", OFFSET)
        self._read(table, rows, "target", D_OFFSET)
        self._common(table, rows)
        if bundles.bundles_per_block(size) > 1:  # so that bundles of a block often have the same targets and share a copy of d
            table = table[np.argsort(table[:, D_OFFSET], kind="stable")]
        return self.backend.asarray(table)

    def _tiles(self, names, back, width, size):
        """(tiles, entries, whether some bundles are smaller than the tile) for a launch of `gather` that writes the named currents (or,
        with `back`, the gradients of signals) in tiles of `width` numbers. size: only bundles of this size; None: all."""
        projections_of, read, out = (self.synapses.backward, "target", "source") if back else (self.synapses.forward, "source", "target")
        tiles, entries, their_tiles = [], [], []
        for number, name in enumerate(names):
            numbers = self._numbers(name, back)
            table, first_tile = np.zeros((blocks(numbers, width), TILE_COLUMNS), np.int32), sum(map(len, tiles))
            table[:, OUT], table[:, NUMBER], table[:, SIZE], table[:, COPY_OFFSET] = number, np.arange(len(table)) * width, numbers, -1
            if not back and name in self.copied:
                signal = self.copied[name]
                first, columns, _ = self._x_regions[signal]
                table[:, COPY_OFFSET], table[:, COPY_LENGTH] = self._offset(first, columns, table[:, NUMBER]) // SLICE, columns
                table[:, COPY_RING] = self.synapses.signals.index(signal)
            tiles.append(table)
            for bundle, some in itertools.groupby(projections_of[name], lambda entry: entry[0].bundle):
                if size in (None, bundle):
                    slices, tile = self._slices(bundle, np.concatenate([rows for _, rows in some]), read, out, width)
                    inside = tile < len(table)  # the last bundle may extend beyond the output
                    entries.append(slices[inside])
                    their_tiles.append(first_tile + tile[inside])
        tiles, entries, tile = np.concatenate(tiles), np.concatenate(entries), np.concatenate(their_tiles)
        tiles[:, END] = np.cumsum(np.bincount(tile, minlength=len(tiles)))
        tiles[1:, BEGIN] = tiles[:-1, END]
        mixed = bool((entries[:, LAST] - entries[:, FIRST] < width // 8).any())
        return *map(self.backend.asarray, (tiles, entries[np.argsort(tile, kind="stable")])), mixed

    def _slices(self, size, rows, read, out, width):
        """(entries, output tile of each) for bundles of a size. A bundle that is wider than a tile has entries in several tiles."""
        words, parts = size // WORD, max(1, size // width)
        rows = np.repeat(rows, size // SLICE * parts)
        number = np.arange(len(rows)) % (size // SLICE * parts)
        slices, part = number // parts, number % parts
        first_out = WORD * rows[out] + part * width
        rows[read] += slices * SLICE_WORDS
        # The packed weights of a slice are contiguous. Unpacked weights (float32) read backward are strided.
        learned = self.synapses.kind is None and read == "target"
        rows["weight"] += slices * (SLICE_WORDS if learned else SLICE * words) + part * (width // 8 * 32)
        table = np.zeros((len(rows), ENTRY_COLUMNS), np.int32)
        table[:, LENGTH] = self._read(table, rows, read, OFFSET)
        self._common(table, rows)
        table[:, SCALE] = rows["scale"]
        table[:, FIRST] = first_out % width // 8
        table[:, LAST] = table[:, FIRST] + min(size, width) // 8
        return table, first_out // width

    def _flat(self, rows, sizes):
        """(flat array, name -> [first, columns, lines]) for consecutive matrices [rows B, sizes]."""
        regions, end = {}, 0
        for name in rows:
            regions[name] = [end, rows[name] * self.batch, blocks(sizes[name], LINE)]
            end += math.prod(regions[name][1:]) * LINE
        if end // SLICE >= 2**31:
            raise ConfigError(f"{self.batch:,} sequences: the synapses' buffers have {end:,} numbers, more than 32-bit offsets can address")
        return self.backend.zeros(end, self.synapses.dtype), regions

    @staticmethod
    def _matrix(flat, region):
        """A region's matrix [lines, columns, LINE] in a flat array."""
        first, columns, lines = region
        return flat[first : first + lines * columns * LINE].reshape(lines, columns, LINE)

    def _ring(self, signal):
        """(ring [lines, rows B, LINE], start [1], rows), the arguments of a kernel for a signal."""
        number = self.synapses.signals.index(signal)
        ring = self.backend.bits(self._matrix(self.x, self._x_regions[signal]))
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
        """Overwrite currents, or gradients of signals, name -> [C, B, N], by launches of up to OUTPUTS outputs each."""
        projections_of, names = (self.synapses.backward if back else self.synapses.forward), []
        for name, out in outputs.items():
            if name in projections_of:
                names.append(name)
            else:
                out[...] = 0
        for number in range(0, len(names), OUTPUTS):
            some = tuple(names[number : number + OUTPUTS])
            sizes = sorted({arc.bundle for name in some for arc, _ in projections_of[name]}, reverse=True)
            self._launch(some, [outputs[name] for name in some], sizes, back, first, x, limit, scale)

    def _launch(self, names, outs, sizes, back, first, x, limit, scale):
        synapses, columns = self.synapses, outs[0].shape[0] * self.batch
        copy, flat = synapses.read[1 if back else 0], self.backend._flat(*outs)
        copy = copy if synapses.bits and synapses.kind is None else self._words(copy.reshape(-1), 64)
        arrays = *flat, *flat[:1] * (OUTPUTS - len(flat)), self._words(x, 32), self._words(x, 64), copy, synapses.scale
        numbers = self.start, first, limit, columns, self.batch, np.float32(scale)
        if synapses.kind is None:  # one launch per bundle size: the largest overwrites, the others accumulate
            block_columns = SLICE if columns <= SLICE else bundles.COLUMNS_FP32
            for size in sizes:
                *tables, _ = self._table(self._tiles, names, back, size, size)
                kernel = bundles.make_gather_fp32(size, block_columns, back, size != sizes[0], synapses.bits > 0)
                threads = (size // mma.EDGE) * (block_columns // mma.EDGE)
                self.backend.launch(kernel, (len(tables[0]), blocks(columns, block_columns)), threads, *arrays, *tables, *numbers)
            return
        width, block_columns = self._tile_shape(names, back, sizes[0], columns)
        *tables, mixed = self._table(self._tiles, names, back, width, None)
        kernel = bundles.make_gather(synapses.kind, width, block_columns, back, mixed, synapses.bits or 16)
        grid = len(tables[0]), blocks(columns, block_columns)
        self.backend.launch(kernel, grid, bundles.threads_of(block_columns), *arrays, *tables, *numbers)

    def _tile_shape(self, names, back, size, columns):
        """(numbers of a tile, columns of a block) of a launch: the largest shape that gives enough blocks to fill the card.

        Bundles that are narrower than a tile share its block; wider ones are split.
        """
        narrow, *wide = bundles.COLUMNS
        if columns <= narrow:
            return SLICE, narrow
        numbers, multiprocessors = [self._numbers(name, back) for name in names], self.backend.multiprocessors

        def blocks_of(width, block_columns):
            return sum(blocks(n, width) for n in numbers) * blocks(columns, block_columns)

        if size == SLICE and blocks_of(MAX_TILE, wide[-1]) >= MANY_BLOCKS_PER_SM * multiprocessors:
            return MAX_TILE, wide[-1]  # blocks with few slices of 16 targets would be limited by tables and stores
        shapes = [(size, block_columns) for block_columns in reversed(wide) if block_columns == wide[0] or columns > wide[0]]
        shapes += [(width, wide[0]) for width in (size // 2, size // 4) if width >= SLICE]
        return next((form for form in shapes if blocks_of(*form) >= MIN_BLOCKS_PER_SM * multiprocessors), shapes[-1])

    def _numbers(self, name, back):
        """Numbers in a column of a current, or of a signal's gradient."""
        (arc, _), *_ = (self.synapses.backward if back else self.synapses.forward)[name]
        return arc.sources if back else arc.targets

    def forward(self, values, first, last):
        self._gather(values, False, first, self.x, 0, 1)

    def current_grad(self, current, first, last):
        return self._matrix(self.d, self._d_regions[current]), first * self.batch, self.scale

    def set_current_grad(self, current, first, last, gradient):
        d, gradient = self.backend.bits(self._matrix(self.d, self._d_regions[current])), gradient.reshape(-1, gradient.shape[2])
        grid = len(gradient), blocks(gradient.shape[1], COPY_BLOCK_DIM * bundles.NUMBERS_PER_THREAD)
        self.backend.launch(bundles.write_gradient, grid, COPY_BLOCK_DIM, d, first * self.batch, gradient, self.scale)

    def source_grad(self, gradients, first, last, length):
        self._gather(gradients, True, first, self.d, length * self.batch, 1 / self.scale)

    def accumulate_weight_grad(self, length):
        for size in self.synapses.learned:
            self._weight_grad(self.synapses.gradient, size, *self._table(self._learned, size), length)

    def _weight_grad(self, gradient, size, table, length):
        kind = self.synapses.kind
        if kind is None:
            kernel, per_block, threads = bundles.make_weight_grad_fp32(size), 1, (size // mma.EDGE) ** 2
        else:
            kernel, per_block, threads = bundles.make_weight_grad(kind, size), bundles.bundles_per_block(size), bundles.THREADS
        arrays = self._words(self.x, 64), self._words(self.d, 64), table, self.start
        numbers = length * self.batch, self.batch, np.float32(1 / self.scale)
        self.backend.launch(kernel, blocks(len(table), per_block), threads, gradient, *arrays, *numbers)

    def bundle_grad(self, projection, tile, block, delay, length):
        size = self.synapses.projections[projection[0]].arc.bundle
        gradient = self.backend.zeros((len(tile), size * size))
        table = self._bundles(size, self.synapses.rows(projection, tile, block, delay, size))
        self._weight_grad(gradient.reshape(-1), size, table, length)
        return gradient

    def advance(self, length):
        self.backend.launch(bundles.advance_rings, 1, len(self._rows), self.start, self._rows, length)

    def ring(self, signal):
        ring, start, rows = self._ring(signal)
        return {"value": self._matrix(self.x, self._x_regions[signal]).reshape(len(ring), rows, self.batch, LINE), "start": start}

    def _past_rows(self, signal):
        """Rows of the ring that hold the tokens before the segment, oldest first."""
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
            if history:  # otherwise no synapse reads it
                self.backend.reset(self._ring(signal)[0].reshape(-1, self.batch, LINE), sequences)
