"""Synapses in bundles on a GPU: delayed block-sparse matrix products on tensor cores, or in float32 (tile products: mma.py).

A bundle is a dense block of weights from BS neighbouring sources, at one axonal delay, to the BT neighbouring targets of one tile. A tile
reads a fixed number of bundles per projection, so the matrix of a projection is block-CSR (drawn in connectome.py):

    forward    current[c, tile]      = sum over bundles j of the tile     x[c - delay_j B, block_j] @ w_j         w_j [BS, BT]
    backward   source_grad[c, block] = sum over bundles j of the block    d[c + delay_j B, tile_j] @ w_j^T
    weights    weight_grad_j         = sum over columns c                 x[c - delay_j B, block_j]^T @ d[c, tile_j]

A column is a token of a sequence, c = token B + sequence. Forward and backward are the same kernel, `gather`, with different tables and
different copies of the weights. Every sum has a fixed order, and no float is added atomically, so every run gives the same bits. The order
for up to SLICE columns differs from the order for more.

x is a set of ring buffers, d the gradients of a segment's currents. Each is a matrix whose columns are padded with zeros to a multiple of
LINE numbers, stored as [lines, columns, LINE]: the numbers that a bundle reads of many columns are contiguous. One flat array holds all
rings and one all gradients, so that one launch reads several of them; the tables contain their offsets.
"""

import functools

import numpy as np
from numba import cuda

from .codes import code
from .half import store
from .jit import ONE, ZERO
from .launch import SIMULATED, device, gpu
from .mma import EDGE, first_halves, high, low, outer, second_halves
from .vector import WORD as LINE

if not SIMULATED:
    from .mma import copy, end_of_copies, multiply, pack_pair, store_pair, wait_for_copies

SLICE = 16  # sources of an entry of `gather`: the depth of one `mma.sync`
WORD = 4  # neighbouring numbers that a lane loads together: 8 bytes of 16-bit numbers
# LINE: neighbouring numbers of a column that are contiguous: the largest bundle, and a word of a ring on the CPU (vector.py)
SLICE_WORDS = SLICE // WORD
THREADS, WARPS, COLUMNS_PER_WARP = 128, 4, 32  # on tensor cores: threads and warps of the largest block, columns of a warp
COLUMNS = SLICE, 2 * COLUMNS_PER_WARP, WARPS * COLUMNS_PER_WARP  # possible block sizes in columns, on tensor cores
STAGE_COLUMNS = 32  # columns per stage of `weight_grad`
COLUMNS_FP32 = SLICE if SIMULATED else 64  # of a block without tensor cores
SHARED = 38 * 2**10  # bytes for the stages of a block; tables and partial sums add to it, and ptxas allows 48 KB of static shared memory
MAX_STAGES = 4  # one is being read, one must be complete, and `wait_for_copies` leaves at most two in flight
NUMBERS_PER_THREAD = 4  # of `write_gradient`
ALIGNED = None if SIMULATED else 16  # bytes of an asynchronous copy, or of a float32 load
PADDING = 4  # extra numbers per row of shared memory, against bank conflicts of a warp's stores

# Columns of the table of entries [E, 8] int32. An entry multiplies a slice of x (or d) by its weights. A word is WORD numbers.
OFFSET = 0  # of the slice in the first column of the matrix, in slices
WEIGHT = 1  # offset of the weights, in words
DELAY = 2  # in columns
LENGTH = 3  # columns of the matrix, after which a ring wraps around
RING = 4  # index of the ring in `start`
FIRST, LAST = 5, 6  # range of outputs within the tile, in units of eight: the first, and one past the last
SCALE = 7  # index of the scale of the weights, if they are codes (codes.py)
ENTRY_COLUMNS = 8
# Columns of the table of bundles [G, 6] int32, for weight gradients: the first five as above, then OFFSET in the gradient of the current:
D_OFFSET = 5
BUNDLE_COLUMNS = 6
# Columns of the table of output tiles [tiles, 8] int32:
OUT = 0  # index of the output array
NUMBER = 1  # first number of the tile in a row of the output
SIZE = 2  # numbers in a row of the output
BEGIN, END = 3, 4  # range of entries: the first, and one past the last
# OFFSET, RING and LENGTH of a ring of x that receives a rounded copy of the rows; COPY_OFFSET is -1 without a copy
COPY_OFFSET, COPY_RING, COPY_LENGTH = 5, 6, 7
TILE_COLUMNS = 8
OUTPUTS = 3  # output arrays per launch, at most
RINGS = 2 * COLUMNS_PER_WARP  # at most: one thread per ring loads `start`, and the smallest block has this many threads

