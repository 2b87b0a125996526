"""Draw the next token: temperature, top-k, top-p (nucleus sampling: Holtzman et al. 2020, "The curious case of neural text
degeneration").

    z        = logit + bias                        nats; the matrix product leaves out the bias, its readers add it
    distance = (largest z - z) / temperature       nats; the smaller, the more probable; ties go to the lower token id
    weight   = exp(-distance), in units of 2^-30   an integer; 0 from 21.5 nats on: such a token is never drawn

Weights are integers, so their sum does not depend on the order of additions. The tokens that pass top-k and top-p are ordered by token id;
a random fraction of their total weight selects the token. A NaN logit has weight 0. If all weights are 0, because the largest logit is
infinite, the first of the largest is taken.

On a GPU, two kernels:

    find_largest   many blocks per row. The tokens of a row are split into GROUPS groups; one thread finds the largest z of a group.
    sample         one block per row. The k-th largest of the group maxima is a lower bound for top-k, because at least k tokens reach it.
                   Only groups that reach the bound are read again; their tokens above it are listed, ranked and drawn from.

Without top-k, or if k is large, a histogram of the distances in the row gives the bound. If more tokens remain than the list can hold, the
histogram is refined until a bin contains a single token.
"""

import math

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import HALF, ONE, ZERO, cpu_serial
from .launch import SIMULATED, WARP, block_sum, cross_warp_sum, device, from_lane, gpu, shuffle_up, warp_sum
from .rng import mix
from .softmax import MINUS_INF, NO_TOKEN, QUAD, WARPS, block_max, load_four, max_of, token_of_largest

