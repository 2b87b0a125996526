"""Draw the next token: temperature, top-k, top-p (nucleus sampling: Holtzman et al. 2020, "The curious case of neural text
degeneration").

    z        = logit + bias                        nats; the product that makes logits leaves the bias to whoever reads them
    distance = (largest z - z) / temperature       nats; the nearer, the more probable; of equals the one with the lower number
    weight   = exp(-distance), in units of 2^-30   an integer; 0 from 21.5 nats on: less than a two billionth of the first is never drawn

Weights are added as integers, whose sum is the same in any order. What top-k and top-p leave is lined up by token number, and a random
share of its weight points at the token drawn. A logit that is NaN weighs nothing. Where nothing weighs anything, because the largest logit
is infinite, the first of the largest is taken.

On a GPU two kernels, which differ in who reads a row:

    find_largest   many blocks: the tokens of a row fall into GROUPS groups; the largest z of each
    sample         one block per row. The k-th largest of the groups' largest is a bound for top-k: at least k tokens are as large. Only
                   the groups that reach it are read again, and the few tokens down to it are listed, ranked and drawn from.

Without top-k, or with a large one, a histogram of the row's distances says how far down to list. Where too many tokens are left for a list,
the histogram is refined until a bin holds a single token.
"""

import math

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import HALF, ONE, ZERO, cpu_serial
from .launch import SIMULATED, WARP, block_sum, device, from_lane, gpu, lanes_sum, shuffle_up, warps_sum
from .memory_access import ONCE, THRICE, TWICE
from .rng import mix
from .softmax import NOBODY, NOTHING, QUAD, WARPS, block_max, load_four, max_of, place_of