u32 = np.uint32
_TWO, _LINE, _LINE_WORDS, _FIRST_ROW = (np.uint64(n) for n in (2, LINE, LINE // WORD, 0))


def threads_of(columns: int) -> int:
    """Block size of `gather` for blocks of `columns` columns."""
    return THREADS if columns == SLICE else columns // COLUMNS_PER_WARP * 32


def scales_of(coded: bool):
    """`scale_of(scales, entries, e)`: the scale of an entry's weights; 1 if they are not codes."""

    @device
    def scale_of_codes(scales, entries, e):
        return scales[entries[e, SCALE]]

    @device
    def one(scales, entries, e):
        return ONE

    return scale_of_codes if coded else one


def b_registers_of(kind: int, bits: int):
    """`b_registers(word, lane, scale)`: the registers b0, b1 (mma.py) of a warp lane, from the word (uint64) that holds its weights."""
    SHIFT, MASK, OFFSET_BITS, BITS = np.uint64(4 * bits), u32(2**bits - 1), u32(128 if bits == 8 else 0), u32(bits)
    LANES_PER_WORD, ZERO_CODE = u32(16 // bits), np.float32(2 ** (bits - 1))

    @device
    def of_16_bits(word, lane, scale):
        return low(word), high(word)

    @device
    def weight(part, i, scale):
        """Code i of a lane, times its scale. A code of 8 bits is two's complement; its bits with the upper one changed are code + 128."""
        return scale * (np.float32(u32(u32(u32(part >> u32(BITS * i)) & MASK) ^ OFFSET_BITS)) - ZERO_CODE)

    @device
    def of_codes(word, lane, scale):
        part = u32(word >> np.uint64(SHIFT * np.uint64(lane % LANES_PER_WORD)))
        first = pack_pair(kind, weight(part, u32(0), scale), weight(part, u32(1), scale))
        return first, pack_pair(kind, weight(part, u32(2), scale), weight(part, u32(3), scale))

    return of_16_bits if bits == 16 else of_codes


@functools.cache
def make_gather(kind: int, width: int, columns_of_block: int, back: bool, mixed: bool, bits: int = 16):
    """A specialised `gather`: kind of factors (mma.py), output tiles of `width` numbers, blocks of `columns_of_block` columns, direction.

    columns_of_block: COLUMNS_PER_WARP per warp; or SLICE, where all WARPS warps compute the same columns and split the sum over slices
    between them (split-K). mixed: some bundles are smaller than the tile. bits: of a weight; 8 and 4 are codes (codes.py).
    """
    split_k, COLUMNS_OF_BLOCK, BLOCK_DIM = columns_of_block == SLICE, columns_of_block, threads_of(columns_of_block)
    TILES, ROWS = width // 8, 1 if split_k else COLUMNS_PER_WARP // SLICE  # tiles of C [16, 8] per warp, across and down
    SLICES = 8 if split_k and width == 16 else 4 if split_k or width == 16 else 2  # per stage
    SLICES_OF_WARP, STEP = (SLICES // WARPS, WARPS) if split_k else (SLICES, 1)  # slices of a warp per stage, and the stride between them
    # A lane of a tile of 8 outputs needs 4 weights of a slice. A word, 8 bytes, holds those of LANES_PER_WORD lanes.
    LANES_PER_WORD, W_TILE = 16 // bits, 2 * bits  # W_TILE: words of weights of a tile
    X_SLICE, W_SLICE = COLUMNS_OF_BLOCK * SLICE_WORDS, TILES * W_TILE  # words of a slice
    X_STAGE, W_STAGE = SLICES * X_SLICE, SLICES * W_SLICE
    STAGES = min(MAX_STAGES, SHARED // (8 * (X_STAGE + W_STAGE)))
    X_WORDS, W_WORDS = STAGES * X_STAGE, STAGES * W_STAGE
    PREFETCH = STAGES - 1  # stages in flight while one is read
    COPIERS = 2 * SLICES  # threads that copy one column of a stage, 16 bytes each
    X_COPIES, W_COPIES = COLUMNS_OF_BLOCK * COPIERS // BLOCK_DIM, -(-W_STAGE // (2 * BLOCK_DIM))  # per thread and stage
    assert STAGES > 1, "double buffering needs two stages: make a stage smaller, or SHARED larger"
    assert COLUMNS_OF_BLOCK * COPIERS % BLOCK_DIM == 0 and SLICES_OF_WARP > 0, "a stage must divide evenly among threads and warps"
    PARTIAL_SUMS = (WARPS - 1) * TILES * 4 * 32 if split_k else 1
    b_registers, scale_of = b_registers_of(kind, bits), scales_of(bits < 16)

    @gpu(max_registers=168 if split_k else 96 if width == 16 else 128)
    def gather(out_0, out_1, out_2, ring, x, weight, scales, tiles, entries, start, first, limit, columns, batch, scale):
        """Outputs [columns, SIZE] float32, flat: each tile = scale times the sum over its entries. Column 0 is token `first`.

        x: words of four 16-bit numbers (uint64). ring: the same array as words of two (uint32), written in the forward direction. weight:
        words of four (codes: of 8 or 16), in the order of `pack`. scales: of codes, rounded with them to 16-bit factors in registers; else
        not read. limit: columns of the segment, for the backward direction.

        Block (i, j) computes output tile i for the j-th COLUMNS_OF_BLOCK columns. Entries, one slice each, pass through STAGES buffers in
        shared memory, SLICES at a time: asynchronous copies fill the next buffers while the warps multiply one (multi-stage pipeline). An
        incomplete stage is padded with zeros, and so is the rest of a tile beside a smaller bundle; a NaN in x therefore reaches the whole
        tile.

        Indices are uint32: Numba supports negative signed indices, and that costs more instructions than the products.
        """
        xs = cuda.shared.array(X_WORDS, np.uint64, ALIGNED)  # [STAGES, SLICES, COLUMNS_OF_BLOCK, words of a slice]
        ws = cuda.shared.array(W_WORDS, np.uint64, ALIGNED)  # [STAGES, SLICES, TILES, lanes]
        bases = cuda.shared.array(BLOCK_DIM, np.uint32)
        lengths = cuda.shared.array(BLOCK_DIM, np.uint32)
        weights = cuda.shared.array(BLOCK_DIM, np.uint32)
        tile_ranges = cuda.shared.array(BLOCK_DIM, np.uint32)  # FIRST and LAST
        code_scales = cuda.shared.array(BLOCK_DIM if bits < 16 else 1, np.float32)
        offsets = cuda.shared.array(BLOCK_DIM, np.uint64)
        partial_sums = cuda.shared.array(PARTIAL_SUMS, np.float32)  # [WARPS - 1, TILES, 4, lanes]
        tile_row = cuda.shared.array(TILE_COLUMNS, np.int32)
        starts = cuda.shared.array(RINGS, np.int32)
        acc = cuda.local.array((ROWS, TILES, 4), np.float32)
        a = cuda.local.array((ROWS, 4), np.uint32)
        thread, tile = u32(cuda.threadIdx.x), cuda.blockIdx.x
        lane, warp, column = u32(thread % u32(32)), u32(thread // u32(32)), u32(cuda.blockIdx.y * COLUMNS_OF_BLOCK)
        g, q, upper = u32(lane // u32(4)), u32(lane % u32(4)), u32(0) if split_k else u32(warp * u32(COLUMNS_PER_WARP))
        # Copies of this thread in a stage: the slice, which half of its words, and the first column.
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
        cuda.syncthreads()  # waits for tile_row and starts
        begin, end = tile_row[BEGIN], tile_row[END]
        while begin < end:
            # 1. Load the table rows of up to BLOCK_DIM entries into shared memory, one per thread. The copies below then need no table
            # loads.
            count = u32(min(end - begin, BLOCK_DIM))
            if thread < count:
                e = begin + thread
                late, length = entries[e, DELAY], entries[e, LENGTH]
                if back:
                    base, length = first * batch + late, limit
                else:
                    base = (starts[entries[e, RING]] + first) * batch - late
                    base += length if base < 0 else 0
                bases[thread], lengths[thread] = base, length
                offsets[thread], weights[thread] = entries[e, OFFSET] * np.int64(SLICE_WORDS), entries[e, WEIGHT] // LANES_PER_WORD
                if bits < 16:
                    code_scales[thread] = scale_of(scales, entries, e)
                if mixed:
                    tile_ranges[thread] = entries[e, FIRST] | entries[e, LAST] << 8
            cuda.syncthreads()  # waits for the entries
            filled, read, e = u32(0), u32(0), u32(0)  # the next buffer to fill, the next buffer to read, the next entry
            for stage in range(-PREFETCH, (np.int64(count) + SLICES - 1) // SLICES):
                if stage >= 0:
                    wait_for_copies(kind, PREFETCH - 1)  # this thread's copies of the current stage are complete
                    cuda.syncthreads()  # and those of all threads; all warps have read the previous stage, whose buffer is filled next
                # 2. Start the copies of a stage: COLUMNS_OF_BLOCK columns of each slice, and the weights.
                if e < count:
                    entry = min(u32(e + fetched), u32(count - u32(1)))
                    base, length, valid = bases[entry], lengths[entry], e + fetched < count
                    x_offset, to = offsets[entry] + np.uint64(half), u32(u32(filled * u32(X_STAGE)) + to_x)
                    for k in range(X_COPIES):
                        row = u32(column + first_row + u32(k * (BLOCK_DIM // COPIERS)))
                        c = u32(base + min(row, last_column))  # columns beyond the last are clamped: computed, but not stored
                        inside = 16 if valid and (not split_k or row <= last_column) else 0
                        if back:
                            inside = inside if c < length else 0  # columns after the segment have no gradient
                            c = min(c, u32(length - u32(1)))
                        else:
                            c = min(
                                c, u32(c - length)
                            )  # c modulo length without a branch: if c < length, c - length wraps to a huge uint32
                        row_words = u32(k * (BLOCK_DIM // COPIERS) * SLICE_WORDS)
                        copy(kind, xs, u32(to + row_words), x, x_offset + np.uint64(c) * _LINE_WORDS, inside)
                    for k in range(W_COPIES):
                        word = u32(u32(2) * thread + u32(2 * k * BLOCK_DIM))
                        if word < W_STAGE:
                            entry, part = u32(e + word // u32(W_SLICE)), u32(word % u32(W_SLICE))
                            inside, source = 16 if entry < count else 0, weights[min(entry, u32(count - u32(1)))]
                            if mixed:
                                tile_range = tile_ranges[min(entry, u32(count - u32(1)))]
                                before = u32(u32(W_TILE) * (tile_range & u32(255)))
                                after = u32(u32(W_TILE) * (tile_range >> u32(8)))
                                inside = inside if part >= before and part < after else 0
                                part = u32(part - before) if inside else u32(0)
                            copy(kind, ws, u32(u32(filled * u32(W_STAGE)) + word), weight, np.uint64(source) + np.uint64(part), inside)
                end_of_copies(kind)
                e, filled = u32(e + u32(SLICES)), u32(filled + u32(1)) if filled < STAGES - 1 else u32(0)
                # 3. Multiply the complete stage: each warp its columns, or with split-K its slices.
                if stage >= 0:
                    x_word, w_word = u32(u32(read * u32(X_STAGE)) + from_x), u32(u32(read * u32(W_STAGE)) + lane // u32(LANES_PER_WORD))
                    for i in range(SLICES_OF_WARP):
                        s = u32(u32(i * STEP) + warp) if split_k else u32(i)
                        x_slice, w_slice = u32(x_word + u32(s * u32(X_SLICE))), u32(w_word + u32(s * u32(W_SLICE)))
                        for m in range(ROWS):
                            top = xs[u32(x_slice + u32(m * SLICE * SLICE_WORDS))]
                            bottom = xs[u32(x_slice + u32((m * SLICE + 8) * SLICE_WORDS))]
                            a[m, 0], a[m, 1], a[m, 2], a[m, 3] = low(top), low(bottom), high(top), high(bottom)
                        code_scale = ZERO
                        if bits < 16:  # of a slice after the last entry, any scale: its weights are 0
                            code_scale = code_scales[min(u32(u32(stage * SLICES) + s), u32(count - u32(1)))]
                        for n in range(TILES):
                            b0, b1 = b_registers(ws[u32(w_slice + u32(W_TILE * n))], lane, code_scale)
                            for m in range(ROWS):
                                multiply(kind, acc[m, n], a[m], b0, b1)
                    read = u32(read + u32(1)) if read < STAGES - 1 else u32(0)
            cuda.syncthreads()  # waits until all warps have read tables and buffers, before they are overwritten
            begin += np.int32(count)
        # 4. Store. With split-K, the first warp reduces the partial sums of all warps first.
        if split_k:
            for n in range(TILES):
                for i in range(4):
                    if warp > 0:
                        partial_sums[u32(u32(u32(u32(warp - u32(1)) * u32(TILES * 4) + u32(n * 4 + i)) * u32(32)) + lane)] = acc[0, n, i]
            cuda.syncthreads()  # waits for the partial sums
            if warp > 0:
                return
            for other in range(WARPS - 1):
                for n in range(TILES):
                    for i in range(4):
                        acc[0, n, i] += partial_sums[u32(u32(((other * TILES + n) * 4 + i) * 32) + lane)]
        out, which, size = out_0, tile_row[OUT], np.uint64(tile_row[SIZE])
        if which == 1:
            out = out_1
        elif which == 2:
            out = out_2
        number = np.uint64(tile_row[NUMBER]) + np.uint64(u32(2) * q)
        even, copied = size % _TWO == 0, not back and tile_row[COPY_OFFSET] >= 0
        copy_row = (starts[tile_row[COPY_RING]] + first) * batch  # in columns of the ring
        copy_place, length = SLICE // 2 * np.uint64(tile_row[COPY_OFFSET]), tile_row[COPY_LENGTH]
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
                            ring[to + np.uint64(4 * n)] = pack_pair(kind, scale * acc[m, n, 2 * half], second)

    return gather


def bundles_per_block(size: int) -> int:
    """Bundles [size, size] per block of `weight_grad`."""
    return 1 if size == 64 else WARPS


@functools.cache
def make_weight_grad(kind: int, size: int):
    """A specialised `weight_grad`: kind of factors (mma.py), bundles [size, size]."""
    WIDE = min(size, 32)  # a warp computes WIDE sources x WIDE targets
    ACROSS = size // WIDE  # warps side by side in a bundle
    BUNDLES = bundles_per_block(size)
    SLICES, A_TILES, B_TILES = size // SLICE, WIDE // 16, WIDE // 8
    STAGE_SLICE_WORDS = STAGE_COLUMNS * SLICE_WORDS
    STAGE = BUNDLES * SLICES * STAGE_SLICE_WORDS  # words of one factor
    STAGES = min(MAX_STAGES, SHARED // (2 * 8 * STAGE))
    assert STAGES > 1, "double buffering needs two stages: make a stage smaller, or SHARED larger"
    WORDS, PREFETCH = STAGES * STAGE, STAGES - 1
    COPIERS, THREADS_OF_BUNDLE = (
        2 * SLICES,
        THREADS // BUNDLES,
    )  # threads that copy one column of a stage, 16 bytes each; threads per bundle

    @device
    def number_of(row):
        """Index, within the WIDE numbers of a warp, of row (A) or column (B) `row` of its first tile. The following numbers are in the next
        tiles. It inverts the permutation by which lanes load whole words."""
        return 4 * row if WIDE == 32 else 4 * (row % 4) + 2 * (row // 4)

    @gpu(max_registers=128)
    def weight_grad(gradient, x, d, bundles, start, columns, batch, scale):
        """Accumulate scale times the gradient of every bundle's weights [size, size] over `columns` columns into gradient, flat.

        x, d: words of four 16-bit numbers (uint64). A block computes BUNDLES bundles; a warp WIDE sources x WIDE targets. Columns pass
        through STAGES buffers in shared memory, STAGE_COLUMNS at a time. Bundles of a block that have the same targets share one copy of d.
        The sum runs over columns, while a word holds neighbours of one column; a lane therefore repacks words of four columns (q, q + 4, q
        + 8, q + 12) in its registers.
        """
        xs = cuda.shared.array(WORDS, np.uint64, ALIGNED)  # [STAGES, BUNDLES, SLICES, STAGE_COLUMNS, words of a slice]
        ds = cuda.shared.array(WORDS, np.uint64, ALIGNED)
        acc = cuda.local.array((A_TILES, B_TILES, 4), np.float32)
        a = cuda.local.array((A_TILES, 4), np.uint32)
        b = cuda.local.array((B_TILES, 2), np.uint32)
        thread = u32(cuda.threadIdx.x)
        lane, warp, local_bundle = u32(thread % u32(32)), u32(thread // u32(32)), u32(thread // u32(THREADS_OF_BUNDLE))
        g, q, above, left = u32(lane // u32(4)), u32(lane % u32(4)), u32(warp // u32(ACROSS) % u32(ACROSS)), u32(warp % u32(ACROSS))
        fetched, half = u32(thread % u32(COPIERS) // u32(2)), u32(thread % u32(2) * u32(2))
        first_row = u32(thread % u32(THREADS_OF_BUNDLE) // u32(COPIERS))
        number, part = np.int64(cuda.blockIdx.x) * BUNDLES + np.int64(local_bundle), np.int64(u32(fetched * u32(SLICE_WORDS)) + half)
        bundle = min(number, bundles.shape[0] - 1)
        length = u32(bundles[bundle, LENGTH])
        late = start[bundles[bundle, RING]] * batch - bundles[bundle, DELAY]
        base = u32(late + (bundles[bundle, LENGTH] if late < 0 else 0))
        x_offset = np.uint64(bundles[bundle, OFFSET] * np.int64(SLICE_WORDS) + part)
        d_offset = np.uint64(bundles[bundle, D_OFFSET] * np.int64(SLICE_WORDS) + part)
        reader = local_bundle  # the first bundle of the block with the same targets; its threads copy d for all of them
        for other in range(BUNDLES - 1, -1, -1):
            if bundles[min(number - np.int64(local_bundle) + other, bundles.shape[0] - 1), D_OFFSET] == bundles[bundle, D_OFFSET]:
                reader = u32(other)
        # Word offsets within a buffer: of this thread's copies, and of its first factors, sources and targets.
        slices, d_slices, filled, read = u32(local_bundle * u32(SLICES)), u32(reader * u32(SLICES)), u32(0), u32(0)
        to_word = u32(u32(u32(slices + fetched) * u32(STAGE_SLICE_WORDS)) + u32(first_row * u32(SLICE_WORDS)) + half)
        x_slice, d_slice = slices, d_slices
        if WIDE == 32:
            x_slice, d_slice = u32(slices + u32(2) * above + g // u32(4)), u32(d_slices + u32(2) * left + g // u32(4))
        in_slice = u32(u32(q * u32(SLICE_WORDS)) + g % u32(4))
        x_word, d_word = u32(u32(x_slice * u32(STAGE_SLICE_WORDS)) + in_slice), u32(u32(d_slice * u32(STAGE_SLICE_WORDS)) + in_slice)
        shift = u32(0) if WIDE == 32 else u32(u32(32) * (g // u32(4)))
        for i in range(A_TILES):
            for j in range(B_TILES):
                for k in range(4):
                    acc[i, j, k] = ZERO
        all_columns, row = u32(columns), first_row
        for stage in range(-PREFETCH, (columns + STAGE_COLUMNS - 1) // STAGE_COLUMNS):
            if stage >= 0:
                wait_for_copies(kind, PREFETCH - 1)  # this thread's copies of the current stage are complete
                cuda.syncthreads()  # and those of all threads; all warps have read the previous stage, whose buffer is filled next
            if u32(row - first_row) < all_columns:
                to = u32(u32(filled * u32(STAGE)) + to_word)
                for k in range(STAGE_COLUMNS * COPIERS // THREADS_OF_BUNDLE):
                    c = u32(row + u32(k * (THREADS_OF_BUNDLE // COPIERS)))
                    inside, c = 16 if c < all_columns else 0, min(c, u32(all_columns - u32(1)))
                    word_offset = u32(to + u32(k * (THREADS_OF_BUNDLE // COPIERS) * SLICE_WORDS))
                    if reader == local_bundle:
                        copy(kind, ds, word_offset, d, d_offset + np.uint64(c) * _LINE_WORDS, inside)
                    c = u32(base + c)
                    c = min(c, u32(c - length))  # c modulo length, as in `gather`
                    copy(kind, xs, word_offset, x, x_offset + np.uint64(c) * _LINE_WORDS, inside)
            end_of_copies(kind)
            row, filled = u32(row + u32(STAGE_COLUMNS)), u32(filled + u32(1)) if filled < STAGES - 1 else u32(0)
            if stage >= 0:
                buffer = u32(read * u32(STAGE))
                for k in range(STAGE_COLUMNS // SLICE):
                    word_offset = u32(u32(buffer + x_word) + u32(k * SLICE * SLICE_WORDS))
                    x0, x1 = xs[word_offset], xs[u32(word_offset + u32(4 * SLICE_WORDS))]
                    x2, x3 = xs[u32(word_offset + u32(8 * SLICE_WORDS))], xs[u32(word_offset + u32(12 * SLICE_WORDS))]
                    word_offset = u32(u32(buffer + d_word) + u32(k * SLICE * SLICE_WORDS))
                    d0, d1 = ds[word_offset], ds[u32(word_offset + u32(4 * SLICE_WORDS))]
                    d2, d3 = ds[u32(word_offset + u32(8 * SLICE_WORDS))], ds[u32(word_offset + u32(12 * SLICE_WORDS))]
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


def weights_of(coded: bool):
    """`weight_of(weight, i, scale)`: weight i, float32."""

    @device
    def from_codes(weight, i, scale):
        return scale * code(weight, _FIRST_ROW, i)

    @device
    def as_stored(weight, i, scale):
        return weight[i]

    return from_codes if coded else as_stored


@functools.cache
def make_gather_fp32(width: int, columns_of_block: int, back: bool, add: bool, coded: bool = False):
    """`gather` in float32, without tensor cores. add: accumulate into the outputs instead of overwriting them. coded: the weights are codes
    (codes.py)."""
    ACROSS = width // EDGE
    THREADS = ACROSS * (columns_of_block // EDGE)
    X_COPIES, W_COPIES = columns_of_block * SLICE // THREADS, width * SLICE // THREADS  # of a thread, for a slice
    X_ROW, W_ROW = columns_of_block + PADDING, width + PADDING
    weight_of, scale_of = weights_of(coded), scales_of(coded)

    @gpu
    def gather_fp32(out_0, out_1, out_2, ring, x, weight, scales, tiles, entries, start, first, limit, columns, batch, scale):
        """As `gather`, for bundles of the tile's size. ring, x and weight are flat float32; weight holds the learned weights, unpacked, or
        [1, N] codes.

        Block (i, j) computes output tile i for the j-th columns_of_block columns. Its threads copy a slice of both factors into shared
        memory; then a thread multiplies EDGE columns by EDGE numbers of the tile, with its sums in registers.
        """
        xs = cuda.shared.array((SLICE, X_ROW), np.float32, ALIGNED)
        ws = cuda.shared.array((SLICE, W_ROW), np.float32, ALIGNED)
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread, tile, out = u32(cuda.threadIdx.x), cuda.blockIdx.x, out_0
        column, last_column = u32(cuda.blockIdx.y * columns_of_block), u32(columns - 1)
        # From unsigned to int64: the compiler then knows that they are not negative, and drops the code for negative indices.
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
                if add and c < columns and n < size:  # all loads are issued before the first store
                    acc[i, j] = out[np.uint64(c) * np.uint64(size) + np.uint64(n)] / scale
        for e in range(tiles[tile, BEGIN], tiles[tile, END]):
            if back:
                base, length = u32(first * batch + entries[e, DELAY]), u32(limit)
            else:
                late, length = (start[entries[e, RING]] + first) * batch - entries[e, DELAY], u32(entries[e, LENGTH])
                base = u32(late + (entries[e, LENGTH] if late < 0 else 0))
            begin, w = np.uint64(SLICE * np.int64(entries[e, OFFSET])), np.uint64(WORD * np.int64(entries[e, WEIGHT]))
            code_scale = scale_of(scales, entries, e)
            for turn in range(X_COPIES):
                i = u32(thread + u32(turn * THREADS))
                local_row, k = u32(i // u32(SLICE)), u32(i % u32(SLICE))
                c, value = u32(base + min(u32(column + local_row), last_column)), ZERO
                if not back:
                    c = min(c, u32(c - length))  # c modulo length, as in `gather`
                if not back or c < length:  # columns after the segment have no gradient
                    value = x[begin + np.uint64(c) * _LINE + np.uint64(k)]
                xs[k, local_row] = value
            for turn in range(W_COPIES):
                i = u32(thread + u32(turn * THREADS))
                if back:  # w_j^T: read the bundle transposed
                    local_row, k = u32(i // u32(SLICE)), u32(i % u32(SLICE))
                    ws[k, local_row] = weight_of(weight, w + np.uint64(u32(local_row * u32(width)) + k), code_scale)
                else:
                    ws[u32(i // u32(width)), u32(i % u32(width))] = weight_of(weight, w + np.uint64(i), code_scale)
            cuda.syncthreads()  # waits for the slice
            for k in range(0, SLICE, 4):  # unrolled by hand: the compiler does not
                outer(acc, xs, ws, k, row, number)
                outer(acc, xs, ws, k + 1, row, number)
                outer(acc, xs, ws, k + 2, row, number)
                outer(acc, xs, ws, k + 3, row, number)
            cuda.syncthreads()  # waits until all threads have read the slice, before it is overwritten
        copied, length = not back and tiles[tile, COPY_OFFSET] >= 0, tiles[tile, COPY_LENGTH]
        copy_row = (start[tiles[tile, COPY_RING]] + first) * batch  # in columns of the ring
        for i in range(EDGE):
            for j in range(EDGE):
                c, n = np.int64(column) + row + i, before + number + j
                if c < columns and n < size:
                    out[np.uint64(c) * np.uint64(size) + np.uint64(n)] = scale * acc[i, j]
                    if copied:
                        to = (copy_row + c) % length * LINE + SLICE * np.int64(tiles[tile, COPY_OFFSET])
                        ring[np.uint64(to + number + j)] = scale * acc[i, j]

    return gather_fp32


@functools.cache
def make_weight_grad_fp32(size: int):
    """`weight_grad` in float32, without tensor cores."""
    ACROSS = size // EDGE
    THREADS = ACROSS * ACROSS
    COPIES = SLICE * size // THREADS  # loads per thread for SLICE columns

    @gpu
    def weight_grad_fp32(gradient, x, d, bundles, start, columns, batch, scale):
        """As `weight_grad`, x and d flat float32. One block per bundle; a thread computes EDGE sources x EDGE targets of it."""
        xs = cuda.shared.array((SLICE, size), np.float32, ALIGNED)
        ds = cuda.shared.array(
            (SLICE, size), np.float32, ALIGNED
        )  # one array per source line: the simulator identifies shared arrays by line
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        thread, bundle = u32(cuda.threadIdx.x), cuda.blockIdx.x
        row, number = np.int64(u32(thread // u32(ACROSS) * u32(EDGE))), np.int64(u32(thread % u32(ACROSS) * u32(EDGE)))
        late, length = start[bundles[bundle, RING]] * batch - bundles[bundle, DELAY], u32(bundles[bundle, LENGTH])
        base, all_columns = u32(late + (bundles[bundle, LENGTH] if late < 0 else 0)), u32(columns)
        x_offset = np.uint64(SLICE * np.int64(bundles[bundle, OFFSET]))
        d_offset = np.uint64(SLICE * np.int64(bundles[bundle, D_OFFSET]))
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] = ZERO
        for first in range(0, columns, SLICE):
            for turn in range(COPIES):
                i = u32(thread + u32(turn * THREADS))
                k, local_number = u32(i // u32(size)), u32(i % u32(size))
                c, value, d_value = u32(u32(first) + k), ZERO, ZERO
                if c < all_columns:
                    d_value = d[d_offset + np.uint64(c) * _LINE + np.uint64(local_number)]
                    c = u32(base + c)
                    c = min(c, u32(c - length))  # c modulo length, as in `gather`
                    value = x[x_offset + np.uint64(c) * _LINE + np.uint64(local_number)]
                xs[k, local_number], ds[k, local_number] = value, d_value
            cuda.syncthreads()  # waits for the columns
            for k in range(0, SLICE, 4):
                outer(acc, xs, ds, k, row, number)
                outer(acc, xs, ds, k + 1, row, number)
                outer(acc, xs, ds, k + 2, row, number)
                outer(acc, xs, ds, k + 3, row, number)
            cuda.syncthreads()  # waits until all threads have read the columns, before they are overwritten
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
    def pack(forward, backward, weight, offsets):
        """Round the weights of bundles [size, size] to 16 bits and write them twice, for the forward and the backward direction, each
        [words, 4], in the order in which the warp lanes of `gather` load them.

        Word (slice, tile of 8 outputs, lane 4 g + q) holds the numbers 4 q ... 4 q + 3 of the slice for output g of the tile. Forward,
        outputs are targets and slices are of sources; backward, they are exchanged. One block per bundle, whose weights begin at word
        offsets[block]; one thread per word.
        """
        first = offsets[cuda.blockIdx.x]
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
    """Write scale times the gradient x [C B, N] float32 of a current into d [lines, columns, LINE], from column `offset` on.

    Block (c, i): part i of column c. A thread copies NUMBERS_PER_THREAD numbers; it issues all loads before the first store.
    """
    values, size, c = cuda.local.array(NUMBERS_PER_THREAD, np.float32), u32(x.shape[1]), np.uint64(cuda.blockIdx.x)
    first, threads = u32(cuda.blockIdx.y * cuda.blockDim.x * NUMBERS_PER_THREAD + cuda.threadIdx.x), u32(cuda.blockDim.x)
    for i in range(NUMBERS_PER_THREAD):
        n = u32(first + u32(i) * threads)
        values[i] = x[c, np.uint64(n)] if n < size else ZERO
    for i in range(NUMBERS_PER_THREAD):
        n = u32(first + u32(i) * threads)
        if n < size:
            store(d[np.uint64(n // u32(LINE))], c + np.uint64(offset), np.uint64(n % u32(LINE)), scale * values[i])


@gpu
def advance_rings(start, rows, tokens):
    """Advance start [S] int32 of all rings by `tokens` tokens, modulo rows [S] int32. One thread per ring."""
    i = cuda.grid(1)
    if i < start.size:
        start[i] = (start[i] + tokens) % rows[i]
