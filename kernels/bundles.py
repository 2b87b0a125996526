"""Synapses in bundles on a GPU: delayed block-sparse matrix products on tensor cores, or in float32 (tile products: mma.py).

A bundle is a dense block of weights from BS neighbouring sources, at one axonal delay, to the BT neighbouring targets of one tile. A tile
reads a fixed number of bundles of each projection, so the matrix of a projection is block-CSR (connectome.py draws it):

    forward    current[c, tile]      = sum over bundles j of the tile     x[c - delay_j B, block_j] @ w_j         w_j [BS, BT]
    backward   source_grad[c, block] = sum over bundles j of the block    d[c + delay_j B, tile_j] @ w_j^T
    weights    weight_grad_j         = sum over columns c                 x[c - delay_j B, block_j]^T @ d[c, tile_j]

c = token B + sequence counts columns. Forward and backward are one kernel, `gather`, over other tables and other copies of the weights.
Every sum has a fixed order, one for up to SLICE columns and another for more, and nothing is added atomically: the same bits, run after
run.

x lies in rings, d in the gradients of a segment's currents. Each is a matrix of columns, padded with zeros to whole lines of LINE numbers,
and lies in memory as [lines, columns, LINE]: what a bundle reads of many columns lies together. All rings lie in one flat array and all
gradients in another, so that one launch reads several: the tables say where each begins.
"""

import functools

import numpy as np
from numba import cuda

from .half import store
from .jit import ZERO
from .launch import SIMULATED, device, gpu
from .mma import EDGE, first_halves, high, low, outer, second_halves
from .vector import WORD as LINE

if not SIMULATED:
    from .mma import copy, end_of_copies, multiply, pair, store_pair, wait_for_copies

SLICE = 16  # numbers of a sum that one tile product takes, and that an entry of `gather` has
WORD = 4  # neighbouring numbers: 8 bytes of 16-bit numbers
# LINE: neighbouring numbers of a column that lie together: the largest bundle, and a ring's word on the CPU (vector.py)
SLICE_WORDS = SLICE // WORD
THREADS, WARPS, OF_WARP = 128, 4, 32  # of a block on tensor cores, at most; columns of a warp
COLUMNS = SLICE, 2 * OF_WARP, WARPS * OF_WARP  # of a block on tensor cores
STAGE_COLUMNS = 32  # that `weight_grad` fetches at a time
COLUMNS_FP32 = SLICE if SIMULATED else 64  # of a block without tensor cores
SHARED = 38 * 2**10  # bytes of a block's stages at most; tables and partial sums come on top, and ptxas refuses more than 48 KB in all
MAX_STAGES = 4  # one is read, one is waited for, and `wait_for_copies` leaves at most two under way
OWN = 4  # numbers of a thread that copies
ALIGNED = None if SIMULATED else 16  # bytes that a thread copies, or in float32 reads, at once
PADDING = 4  # numbers more in a row, so that few of a warp's stores meet in one bank of shared memory

# Columns of the table of entries [E, 7] int32. An entry multiplies a slice of x, or of d, by its weights. A word is WORD numbers.
PLACE = 0  # the first number that is read of the matrix's first column, in slices
WEIGHT = 1  # the first number of the weights, in words
LATE = 2  # the delay, in columns
LENGTH = 3  # columns of the matrix, after which a ring begins again
RING = 4  # index in `start` of the row at which the ring begins
FIRST, LAST = 5, 6  # the outputs that the weights lead to, within the tile and in eights: the first, and the one after the last
ENTRY_COLUMNS = 7
# Columns of the table of bundles [G, 6] int32, for weight gradients: as above, and of the current's gradient:
D_PLACE = 5
BUNDLE_COLUMNS = 6
# Columns of the table of output tiles [tiles, 8] int32:
OUT = 0  # which of the outputs
NUMBER = 1  # the tile's first number in a row of it
SIZE = 2  # numbers of a row
BEGIN, END = 3, 4  # its entries: the first, and the one after the last
# and where its rows are stored once more, in a ring of x, rounded, or -1: as PLACE, RING and LENGTH above
COPY_PLACE, COPY_RING, COPY_LENGTH = 5, 6, 7
TILE_COLUMNS = 8
OUTPUTS = 3  # of a launch, at most
RINGS = 2 * OF_WARP  # at most: a block of `gather` has as many threads at least

