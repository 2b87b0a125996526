"""Draw the next token: temperature, top-k, top-p (nucleus sampling: Holtzman et al. 2020, "The curious case of neural text
degeneration").

    distance = (largest logit - logit) / temperature       nats; the nearer, the more probable; of equals the one with the lower number
    weight   = exp(-distance), in whole units of 2^-30     0 from 21.5 nats on: less than a two billionth of the first is never drawn

Weights are added as whole numbers, whose sum is the same in any order. What top-k and top-p leave is lined up by token number, and a random
share of its weight points at the token drawn. A logit that is NaN weighs nothing. Where nothing weighs anything, because the largest logit
is infinite, the first of the largest is taken.

On a GPU many blocks share a row until few of its tokens are left, and one block has the rest:

    find_largest      of each stretch of a row
    tally_distances   how many tokens are at which distance from the largest, and what they weigh: a histogram
    list_probable     the tokens nearer than where top-k or top-p end, if they are few
    sample            ends the list where it should end, and draws from it; or searches the whole row, if they are many
"""

import math

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import HALF, ONE, ZERO, cpu_serial
from .launch import SIMULATED, WARP, block_sum, device, from_lane, gpu, lanes_sum, shuffle_up, shuffle_xor, warps_sum
from .rng import mix
from .softmax import NOTHING, WARPS
from .stream import AHEAD, ONCE, THRICE, TWICE, read