UNIT, FARTHEST = np.float32(2.0**30), np.float32(22)  # of weight; nats, from where on there is none
MOST_TOKENS = 2**17 - 1  # the sum of as many halves of a weight fits in 32 bits, and their number in COUNT_BITS
PER_NAT, BINS, SAMPLERS, FINDERS = (2, 64, 8, 2) if SIMULATED else (32, 1024, 1024, 32)  # bins, to a nat and in all; threads of a block
PER_NAT, OWN_BINS = np.float32(PER_NAT), np.uint64(BINS // SAMPLERS)
GROUPS = SAMPLERS  # of a row's tokens: one for each thread
LISTED = SAMPLERS  # tokens that a list has room for: one for each thread
FEW = LISTED // 4  # a larger top-k would list too many by groups
_NONE, _LANES, _NUMBER_BITS, _GROUPS = np.uint64(0), np.uint64(WARP), np.uint64(32), np.uint64(GROUPS)
_SHARE_BITS, _SHARE_MASK, _SHARES, _TO_SHARE = np.int64(31), np.int64(2**31 - 1), np.float32(2.0**31), np.uint64(33)
_HALF_BITS, _HALF_MASK = np.int32(15), np.int32(2**15 - 1)
_COUNT_BITS, _COUNT_MASK = np.uint64(17), np.int64(2**17 - 1)


@register_jitable
def weight_of(distance):
    return np.int32(math.exp(-distance) * UNIT + HALF) if distance < FARTHEST else np.int32(0)


@register_jitable
def share(total, part):
    """total * part / 2^31 of whole numbers, rounded down. total: below 2^62; part: from 0 to 2^31."""
    return (total >> _SHARE_BITS) * part + (((total & _SHARE_MASK) * part) >> _SHARE_BITS)


@register_jitable
def enough(total, top_p):
    """The least weight, but not 0, that holds the share top_p of the total."""
    return max(share(total, np.int64(top_p * _SHARES)), np.int64(1))


@register_jitable
def cuts(top_k, top_p, size):
    """Whether top-k leaves anything out of so many tokens, and whether top-p does."""
    return top_k > 0 and np.uint64(top_k) < np.uint64(size), top_p < ONE


@register_jitable
def random_part(key, step, row, rows):
    """A whole number from 0 to 2^31 - 1 for each step (uint64) and row."""
    return np.int64(mix(key, step * np.uint64(rows) + np.uint64(row)) >> _TO_SHARE)


@register_jitable
def distance_of(top, logit, scale):
    """How far a logit is from the largest, in nats at this temperature: not less than 0, nor -0."""
    return abs((top - logit) * scale)


@register_jitable
def order_of(distance, j):
    """A whole number (uint64) for a token at a distance: the lower, the more probable, and no two are equal."""
    return (np.uint64(np.float32(distance).view(np.uint32)) << _NUMBER_BITS) | np.uint64(j)


@register_jitable
def bin_of(distance):
    """The bin (uint32) of a distance below FARTHEST."""
    return np.uint32(distance * PER_NAT)


@device
def running_sum(x, partial):
    """Sum of x over the threads of a block up to this one. partial: shared, an entry for each warp. Every thread takes part."""
    lane, warp = np.uint64(cuda.threadIdx.x) % _LANES, np.uint64(cuda.threadIdx.x) // _LANES
    distance = 1
    while distance < WARP:
        before = shuffle_up(x, distance)
        if lane >= np.uint64(distance):
            x += before
        distance <<= 1
    return x + warps_sum(from_lane(x, WARP - 1), partial, warp)


# A histogram is [3, BINS] uint32 in shared memory: of each bin the number of tokens, and the lower and the upper half of their weight. Both
# sums go through the block as the bits of one int64, which warps can shuffle: the number in the lower 17, the weight above.


@device
def clear(tally):
    """Empty a histogram. The block waits before and after."""
    cuda.syncthreads()
    i = np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        tally[0, i] = 0
        tally[1, i] = 0
        tally[2, i] = 0
        i += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@device
def put(tally, i, distance, weighs):
    """Add a token to bin i, and its weight if `weighs`."""
    cuda.atomic.add(tally, (0, i), np.uint32(1))
    if weighs:
        weight = weight_of(distance)
        cuda.atomic.add(tally, (1, i), np.uint32(weight & _HALF_MASK))
        cuda.atomic.add(tally, (2, i), np.uint32(weight >> _HALF_BITS))


@device
def sums_of(tally, i):
    """Number and weight of the tokens in bin i, in one integer."""
    return np.int64(tally[0, i]) + ((np.int64(tally[1, i]) + (np.int64(tally[2, i]) << np.int64(_HALF_BITS))) << np.int64(_COUNT_BITS))


@device
def measure(sums, by_weight):
    """The number (int64) in such an integer, or the weight."""
    return np.int64(np.uint64(sums) >> _COUNT_BITS) if by_weight else sums & _COUNT_MASK


@device
def everything_in(tally, partial):
    """Number and weight of all tokens in a histogram."""
    sums, i = np.int64(0), np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        sums += sums_of(tally, i)
        i += np.uint64(cuda.blockDim.x)
    return block_sum(sums, partial)


@device
def find(found, tally, target, by_weight, partial):
    """Find the bin in which the running number of tokens, or their weight, reaches `target`.

    found [3] int64, shared: the bin, left alone where the target is not reached; number and weight of the tokens before it, on entry of
    those before the first bin; its own.
    """
    own, first = np.int64(0), np.uint64(cuda.threadIdx.x) * OWN_BINS
    for i in range(first, first + OWN_BINS):
        own += sums_of(tally, i)
    before = running_sum(own, partial) - own + found[1]
    cuda.syncthreads()  # everybody has read found
    for i in range(first, first + OWN_BINS):
        own = sums_of(tally, i)
        if measure(before, by_weight) < target and target <= measure(before + own, by_weight):
            found[0] = i
            found[1] = before
            found[2] = own
        before += own
    cuda.syncthreads()


@device
def put_near(tally, z, top, scale, weighs):
    """Add a token to the histogram of distances, PER_NAT bins to a nat, unless it weighs nothing."""
    distance = distance_of(top, z, scale)
    if distance < FARTHEST:
        put(tally, bin_of(distance), distance, weighs)


@device
def tally_row(tally, row, bias, size, top, scale, weighs):
    """Make the histogram of the distances of a row's tokens. The block waits before and after."""
    clear(tally)
    q = np.uint64(cuda.threadIdx.x)
    while QUAD * q < np.uint64(size):
        z = load_four(row, bias, q, size)
        put_near(tally, z[0], top, scale, weighs)
        put_near(tally, z[1], top, scale, weighs)
        put_near(tally, z[2], top, scale, weighs)
        put_near(tally, z[3], top, scale, weighs)
        q += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@gpu
def find_largest(largest, places, logits, bias, size):
    """largest [B, GROUPS] float32, places [B, GROUPS] int32: the largest z of each group of tokens, and the first token that has it; -inf
    and NOBODY where there is none.

    logits [B, W], bias [W] float32; the first `size` are tokens. A group is every GROUPS-th quad of a row, so neighbouring threads read
    neighbouring quads; a thread has a group.
    """
    q, b = np.uint64(cuda.grid(1)), cuda.blockIdx.y
    top, place, g, row = NOTHING, NOBODY, q, logits[b]
    while QUAD * q < np.uint64(size):
        y, z = load_four(row, bias, q, size), load_four(row, bias, q + _GROUPS, size)
        highest = max_of(z, max_of(y, top))
        if highest > top:
            place = place_of(highest, q, y) if max_of(y, top) == highest else place_of(highest, q + _GROUPS, z)
            top = highest
        q += TWICE * _GROUPS
    largest[b, g], places[b, g] = top, place


@device
def bin_of_kth(own, top, scale, k):
    """The bin (uint32) of the k-th nearest of what the block's threads own; the last bin where fewer are nearer than FARTHEST.

    A binary search: in every round the block counts the threads up to a bin."""
    distance = distance_of(top, own, scale)
    mine = bin_of(distance) if distance < FARTHEST else np.uint32(BINS)
    low, high = np.uint32(0), np.uint32(BINS - 1)
    while low < high:
        middle = np.uint32((low + high) // np.uint32(2))
        if cuda.syncthreads_count(np.int32(mine <= middle)) >= k:
            high = middle
        else:
            low = np.uint32(middle + np.uint32(1))
    return low


@device
def list_token(orders, counts, z, j, top, scale, last):
    """Add token j to the list orders [LISTED] if it is in no bin beyond `last`; counts[1] says how many there are."""
    distance = distance_of(top, z, scale)
    if distance < FARTHEST and bin_of(distance) <= last and counts[1] <= LISTED:
        n = cuda.atomic.add(counts, 1, 1)
        if n < LISTED:
            orders[n] = order_of(distance, j)


@device
def list_probable(orders, groups, counts, row, bias, size, own, top, scale, last):
    """List the tokens of a row down to the end of bin `last`, in any order: their number, more than LISTED if there is no room for them.

    own: the largest z of the thread's group. groups [GROUPS], counts [2] int32: shared; the counts are 0. The groups that reach so far are
    collected first; then a thread has a quad of one of them.
    """
    thread, each = np.uint32(cuda.threadIdx.x), np.uint32((np.uint64(size) + QUAD * _GROUPS - ONCE) // (QUAD * _GROUPS))
    distance = distance_of(top, own, scale)
    if distance < FARTHEST and bin_of(distance) <= last:
        groups[cuda.atomic.add(counts, 0, 1)] = thread
    cuda.syncthreads()
    i, end = thread, np.uint32(counts[0]) * each
    while i < end:
        q = np.uint64(groups[i // each]) + _GROUPS * np.uint64(i % each)
        if QUAD * q < np.uint64(size):
            z, j = load_four(row, bias, q, size), QUAD * q
            list_token(orders, counts, z[0], j, top, scale, last)
            list_token(orders, counts, z[1], j + ONCE, top, scale, last)
            list_token(orders, counts, z[2], j + TWICE, top, scale, last)
            list_token(orders, counts, z[3], j + THRICE, top, scale, last)
        i += np.uint32(cuda.blockDim.x)
    cuda.syncthreads()
    return counts[1]


@device
def draw_listed(orders, weights, totals, count, row_weight, top_k, top_p, part):
    """The token (int64) of a row's list that the random number points at, in the one thread that has it; -1 in all others.

    orders [LISTED] uint64, the list; weights [LISTED] int64, totals [2] int64: shared; the totals are 0. row_weight: of all tokens of the
    row where top-k leaves none out, else 0. A thread has a token and adds up those before it: first those that are more probable, which
    says where top-k and top-p end, then those of lower number.
    """
    thread = np.int64(cuda.threadIdx.x)
    mine = thread < count
    own, others = orders[thread] if mine else _NONE, count if mine else 0
    weight = np.int64(weight_of(np.uint32(own >> _NUMBER_BITS).view(np.float32)))
    weights[thread] = weight
    cuda.syncthreads()
    more, before = 0, np.int64(0)
    for i in range(others):
        if orders[i] < own:
            more, before = more + 1, before + weights[i]
    if mine and more + 1 == (min(count, top_k) if top_k > 0 else count):
        totals[0] = before + weight  # of what top-k leaves
    cuda.syncthreads()
    target = enough(max(totals[0], row_weight), top_p)
    kept = weight if mine and before < target else np.int64(0)
    if before < target and target <= before + kept:
        totals[1] = before + kept  # of what top-p leaves of that
    weights[thread] = kept
    cuda.syncthreads()
    left = share(totals[1], part)
    for i in range(others):
        if np.uint32(orders[i]) < np.uint32(own):
            left -= weights[i]
    return np.int64(np.uint32(own)) if left >= 0 and left < kept else np.int64(-1)


@device
def last_kept(row, bias, size, top, scale, top_k, top_p, tally, found, partial):
    """The order of the last token that top-k and top-p leave, however many these are.

    The histogram of the distances says in which bin it lies, another, of the orders in that bin, in which bin of these, and so on until a
    bin holds nothing else. First for top-k, by number; then for top-p, by weight, of what that has left.
    """
    last, total = order_of(FARTHEST, 0), np.int64(-1)
    by_count, by_share = cuts(top_k, top_p, size)
    for by_weight in range(0 if by_count else 1, 2 if by_share else 1):
        tally_row(tally, row, bias, size, top, scale, True)
        everything = everything_in(tally, partial)
        total = measure(everything, True) if total < 0 else total
        target = enough(total, top_p) if by_weight else np.int64(top_k)
        if target > measure(everything, by_weight):
            continue
        if cuda.threadIdx.x == 0:
            found[1] = 0
        find(found, tally, target, by_weight, partial)
        first = order_of(np.float32(found[0]) / PER_NAT, 0)
        last = order_of(np.float32(found[0] + 1) / PER_NAT, 0) - ONCE
        while measure(found[2], False) > 1:
            shift = np.uint64(0)
            while (last - first) >> shift >= np.uint64(BINS):
                shift += ONCE
            clear(tally)
            j = np.uint64(cuda.threadIdx.x)
            while j < np.uint64(size):
                distance = distance_of(top, row[j] + bias[j], scale)
                order = order_of(distance, j)
                if first <= order and order <= last:
                    put(tally, np.uint32((order - first) >> shift), distance, True)
                j += np.uint64(cuda.blockDim.x)
            cuda.syncthreads()
            find(found, tally, target, by_weight, partial)
            first += np.uint64(found[0]) << shift
            last = min(last, first + (ONCE << shift) - ONCE)
        total = measure(found[1] + found[2], True)
        cuda.syncthreads()
    return last


@device
def kept_weight(z, j, top, scale, last):
    """The weight of token j if it is not beyond the order `last`, else 0."""
    distance = distance_of(top, z, scale)
    return np.int64(weight_of(distance)) if order_of(distance, j) <= last else np.int64(0)


@device
def draw_from_row(weights, row, bias, size, top, scale, last, part, partial):
    """The token (int64) of a row that the random number points at, of those up to the order `last`, in the one thread that finds it; -1 in
    all others.

    weights [WARPS] int64: shared. Each warp adds up a stretch of the row; then all of them search the stretch that the number points into.
    """
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    warp, warps = thread // _LANES, threads // _LANES
    stretch = (np.uint64(size) + QUAD * warps - ONCE) // (QUAD * warps)  # quads
    q, weight = warp * stretch + thread % _LANES, np.int64(0)
    while q < (warp + ONCE) * stretch:
        z, j = load_four(row, bias, q, size), QUAD * q
        weight += kept_weight(z[0], j, top, scale, last) + kept_weight(z[1], j + ONCE, top, scale, last)
        weight += kept_weight(z[2], j + TWICE, top, scale, last) + kept_weight(z[3], j + THRICE, top, scale, last)
        q += _LANES
    weight = lanes_sum(weight, WARP)
    if thread % _LANES == 0:
        weights[warp] = weight
    cuda.syncthreads()
    total, w = np.int64(0), _NONE
    for other in range(warps):
        total += weights[other]
    left = share(total, part)
    while w + ONCE < warps and left >= weights[w]:
        left -= weights[w]
        w += ONCE

    each = (QUAD * stretch + threads - ONCE) // threads  # tokens of a thread
    begin, drawn = w * QUAD * stretch + thread * each, np.int64(-1)
    end, weight = min(np.uint64(size), min((w + ONCE) * QUAD * stretch, begin + each)), np.int64(0)
    for j in range(begin, end):
        weight += kept_weight(row[j] + bias[j], j, top, scale, last)
    left -= running_sum(weight, partial) - weight
    for j in range(begin, end):
        weight = kept_weight(row[j] + bias[j], j, top, scale, last)
        if left >= 0 and left < weight:
            drawn = np.int64(j)
        left -= weight
    return drawn


@gpu(max_registers=64)  # as many as there are for each of 1,024 threads
def sample(tokens, logits, bias, temperature, top_k, top_p, key, step, largest, places, size):
    """tokens [B] int32: one draw for each row of logits [B, W], bias [W] float32, of which the first `size` are tokens.

    temperature: 0 takes the most probable token (the first of equals). top_k: only the k most probable, 0 for all. top_p: only the smallest
    set of most probable tokens that holds this share of what top_k left, always at least one. key (uint64), step [B] uint64: random
    numbers' key and place; the step is counted on. largest, places: what `find_largest` found.

    A block has a row, a thread a group of its tokens.
    """
    tally = cuda.shared.array((3, BINS), np.uint32)
    orders = cuda.shared.array(LISTED, np.uint64)
    weights = cuda.shared.array(LISTED, np.int64)
    groups = cuda.shared.array(GROUPS, np.uint32)
    sums = cuda.shared.array(WARPS, np.int64)
    maxima = cuda.shared.array(WARPS, np.float32)
    found = cuda.shared.array(3, np.int64)
    totals = cuda.shared.array(2, np.int64)
    counts = cuda.shared.array(2, np.int32)
    first = cuda.shared.array(1, np.int32)
    b, thread, row = cuda.blockIdx.x, cuda.threadIdx.x, logits[cuda.blockIdx.x]

    # 1. The most probable token, and what the others are measured by.
    own, place, part = largest[b, thread], places[b, thread], random_part(key, step[b], b, tokens.size)
    if thread == 0:
        first[0] = NOBODY
        found[0], found[1] = BINS - 1, 0  # without a bin that reaches the target: down to the last one
        totals[0], totals[1], counts[0], counts[1] = 0, 0, 0, 0
    top = block_max(own, maxima)
    if own == top:
        cuda.atomic.min(first, 0, place)
    cuda.syncthreads()
    if thread == 0:
        step[b] += ONCE
        tokens[b] = first[0] if first[0] < NOBODY else 0
    if temperature == ZERO:
        return

    # 2. How far down top-k reaches, or else top-p; the tokens down to there.
    scale, last, row_weight, count = ONE / temperature, order_of(FARTHEST, 0), np.int64(0), 0
    by_count, by_share = cuts(top_k, top_p, size)
    if by_count or by_share:
        if by_count and top_k <= FEW:
            end = bin_of_kth(own, top, scale, top_k)
        else:
            tally_row(tally, row, bias, size, top, scale, not by_count)
            target = np.int64(top_k)
            if not by_count:
                row_weight = measure(everything_in(tally, sums), True)
                target = enough(row_weight, top_p)
            find(found, tally, target, not by_count, sums)
            end = np.uint32(found[0])
        count = list_probable(orders, groups, counts, row, bias, size, own, top, scale, end)

    # 3. The draw: from the list, or from the row where the list has no room for them all.
    if count > LISTED:
        last = last_kept(row, bias, size, top, scale, top_k, top_p, tally, found, sums)
    if count > 0 and count <= LISTED:
        drawn = draw_listed(orders, weights, totals, count, row_weight, top_k if by_count else 0, top_p, part)
    elif count > 0 or not (by_count or by_share):
        drawn = draw_from_row(weights, row, bias, size, top, scale, last, part, sums)
    else:
        return
    if drawn >= 0:
        tokens[b] = np.int32(drawn)


@cpu_serial()
def _keep(weights, distances, top_k, top_p):
    """Set the weights [V] to 0 of all tokens but those that top-k and top-p leave."""
    by_count = 0 < top_k < weights.size
    target = np.int64(top_k) if by_count else enough(weights.sum(), top_p)
    tally = np.zeros(BINS, np.int64)
    for j in range(weights.size):
        if distances[j] < FARTHEST:
            tally[bin_of(distances[j])] += 1 if by_count else weights[j]
    last, reached = 0, tally[0]
    while reached < target and last < BINS - 1:
        last += 1
        reached += tally[last]
    near = np.flatnonzero(distances < np.float32(last + 1) / PER_NAT)  # no others need to be sorted
    order = near[np.argsort(distances[near], kind="mergesort")]
    if by_count:
        order = order[:top_k]
    if top_p < ONE:
        target, reached, end = enough(weights[order].sum() if by_count else weights.sum(), top_p), np.int64(0), 0
        while end < order.size and reached < target:
            reached += weights[order[end]]
            end += 1
        order = order[:end]
    kept = weights[order]
    weights[:] = 0
    weights[order] = kept


@cpu_serial()
def sample_cpu(tokens, logits, bias, temperature, top_k, top_p, key, step, size):
    """As `sample`."""
    B, V = len(tokens), size
    row, distances, weights = np.empty(V, np.float32), np.empty(V, np.float32), np.empty(V, np.int64)
    for b in range(B):
        top = NOTHING
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
            _keep(weights, distances, top_k, top_p)
        left, j = share(weights.sum(), part), 0
        while j < V and left >= weights[j]:
            left -= weights[j]
            j += 1
        if j < V:
            tokens[b] = j