u32 = np.uint32
_ONE, _TWO, _LINE, _LINE_WORDS = (np.uint64(n) for n in (1, 2, LINE, LINE // WORD))


def threads_of(columns: int) -> int:
    """Threads of a block of `gather` with `columns` columns."""
    return THREADS if columns == SLICE else columns // OF_WARP * 32


@functools.cache
def make_gather(kind: int, width: int, columns_of_block: int, back: bool, mixed: bool):
    """`gather` for factors of a kind (mma.py), output tiles of `width` numbers and blocks of `columns_of_block` columns; backward or not.

    columns_of_block: OF_WARP for each of its warps; or SLICE, which WARPS warps have in common: they share out the slices. mixed: some
    bundles are smaller than the tile.
    """
    few, COLUMNS_OF_BLOCK, BLOCK_DIM = columns_of_block == SLICE, columns_of_block, threads_of(columns_of_block)
    TILES, ROWS = width // 8, 1 if few else OF_WARP // SLICE  # tiles that a warp has, across and down
    SLICES = 8 if few and width == 16 else 4 if few or width == 16 else 2  # of a stage
    SLICES_OF_WARP, STEP = (SLICES // WARPS, WARPS) if few else (SLICES, 1)  # slices of a warp in a stage, and from one to the next
    X_SLICE, W_SLICE = COLUMNS_OF_BLOCK * SLICE_WORDS, TILES * 32  # words
    X_STAGE, W_STAGE = SLICES * X_SLICE, SLICES * W_SLICE
    STAGES = min(MAX_STAGES, SHARED // (8 * (X_STAGE + W_STAGE)))
    X_WORDS, W_WORDS = STAGES * X_STAGE, STAGES * W_STAGE
    AHEAD = STAGES - 1  # buffers that are being filled while one is read
    COPIERS = 2 * SLICES  # threads that fetch one column, 16 bytes each
    X_COPIES, W_COPIES = COLUMNS_OF_BLOCK * COPIERS // BLOCK_DIM, -(-W_STAGE // (2 * BLOCK_DIM))  # of a thread in a stage
    assert STAGES > 1, "a stage is filled while another one is read: make it smaller, or SHARED larger"
    assert COLUMNS_OF_BLOCK * COPIERS % BLOCK_DIM == 0 and SLICES_OF_WARP > 0, "threads and warps share a stage out evenly"
    OTHERS = (WARPS - 1) * TILES * 4 * 32 if few else 1

    @gpu(max_registers=168 if few else 96 if width == 16 else 128)
    def gather(out_0, out_1, out_2, ring, x, weight, tiles, entries, start, first, limit, columns, batch, scale):
        """Outputs [columns, SIZE] float32, flat, = scale times the sum over the entries of each of their tiles; column 0 is token `first`.

        x: words of four 16-bit numbers (uint64), and ring, forward, the same as words of two (uint32); weight: words of four in the order
        of `pack`; limit: columns of the segment, backward.

        Block (i, j) has output tile i of the j-th COLUMNS_OF_BLOCK columns. Entries, a slice each, pass through STAGES buffers of shared
        memory, SLICES at a time: while those of one buffer are multiplied, the next ones are on their way. A stage that has fewer is filled
        up with zeros, and so is what a tile has beside a smaller bundle: a NaN that is sent reaches the whole tile.

        Indices are uint32: Numba lets signed ones count from the end of an array, and that takes more instructions than the products.
        """
        xs = cuda.shared.array(X_WORDS, np.uint64, ALIGNED)  # [STAGES, SLICES, COLUMNS_OF_BLOCK, words of a slice]
        ws = cuda.shared.array(W_WORDS, np.uint64, ALIGNED)  # [STAGES, SLICES, TILES, lanes]
        bases = cuda.shared.array(BLOCK_DIM, np.uint32)
        lengths = cuda.shared.array(BLOCK_DIM, np.uint32)
        weights = cuda.shared.array(BLOCK_DIM, np.uint32)
        shares = cuda.shared.array(BLOCK_DIM, np.uint32)  # FIRST and LAST
        places = cuda.shared.array(BLOCK_DIM, np.uint64)
        others = cuda.shared.array(OTHERS, np.float32)  # [WARPS - 1, TILES, 4, lanes]
        tile_row = cuda.shared.array(TILE_COLUMNS, np.int32)
        starts = cuda.shared.array(RINGS, np.int32)
        acc = cuda.local.array((ROWS, TILES, 4), np.float32)
        a = cuda.local.array((ROWS, 4), np.uint32)
        thread, tile = u32(cuda.threadIdx.x), cuda.blockIdx.x
        lane, warp, column = u32(thread % u32(32)), u32(thread // u32(32)), u32(cuda.blockIdx.y * COLUMNS_OF_BLOCK)
        g, q, upper = u32(lane // u32(4)), u32(lane % u32(4)), u32(0) if few else u32(warp * u32(OF_WARP))
        # of a stage: the slice that this thread fetches, which half of its words, and the first column
        fetched, half, first_row = u32(thread % u32(COPIERS) // u32(2)), u32(thread % u32(2) * u32(2)), u32(thread // u32(COPIERS))
        to_x = u32(u32(fetched * u32(X_SLICE)) + u32(first_row * u32(SLICE_WORDS)) + half)
        from_x, last_column = u32(u32(upper + g) * u32(SLICE_WORDS) + q), u32(columns - 1)
        if thread < TILE_COLUMNS:
            tile_row[thread] = tiles[tile, thread]
        if thread < start.size:
            starts[thread] = start[thread]
        for m in range(ROWS):
            for n in range(TILES):
                for i in range(4):
                    acc[m, n, i] = ZERO
        cuda.syncthreads()  # the block's tile and the rings are known
        begin, end = tile_row[BEGIN], tile_row[END]
        while begin < end:
            # 1. A thread looks an entry up, so that nobody waits for tables later.
            count = u32(min(end - begin, BLOCK_DIM))
            if thread < count:
                e = begin + thread
                late, length = entries[e, LATE], entries[e, LENGTH]
                if back:
                    base, length = first * batch + late, limit
                else:
                    base = (starts[entries[e, RING]] + first) * batch - late
                    base += length if base < 0 else 0
                bases[thread], lengths[thread] = base, length
                places[thread], weights[thread] = entries[e, PLACE] * np.int64(SLICE_WORDS), entries[e, WEIGHT]
                if mixed:
                    shares[thread] = entries[e, FIRST] | entries[e, LAST] << 8
            cuda.syncthreads()  # the entries are known
            filled, read, e = u32(0), u32(0), u32(0)  # the buffer that is filled next, the one that is read next; the next entry
            for stage in range(-AHEAD, (np.int64(count) + SLICES - 1) // SLICES):
                if stage >= 0:
                    wait_for_copies(kind, AHEAD - 1)  # all but the latest AHEAD - 1 stages have arrived, of this thread's
                    cuda.syncthreads()  # of every thread's; and the buffer of the stage before this one has been read
                # 2. Fetch a stage: of each slice COLUMNS_OF_BLOCK columns, and the weights.
                if e < count:
                    own = min(u32(e + fetched), u32(count - u32(1)))
                    base, length, there = bases[own], lengths[own], e + fetched < count
                    place, to = places[own] + np.uint64(half), u32(u32(filled * u32(X_STAGE)) + to_x)
                    for k in range(X_COPIES):
                        row = u32(column + first_row + u32(k * (BLOCK_DIM // COPIERS)))
                        c = u32(base + min(row, last_column))  # what is beyond the columns is computed and not stored
                        inside = 16 if there and (not few or row <= last_column) else 0
                        if back:
                            inside = inside if c < length else 0  # what comes after the segment has no gradient
                            c = min(c, u32(length - u32(1)))
                        else:
                            c = min(c, u32(c - length))  # before the end of the ring, the difference wraps around and is the larger
                        row_words = u32(k * (BLOCK_DIM // COPIERS) * SLICE_WORDS)
                        copy(kind, xs, u32(to + row_words), x, place + np.uint64(c) * _LINE_WORDS, inside)
                    for k in range(W_COPIES):
                        word = u32(u32(2) * thread + u32(2 * k * BLOCK_DIM))
                        if word < W_STAGE:
                            own, part = u32(e + word // u32(W_SLICE)), u32(word % u32(W_SLICE))
                            inside, source = 16 if own < count else 0, weights[min(own, u32(count - u32(1)))]
                            if mixed:
                                share = shares[min(own, u32(count - u32(1)))]
                                before, after = u32(u32(32) * (share & u32(255))), u32(u32(32) * (share >> u32(8)))
                                inside = inside if part >= before and part < after else 0
                                part = u32(part - before) if inside else u32(0)
                            copy(kind, ws, u32(u32(filled * u32(W_STAGE)) + word), weight, np.uint64(source) + np.uint64(part), inside)
                end_of_copies(kind)
                e, filled = u32(e + u32(SLICES)), u32(filled + u32(1)) if filled < STAGES - 1 else u32(0)
                # 3. Multiply the stage that has arrived.
                if stage >= 0:
                    x_word, w_word = u32(u32(read * u32(X_STAGE)) + from_x), u32(u32(read * u32(W_STAGE)) + lane)
                    for i in range(SLICES_OF_WARP):
                        s = u32(u32(i * STEP) + warp) if few else u32(i)
                        x_slice, w_slice = u32(x_word + u32(s * u32(X_SLICE))), u32(w_word + u32(s * u32(W_SLICE)))
                        for m in range(ROWS):
                            top = xs[u32(x_slice + u32(m * SLICE * SLICE_WORDS))]
                            bottom = xs[u32(x_slice + u32((m * SLICE + 8) * SLICE_WORDS))]
                            a[m, 0], a[m, 1], a[m, 2], a[m, 3] = low(top), low(bottom), high(top), high(bottom)
                        for n in range(TILES):
                            b = ws[u32(w_slice + u32(32 * n))]
                            for m in range(ROWS):
                                multiply(kind, acc[m, n], a[m], low(b), high(b))
                    read = u32(read + u32(1)) if read < STAGES - 1 else u32(0)
            cuda.syncthreads()  # tables and buffers have been read
            begin += np.int32(count)
        if few:  # the first warp adds up what all of them have, and stores it
            for n in range(TILES):
                for i in range(4):
                    if warp > 0:
                        others[u32(u32(u32(u32(warp - u32(1)) * u32(TILES * 4) + u32(n * 4 + i)) * u32(32)) + lane)] = acc[0, n, i]
            cuda.syncthreads()
            if warp > 0:
                return
            for other in range(WARPS - 1):
                for n in range(TILES):
                    for i in range(4):
                        acc[0, n, i] += others[u32(u32(((other * TILES + n) * 4 + i) * 32) + lane)]
        out, which, size = out_0, tile_row[OUT], np.uint64(tile_row[SIZE])
        if which == 1:
            out = out_1
        elif which == 2:
            out = out_2
        number = np.uint64(tile_row[NUMBER]) + np.uint64(u32(2) * q)
        even, copied = size % _TWO == 0, not back and tile_row[COPY_PLACE] >= 0
        copy_row = (starts[tile_row[COPY_RING]] + first) * batch  # of the ring's columns
        copy_place, length = SLICE // 2 * np.uint64(tile_row[COPY_PLACE]), tile_row[COPY_LENGTH]
        for m in range(ROWS):
            for half in range(2):
                c = np.int64(u32(column + upper + g)) + m * SLICE + 8 * half
                if c >= columns:
                    continue
                to = np.uint64(c) * size + number
                for n in range(TILES):
                    if number + np.uint64(8 * n) < size:
                        if even:
                            store_pair(out, to + np.uint64(8 * n), scale * acc[m, n, 2 * half], scale * acc[m, n, 2 * half + 1])
                        else:
                            out[to + np.uint64(8 * n)] = scale * acc[m, n, 2 * half]
                            if number + np.uint64(8 * n + 1) < size:
                                out[to + np.uint64(8 * n + 1)] = scale * acc[m, n, 2 * half + 1]
                if copied:
                    to = copy_place + np.uint64((copy_row + c) % length) * (_LINE // _TWO) + np.uint64(q)
                    for n in range(TILES):
                        if number + np.uint64(8 * n) < size:
                            second = scale * acc[m, n, 2 * half + 1] if number + np.uint64(8 * n + 1) < size else ZERO
                            ring[to + np.uint64(4 * n)] = pair(kind, scale * acc[m, n, 2 * half], second)

    return gather


def of_block(size: int) -> int:
    """Bundles [size, size] that a block of `weight_grad` has."""
    return 1 if size == 64 else WARPS


@functools.cache
def make_weight_grad(kind: int, size: int):
    """`weight_grad` for factors of a kind and bundles [size, size]."""
    WIDE = min(size, 32)  # sources, and targets, of a warp
    ACROSS = size // WIDE  # warps side by side in a bundle
    BUNDLES = of_block(size)
    SLICES, A_TILES, B_TILES = size // SLICE, WIDE // 16, WIDE // 8
    OF_SLICE = STAGE_COLUMNS * SLICE_WORDS
    STAGE = BUNDLES * SLICES * OF_SLICE  # words of one factor
    STAGES = min(MAX_STAGES, SHARED // (2 * 8 * STAGE))
    assert STAGES > 1, "a stage is filled while another one is read: make it smaller, or SHARED larger"
    WORDS, AHEAD = STAGES * STAGE, STAGES - 1
    COPIERS, THREADS_OF_BUNDLE = 2 * SLICES, THREADS // BUNDLES  # threads that fetch one column, 16 bytes each; and a bundle

    @device
    def number_of(row):
        """Which of its WIDE numbers a warp has in row (A) or column (B) `row` of its first tile; the next numbers are in the next tiles."""
        return 4 * row if WIDE == 32 else 4 * (row % 4) + 2 * (row // 4)

    @gpu(max_registers=128)
    def weight_grad(gradient, x, d, bundles, start, columns, batch, scale):
        """Add to gradient, flat, scale times the gradient of every bundle's weights [size, size], over `columns` columns.

        x, d: words of four 16-bit numbers (uint64). A block has BUNDLES bundles; a warp multiplies WIDE sources by WIDE targets. Columns
        pass through STAGES buffers of shared memory, STAGE_COLUMNS at a time; what several bundles have of d, one of them fetches. The sum
        runs over columns, so a lane joins neighbours from four of them (q, q + 4, q + 8, q + 12) in its registers.
        """
        xs = cuda.shared.array(WORDS, np.uint64, ALIGNED)  # [STAGES, BUNDLES, SLICES, STAGE_COLUMNS, words of a slice]
        ds = cuda.shared.array(WORDS, np.uint64, ALIGNED)
        acc = cuda.local.array((A_TILES, B_TILES, 4), np.float32)
        a = cuda.local.array((A_TILES, 4), np.uint32)
        b = cuda.local.array((B_TILES, 2), np.uint32)
        thread = u32(cuda.threadIdx.x)
        lane, warp, own = u32(thread % u32(32)), u32(thread // u32(32)), u32(thread // u32(THREADS_OF_BUNDLE))
        g, q, above, left = u32(lane // u32(4)), u32(lane % u32(4)), u32(warp // u32(ACROSS) % u32(ACROSS)), u32(warp % u32(ACROSS))
        fetched, half = u32(thread % u32(COPIERS) // u32(2)), u32(thread % u32(2) * u32(2))
        first_row = u32(thread % u32(THREADS_OF_BUNDLE) // u32(COPIERS))
        number, part = np.int64(cuda.blockIdx.x) * BUNDLES + np.int64(own), np.int64(u32(fetched * u32(SLICE_WORDS)) + half)
        bundle = min(number, bundles.shape[0] - 1)
        length = u32(bundles[bundle, LENGTH])
        late = start[bundles[bundle, RING]] * batch - bundles[bundle, LATE]
        base = u32(late + (bundles[bundle, LENGTH] if late < 0 else 0))
        place = np.uint64(bundles[bundle, PLACE] * np.int64(SLICE_WORDS) + part)
        d_place = np.uint64(bundles[bundle, D_PLACE] * np.int64(SLICE_WORDS) + part)
        reader = own  # the first bundle of the block with the same targets: it fetches d for all of them
        for other in range(BUNDLES - 1, -1, -1):
            if bundles[min(number - np.int64(own) + other, bundles.shape[0] - 1), D_PLACE] == bundles[bundle, D_PLACE]:
                reader = u32(other)
        # words of a buffer: where this thread's copies go, and where its first factors are, of sources and of targets
        slices, d_slices, filled, read = u32(own * u32(SLICES)), u32(reader * u32(SLICES)), u32(0), u32(0)
        to_word = u32(u32(u32(slices + fetched) * u32(OF_SLICE)) + u32(first_row * u32(SLICE_WORDS)) + half)
        x_slice, d_slice = slices, d_slices
        if WIDE == 32:
            x_slice, d_slice = u32(slices + u32(2) * above + g // u32(4)), u32(d_slices + u32(2) * left + g // u32(4))
        in_slice = u32(u32(q * u32(SLICE_WORDS)) + g % u32(4))
        x_word, d_word = u32(u32(x_slice * u32(OF_SLICE)) + in_slice), u32(u32(d_slice * u32(OF_SLICE)) + in_slice)
        shift = u32(0) if WIDE == 32 else u32(u32(32) * (g // u32(4)))
        for i in range(A_TILES):
            for j in range(B_TILES):
                for k in range(4):
                    acc[i, j, k] = ZERO
        all_columns, row = u32(columns), first_row
        for stage in range(-AHEAD, (columns + STAGE_COLUMNS - 1) // STAGE_COLUMNS):
            if stage >= 0:
                wait_for_copies(kind, AHEAD - 1)  # all but the latest AHEAD - 1 stages have arrived, of this thread's
                cuda.syncthreads()  # of every thread's; and the buffer of the stage before this one has been read
            if u32(row - first_row) < all_columns:
                to = u32(u32(filled * u32(STAGE)) + to_word)
                for k in range(STAGE_COLUMNS * COPIERS // THREADS_OF_BUNDLE):
                    c = u32(row + u32(k * (THREADS_OF_BUNDLE // COPIERS)))
                    inside, c = 16 if c < all_columns else 0, min(c, u32(all_columns - u32(1)))
                    at = u32(to + u32(k * (THREADS_OF_BUNDLE // COPIERS) * SLICE_WORDS))
                    if reader == own:
                        copy(kind, ds, at, d, d_place + np.uint64(c) * _LINE_WORDS, inside)
                    c = u32(base + c)
                    c = min(c, u32(c - length))  # before the end of the ring, the difference wraps around and is the larger
                    copy(kind, xs, at, x, place + np.uint64(c) * _LINE_WORDS, inside)
            end_of_copies(kind)
            row, filled = u32(row + u32(STAGE_COLUMNS)), u32(filled + u32(1)) if filled < STAGES - 1 else u32(0)
            if stage >= 0:
                of = u32(read * u32(STAGE))
                for k in range(STAGE_COLUMNS // SLICE):
                    at = u32(u32(of + x_word) + u32(k * SLICE * SLICE_WORDS))
                    x0, x1 = xs[at], xs[u32(at + u32(4 * SLICE_WORDS))]
                    x2, x3 = xs[u32(at + u32(8 * SLICE_WORDS))], xs[u32(at + u32(12 * SLICE_WORDS))]
                    at = u32(u32(of + d_word) + u32(k * SLICE * SLICE_WORDS))
                    d0, d1 = ds[at], ds[u32(at + u32(4 * SLICE_WORDS))]
                    d2, d3 = ds[u32(at + u32(8 * SLICE_WORDS))], ds[u32(at + u32(12 * SLICE_WORDS))]
                    for i in range(A_TILES):
                        by = np.uint64(u32(shift + u32(32 * i)))
                        w0, w1, w2, w3 = u32(x0 >> by), u32(x1 >> by), u32(x2 >> by), u32(x3 >> by)
                        a[i, 0], a[i, 1] = first_halves(w0, w1), second_halves(w0, w1)
                        a[i, 2], a[i, 3] = first_halves(w2, w3), second_halves(w2, w3)
                    for j in range(A_TILES):
                        by = np.uint64(u32(shift + u32(32 * j)))
                        w0, w1, w2, w3 = u32(d0 >> by), u32(d1 >> by), u32(d2 >> by), u32(d3 >> by)
                        b[2 * j, 0], b[2 * j, 1] = first_halves(w0, w1), first_halves(w2, w3)
                        b[2 * j + 1, 0], b[2 * j + 1, 1] = second_halves(w0, w1), second_halves(w2, w3)
                    for i in range(A_TILES):
                        for j in range(B_TILES):
                            multiply(kind, acc[i, j], a[i], b[j, 0], b[j, 1])
                read = u32(read + u32(1)) if read < STAGES - 1 else u32(0)
        if number < bundles.shape[0]:
            weights = WORD * np.int64(bundles[bundle, WEIGHT])
            for i in range(A_TILES):
                for j in range(B_TILES):
                    for k in range(4):
                        source = above * WIDE + number_of(g) + 2 * i + k // 2
                        target = left * WIDE + number_of(2 * q + k % 2) + j
                        gradient[np.uint64(weights + source * size + target)] += scale * acc[i, j, k]

    return weight_grad


@functools.cache
def make_gather_fp32(width: int, columns_of_block: int, back: bool, add: bool):
    """`gather` in float32, without tensor cores."""
    ACROSS = width // EDGE
    THREADS = ACROSS * (columns_of_block // EDGE)
    X_COPIES, W_COPIES = columns_of_block * SLICE // THREADS, width * SLICE // THREADS  # of a thread, for a slice
    X_ROW, W_ROW = columns_of_block + PADDING, width + PADDING

    @gpu
    def gather_fp32(out_0, out_1, out_2, ring, x, weight, tiles, entries, start, first, limit, columns, batch, scale):
        """As `gather`, of bundles that all have the tile's size; ring, x and weight are flat float32, weight being what is learned, in its
        own order. add: to what the outputs hold.

        Block (i, j) has output tile i of the j-th columns_of_block columns. Its threads fetch a slice of both factors into shared memory,
        and each multiplies EDGE columns by EDGE numbers of the tile.
        """
        xs = cuda.shared.array((SLICE, X_ROW), np.float32, ALIGNED)
        ws = cuda.shared.array((SLICE, W_ROW), np.float32, ALIGNED)
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread, tile, out = u32(cuda.threadIdx.x), cuda.blockIdx.x, out_0
        column, last_column = u32(cuda.blockIdx.y * columns_of_block), u32(columns - 1)
        # unsigned, and then signed again: the compiler knows that they do not count from the end of an array
        row, number = np.int64(u32(thread // u32(ACROSS) * u32(EDGE))), np.int64(u32(thread % u32(ACROSS) * u32(EDGE)))
        if add and tiles[tile, BEGIN] == tiles[tile, END]:
            return  # nothing to add
        if tiles[tile, OUT] == 1:
            out = out_1
        elif tiles[tile, OUT] == 2:
            out = out_2
        size, before = tiles[tile, SIZE], tiles[tile, NUMBER]
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] = ZERO
                c, n = np.int64(column) + row + i, before + number + j
                if add and c < columns and n < size:  # fetched at once, before anything is stored
                    acc[i, j] = out[np.uint64(c) * np.uint64(size) + np.uint64(n)] / scale
        for e in range(tiles[tile, BEGIN], tiles[tile, END]):
            if back:
                base, length = u32(first * batch + entries[e, LATE]), u32(limit)
            else:
                late, length = (start[entries[e, RING]] + first) * batch - entries[e, LATE], u32(entries[e, LENGTH])
                base = u32(late + (entries[e, LENGTH] if late < 0 else 0))
            begin, w = np.uint64(SLICE * np.int64(entries[e, PLACE])), np.uint64(WORD * np.int64(entries[e, WEIGHT]))
            for turn in range(X_COPIES):
                i = u32(thread + u32(turn * THREADS))
                own, k = u32(i // u32(SLICE)), u32(i % u32(SLICE))
                c, value = u32(base + min(u32(column + own), last_column)), ZERO
                if not back:
                    c = min(c, u32(c - length))  # before the end of the ring, the difference wraps around and is the larger
                if not back or c < length:  # what comes after the segment has no gradient
                    value = x[begin + np.uint64(c) * _LINE + np.uint64(k)]
                xs[k, own] = value
            for turn in range(W_COPIES):
                i = u32(thread + u32(turn * THREADS))
                if back:  # the weights of a target are a column of the bundle
                    own, k = u32(i // u32(SLICE)), u32(i % u32(SLICE))
                    ws[k, own] = weight[w + np.uint64(u32(own * u32(width)) + k)]
                else:
                    ws[u32(i // u32(width)), u32(i % u32(width))] = weight[w + np.uint64(i)]
            cuda.syncthreads()  # the slice has arrived
            for k in range(0, SLICE, 4):  # four at once: the compiler would not
                outer(acc, xs, ws, k, row, number)
                outer(acc, xs, ws, k + 1, row, number)
                outer(acc, xs, ws, k + 2, row, number)
                outer(acc, xs, ws, k + 3, row, number)
            cuda.syncthreads()  # the slice has been read
        copied, length = not back and tiles[tile, COPY_PLACE] >= 0, tiles[tile, COPY_LENGTH]
        copy_row = (start[tiles[tile, COPY_RING]] + first) * batch  # of the ring's columns
        for i in range(EDGE):
            for j in range(EDGE):
                c, n = np.int64(column) + row + i, before + number + j
                if c < columns and n < size:
                    out[np.uint64(c) * np.uint64(size) + np.uint64(n)] = scale * acc[i, j]
                    if copied:
                        to = (copy_row + c) % length * LINE + SLICE * np.int64(tiles[tile, COPY_PLACE])
                        ring[np.uint64(to + number + j)] = scale * acc[i, j]

    return gather_fp32


@functools.cache
def make_weight_grad_fp32(size: int):
    """`weight_grad` in float32, without tensor cores."""
    ACROSS = size // EDGE
    THREADS = ACROSS * ACROSS
    COPIES = SLICE * size // THREADS  # of a thread, for a slice of columns

    @gpu
    def weight_grad_fp32(gradient, x, d, bundles, start, columns, batch, scale):
        """As `weight_grad`, x and d flat float32. A thread has EDGE sources and EDGE targets of the block's bundle."""
        xs = cuda.shared.array((SLICE, size), np.float32, ALIGNED)
        ds = cuda.shared.array((SLICE, size), np.float32, ALIGNED)  # on a line of its own: the simulator tells them apart by their lines
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread, bundle = u32(cuda.threadIdx.x), cuda.blockIdx.x
        row, number = np.int64(u32(thread // u32(ACROSS) * u32(EDGE))), np.int64(u32(thread % u32(ACROSS) * u32(EDGE)))
        late, length = start[bundles[bundle, RING]] * batch - bundles[bundle, LATE], u32(bundles[bundle, LENGTH])
        base, all_columns = u32(late + (bundles[bundle, LENGTH] if late < 0 else 0)), u32(columns)
        place = np.uint64(SLICE * np.int64(bundles[bundle, PLACE]))
        d_place = np.uint64(SLICE * np.int64(bundles[bundle, D_PLACE]))
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] = ZERO
        for first in range(0, columns, SLICE):
            for turn in range(COPIES):
                i = u32(thread + u32(turn * THREADS))
                k, own = u32(i // u32(size)), u32(i % u32(size))
                c, value, d_value = u32(u32(first) + k), ZERO, ZERO
                if c < all_columns:
                    d_value = d[d_place + np.uint64(c) * _LINE + np.uint64(own)]
                    c = u32(base + c)
                    c = min(c, u32(c - length))  # before the end of the ring, the difference wraps around and is the larger
                    value = x[place + np.uint64(c) * _LINE + np.uint64(own)]
                xs[k, own], ds[k, own] = value, d_value
            cuda.syncthreads()  # the columns have arrived
            for k in range(0, SLICE, 4):
                outer(acc, xs, ds, k, row, number)
                outer(acc, xs, ds, k + 1, row, number)
                outer(acc, xs, ds, k + 2, row, number)
                outer(acc, xs, ds, k + 3, row, number)
            cuda.syncthreads()  # the columns have been read
        weights = WORD * np.int64(bundles[bundle, WEIGHT])
        for i in range(EDGE):
            for j in range(EDGE):
                gradient[np.uint64(weights + (row + i) * size + number + j)] += scale * acc[i, j]

    return weight_grad_fp32


@functools.cache
def make_pack(size: int):
    """`pack` for bundles [size, size]."""
    WORDS, TILES = size * size // WORD, size // 8

    @gpu
    def pack(forward, backward, weight, places):
        """Round the weights of bundles [size, size] to 16 bits, twice: forward and backward [words, 4], in the order in which the
        lanes of `gather` load them.

        Word (slice, tile of 8 outputs, lane 4 g + q) holds, for output g of the tile, the four numbers 4 q ... of the slice. Forward the
        outputs are targets, and a slice is of sources; backward it is the other way round. A block has a bundle, whose weights begin with
        word places[block], and a thread a word.
        """
        first = places[cuda.blockIdx.x]
        for word in range(cuda.threadIdx.x, WORDS, cuda.blockDim.x):
            lane = word % 32
            g, q = lane // 4, lane % 4
            s, n = word // 32 // TILES, word // 32 % TILES
            for i in range(WORD):
                number, output = s * SLICE + 4 * q + i, n * 8 + g
                store(forward, first + word, i, weight[WORD * first + number * size + output])
                store(backward, first + word, i, weight[WORD * first + output * size + number])

    return pack


@gpu
def write_gradient(d, offset, x, scale):
    """Write scale times the gradient x [C B, N] float32 of a current into d [lines, columns, LINE], from column `offset` on. Block (c, i)
    has OWN numbers of column c for each of its threads, which fetches all of them before it stores the first."""
    own, size, c = cuda.local.array(OWN, np.float32), u32(x.shape[1]), np.uint64(cuda.blockIdx.x)
    first, threads = u32(cuda.blockIdx.y * cuda.blockDim.x * OWN + cuda.threadIdx.x), u32(cuda.blockDim.x)
    for i in range(OWN):
        n = u32(first + u32(i) * threads)
        own[i] = x[c, np.uint64(n)] if n < size else ZERO
    for i in range(OWN):
        n = u32(first + u32(i) * threads)
        if n < size:
            store(d[np.uint64(n // u32(LINE))], c + np.uint64(offset), np.uint64(n % u32(LINE)), scale * own[i])


@gpu
def advance_rings(start, rows, tokens):
    """start [S] int32: advance all S rings by `tokens` tokens, of rows [S] int32. A thread per ring."""
    i = cuda.grid(1)
    if i < start.size:
        start[i] = (start[i] + tokens) % rows[i]
