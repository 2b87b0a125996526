"""Synapses in bundles on a GPU: delayed block-sparse matrix products on tensor cores, or in float32 (tile products: mma.py).

A bundle is a dense block of weights from BS neighbouring sources, at one axonal delay, to the BT neighbouring targets of one tile. A tile
reads a fixed number of bundles of each projection, so the matrix of a projection is block-CSR (connectome.py draws it):

    forward    current[c, tile]      = sum over bundles j of the tile     x[c - delay_j B, block_j] @ w_j         w_j [BS, BT]
    backward   source_grad[c, block] = sum over bundles j of the block    d[c + delay_j B, tile_j] @ w_j^T
    weights    weight_grad_j         = sum over columns c                 x[c - delay_j B, block_j]^T @ d[c, tile_j]

c = token B + sequence counts columns. Forward and backward are one kernel, `gather`, over other tables and other copies of the weights.
Every sum has a fixed order and nothing is added atomically: the same bits, run after run.

x lies in rings, d in the gradients of a segment's currents; each is a matrix [columns, numbers], padded with zeros to whole tiles. All
rings lie in one flat array and all gradients in another, so that one launch reads several: the table `regions` says where each begins.
"""

import functools

import numpy as np
from numba import cuda

from .half import store
from .jit import ONE, ZERO
from .launch import SIMULATED, device, gpu
from .mma import EDGE, first_halves, high, low, outer, second_halves

if not SIMULATED:
    from .mma import copy, end_of_copies, multiply, store_pair, wait_for_copies

SLICE = 16  # numbers of a sum that one tile product takes
STEP = 32  # numbers of a sum that an entry of `gather` has at most: bundles are read in halves, where they have more
WORD = 4  # neighbouring numbers: 8 bytes of 16-bit numbers
COLUMNS = SLICE if SIMULATED else 64  # columns of a block
THREADS, WARPS = 128, 4  # of a block on tensor cores
STAGES, AHEAD = 4, 3  # buffers of a block, and how many of them are being filled while one is read
OWN = 4  # numbers of a thread that copies
ENTRIES = 64  # that a block looks up at a time
X_ROW = 12  # words from one column to the next in such a buffer: eight and padding, so that the lanes of half a warp read from all banks

# Columns of the table of regions [R, 6] int64: where a matrix lies in a flat array, and how bundles read it.
FIRST = 0  # its first number
LENGTH = 1  # columns, after which a ring begins again
LEAD = 2  # numbers from one column to the next
SLICES = 3  # slices of SLICE numbers in an entry
START = 4  # index in `start` of the row at which the ring begins
DEPTH = 5  # numbers of the sum in a whole bundle
# Columns of the table of entries [E, 5] int32, and of that of bundles, for weight gradients.
REGION = 0  # what is read
BLOCK = 1  # the first number that is read of a column, in words
DELAY = 2  # tokens
WEIGHT = 3  # the first number of the weights, in words
D_TILE = 4  # for weight gradients: the tile's first number in a column of the current's gradient, in words

_WORD, _ONE = np.uint64(WORD), np.uint64(1)