UNIT, FARTHEST = np.float32(2.0**30), np.float32(22)  # of weight; nats, from where on there is none
MOST_TOKENS = 2**17 - 1  # the sum of as many halves of a weight fits in 32 bits
PER_NAT, BINS, SAMPLERS = (2, 64, 4) if SIMULATED else (32, 1024, 1024)  # bins of a histogram: to a nat, and in all; threads of a block
PER_NAT, OWN_BINS = np.float32(PER_NAT), np.uint64(BINS // SAMPLERS)
STRETCHES = 2 if SIMULATED else 32  # of a row, at most
LISTED = SAMPLERS  # tokens that a list has room for: one for each thread
NOBODY = np.int32(2**31 - 1)
_NONE, _LANES, _NUMBER_BITS = np.uint64(0), np.uint64(WARP), np.uint64(32)
_SHARE_BITS, _SHARE_MASK, _SHARES, _TO_SHARE = np.int64(31), np.int64(2**31 - 1), np.float32(2.0**31), np.uint64(33)
_HALF_BITS, _HALF_MASK = np.int32(15), np.int32(2**15 - 1)


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


@device
def first_of_lanes(x, i):
    """(largest x of the lanes of a warp, lowest i that goes with it). The whole warp takes part."""
    distance = WARP >> 1
    while distance > 0:
        other, place = shuffle_xor(x, distance), shuffle_xor(i, distance)
        if other > x or (other == x and place < i):
            x, i = other, place
        distance >>= 1
    return x, i


@device
def first_of(values, places, count):
    """(largest of so many values, lowest of the places that go with it), for every lane of a warp that takes part."""
    n, x, i = np.uint64(cuda.threadIdx.x) % _LANES, NOTHING, NOBODY
    while n < count:
        if values[n] > x or (values[n] == x and places[n] < i):
            x, i = values[n], places[n]
        n += _LANES
    return first_of_lanes(x, i)


@device
def clear(tally):
    """Empty a histogram, [3, BINS] uint32: of each bin the number of tokens, and the lower and the upper half of their weight."""
    cuda.syncthreads()
    i = np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        tally[0, i] = 0
        tally[1, i] = 0
        tally[2, i] = 0
        i += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@device
def take(tally, of_row):
    """A copy of a row's histogram [3, BINS] in shared memory."""
    i = np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        tally[0, i] = of_row[0, i]
        tally[1, i] = of_row[1, i]
        tally[2, i] = of_row[2, i]
        i += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()


@device
def put(tally, i, distance, weighs):
    cuda.atomic.add(tally, (0, i), np.uint32(1))
    if weighs:
        weight = weight_of(distance)
        cuda.atomic.add(tally, (1, i), np.uint32(weight & _HALF_MASK))
        cuda.atomic.add(tally, (2, i), np.uint32(weight >> _HALF_BITS))


@device
def weight_in(tally, i):
    return np.int64(tally[1, i]) + (np.int64(tally[2, i]) << _HALF_BITS)


@device
def everything_in(tally, partial):
    """(number, weight) of all tokens in a histogram."""
    count, total, i = np.int64(0), np.int64(0), np.uint64(cuda.threadIdx.x)
    while i < np.uint64(BINS):
        count += np.int64(tally[0, i])
        total += weight_in(tally, i)
        i += np.uint64(cuda.blockDim.x)
    return block_sum(count, partial), block_sum(total, partial)


@device
def find(found, tally, target, by_weight, partial):
    """Find the bin in which the running number of tokens, or their weight, reaches `target`, as it must somewhere.

    found [5] int64, shared: the bin; number and weight of the tokens before it, to begin with of those before the first; its own two.
    """
    own_count, own_weight = np.int64(0), np.int64(0)
    first = np.uint64(cuda.threadIdx.x) * OWN_BINS
    for i in range(first, first + OWN_BINS):
        own_count += np.int64(tally[0, i])
        own_weight += weight_in(tally, i)
    count = running_sum(own_count, partial) - own_count + found[1]
    weight = running_sum(own_weight, partial) - own_weight + found[2]
    cuda.syncthreads()
    for i in range(first, first + OWN_BINS):
        own_count, own_weight = np.int64(tally[0, i]), weight_in(tally, i)
        before, own = (weight, own_weight) if by_weight else (count, own_count)
        if before < target and target <= before + own:
            found[0] = i
            found[1] = count
            found[2] = weight
            found[3] = own_count
            found[4] = own_weight
        count, weight = count + own_count, weight + own_weight
    cuda.syncthreads()


@device
def last_kept(row, V, top, scale, top_k, top_p, far, near, found, partial):
    """The order of the last token that top-k and top-p leave.

    The histogram of the distances, `far`, says in which bin it lies, another, of the orders in that bin, in which bin of these, and so on
    until a bin holds nothing else.
    """
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    last = order_of(FARTHEST, 0)
    by_count, by_share = cuts(top_k, top_p, V)
    count, total = everything_in(far, partial)
    for by_weight in range(0 if by_count and top_k < count else 1, 2 if by_share and total > 0 else 1):
        target = enough(total, top_p) if by_weight else np.int64(top_k)
        if thread == 0:
            found[1] = 0
            found[2] = 0
        find(found, far, target, by_weight, partial)
        first = order_of(np.float32(found[0]) / PER_NAT, 0)
        last = order_of(np.float32(found[0] + 1) / PER_NAT, 0) - ONCE
        while found[3] > 1:
            shift = np.uint64(0)
            while (last - first) >> shift >= np.uint64(BINS):
                shift += ONCE
            clear(near)
            j = thread
            while j < V:
                distance = distance_of(top, row[j], scale)
                order = order_of(distance, j)
                if first <= order and order <= last:
                    put(near, np.uint32((order - first) >> shift), distance, by_share)
                j += threads
            cuda.syncthreads()
            find(found, near, target, by_weight, partial)
            first += np.uint64(found[0]) << shift
            last = min(last, first + (ONCE << shift) - ONCE)
        total = found[2] + found[4]
        cuda.syncthreads()
    return last


@device
def kept_weight(row, j, top, scale, last):
    distance = distance_of(top, row[j], scale)
    return np.int64(weight_of(distance)) if order_of(distance, j) <= last else np.int64(0)


@gpu
def find_largest(tops, places, tally, listed, logits, size):
    """tops, places [B, S]: the largest logit of each of S stretches of a row, and the first token that has it.

    Also empties tally [B, 3, BINS] and lists nobody, listed [B, LISTED + 2]. A block per stretch and row.
    """
    values = cuda.shared.array(WARPS, np.float32)
    numbers = cuda.shared.array(WARPS, np.int32)
    s, b, row = cuda.blockIdx.x, cuda.blockIdx.y, logits[cuda.blockIdx.y]
    thread, threads, V = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x), np.uint64(size)
    step = np.uint64(cuda.gridDim.x) * threads
    own = np.uint64(s) * threads + thread
    i = own
    while i < np.uint64(BINS):
        tally[b, 0, i] = 0
        tally[b, 1, i] = 0
        tally[b, 2, i] = 0
        i += step
    if own == 0:
        listed[b, LISTED] = 0
        listed[b, LISTED + 1] = 0
    top, best, j = NOTHING, NOBODY, own
    while j < V:
        j1, j2, j3 = j + step, j + TWICE * step, j + THRICE * step
        x, x1, x2, x3 = read(row, j, V, NOTHING), read(row, j1, V, NOTHING), read(row, j2, V, NOTHING), read(row, j3, V, NOTHING)
        if x > top:
            top, best = x, np.int32(j)
        if x1 > top:
            top, best = x1, np.int32(j1)
        if x2 > top:
            top, best = x2, np.int32(j2)
        if x3 > top:
            top, best = x3, np.int32(j3)
        j += AHEAD * step
    top, best = first_of_lanes(top, best)
    if thread % _LANES == 0:
        values[thread // _LANES] = top
        numbers[thread // _LANES] = best
    cuda.syncthreads()
    top, best = first_of(values, numbers, threads // _LANES)
    if thread == 0:
        tops[b, s], places[b, s] = top, best


@gpu
def tally_distances(tally, tops, places, logits, temperature, top_p, size):
    """Add the tokens of a row to its histogram of distances, tally [B, 3, BINS] uint32; their weights only where top-p asks. Blocks share
    a row."""
    own = cuda.shared.array((3, BINS), np.uint32)
    b, row, V, scale = cuda.blockIdx.y, logits[cuda.blockIdx.y], np.uint64(size), ONE / temperature
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    j, step = np.uint64(cuda.blockIdx.x) * threads + thread, np.uint64(cuda.gridDim.x) * threads
    logit = read(row, j, V, NOTHING)  # the first one is on its way meanwhile
    top, _ = first_of(tops[b], places[b], np.uint64(tops.shape[1]))
    clear(own)
    while j < V:
        distance = distance_of(top, logit, scale)
        if distance < FARTHEST:
            put(own, np.uint32(distance * PER_NAT), distance, top_p < ONE)
        j += step
        logit = read(row, j, V, NOTHING)
    cuda.syncthreads()
    i = thread
    while i < np.uint64(BINS):
        if own[0, i] > 0:
            cuda.atomic.add(tally, (b, 0, i), own[0, i])
            if top_p < ONE:
                cuda.atomic.add(tally, (b, 1, i), own[1, i])
                cuda.atomic.add(tally, (b, 2, i), own[2, i])
        i += threads


@gpu
def list_probable(listed, tally, tops, places, logits, temperature, top_k, top_p, size):
    """listed [B, LISTED + 2] uint64: the orders of a row's tokens down to the bin in which top-k ends (or else top-p), whoever comes first.

    Behind them their number, 0 where they would be too many; and, where top-k leaves nothing out, the weight of all tokens, of which top-p
    then takes its share, else 0. Blocks share a row."""
    far = cuda.shared.array((3, BINS), np.uint32)
    partial = cuda.shared.array(WARPS, np.int64)
    found = cuda.shared.array(5, np.int64)
    b, row, V, scale = cuda.blockIdx.y, logits[cuda.blockIdx.y], np.uint64(size), ONE / temperature
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    j, step = np.uint64(cuda.blockIdx.x) * threads + thread, np.uint64(cuda.gridDim.x) * threads
    logit = read(row, j, V, NOTHING)  # the first one is on its way meanwhile
    top, _ = first_of(tops[b], places[b], np.uint64(tops.shape[1]))
    take(far, tally[b])
    by_count, by_share = cuts(top_k, top_p, V)
    count, total = everything_in(far, partial)
    by_count = by_count and top_k < count
    last = np.uint32(BINS - 1)
    if by_count or (by_share and total > 0):
        if thread == 0:
            found[1] = 0
            found[2] = 0
        find(found, far, np.int64(top_k) if by_count else enough(total, top_p), not by_count, partial)
        last, count = np.uint32(found[0]), found[1] + found[3]
    if count > LISTED:
        return
    if j == 0 and not by_count:
        listed[b, LISTED + 1] = total
    while j < V:
        distance = distance_of(top, logit, scale)
        if distance < FARTHEST and np.uint32(distance * PER_NAT) <= last:
            listed[b, cuda.atomic.add(listed, (b, LISTED), ONCE)] = order_of(distance, j)
        j += step
        logit = read(row, j, V, NOTHING)


@device
def draw_listed(orders, weights, own, count, all_weight, top_k, top_p, part, partial):
    """The token (int64) of a row's list that the random number points at, in the one thread that has it; -1 in all others.

    own, count, all_weight: the thread's entry of the list, how many it has, and what stands behind that. orders, weights: shared, [LISTED].
    Each thread has a token of the list and counts those that come before it.
    """
    thread, weight = np.uint64(cuda.threadIdx.x), np.int64(0)
    if thread >= count:
        own = ~np.uint64(0)
    else:
        weight = np.int64(weight_of(np.uint32(own >> _NUMBER_BITS).view(np.float32)))
    orders[thread], weights[thread] = own, weight
    cuda.syncthreads()
    others = count if thread < count else np.uint64(0)  # that this thread looks at: idle warps would hold up those that have a token
    more, heavier, i = np.int64(0), np.int64(0), np.uint64(0)
    while i < others:
        if orders[i] < own:
            more, heavier = more + np.int64(1), heavier + weights[i]
        i += ONCE
    weight = weight if top_k == 0 or more < top_k else np.int64(0)
    if top_p < ONE:
        total = max(block_sum(weight, partial), np.int64(all_weight))
        weight = weight if heavier < enough(total, top_p) else np.int64(0)
    left = share(block_sum(weight, partial), part)
    weights[thread] = weight
    cuda.syncthreads()
    i = np.uint64(0)
    while i < others:
        if np.uint32(orders[i]) < np.uint32(own):
            left -= weights[i]
        i += ONCE
    return np.int64(np.uint32(own)) if left >= 0 and left < weight else np.int64(-1)


@gpu(max_registers=64)  # as many as there are for each of 1,024 threads
def sample(tokens, logits, temperature, top_k, top_p, key, step, tops, places, tally, listed, size):
    """tokens [B] int32: one draw for each row of logits [B, V] float32. The rows of the array may be longer than `size`, which is V.

    temperature: 0 takes the most probable token (the first of equals). top_k: only the k most probable, 0 for all. top_p: only the smallest
    set of most probable tokens that holds this share of what top_k left, always at least one. key (uint64), step [B] uint64: random
    numbers' key and place; the step is counted on. tops, places, tally, listed: what the kernels above found; tally and listed only where
    top_k or top_p leave anything out.

    A block has a row. Where there is no list, each warp adds up a stretch of the row; then all of them search the stretch that the random
    number points into.
    """
    far = cuda.shared.array((3, BINS), np.uint32)
    near = cuda.shared.array((3, BINS), np.uint32)
    orders = cuda.shared.array(LISTED, np.uint64)
    own_weights = cuda.shared.array(LISTED, np.int64)
    partial = cuda.shared.array(WARPS, np.int64)
    weights = cuda.shared.array(WARPS, np.int64)
    found = cuda.shared.array(5, np.int64)
    part = cuda.shared.array(1, np.int64)
    b = cuda.blockIdx.x
    row, V = logits[b], np.uint64(size)
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)

    by_count, by_share = cuts(top_k, top_p, V)
    turn, own, count, all_weight = step[b], _NONE, _NONE, _NONE
    if by_count or by_share:  # they are on their way meanwhile
        own, count, all_weight = listed[b, thread], listed[b, LISTED], listed[b, LISTED + 1]
    top, best = first_of(tops[b], places[b], np.uint64(tops.shape[1]))
    if thread == 0:
        tokens[b] = best if best < NOBODY else 0
        part[0] = random_part(key, turn, b, logits.shape[0])
        step[b] = turn + ONCE
    if temperature == ZERO:
        return

    cuda.syncthreads()
    scale, last = ONE / temperature, order_of(FARTHEST, 0)
    if by_count or by_share:
        if count > 0:
            drawn = draw_listed(orders, own_weights, own, count, all_weight, top_k, top_p, part[0], partial)
            if drawn >= 0:
                tokens[b] = np.int32(drawn)
            return
        take(far, tally[b])
        last = last_kept(row, V, top, scale, top_k, top_p, far, near, found, partial)

    warp, warps = thread // _LANES, threads // _LANES
    stretch = (V + warps - ONCE) // warps
    begin, weight = warp * stretch, np.int64(0)
    j, end = begin + thread % _LANES, min(V, begin + stretch)
    while j < end:
        weight += kept_weight(row, j, top, scale, last)
        j += _LANES
    weight = lanes_sum(weight, WARP)
    if thread % _LANES == 0:
        weights[warp] = weight
    cuda.syncthreads()
    total, w = np.int64(0), np.uint64(0)
    for other in range(warps):
        total += weights[other]
    left = share(total, part[0])
    while w + ONCE < warps and left >= weights[w]:
        left -= weights[w]
        w += ONCE

    each = (stretch + threads - ONCE) // threads
    begin, end = w * stretch + thread * each, min(V, w * stretch + stretch)
    end, weight = min(end, begin + each), np.int64(0)
    for j in range(begin, end):
        weight += kept_weight(row, j, top, scale, last)
    left -= running_sum(weight, partial) - weight
    for j in range(begin, end):
        weight = kept_weight(row, j, top, scale, last)
        if left >= 0 and left < weight:
            tokens[b] = np.int32(j)
        left -= weight


@cpu_serial()
def _keep(weights, distances, top_k, top_p):
    """Set the weights [V] to 0 of all tokens but those that top-k and top-p leave."""
    by_count = 0 < top_k < weights.size
    target = np.int64(top_k) if by_count else enough(weights.sum(), top_p)
    tally = np.zeros(BINS, np.int64)
    for j in range(weights.size):
        if distances[j] < FARTHEST:
            tally[int(distances[j] * PER_NAT)] += 1 if by_count else weights[j]
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
def sample_cpu(tokens, logits, temperature, top_k, top_p, key, step):
    """As `sample`."""
    B, V = logits.shape
    distances, weights = np.empty(V, np.float32), np.empty(V, np.int64)
    for b in range(B):
        row, top = logits[b], NOTHING
        part = random_part(key, step[b], b, B)
        step[b] += np.uint64(1)
        tokens[b] = 0
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
