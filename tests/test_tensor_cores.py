"""Products of bundles on tensor cores against float64, lane by lane in Python (lanes.py): without a GPU they run nowhere else."""

import numpy as np
import pytest

from conftest import SIMULATED
from lanes import run
from neurogen_numba.kernels import bundles
from neurogen_numba.kernels.bundles import D_LEAD, D_PLACE, LATE, LEAD, LENGTH, PLACE, RING, SLICE, THREADS, WEIGHT, WORD
from neurogen_numba.kernels.mma import BFLOAT16, FLOAT16
from test_bundles import short

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator's kernels are other ones")
ROWS, START, FIRST, SOURCES = 9, 8, 2, 128  # of a ring, where it begins, the first token of the chunk; numbers of a column


def words(x, kind):
    """x as words of four 16-bit numbers, flat."""
    bits = x.astype(np.float16).view(np.uint16) if kind == FLOAT16 else (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)
    return bits.reshape(-1, WORD).view(np.uint64).reshape(-1)


def packed(weight, kind):
    """Slices [E, SLICE, width] in the order of `pack`."""
    count, _, width = weight.shape
    return words(weight.reshape(count, 4, WORD, width // 8, 8).transpose(0, 3, 4, 1, 2).copy(), kind)


def column(base, c, batch, ring):
    """Column c after `base`, in a ring or in the gradients of a segment."""
    return (base + c) % (ROWS * batch) if ring else base + c


@pytest.mark.parametrize(
    "kind, width, few, back, add, numbers, batch, slices",
    [
        (BFLOAT16, 16, False, False, False, 22, 47, (7, 5)),  # several stages, the last one not full; two blocks of columns; the ring's end
        (FLOAT16, 16, False, True, True, 13, 45, (3, 0)),  # numbers of an odd size, a tile with nothing to add
        (FLOAT16, 32, False, True, False, 38, 3, (5, 6)),
        (BFLOAT16, 32, False, False, True, 29, 3, (1, 4)),
        (BFLOAT16, 64, False, False, False, 61, 3, (7,)),
        (FLOAT16, 16, True, True, False, 22, 3, (9, 0)),
        (BFLOAT16, 32, True, False, True, 29, 6, (7, 4)),
        (BFLOAT16, 64, True, True, False, 70, 5, (6, 14)),
        (FLOAT16, 16, True, False, False, 5, 1, (bundles.ENTRIES + 3,)),  # more than are looked up at a time
    ],
)
def test_gather(kind, width, few, back, add, numbers, batch, slices):
    rng, count, columns = np.random.default_rng(width), sum(slices), 3 * batch
    x, weight = short(rng.standard_normal((ROWS * batch, SOURCES))), short(rng.standard_normal((count, SLICE, width)))
    block, delay = rng.integers(0, SOURCES // SLICE, count), rng.integers(0, 4, count)
    entries = np.zeros((count, 6), np.int32)
    entries[:, PLACE], entries[:, WEIGHT], entries[:, LATE] = block, np.arange(count) * SLICE * width // WORD, delay * batch
    entries[:, LENGTH], entries[:, LEAD], entries[:, RING] = ROWS * batch, SOURCES // WORD, 0
    start, limit, scale = np.cumsum([0, *slices], dtype=np.int32), 4 * batch, np.float32(0.25)
    before = short(rng.standard_normal((columns, numbers)))
    out = before.copy() if add else np.full_like(before, np.nan)

    expected = np.zeros((columns, len(slices) * width))
    for tile in range(len(slices)):
        for e in range(start[tile], start[tile + 1]):
            base = (FIRST + delay[e]) * batch if back else (START + FIRST - delay[e]) * batch
            for c in range(columns):
                read = x[column(base, c, batch, not back), SLICE * block[e] :][:SLICE]
                if not back or base + c < limit:  # what comes after the segment has no gradient
                    expected[c, tile * width :][:width] += read.astype(np.float64) @ weight[e]
    expected = expected[:, :numbers] / 4 + (before if add else 0)

    kernel = bundles.make_gather(kind, width, few, back, add, numbers % 2 == 0)
    grid = len(slices), -(-columns // (SLICE if few else bundles.COLUMNS))
    factors = words(x, kind), packed(weight, kind)
    tables = start, entries, np.array([START], np.int32)
    run(kernel, grid, THREADS, out, out.reshape(-1), *factors, *tables, FIRST, limit, batch, scale)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind, size, batch, count", [(FLOAT16, 16, 5, 6), (BFLOAT16, 32, 7, 5), (BFLOAT16, 64, 13, 2)])
def test_weight_grad(kind, size, batch, count):
    rng, targets, columns = np.random.default_rng(size), 192, 6 * batch
    x, d = (short(rng.standard_normal((rows * batch, numbers))) for rows, numbers in ((ROWS, SOURCES), (6, targets)))
    block, tile, delay = (rng.integers(0, below, count) for below in (SOURCES // size, targets // size, 4))
    place = rng.permutation(count)  # of its weights
    table = np.zeros((count, 8), np.int32)
    table[:, PLACE], table[:, D_PLACE], table[:, WEIGHT] = block * size // SLICE, tile * size // SLICE, place * size * size // WORD
    table[:, LATE], table[:, LENGTH], table[:, LEAD], table[:, D_LEAD] = delay * batch, ROWS * batch, SOURCES // WORD, targets // WORD
    gradient = short(rng.standard_normal((count, size, size)))

    expected = gradient.astype(np.float64)
    for e in range(count):
        read = x[[column((START - delay[e]) * batch, c, batch, True) for c in range(columns)], size * block[e] :][:, :size]
        expected[place[e]] += read.astype(np.float64).T @ d[:, size * tile[e] :][:, :size] / 2

    grid = -(-count // bundles.of_block(size)), 1
    arguments = words(x, kind), words(d, kind), table, np.array([START], np.int32), columns, batch, np.float32(0.5)
    run(bundles.make_weight_grad(kind, size), grid, THREADS, gradient.reshape(-1), *arguments)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)