@functools.cache
def make_gather(kind: int, width: int, back: bool, add: bool, even: bool):
    """`gather` for factors of a kind (mma.py) and output tiles of `width` numbers, in one of two directions. add: to what `out` holds;
    even: the rows of `out` have an even size."""
    TILES, HALF, W_STAGE = width // 8, width // 16, STEP * width // WORD
    X_WORDS, W_WORDS = STAGES * COLUMNS * X_ROW, STAGES * W_STAGE

    @gpu
    def gather(out, flat, x, weight, tile_start, entries, regions, start, first, limit, batch, scale):
        """out [columns, N] float32, and flat, the same in one dimension, = (or +=, where `add`) scale times the sum over the entries of
        each tile; column 0 is token `first`.

        x: words of four 16-bit numbers (uint64); weight: such words in the order of `pack`; limit: columns of the segment, backward.
        Block (i, j) has output tile i of the j-th COLUMNS columns. Entries pass through STAGES buffers of shared memory: while one is
        multiplied, the next ones are on their way. Warp w multiplies columns 32 (w // 2) ... by the (w % 2)-th half of the tile.
        """
        xs = cuda.shared.array(X_WORDS, np.uint64)  # [STAGES, COLUMNS, X_ROW]
        ws = cuda.shared.array(W_WORDS, np.uint64)  # [STAGES, slices, TILES, lanes]
        bases = cuda.shared.array(ENTRIES, np.int32)
        lengths = cuda.shared.array(ENTRIES, np.int32)
        leads = cuda.shared.array(ENTRIES, np.int32)
        slices = cuda.shared.array(ENTRIES, np.int32)
        weights = cuda.shared.array(ENTRIES, np.int32)
        places = cuda.shared.array(ENTRIES, np.int64)
        acc = cuda.local.array((2, HALF, 4), np.float32)
        a = cuda.local.array((2, 4), np.uint32)
        thread, tile, columns = cuda.threadIdx.x, cuda.blockIdx.x, out.shape[0]
        lane, warp, column = thread % 32, thread // 32, cuda.blockIdx.y * COLUMNS
        g, q, upper_column, left_tile = lane // 4, lane % 4, warp // 2 * 32, warp % 2 * HALF
        begin, end = tile_start[tile], tile_start[tile + 1]
        if add and begin == end:
            return
        for m in range(2):
            for n in range(HALF):
                for i in range(4):
                    acc[m, n, i] = ZERO
        while begin < end:
            # 1. A thread looks an entry up, so that nobody waits for tables later.
            count = min(end - begin, ENTRIES)
            if thread < count:
                e = begin + thread
                region, delay = entries[e, REGION], np.int64(entries[e, DELAY])
                length = regions[region, LENGTH]
                if back:
                    base, length = (first + delay) * batch, limit
                else:
                    base = (start[regions[region, START]] + first - delay) * batch
                    base += length if base < 0 else 0
                    base -= length if base >= length else 0
                bases[thread], lengths[thread] = base, length
                places[thread] = regions[region, FIRST] // WORD + entries[e, BLOCK]
                leads[thread], slices[thread] = regions[region, LEAD] // WORD, regions[region, SLICES]
                weights[thread] = entries[e, WEIGHT]
            cuda.syncthreads()  # the entries are known
            for step in range(count + AHEAD):
                # 2. Fetch an entry: a thread copies 16 bytes of two columns, and of the weights.
                if step < count:
                    stage, part = step % STAGES, 2 * (thread % 4)
                    base, length, place, lead = bases[step], lengths[step], places[step] + part, leads[step]
                    if part < slices[step] * 4:
                        for row in range(thread // 4, COLUMNS, THREADS // 4):
                            c = base + min(column + row, columns - 1)  # what is beyond the columns is computed and not stored
                            size = 16
                            if back:
                                size = 16 if c < length else 0  # what comes after the segment has no gradient
                                c = min(c, length - 1)
                            else:
                                c -= length if c >= length else 0
                            copy(kind, xs, (stage * COLUMNS + row) * X_ROW + part, x, place + np.int64(c) * lead, size)
                    for word in range(2 * thread, slices[step] * TILES * 32, 2 * THREADS):
                        copy(kind, ws, stage * W_STAGE + word, weight, np.int64(weights[step]) + word, 16)
                end_of_copies(kind)
                # 3. Multiply the entry that was fetched AHEAD steps ago.
                if step >= AHEAD:
                    wait_for_copies(kind)  # all but the AHEAD latest have arrived, of this thread's
                    cuda.syncthreads()  # of every thread's
                    stage = (step - AHEAD) % STAGES
                    for s in range(slices[step - AHEAD]):
                        for m in range(2):
                            place = (stage * COLUMNS + upper_column + m * SLICE + g) * X_ROW + s * 4 + q
                            upper, lower = xs[place], xs[place + 8 * X_ROW]
                            a[m, 0], a[m, 1], a[m, 2], a[m, 3] = low(upper), low(lower), high(upper), high(lower)
                        for n in range(HALF):
                            b = ws[stage * W_STAGE + (s * TILES + left_tile + n) * 32 + lane]
                            for m in range(2):
                                multiply(kind, acc[m, n], a[m], low(b), high(b))
                    cuda.syncthreads()  # the buffer has been read: the next entry goes there
            begin += count
        size = np.uint64(out.shape[1])
        for m in range(2):
            for half in range(2):
                c = column + upper_column + m * SLICE + 8 * half + g
                row = np.uint64(c) * size
                for n in range(HALF):
                    number = np.uint64(tile * width + (left_tile + n) * 8 + 2 * q)
                    if c < columns and number < size:
                        first_sum, second_sum = scale * acc[m, n, 2 * half], scale * acc[m, n, 2 * half + 1]
                        if add:
                            first_sum += flat[row + number]
                        if even:
                            if add:
                                second_sum += flat[row + number + _ONE]
                            store_pair(flat, row + number, first_sum, second_sum)
                        else:
                            flat[row + number] = first_sum
                            if number + _ONE < size:
                                flat[row + number + _ONE] = second_sum + (flat[row + number + _ONE] if add else ZERO)

    return gather


@functools.cache
def make_weight_grad(kind: int, sources: int, targets: int):
    """`weight_grad` for factors of a kind and bundles [sources, targets]."""
    A_TILES, B_TILES, SIZE = sources // 16, targets // 16, sources * targets

    @gpu
    def weight_grad(gradient, x, d, bundles, regions, d_regions, start, columns, batch, scale):
        """Add to gradient, flat, scale times the gradient of every bundle's weights [sources, targets], over `columns` columns.

        x, d: pairs of 16-bit numbers (uint32). A block has a bundle; its warps share out the columns, SLICE at a time, and add up what
        they have found in shared memory, one after the other. The sum runs over columns, so a lane loads four of them (2 q, 2 q + 1,
        2 q + 8, 2 q + 9), numbers 2 g and 2 g + 1 of each, and joins neighbouring columns in its registers.
        """
        acc = cuda.local.array((A_TILES, B_TILES, 2, 4), np.float32)
        partial = cuda.shared.array(SIZE, np.float32)
        words, others = cuda.local.array(4, np.uint32), cuda.local.array(4, np.uint32)
        place, other = cuda.local.array(4, np.uint64), cuda.local.array(4, np.uint64)
        inside = cuda.local.array(4, np.bool_)
        a = cuda.local.array((A_TILES, 4), np.uint32)
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        g, q = lane // 4, lane % 4
        region = bundles[cuda.blockIdx.x, REGION]
        of_region, lead, d_lead = regions[region, LENGTH], regions[region, LEAD] // 2, d_regions[region, LEAD] // 2
        base = (start[regions[region, START]] - bundles[cuda.blockIdx.x, DELAY]) * batch
        base += of_region if base < 0 else 0
        begin = regions[region, FIRST] // 2 + 2 * np.int64(bundles[cuda.blockIdx.x, BLOCK]) + g
        d_begin = d_regions[region, FIRST] // 2 + 2 * np.int64(bundles[cuda.blockIdx.x, D_TILE]) + g
        for i in range(A_TILES):
            for j in range(B_TILES):
                for half in range(2):
                    for k in range(4):
                        acc[i, j, half, k] = ZERO
        for first in range(warp * SLICE, columns, cuda.blockDim.y * SLICE):
            for k in range(4):
                c = first + 2 * q + k % 2 + 8 * (k // 2)
                inside[k] = c < columns
                c = min(c, columns - 1)
                other[k] = np.uint64(d_begin + c * d_lead)
                c += base
                c -= of_region if c >= of_region else 0
                place[k] = np.uint64(begin + c * lead)
            for i in range(A_TILES):
                for k in range(4):
                    words[k] = x[place[k] + np.uint64(8 * i)] if inside[k] else np.uint32(0)
                a[i, 0], a[i, 1] = first_halves(words[0], words[1]), second_halves(words[0], words[1])
                a[i, 2], a[i, 3] = first_halves(words[2], words[3]), second_halves(words[2], words[3])
            for j in range(B_TILES):
                for k in range(4):
                    others[k] = d[other[k] + np.uint64(8 * j)]
                for half in range(2):
                    if half == 0:
                        b0, b1 = first_halves(others[0], others[1]), first_halves(others[2], others[3])
                    else:
                        b0, b1 = second_halves(others[0], others[1]), second_halves(others[2], others[3])
                    for i in range(A_TILES):
                        multiply(kind, acc[i, j, half], a[i], b0, b1)
        for turn in range(cuda.blockDim.y):
            if warp == turn:
                for i in range(A_TILES):
                    for j in range(B_TILES):
                        for half in range(2):
                            for k in range(4):
                                number = (16 * i + 2 * g + k // 2) * targets + 16 * j + 4 * q + half + 2 * (k % 2)
                                partial[number] = acc[i, j, half, k] + (partial[number] if turn else ZERO)
            cuda.syncthreads()  # the next warp adds to what this one has stored
        begin = WORD * np.int64(bundles[cuda.blockIdx.x, WEIGHT])
        for i in range(warp * 32 + lane, SIZE, cuda.blockDim.y * 32):
            gradient[np.uint64(begin + i)] += scale * partial[i]

    return weight_grad


@functools.cache
def make_gather_fp32(width: int, columns_of_block: int, back: bool, add: bool):
    """`gather` in float32, without tensor cores."""
    ACROSS = width // EDGE
    THREADS, PADDED_COLUMNS, PADDED = ACROSS * (columns_of_block // EDGE), columns_of_block + 1, width + 1

    @gpu
    def gather_fp32(out, x, weight, tile_start, entries, regions, start, first, limit, batch, scale):
        """As `gather`; x and weight are flat float32, and weight is what is learned, in its own order.

        Block (i, j) has output tile i of the j-th columns_of_block columns. Its threads fetch a slice of both factors into shared memory,
        and each multiplies EDGE columns by EDGE numbers of the tile.
        """
        xs = cuda.shared.array((SLICE, PADDED_COLUMNS), np.float32)  # a number more, so that a warp's stores meet in no bank
        ws = cuda.shared.array((SLICE, PADDED), np.float32)
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread, tile, columns = cuda.threadIdx.x, cuda.blockIdx.x, out.shape[0]
        column, row, number = cuda.blockIdx.y * columns_of_block, thread // ACROSS * EDGE, thread % ACROSS * EDGE
        if add and tile_start[tile] == tile_start[tile + 1]:
            return  # nothing to add
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] = ZERO
        for e in range(tile_start[tile], tile_start[tile + 1]):
            region, delay = entries[e, REGION], np.int64(entries[e, DELAY])
            of_region, lead, slices = regions[region, LENGTH], regions[region, LEAD], regions[region, SLICES]
            if back:
                base = (first + delay) * batch
            else:
                base = (start[regions[region, START]] + first - delay) * batch
                base += of_region if base < 0 else 0
                base -= of_region if base >= of_region else 0
            begin, w = regions[region, FIRST] + WORD * np.int64(entries[e, BLOCK]), WORD * np.int64(entries[e, WEIGHT])
            for s in range(slices):
                for i in range(thread, columns_of_block * SLICE, THREADS):
                    c, k = base + min(column + i // SLICE, columns - 1), i % SLICE
                    if back:
                        value = x[np.uint64(begin + c * lead + s * SLICE + k)] if c < limit else ZERO
                    else:
                        c -= of_region if c >= of_region else 0
                        value = x[np.uint64(begin + c * lead + s * SLICE + k)]
                    xs[k, i // SLICE] = value
                for i in range(thread, width * SLICE, THREADS):
                    if back:  # the weights of a target are a column of the bundle
                        ws[i % SLICE, i // SLICE] = weight[np.uint64(w + i // SLICE * regions[region, DEPTH] + s * SLICE + i % SLICE)]
                    else:
                        ws[i // width, i % width] = weight[np.uint64(w + s * SLICE * width + i)]
                cuda.syncthreads()  # the slice has arrived
                for k in range(SLICE):
                    outer(acc, xs, ws, k, row, number)
                cuda.syncthreads()  # the slice has been read
        for i in range(EDGE):
            for j in range(EDGE):
                c, n = column + row + i, tile * width + number + j
                if c < columns and n < out.shape[1]:
                    before = out[np.uint64(c), np.uint64(n)] if add else ZERO
                    out[np.uint64(c), np.uint64(n)] = before + scale * acc[i, j]

    return gather_fp32


@functools.cache
def make_weight_grad_fp32(sources: int, targets: int):
    """`weight_grad` in float32, without tensor cores."""
    ACROSS = targets // EDGE
    THREADS = ACROSS * (sources // EDGE)

    @gpu
    def weight_grad_fp32(gradient, x, d, bundles, regions, d_regions, start, columns, batch, scale):
        """As `weight_grad`, x and d flat float32. A thread has EDGE sources and EDGE targets of the block's bundle."""
        xs = cuda.shared.array((SLICE, sources), np.float32)
        ds = cuda.shared.array((SLICE, targets), np.float32)  # on a line of its own: the simulator tells shared arrays apart by their lines
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread = cuda.threadIdx.x
        row, number = thread // ACROSS * EDGE, thread % ACROSS * EDGE
        region = bundles[cuda.blockIdx.x, REGION]
        of_region, lead, d_lead = regions[region, LENGTH], regions[region, LEAD], d_regions[region, LEAD]
        base = (start[regions[region, START]] - bundles[cuda.blockIdx.x, DELAY]) * batch
        base += of_region if base < 0 else 0
        begin = regions[region, FIRST] + WORD * np.int64(bundles[cuda.blockIdx.x, BLOCK])
        d_begin = d_regions[region, FIRST] + WORD * np.int64(bundles[cuda.blockIdx.x, D_TILE])
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] = ZERO
        for first in range(0, columns, SLICE):
            for i in range(thread, SLICE * sources, THREADS):
                c = first + i // sources
                ring = base + c - (of_region if base + c >= of_region else 0)
                xs[i // sources, i % sources] = x[np.uint64(begin + ring * lead + i % sources)] if c < columns else ZERO
            for i in range(thread, SLICE * targets, THREADS):
                c = first + i // targets
                ds[i // targets, i % targets] = d[np.uint64(d_begin + c * d_lead + i % targets)] if c < columns else ZERO
            cuda.syncthreads()  # the columns have arrived
            for k in range(SLICE):
                outer(acc, xs, ds, k, row, number)
            cuda.syncthreads()  # the columns have been read
        begin = WORD * np.int64(bundles[cuda.blockIdx.x, WEIGHT])
        for i in range(EDGE):
            for j in range(EDGE):
                gradient[np.uint64(begin + (row + i) * targets + number + j)] += scale * acc[i, j]

    return weight_grad_fp32


@functools.cache
def make_pack(sources: int, targets: int):
    """`pack` for bundles [sources, targets]."""
    WORDS = sources * targets // WORD

    @gpu
    def pack(forward, backward, weight, bundles):
        """Round the weights of bundles [sources, targets] to 16 bits, twice: forward and backward [words, 4], in the order in which the
        lanes of `gather` load them.

        Word (slice, tile of 8 outputs, lane 4 g + q) holds, for output g of the tile, the four numbers 4 q ... of the slice. Forward the
        outputs are targets, and a slice is of sources; backward it is the other way round. A block has a bundle, a thread a word.
        """
        first = np.int64(bundles[cuda.blockIdx.x, WEIGHT])
        for word in range(cuda.threadIdx.x, WORDS, cuda.blockDim.x):
            lane = word % 32
            g, q = lane // 4, lane % 4
            s, n = word // 32 // (targets // 8), word // 32 % (targets // 8)
            for i in range(WORD):
                store(forward, first + word, i, weight[WORD * first + (s * SLICE + 4 * q + i) * targets + n * 8 + g])
            s, n = word // 32 // (sources // 8), word // 32 % (sources // 8)
            for i in range(WORD):
                store(backward, first + word, i, weight[WORD * first + (n * 8 + g) * targets + s * SLICE + 4 * q + i])

    return pack


@device
def copy_row(out, row, x, c, scale):
    """Round scale times row c of x [columns, N] float32 into row `row` of out [rows, N or more]. Block (i, c) has OWN numbers for each of
    its threads, which fetches all of them before it stores the first."""
    own = cuda.local.array(OWN, np.float32)
    first = cuda.blockIdx.x * cuda.blockDim.x * OWN + cuda.threadIdx.x
    for i in range(OWN):
        n = first + i * cuda.blockDim.x
        own[i] = x[np.uint64(c), np.uint64(n)] if n < x.shape[1] else ZERO
    for i in range(OWN):
        n = first + i * cuda.blockDim.x
        if n < x.shape[1]:
            store(out, np.uint64(row), np.uint64(n), scale * own[i])


@gpu
def write_values(ring, start, rows, first, batch, x):
    """Write plain values x [C B, M] float32 of tokens from `first` on into a ring [rows B, M or more]."""
    c = cuda.blockIdx.y
    copy_row(ring, (start[0] + first + c // batch) % rows * batch + c % batch, x, c, ONE)


@gpu
def write_gradient(d, x, scale):
    """Write scale times the gradient x [columns, N] float32 of a current into d [columns, N or more]."""
    copy_row(d, cuda.blockIdx.y, x, cuda.blockIdx.y, scale)


@gpu
def advance_rings(start, rows, tokens):
    """start [S] int32: advance all S rings by `tokens` tokens, of rows [S] int32. A thread per ring."""
    i = cuda.grid(1)
    if i < start.size:
        start[i] = (start[i] + tokens) % rows[i]