u64 = np.uint64
WEIGHT_UNIT, MAX_DISTANCE = np.float32(2.0**30), np.float32(22)  # weight of the largest; nats, beyond which the weight is 0
MAX_TOKENS = 2**17 - 1  # so that the sum of 15-bit halves of weights fits in 32 bits, and a count in COUNT_BITS
BINS_PER_NAT, BINS, BLOCK_DIM, FIND_BLOCK_DIM = (2, 64, 8, 2) if SIMULATED else (32, 1024, 1024, 32)
BINS_PER_NAT, BINS_PER_THREAD = np.float32(BINS_PER_NAT), np.uint64(BINS // BLOCK_DIM)
GROUPS = BLOCK_DIM  # of the tokens of a row: one per thread of `sample`
LIST_SIZE = BLOCK_DIM  # capacity of the list of candidates: one per thread
MAX_LISTED_TOP_K = LIST_SIZE // 4  # for a larger top-k, the bound from group maxima would list too many tokens
_ZERO64, _LANES, _NUMBER_BITS, _GROUPS = np.uint64(0), np.uint64(WARP), np.uint64(32), np.uint64(GROUPS)
_PART_BITS, _PART_MASK, _PARTS, _TO_PART = np.int64(31), np.int64(2**31 - 1), np.float32(2.0**31), np.uint64(33)
_HALF_BITS, _HALF_MASK = np.int32(15), np.int32(2**15 - 1)
_COUNT_BITS, _COUNT_MASK = np.uint64(17), np.int64(2**17 - 1)


@register_jitable
def weight_of(distance):
    return np.int32(math.exp(-distance) * WEIGHT_UNIT + HALF) if distance < MAX_DISTANCE else np.int32(0)


@register_jitable
def fraction_of(total, part):
    """floor(total part / 2^31), integers, without overflow. total: below 2^62; part: from 0 to 2^31."""
    return (total >> _PART_BITS) * part + (((total & _PART_MASK) * part) >> _PART_BITS)


@register_jitable
def least_weight(total, top_p):
    """The smallest weight, at least 1, that is the fraction top_p of the total."""
    return max(fraction_of(total, np.int64(top_p * _PARTS)), np.int64(1))


@register_jitable
def limits(top_k, top_p, size):
    """(whether top-k removes any of `size` tokens, whether top-p does)."""
    return top_k > 0 and np.uint64(top_k) < np.uint64(size), top_p < ONE


@register_jitable
def random_part(key, step, row, rows):
    """A random integer from 0 to 2^31 - 1 for a step (uint64) and a row."""
    return np.int64(mix(key, step * np.uint64(rows) + np.uint64(row)) >> _TO_PART)


@register_jitable
def distance_of(top, logit, scale):
    """Distance of a logit from the largest, in nats at this temperature. `abs` turns -0 into 0, whose bits `order_of` needs."""
    return abs((top - logit) * scale)


@register_jitable
def order_of(distance, j):
    """A unique sort key (uint64) of token j: the smaller, the more probable. Bits of the distance above, token id below."""
    return (np.uint64(np.float32(distance).view(np.uint32)) << _NUMBER_BITS) | np.uint64(j)


@register_jitable
def bin_of(distance):
    """The bin (uint32) of a distance below MAX_DISTANCE."""
    return np.uint32(distance * BINS_PER_NAT)


@device
def running_sum(x, partial):
    """Inclusive prefix sum (scan) of x over the threads of a block. partial: shared, one entry per warp. Every thread takes part.

    Each warp scans by shuffles; then the sums of the earlier warps are added.
    """
    lane, warp = np.uint64(cuda.threadIdx.x) % _LANES, np.uint64(cuda.threadIdx.x) // _LANES
    distance = 1
    while distance < WARP:
        before = shuffle_up(x, distance)
        if lane >= np.uint64(distance):
            x += before
        distance <<= 1
    return x + cross_warp_sum(from_lane(x, WARP - 1), partial, warp)


# A histogram is [3, BINS] uint32 in shared memory: for each bin the count of tokens, and the sums of the lower and the upper half of their
# weights. Reductions pack count and weight into one int64, so that one shuffle moves both: the count in the lower 17 bits, the weight
# above.


@device
def clear(histogram):
    """Set a histogram to 0. Starts and ends with a barrier."""
    cuda.syncthreads()
    i = np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        histogram[0, i] = 0
        histogram[1, i] = 0
        histogram[2, i] = 0
        i += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@device
def histogram_add(histogram, i, distance, with_weight):
    """Add a token to bin i, and its weight if `with_weight`. Integer atomics: the result does not depend on their order."""
    cuda.atomic.add(histogram, (0, i), np.uint32(1))
    if with_weight:
        weight = weight_of(distance)
        cuda.atomic.add(histogram, (1, i), np.uint32(weight & _HALF_MASK))
        cuda.atomic.add(histogram, (2, i), np.uint32(weight >> _HALF_BITS))


@device
def packed_sums(histogram, i):
    """Count and weight of the tokens in bin i, packed into one int64."""
    return np.int64(histogram[0, i]) + (
        (np.int64(histogram[1, i]) + (np.int64(histogram[2, i]) << np.int64(_HALF_BITS))) << np.int64(_COUNT_BITS)
    )


@device
def unpack(sums, by_weight):
    """The weight, or the count, from packed sums; int64."""
    return np.int64(np.uint64(sums) >> _COUNT_BITS) if by_weight else sums & _COUNT_MASK


@device
def histogram_totals(histogram, partial):
    """Count and weight of all tokens in a histogram, packed; a block reduction."""
    sums, i = np.int64(0), np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        sums += packed_sums(histogram, i)
        i += np.uint64(cuda.blockDim.x)
    return block_sum(sums, partial)


@device
def find_bin(result, histogram, target, by_weight, partial):
    """Find the bin in which the cumulative count of tokens, or their cumulative weight, reaches `target`.

    result [3] int64, shared: [0] the bin, unchanged if the target is not reached; [1] packed sums before this bin, on entry those before
    bin 0; [2] packed sums of this bin. A thread scans BINS_PER_THREAD bins after a prefix sum over the threads.
    """
    sums, first = np.int64(0), np.uint64(cuda.threadIdx.x) * BINS_PER_THREAD
    for i in range(first, first + BINS_PER_THREAD):
        sums += packed_sums(histogram, i)
    before = running_sum(sums, partial) - sums + result[1]
    cuda.syncthreads()  # waits until all threads have read result[1]
    for i in range(first, first + BINS_PER_THREAD):
        sums = packed_sums(histogram, i)
        if unpack(before, by_weight) < target and target <= unpack(before + sums, by_weight):
            result[0] = i
            result[1] = before
            result[2] = sums
        before += sums
    cuda.syncthreads()


@device
def histogram_add_near(histogram, z, top, scale, with_weight):
    """Add a token to the histogram of distances, unless its weight is 0."""
    distance = distance_of(top, z, scale)
    if distance < MAX_DISTANCE:
        histogram_add(histogram, bin_of(distance), distance, with_weight)


@device
def fill_histogram(histogram, row, bias, size, top, scale, with_weight):
    """Build the histogram of the distances in a row. Starts and ends with a barrier. A thread strides over quads of tokens."""
    clear(histogram)
    q = np.uint64(cuda.threadIdx.x)
    while QUAD * q < np.uint64(size):
        z = load_four(row, bias, q, size)
        histogram_add_near(histogram, z[0], top, scale, with_weight)
        histogram_add_near(histogram, z[1], top, scale, with_weight)
        histogram_add_near(histogram, z[2], top, scale, with_weight)
        histogram_add_near(histogram, z[3], top, scale, with_weight)
        q += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@gpu
def find_largest(largest, indices, logits, bias, size):
    """largest [B, GROUPS] float32, indices [B, GROUPS] int32: the largest z of each group of tokens, and the first token that has it; -inf
    and NO_TOKEN for an empty group.

    logits [B, W], bias [W] float32; the first `size` columns are tokens. Grid (blocks over GROUPS, B): one thread per group. A group is
    every GROUPS-th quad of a row, so neighbouring threads read neighbouring quads (coalesced).
    """
    q, b = np.uint64(cuda.grid(1)), cuda.blockIdx.y
    top, index, g, row = MINUS_INF, NO_TOKEN, q, logits[b]
    while QUAD * q < np.uint64(size):
        y, z = load_four(row, bias, q, size), load_four(row, bias, q + _GROUPS, size)
        highest = max_of(z, max_of(y, top))
        if highest > top:
            index = token_of_largest(highest, q, y) if max_of(y, top) == highest else token_of_largest(highest, q + _GROUPS, z)
            top = highest
        q += u64(2) * _GROUPS
    largest[b, g], indices[b, g] = top, index


@device
def bin_of_kth(z, top, scale, k):
    """The bin (uint32) of the k-th nearest z, one z per thread; the last bin if fewer than k are nearer than MAX_DISTANCE.

    Binary search over bins: in each round a barrier with a count gives the number of threads up to the middle bin.
    """
    distance = distance_of(top, z, scale)
    thread_bin = bin_of(distance) if distance < MAX_DISTANCE else np.uint32(BINS)
    low, high = np.uint32(0), np.uint32(BINS - 1)
    while low < high:
        middle = np.uint32((low + high) // np.uint32(2))
        if cuda.syncthreads_count(np.int32(thread_bin <= middle)) >= k:
            high = middle
        else:
            low = np.uint32(middle + np.uint32(1))
    return low


@device
def list_token(orders, counts, z, j, top, scale, last):
    """Append the sort key of token j to orders [LIST_SIZE] if its bin is at most `last`. counts[1]: tokens so far, also those that did not
    fit."""
    distance = distance_of(top, z, scale)
    if distance < MAX_DISTANCE and bin_of(distance) <= last and counts[1] <= LIST_SIZE:
        n = cuda.atomic.add(counts, 1, 1)
        if n < LIST_SIZE:
            orders[n] = order_of(distance, j)


@device
def list_candidates(orders, groups, counts, row, bias, size, group_max, top, scale, last):
    """List the tokens of a row up to and including bin `last`, in any order. Returns their count; more than LIST_SIZE means that the list
    is incomplete.

    group_max: the largest z of the thread's group. groups [GROUPS], counts [2] int32: shared; the counts are 0 on entry.
    1. Threads whose group maximum is near enough append their group. 2. The quads of these groups are distributed over all threads.
    """
    thread, each = np.uint32(cuda.threadIdx.x), np.uint32((np.uint64(size) + QUAD * _GROUPS - u64(1)) // (QUAD * _GROUPS))
    distance = distance_of(top, group_max, scale)
    if distance < MAX_DISTANCE and bin_of(distance) <= last:
        groups[cuda.atomic.add(counts, 0, 1)] = thread
    cuda.syncthreads()
    i, end = thread, np.uint32(counts[0]) * each
    while i < end:
        q = np.uint64(groups[i // each]) + _GROUPS * np.uint64(i % each)
        if QUAD * q < np.uint64(size):
            z, j = load_four(row, bias, q, size), QUAD * q
            list_token(orders, counts, z[0], j, top, scale, last)
            list_token(orders, counts, z[1], j + u64(1), top, scale, last)
            list_token(orders, counts, z[2], j + u64(2), top, scale, last)
            list_token(orders, counts, z[3], j + u64(3), top, scale, last)
        i += np.uint32(cuda.blockDim.x)
    cuda.syncthreads()
    return counts[1]


@device
def draw_listed(orders, weights, totals, count, row_weight, top_k, top_p, part):
    """Draw a token from the list of candidates. The thread that holds it gets its id (int64), all others -1.

    orders [LIST_SIZE] uint64, the list; weights [LIST_SIZE] int64, totals [2] int64: shared; the totals are 0 on entry. row_weight: weight
    of the whole row if top-k is off, else 0. One thread per listed token, which compares itself with all others:
    1. The rank and the weight of all more probable tokens decide where top-k and top-p end. 2. The weight of the remaining tokens with
    lower ids decides whether the random number selects this token.
    """
    thread = np.int64(cuda.threadIdx.x)
    active = thread < count
    order, compared = orders[thread] if active else _ZERO64, count if active else 0
    weight = np.int64(weight_of(np.uint32(order >> _NUMBER_BITS).view(np.float32)))
    weights[thread] = weight
    cuda.syncthreads()
    rank, before = 0, np.int64(0)
    for i in range(compared):
        if orders[i] < order:
            rank, before = rank + 1, before + weights[i]
    if active and rank + 1 == (min(count, top_k) if top_k > 0 else count):
        totals[0] = before + weight  # of the tokens within top-k
    cuda.syncthreads()  # waits for totals[0], and until all threads have read the weights
    target = least_weight(max(totals[0], row_weight), top_p)
    nucleus_weight = weight if active and before < target else np.int64(0)
    if before < target and target <= before + nucleus_weight:
        totals[1] = before + nucleus_weight  # of the tokens within top-k and top-p
    weights[thread] = nucleus_weight
    cuda.syncthreads()
    left = fraction_of(totals[1], part)
    for i in range(compared):
        if np.uint32(orders[i]) < np.uint32(order):
            left -= weights[i]
    return np.int64(np.uint32(order)) if left >= 0 and left < nucleus_weight else np.int64(-1)


@device
def last_order_kept(row, bias, size, top, scale, top_k, top_p, histogram, result, partial):
    """The sort key of the last token within top-k and top-p, for any number of tokens.

    A histogram of the distances gives the bin of that token; a histogram of the sort keys within this bin gives a narrower bin; this
    repeats until a bin holds one token. First for top-k, by count; then for top-p, by weight, among the tokens within top-k.
    """
    last, total = order_of(MAX_DISTANCE, 0), np.int64(-1)
    by_count, by_weight_limit = limits(top_k, top_p, size)
    for by_weight in range(0 if by_count else 1, 2 if by_weight_limit else 1):
        fill_histogram(histogram, row, bias, size, top, scale, True)
        totals_of_row = histogram_totals(histogram, partial)
        total = unpack(totals_of_row, True) if total < 0 else total
        target = least_weight(total, top_p) if by_weight else np.int64(top_k)
        if target > unpack(totals_of_row, by_weight):
            continue
        if cuda.threadIdx.x == 0:
            result[1] = 0
        find_bin(result, histogram, target, by_weight, partial)
        first = order_of(np.float32(result[0]) / BINS_PER_NAT, 0)
        last = order_of(np.float32(result[0] + 1) / BINS_PER_NAT, 0) - u64(1)
        while unpack(result[2], False) > 1:
            shift = np.uint64(0)
            while (last - first) >> shift >= np.uint64(BINS):
                shift += u64(1)
            clear(histogram)
            j = np.uint64(cuda.threadIdx.x)
            while j < np.uint64(size):
                distance = distance_of(top, row[j] + bias[j], scale)
                order = order_of(distance, j)
                if first <= order and order <= last:
                    histogram_add(histogram, np.uint32((order - first) >> shift), distance, True)
                j += np.uint64(cuda.blockDim.x)
            cuda.syncthreads()
            find_bin(result, histogram, target, by_weight, partial)
            first += np.uint64(result[0]) << shift
            last = min(last, first + (u64(1) << shift) - u64(1))
        total = unpack(result[1] + result[2], True)
        cuda.syncthreads()
    return last


@device
def weight_within(z, j, top, scale, last):
    """The weight of token j if its sort key is at most `last`, else 0."""
    distance = distance_of(top, z, scale)
    return np.int64(weight_of(distance)) if order_of(distance, j) <= last else np.int64(0)


@device
def draw_from_row(weights, row, bias, size, top, scale, last, part, partial):
    """Draw a token from a whole row, among sort keys up to `last`. The thread that finds it gets its id (int64), all others -1.

    weights [WARPS] int64: shared. 1. Each warp sums the weights of one contiguous part of the row. 2. The random number selects a part; all
    threads of the block scan it.
    """
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    warp, warps = thread // _LANES, threads // _LANES
    quads_per_warp = (np.uint64(size) + QUAD * warps - u64(1)) // (QUAD * warps)
    q, weight = warp * quads_per_warp + thread % _LANES, np.int64(0)
    while q < (warp + u64(1)) * quads_per_warp:
        z, j = load_four(row, bias, q, size), QUAD * q
        weight += weight_within(z[0], j, top, scale, last) + weight_within(z[1], j + u64(1), top, scale, last)
        weight += weight_within(z[2], j + u64(2), top, scale, last) + weight_within(z[3], j + u64(3), top, scale, last)
        q += _LANES
    weight = warp_sum(weight, WARP)
    if thread % _LANES == 0:
        weights[warp] = weight
    cuda.syncthreads()
    total, w = np.int64(0), _ZERO64
    for other in range(warps):
        total += weights[other]
    left = fraction_of(total, part)
    while w + u64(1) < warps and left >= weights[w]:
        left -= weights[w]
        w += u64(1)

    each = (QUAD * quads_per_warp + threads - u64(1)) // threads  # tokens of a thread
    begin, drawn = w * QUAD * quads_per_warp + thread * each, np.int64(-1)
    end, weight = min(np.uint64(size), min((w + u64(1)) * QUAD * quads_per_warp, begin + each)), np.int64(0)
    for j in range(begin, end):
        weight += weight_within(row[j] + bias[j], j, top, scale, last)
    left -= running_sum(weight, partial) - weight
    for j in range(begin, end):
        weight = weight_within(row[j] + bias[j], j, top, scale, last)
        if left >= 0 and left < weight:
            drawn = np.int64(j)
        left -= weight
    return drawn


@gpu(max_registers=64)  # 65,536 registers of a multiprocessor / 1,024 threads
def sample(tokens, logits, bias, temperature, top_k, top_p, key, step, largest, indices, size):
    """tokens [B] int32: one draw per row of logits [B, W], bias [W] float32; the first `size` columns are tokens. One block per row, one
    thread per group of tokens.

    temperature: 0 takes the most probable token (the first of equals). top_k: only the k most probable, 0 for all. top_p: only the smallest
    set of most probable tokens with this fraction of the weight within top_k, at least one token. key (uint64), step [B] uint64: key and
    index of the random numbers; step is incremented. largest, indices: output of `find_largest`.
    """
    histogram = cuda.shared.array((3, BINS), np.uint32)
    orders = cuda.shared.array(LIST_SIZE, np.uint64)
    weights = cuda.shared.array(LIST_SIZE, np.int64)
    groups = cuda.shared.array(GROUPS, np.uint32)
    sums = cuda.shared.array(WARPS, np.int64)
    maxima = cuda.shared.array(WARPS, np.float32)
    result = cuda.shared.array(3, np.int64)
    totals = cuda.shared.array(2, np.int64)
    counts = cuda.shared.array(2, np.int32)
    first = cuda.shared.array(1, np.int32)
    b, thread, row = cuda.blockIdx.x, cuda.threadIdx.x, logits[cuda.blockIdx.x]

    # 1. The most probable token; distances are relative to its z.
    group_max, index, part = largest[b, thread], indices[b, thread], random_part(key, step[b], b, tokens.size)
    if thread == 0:
        first[0] = NO_TOKEN
        result[0], result[1] = BINS - 1, 0  # if no bin reaches the target: up to the last one
        totals[0], totals[1], counts[0], counts[1] = 0, 0, 0, 0
    top = block_max(group_max, maxima)
    if group_max == top:
        cuda.atomic.min(first, 0, index)
    cuda.syncthreads()
    if thread == 0:
        step[b] += u64(1)
        tokens[b] = first[0] if first[0] < NO_TOKEN else 0
    if temperature == ZERO:
        return

    # 2. The bin where top-k ends, or top-p if top-k is off; the list of tokens up to that bin.
    scale, last, row_weight, count = ONE / temperature, order_of(MAX_DISTANCE, 0), np.int64(0), 0
    by_count, by_weight_limit = limits(top_k, top_p, size)
    if by_count or by_weight_limit:
        if by_count and top_k <= MAX_LISTED_TOP_K:
            end = bin_of_kth(group_max, top, scale, top_k)
        else:
            fill_histogram(histogram, row, bias, size, top, scale, not by_count)
            target = np.int64(top_k)
            if not by_count:
                row_weight = unpack(histogram_totals(histogram, sums), True)
                target = least_weight(row_weight, top_p)
            find_bin(result, histogram, target, not by_count, sums)
            end = np.uint32(result[0])
        count = list_candidates(orders, groups, counts, row, bias, size, group_max, top, scale, end)

    # 3. The draw: from the list, or from the row if the list is incomplete.
    if count > LIST_SIZE:
        last = last_order_kept(row, bias, size, top, scale, top_k, top_p, histogram, result, sums)
    if count > 0 and count <= LIST_SIZE:
        drawn = draw_listed(orders, weights, totals, count, row_weight, top_k if by_count else 0, top_p, part)
    elif count > 0 or not (by_count or by_weight_limit):
        drawn = draw_from_row(weights, row, bias, size, top, scale, last, part, sums)
    else:
        return
    if drawn >= 0:
        tokens[b] = np.int32(drawn)


@cpu_serial()
def _truncate(weights, distances, top_k, top_p):
    """Set weights [V] to 0 for all tokens outside top-k or top-p."""
    by_count = 0 < top_k < weights.size
    target = np.int64(top_k) if by_count else least_weight(weights.sum(), top_p)
    histogram = np.zeros(BINS, np.int64)
    for j in range(weights.size):
        if distances[j] < MAX_DISTANCE:
            histogram[bin_of(distances[j])] += 1 if by_count else weights[j]
    last, reached = 0, histogram[0]
    while reached < target and last < BINS - 1:
        last += 1
        reached += histogram[last]
    near = np.flatnonzero(distances < np.float32(last + 1) / BINS_PER_NAT)  # only these need to be sorted
    order = near[np.argsort(distances[near], kind="mergesort")]
    if by_count:
        order = order[:top_k]
    if top_p < ONE:
        target, reached, end = least_weight(weights[order].sum() if by_count else weights.sum(), top_p), np.int64(0), 0
        while end < order.size and reached < target:
            reached += weights[order[end]]
            end += 1
        order = order[:end]
    kept_weights = weights[order]
    weights[:] = 0
    weights[order] = kept_weights


@cpu_serial()
def sample_cpu(tokens, logits, bias, temperature, top_k, top_p, key, step, size):
    """As `sample`."""
    B, V = len(tokens), size
    row, distances, weights = np.empty(V, np.float32), np.empty(V, np.float32), np.empty(V, np.int64)
    for b in range(B):
        top = MINUS_INF
        part = random_part(key, step[b], b, B)
        step[b] += np.uint64(1)
        tokens[b] = 0
        for j in range(V):
            row[j] = logits[b, j] + bias[j]
        for j in range(V):
            if row[j] > top:
                tokens[b], top = j, row[j]
        if temperature == ZERO:
            continue
        scale = ONE / temperature
        for j in range(V):
            distances[j] = distance_of(top, row[j], scale)
            weights[j] = weight_of(distances[j])
        if 0 < top_k < V or top_p < ONE:
            _truncate(weights, distances, top_k, top_p)
        left, j = fraction_of(weights.sum(), part), 0
        while j < V and left >= weights[j]:
            left -= weights[j]
            j += 1
        if j < V:
            tokens[b] = j
