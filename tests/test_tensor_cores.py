"""Products of bundles on tensor cores against float64, lane by lane in Python (lanes.py): without a GPU they run nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest

from conftest import SIMULATED
from lanes import LaneBackend, run
from neurogen_numba.backends import cuda_synapses
from neurogen_numba.brain.connectome import Arc
from neurogen_numba.errors import ConfigError
from neurogen_numba.kernels import bundles
from neurogen_numba.kernels.bundles import (
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
    RING,
    SIZE,
    SLICE,
    THREADS,
    TILE_COLUMNS,
    WEIGHT,
    WORD,
)
from neurogen_numba.kernels.mma import BFLOAT16, FLOAT16
from test_bundles import T, Wired, arcs, check_codes, check_pruned, check_segment, short

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator's kernels are other ones")
ROWS, START, TOKEN, SOURCES = 9, 8, 2, 128  # of a ring, where it begins, the first token of the chunk; numbers of a column


def words(x, kind):
    """x as words of four 16-bit numbers, flat."""
    bits = x.astype(np.float16).view(np.uint16) if kind == FLOAT16 else (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)
    return bits.reshape(-1, WORD).view(np.uint64).reshape(-1)


def packed(weight, kind):
    """Slices [E, SLICE, width] in the order of `pack`."""
    count, _, width = weight.shape
    return words(weight.reshape(count, 4, WORD, width // 8, 8).transpose(0, 3, 4, 1, 2).copy(), kind)


def lines(matrix):
    """A matrix [columns, numbers] as [lines, columns, LINE]."""
    return np.moveaxis(matrix.reshape(len(matrix), -1, LINE), 1, 0).copy()


def place_of(number, columns):
    """Where a number of the first column is in such a matrix."""
    return number // LINE * LINE * columns + number % LINE


def column(base, c, batch, ring):
    """Column c after `base`, in a ring or in the gradients of a segment."""
    return (base + c) % (ROWS * batch) if ring else base + c


@pytest.mark.parametrize(
    "kind, width, at_once, back, mixed, numbers, batch, slices",
    [
        # several stages, the last one not full; two blocks of columns; the ring's end
        (BFLOAT16, 16, 128, False, False, (22,), 47, (7, 5)),
        (FLOAT16, 16, 128, True, False, (13,), 45, (3,)),  # numbers of an odd size
        (FLOAT16, 32, 128, True, False, (38, 5), 3, (5, 6, 2)),  # two outputs
        (BFLOAT16, 32, 64, False, True, (29,), 23, (4,)),
        (BFLOAT16, 64, 64, False, True, (61, 30, 64), 3, (7, 0, 9)),  # a tile that nothing leads to
        (FLOAT16, 16, 64, True, False, (16,), 22, (67,)),  # more than are looked up at a time
        (BFLOAT16, 32, 16, False, True, (29,), 6, (7,)),
        (BFLOAT16, 64, 16, True, True, (70,), 5, (6, 14)),
        (FLOAT16, 16, 16, False, False, (5,), 1, (131,)),
        (FLOAT16, 16, 16, True, False, (22,), 3, (9, 0)),
    ],
)
def test_gather(kind, width, at_once, back, mixed, numbers, batch, slices):
    rng, count, columns = np.random.default_rng(width), sum(slices), 3 * batch
    x, weight = short(rng.standard_normal((ROWS * batch, SOURCES))), short(rng.standard_normal((count, SLICE, width)))
    block, delay = rng.integers(0, SOURCES // SLICE, count), rng.integers(0, 4, count)
    entries = np.zeros((count, ENTRY_COLUMNS), np.int32)
    entries[:, OFFSET], entries[:, DELAY] = place_of(SLICE * block, ROWS * batch) // SLICE, delay * batch
    entries[:, LENGTH], entries[:, RING] = ROWS * batch, 0
    share = np.minimum(width, 16 * 2 ** rng.integers(0, 3, count)) if mixed else np.full(count, width)  # of the tile, for each slice
    first = rng.integers(0, width // share) * share
    entries[:, FIRST], entries[:, LAST] = first // 8, (first + share) // 8
    entries[:, WEIGHT] = np.cumsum([0, *share[:-1]]) * SLICE // WORD
    inner = [weight[e, :, first[e] : first[e] + share[e]] for e in range(count)]
    start, limit, scale = np.cumsum([0, *slices], dtype=np.int32), 4 * batch, np.float32(0.25)
    tiles = np.zeros((len(slices), TILE_COLUMNS), np.int32)
    tile_of = [(which, number) for which, size in enumerate(numbers) for number in range(0, size, width)]
    tiles[:, OUT], tiles[:, NUMBER] = np.transpose(tile_of)
    tiles[:, BEGIN], tiles[:, END] = start[:-1], start[1:]
    tiles[:, SIZE], tiles[:, COPY_OFFSET] = np.array(numbers)[tiles[:, OUT]], -1
    copies = np.zeros((ROWS * batch, 64), np.float32)  # of the first output, in the same flat array as x, after it
    of_first = tiles[:, OUT] == 0
    tiles[of_first, COPY_OFFSET] = (x.size + place_of(tiles[of_first, NUMBER], ROWS * batch)) // SLICE
    tiles[:, COPY_RING], tiles[:, COPY_LENGTH] = 0, ROWS * batch
    outs = [np.full((columns, size), np.nan, np.float32) for size in numbers]

    expected = [np.zeros((columns, -(-size // width) * width)) for size in numbers]
    for tile, (which, number) in enumerate(tile_of):
        for e in range(start[tile], start[tile + 1]):
            base = (TOKEN + delay[e]) * batch if back else (START + TOKEN - delay[e]) * batch
            for c in range(columns):
                read = x[column(base, c, batch, not back), SLICE * block[e] :][:SLICE]
                if not back or base + c < limit:  # what comes after the segment has no gradient
                    expected[which][c, number + first[e] :][: share[e]] += read.astype(np.float64) @ inner[e] / 4

    kernel, grid = bundles.make_gather(kind, width, at_once, back, mixed), (len(slices), -(-columns // at_once))
    factors = words(np.concatenate([lines(x).ravel(), copies.ravel()]), kind), np.concatenate([packed(w[None], kind) for w in inner])
    tables = tiles, entries, np.array([START], np.int32)
    flat = [out.reshape(-1) for out in outs]
    arrays = *flat, *flat[:1] * (3 - len(flat)), factors[0].view(np.uint32), *factors, np.ones(1, np.float32)
    run(kernel, grid, bundles.threads_of(at_once), *arrays, *tables, TOKEN, limit, columns, batch, scale)
    for out, exact, size in zip(outs, expected, numbers, strict=True):
        np.testing.assert_allclose(out, exact[:, :size], rtol=1e-5, atol=1e-4)
    if not back and numbers[0] <= 64:
        there = factors[0].view(np.uint16)[x.size :].reshape(ROWS * batch, 64)
        there = there.view(np.float16) if kind == FLOAT16 else (there.astype(np.uint32) << 16).view(np.float32)
        there = there[(np.arange(columns) + (START + TOKEN) * batch) % (ROWS * batch)].astype(np.float64)
        np.testing.assert_allclose(there[:, : numbers[0]], outs[0], rtol=2**-8, atol=1e-6)
        assert not there[:, numbers[0] :].any()


@pytest.mark.parametrize("kind, size, batch, count", [(FLOAT16, 16, 5, 6), (BFLOAT16, 32, 7, 5), (BFLOAT16, 64, 13, 2)])
def test_weight_grad(kind, size, batch, count):
    rng, targets, columns = np.random.default_rng(size), 192, 6 * batch
    x, d = (short(rng.standard_normal((rows * batch, numbers))) for rows, numbers in ((ROWS, SOURCES), (6, targets)))
    block, tile, delay = (rng.integers(0, below, count) for below in (SOURCES // size, targets // size, 4))
    tile_of = rng.permutation(count)  # of its weights
    table = np.zeros((count, BUNDLE_COLUMNS), np.int32)
    table[:, OFFSET], table[:, D_OFFSET] = (
        place_of(number * size, matrix) // SLICE for number, matrix in ((block, len(x)), (tile, len(d)))
    )
    table[:, DELAY], table[:, LENGTH], table[:, WEIGHT] = delay * batch, ROWS * batch, tile_of * size * size // WORD
    gradient = short(rng.standard_normal((count, size, size)))

    expected = gradient.astype(np.float64)
    for e in range(count):
        read = x[[column((START - delay[e]) * batch, c, batch, True) for c in range(columns)], size * block[e] :][:, :size]
        expected[tile_of[e]] += read.astype(np.float64).T @ d[:, size * tile[e] :][:, :size] / 2

    grid = -(-count // bundles.bundles_per_block(size)), 1
    arguments = words(lines(x), kind), words(lines(d), kind), table, np.array([START], np.int32), columns, batch, np.float32(0.5)
    run(bundles.make_weight_grad(kind, size), grid, THREADS, gradient.reshape(-1), *arguments)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size, batch, lengths, plenty", [(64, 1, (2, T), 8), (32, 5, (5,), 8), (16, 5, (4,), 0)])
def test_segments(size, batch, lengths, plenty, monkeypatch):
    """Tables, packed weights, rings and kernels together: numbers that no bundle divides, two sizes of bundles, narrow and wide tiles."""
    monkeypatch.setattr(cuda_synapses, "MANY_BLOCKS_PER_SM", plenty)
    made = Wired(LaneBackend(), arcs(size - 7, max(37, size + 5), 19, 17, size, size))
    state, past = made.state(batch), made.silent_past(batch)
    for segment, length in enumerate(lengths):
        past = check_segment(made, state, past, made.membranes(segment, length, batch), made.gradients(segment, length, batch))


@pytest.mark.parametrize("size, batch, bits", [(64, 1, 8), (64, 1, 4), (16, 1, 4), (32, 6, 8), (16, 20, 8)])
def test_codes_in_registers(size, batch, bits):
    check_codes(Wired(LaneBackend(), arcs(21, size + 5, 19, 17, size, size)), bits, batch)


def test_pruned_projections():
    check_pruned(LaneBackend(), 32, 3)


def test_signals_that_tables_cannot_name_are_refused():
    made = Wired(LaneBackend(), (Arc("one", "a.axon", "b.current", 16, 16, 16, delays=2, most=16),))
    with pytest.raises(ConfigError, match="134,217,728 sequences: the synapses' buffers have"):
        made.state(2**27)


@pytest.mark.parametrize(
    "numbers, size, columns, shape",
    [
        ([10240], 64, 1, (16, 16)),  # one stream: many small blocks, whatever the bundles
        ([10240], 64, 64, (32, 64)),
        ([10240], 64, 2048, (64, 128)),
        ([2048], 32, 1024, (32, 128)),
        ([512], 32, 1024, (16, 64)),  # too few blocks else
        ([512, 512, 8], 16, 2048, (16, 128)),
        ([76800], 16, 2048, (64, 128)),  # many small bundles share a block
    ],
)
def test_tiles_make_enough_blocks_for_a_card(numbers, size, columns, shape):
    state = SimpleNamespace(backend=SimpleNamespace(multiprocessors=132), _numbers=lambda name, back: name)
    assert cuda_synapses.CudaSynapticState._tile_shape(state, numbers, False, size, columns) == shape
