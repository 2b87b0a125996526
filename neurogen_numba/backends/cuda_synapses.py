"""Synapses in bundles on a GPU: tables, 16-bit copies of the weights, rings, launches (kernels/bundles.py, mma.py)."""

from __future__ import annotations

import math

import numpy as np

from ..kernels import bundles, mma
from ..kernels.bundles import D_LEAD, D_PLACE, LATE, LEAD, LENGTH, PLACE, RING, SLICE, SLICE_WORDS, WEIGHT, WORD
from ..kernels.launch import SIMULATED, THREADS, blocks
from ..kernels.population import Axon
from .base import Synapses, SynapticState

ALIGN = 64  # a column of a ring has a multiple of so many numbers: whole blocks of any size
WRITERS = 8 if SIMULATED else THREADS  # threads of a block that copies
FEW_COLUMNS = 64  # of a launch: up to so many, a block has fewer and shares out the sums


# A bundle, or a slice of one, where it lies whatever the batch: the number of its projection; its first source and first target in a
# column, and the first of its weights, in words; its delay in tokens.
ROW = np.dtype([(name, np.int64) for name in ("projection", "source", "target", "weight", "delay")])


class CudaSynapses(Synapses):
    """Tables of all projections in bundles, and with tensor cores the weights in 16 bits, in the order of either direction.

    forward: current -> [(size of a bundle, tile_start, rows)]; backward: signal -> [(size of a bundle, block_start, rows)]; learned and
    places: size of a bundle -> rows, and where the weights of each begin. They do so alike in `weight`, `gradient` and the copies.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        offsets = [(parameters.offset[f"{p.arc.name}.weight"], p.weight.size) for p in projections]
        first, end = min(offset for offset, _ in offsets), max(offset + size for offset, size in offsets)
        self.weight, self.gradient = (flat[first:end] for flat in (parameters.flat_value, parameters.flat_gradient))
        self.place = {p.arc.name: offset - first for p, (offset, _) in zip(projections, offsets, strict=True)}
        self.dtype, self.kind = backend.product_dtype, backend.tile_product
        self.currents = list(dict.fromkeys(p.arc.target for p in projections))
        self.signals = list(dict.fromkeys(p.arc.source for p in projections))

    def wire(self):
        forward, backward, learned = {}, {}, {}
        for number, p in enumerate(self.projections):
            arc, rows = p.arc, np.zeros(p.block.size, ROW)
            words = arc.bundle // WORD
            rows["projection"], rows["delay"] = number, p.delay.ravel()
            rows["source"] = p.block.ravel() * words
            rows["target"] = np.repeat(np.arange(arc.tiles), arc.bundles_per_tile) * words
            rows["weight"] = self.place[arc.name] // WORD + np.arange(p.block.size) * arc.bundle * words
            forward.setdefault(arc.target, {}).setdefault(arc.bundle, []).append((arc.targets, rows))
            backward.setdefault(arc.source, {}).setdefault(arc.bundle, []).append((arc.sources, rows))
            learned.setdefault(arc.bundle, []).append(rows)
        # wide tiles first: theirs are the most, and whoever comes later skips the tiles that it has no bundles for
        self.forward, self.backward = (
            {name: [self._slices(size, sizes[size], *sides) for size in sorted(sizes, reverse=True)] for name, sizes in either.items()}
            for either, sides in ((forward, ("source", "target")), (backward, ("target", "source")))
        )
        self.learned = {size: np.concatenate(parts) for size, parts in learned.items()}
        self.places = {size: self.backend.asarray(rows["weight"]) for size, rows in self.learned.items()}
        if self.kind is None:
            self.copies = self.weight, self.weight
        else:
            self.copies = tuple(self.backend.zeros((blocks(self.weight.size, WORD), WORD), self.dtype) for _ in range(2))

    def _slices(self, size, parts, read, out):
        """(size, start [tiles + 1], rows) of the slices of some projections' bundles, sorted by tile; in a tile as the parts come.
        read, out: the sides of a bundle that are read and written, "source" and "target" forward."""
        words, slices = size // WORD, size // SLICE
        rows = np.repeat(np.concatenate([rows for _, rows in parts]), slices)
        number = np.arange(len(rows)) % slices
        tile = rows[out] // words
        rows[read] += number * (SLICE // WORD)
        # the weights of a slice lie one after the other, but those that are learned where they are read backward
        rows["weight"] += number * (SLICE // WORD if self.kind is None and read == "target" else SLICE * words)
        start = np.zeros(blocks(max(numbers for numbers, _ in parts), size) + 1, np.int32)
        start[1:] = np.cumsum(np.bincount(tile, minlength=len(start) - 1))
        return size, self.backend.asarray(start), rows[np.argsort(tile, kind="stable")]

    def refresh(self):
        if self.kind is not None:
            for size, places in self.places.items():
                copies = (self.backend.bits(copy) for copy in self.copies)
                self.backend.launch(bundles.make_pack(size), len(places), THREADS, *copies, self.weight, places)

    def state(self, signals, currents, tokens, batch, learning):
        return CudaSynapticState(self, signals, currents, tokens, batch, learning)


class CudaSynapticState(SynapticState):
    """Rings x of all signals, [rows, B, lead] each, rows = history + T: token t of the segment is in row (start + t) % rows. And gradients
    d of all currents, [T, B, lead] each. Both of the type that products multiply, one after the other in a flat array each."""

    direct_gradients = True

    def __init__(self, synapses, signals, currents, tokens, batch, learning):
        self.synapses, self.backend, self.batch, self.sizes = synapses, synapses.backend, batch, signals
        self.rows = {name: signals[name][1] + tokens for name in synapses.signals}
        zeros = self.backend.zeros
        self.x, self._x_places = self._flat(self.rows, {name: size for name, (size, _) in signals.items()})
        self.start, self._rows = zeros(len(self.rows), "int32"), self.backend.asarray(list(self.rows.values()), "int32")
        # float16 holds 6e-8 to 65,504: a token's share of the gradient is made so much larger on its way
        self.scale = np.float32(2.0 ** (4 + math.ceil(math.log2(tokens * batch))) if synapses.dtype == "float16" else 1)
        if learning:
            self.d, self._d_places = self._flat(dict.fromkeys(synapses.currents, tokens), currents)
        self._none, self._kept = zeros((1, 1, 1))[:0], {}

    def _tables(self, of):
        """`forward`, `backward` or `learned` of the synapses, with the tables that kernels read for rows: made when first asked for, and
        again where the synapses have been wired anew."""
        rows, (known, tables) = getattr(self.synapses, of), self._kept.get(of, (None, None))
        if known is not rows:
            if of == "learned":
                tables = {size: self._table(part, "source", "target") for size, part in rows.items()}
            else:
                side = "source" if of == "forward" else "target"
                tables = {name: [(size, start, self._table(part, side)) for size, start, part in parts] for name, parts in rows.items()}
            self._kept[of] = rows, tables
        return tables

    def _table(self, rows, *sides):
        """The table [E, 6 or 8] int32 of rows that read x ("source"), d ("target"), or both."""
        synapses, table = self.synapses, np.zeros((len(rows), 8), np.int32)
        for side, place, lead in zip(sides, (PLACE, D_PLACE), (LEAD, D_LEAD), strict=False):
            places = self._x_places if side == "source" else self._d_places
            matrices = np.array([places[getattr(p.arc, side)] for p in synapses.projections])[rows["projection"]]
            table[:, place], table[:, lead] = (matrices[:, 0] // WORD + rows[side]) // SLICE_WORDS, matrices[:, 2] // WORD
            if place == PLACE:
                table[:, LENGTH] = matrices[:, 1]
        table[:, WEIGHT], table[:, LATE] = rows["weight"], rows["delay"] * self.batch
        table[:, RING] = np.array([synapses.signals.index(p.arc.source) for p in synapses.projections])[rows["projection"]]
        return self.backend.asarray(table if len(sides) == 2 else table[:, :D_PLACE])

    def _flat(self, rows, sizes):
        """(array, name -> [first, columns, lead]) of matrices [rows B, sizes] one after the other."""
        regions, end = {}, 0
        for name in rows:
            lead = blocks(sizes[name], ALIGN) * ALIGN
            regions[name] = [end, rows[name] * self.batch, lead]
            end += rows[name] * self.batch * lead
        return self.backend.zeros(end, self.synapses.dtype), regions

    @staticmethod
    def _matrix(flat, region):
        """A region's matrix [columns, lead] in a flat array."""
        first, columns, lead = region
        return flat[first : first + columns * lead].reshape(columns, lead)

    def _ring(self, signal):
        """(ring [rows B, lead], start [1], rows) as kernels take them."""
        number = self.synapses.signals.index(signal)
        ring = self.backend.bits(self._matrix(self.x, self._x_places[signal]))
        return ring, self.start[number : number + 1], self.rows[signal]

    def _words(self, flat, size):
        """A flat array of 16-bit numbers as words of so many bits; of float32 as it is."""
        return flat if self.synapses.kind is None else self.backend.bits(flat).view(f"uint{size}")

    def axon(self, signal):
        if signal not in self.rows:
            return None
        _, start, rows = self._ring(signal)
        ring = self._matrix(self.x, self._x_places[signal]).reshape(rows, self.batch, -1)
        return Axon(ring, start, self._none, self._none)

    def write_values(self, signal, first, last, x):
        ring, start, rows = self._ring(signal)
        x = x.reshape(-1, x.shape[2])
        self.backend.launch(bundles.write_values, self._copy_grid(x), WRITERS, ring, start, rows, first, self.batch, x)

    @staticmethod
    def _copy_grid(x):
        return blocks(x.shape[1], WRITERS * bundles.OWN), len(x)

    def _gather(self, width, back, out, first, start, entries, x, limit, scale, add):
        """Launch `gather` on all columns of out [C, B, N]."""
        columns, size, synapses = out.shape[0] * self.batch, out.shape[2], self.synapses
        copy = self._words(synapses.copies[1 if back else 0].reshape(-1), 64)
        arguments = self._words(x, 64), copy, start, entries, self.start, first, limit, self.batch, np.float32(scale)
        out = out.reshape(columns, size)
        if synapses.kind is None:
            at_once = SLICE if columns <= SLICE else bundles.COLUMNS_FP32
            kernel, threads = bundles.make_gather_fp32(width, at_once, back, add), (width // mma.EDGE) * (at_once // mma.EDGE)
        else:
            few = columns <= FEW_COLUMNS
            at_once = SLICE if few else bundles.COLUMNS
            kernel, threads = bundles.make_gather(synapses.kind, width, few, back, add, size % 2 == 0), bundles.THREADS
            arguments = out.reshape(-1), *arguments
        self.backend.launch(kernel, (len(start) - 1, blocks(columns, at_once)), threads, out, *arguments)

    def forward(self, current, first, last, value):
        if current not in self.synapses.forward:
            value[...] = 0
            return
        for number, (size, *tables) in enumerate(self._tables("forward")[current]):
            self._gather(size, False, value, first, *tables, self.x, 0, 1, number > 0)

    def current_grad(self, current, first, last):
        d = self._matrix(self.d, self._d_places[current])[first * self.batch : last * self.batch]
        return d.reshape(last - first, self.batch, -1), self.scale

    def set_current_grad(self, current, first, last, gradient):
        d = self.backend.bits(self._matrix(self.d, self._d_places[current]))[first * self.batch : last * self.batch]
        gradient = gradient.reshape(-1, gradient.shape[2])
        self.backend.launch(bundles.write_gradient, self._copy_grid(gradient), WRITERS, d, gradient, self.scale)

    def source_grad(self, signal, first, last, length, gradient):
        if signal not in self.rows:
            gradient[...] = 0
            return
        limit = length * self.batch
        for number, (size, *tables) in enumerate(self._tables("backward")[signal]):
            self._gather(size, True, gradient, first, *tables, self.d, limit, 1 / self.scale, number > 0)

    def accumulate_weight_grad(self, length):
        synapses = self.synapses
        for size, table in self._tables("learned").items():
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
        size, _ = self.sizes[signal]
        number = self.synapses.signals.index(signal)
        value = self._matrix(self.x, self._x_places[signal]).reshape(self.rows[signal], self.batch, -1)[:, :, :size]
        return {"value": value, "start": self.start[number : number + 1]}

    def _past_rows(self, signal):
        """Rows of the ring of the tokens before the segment, the oldest first."""
        history, rows = self.sizes[signal][1], self.rows[signal]
        start = int(self.backend.to_numpy(self.start)[self.synapses.signals.index(signal)])
        return [(start - history + h) % rows for h in range(history)]

    def past(self, signal):
        ring = self.ring(signal)["value"]
        past = self.backend.zeros((self.sizes[signal][1], self.batch, self.sizes[signal][0]))
        for h, row in enumerate(self._past_rows(signal)):
            past[h] = ring[row]
        return self.backend.fetch(past)

    def set_past(self, signal, past):
        ring = self.ring(signal)["value"]
        for h, row in enumerate(self._past_rows(signal)):
            ring[row] = self.backend.asarray(past[h], "float32")

    def reset(self, sequences):
        for signal, (_, history) in self.sizes.items():
            if history:  # then somebody reads it
                ring, _, rows = self._ring(signal)
                self.backend.reset(ring.reshape(rows, self.batch, -1), sequences)
