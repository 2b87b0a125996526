"""Neuromodulators: levels per sequence that follow the surprise of its tokens, and their effects on neurons and memories.

The surprise of a token is its loss in nats. s is its mean over the tokens of an interval, g the reward given during the interval. After
interval n (from 1):

    dopamine       = expected - s + g                      reward prediction error; after the first interval g alone
    norepinephrine = s                                     fast surprise
    serotonin     += (g - s - serotonin) / min(n, SLOW)    slow mean reward
    expected      += (s - expected) / min(n, FAST)         running mean of the surprise

Each target (gain and adaptation of a module, write strength of the associative memory, Go) has a learned sensitivity k, which starts at 0.
The effect is a factor 2 sigmoid(k level), which is 1 at k = 0 or level 0. For Go it is an offset k level to the logit of retention. The
gradient treats levels as constants, and reaches the sensitivities.
"""

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .exponential import exp
from .jit import ONE, TWO, ZERO, cpu_serial, cpu_serial_sum
from .launch import block_sum, gpu
from .memory import sigmoid

ROWS = ("dopamine", "norepinephrine", "serotonin", "expected", "surprise", "counted", "tokens", "changes", "reward")  # state of a sequence
DOPAMINE, NOREPINEPHRINE, SEROTONIN, EXPECTED, SURPRISE, COUNTED, TOKENS, CHANGES, REWARD = range(len(ROWS))
FAST, SLOW = np.float32(16), np.float32(64)  # intervals of the running means
MODULES = 6  # of the brain (config.MODULES)
WRITE, GO = 2 * MODULES, 2 * MODULES + 1  # targets: gain of each module, adaptation of each module, memory write strength, Go
TARGETS = 2 * MODULES + 2
THREADS = 128
MAX_LOGIT = np.float32(20)  # exp(20) is far from the overflow of float32, and sigmoid(20) rounds to 1


@register_jitable
def levels_after(surprise, reward, expected, serotonin, changes):
    """(dopamine, serotonin, expected, changes) after an interval with mean `surprise` in nats and `reward`; changes counts intervals."""
    dopamine = reward + (expected - surprise if changes > ZERO else ZERO)
    changes += ONE
    serotonin += (reward - surprise - serotonin) / min(changes, SLOW)
    expected += (surprise - expected) / min(changes, FAST)
    return dopamine, serotonin, expected, changes


@register_jitable
def observe_sequence(rows, losses, targets, interval, b):
    """Add the losses of targets [T, B] to the sums of sequence b, without targets below 0. If `interval` tokens have passed, update its
    levels. rows [ROWS, B]: state, updated."""
    surprise, counted, tokens = rows[SURPRISE, b], rows[COUNTED, b], rows[TOKENS, b]
    for t in range(losses.shape[0]):
        if targets[t, b] >= 0:
            surprise += losses[t, b]
            counted += ONE
        tokens += ONE
    if tokens >= interval and counted > ZERO:
        surprise /= counted
        levels = levels_after(surprise, rows[REWARD, b], rows[EXPECTED, b], rows[SEROTONIN, b], rows[CHANGES, b])
        rows[DOPAMINE, b], rows[SEROTONIN, b], rows[EXPECTED, b], rows[CHANGES, b] = levels
        rows[NOREPINEPHRINE, b] = surprise
        surprise, counted, tokens, rows[REWARD, b] = ZERO, ZERO, ZERO, ZERO
    rows[SURPRISE, b], rows[COUNTED, b], rows[TOKENS, b] = surprise, counted, tokens


@register_jitable
def modulate_sequence(factors, slopes, rows, sensitivity, b):
    """Overwrite factors, slopes [TARGETS, B] of sequence b. A factor is 2 sigmoid(k level), its slope d log(factor) / dk. For Go, which is
    subtracted from a logit, the factor is k level and the slope -level."""
    for target in range(TARGETS):
        level = rows[NOREPINEPHRINE if target < MODULES else SEROTONIN if target < WRITE else DOPAMINE, b]
        x = sensitivity[target] * level
        p = sigmoid(x)
        factor, slope = TWO * p, level * (ONE - p)
        if target == GO:
            factor, slope = x, -level
        factors[target, b], slopes[target, b] = factor, slope


@register_jitable
def through_sigmoid(logit):
    """1 / (1 - sigmoid(logit)): the factor from dL/dlogit to dL/dlog(sigmoid(logit))."""
    return ONE + exp(min(logit, MAX_LOGIT))


@gpu
def observe(rows, losses, targets, interval):
    """One thread per sequence."""
    b = cuda.grid(1)
    if b < rows.shape[1]:
        observe_sequence(rows, losses, targets, interval, b)


@gpu
def modulate(factors, slopes, rows, sensitivity):
    """One thread per sequence."""
    b = cuda.grid(1)
    if b < rows.shape[1]:
        modulate_sequence(factors, slopes, rows, sensitivity, b)


@gpu
def sensitivity_backward(total, x, slope, logit, bias):
    """total [1] += sum over t, b, k of x [T, B, K] slope [B], times `through_sigmoid` of logit [T, B, K] + bias [K] unless logit has size
    0. One block: each thread strides over the entries, then `block_sum` adds the threads in a fixed order."""
    shared = cuda.shared.array(THREADS, np.float32)
    T, B, K = x.shape
    i, added = cuda.threadIdx.x, ZERO
    while i < T * B * K:
        t, b, k = i // (B * K), i // K % B, i % K
        value = x[t, b, k] * slope[b]
        if logit.size > 0:
            value *= through_sigmoid(logit[t, b, k] + bias[k])
        added += value
        i += cuda.blockDim.x
    added = block_sum(added, shared)
    if cuda.threadIdx.x == 0:
        total[0] += added


@cpu_serial()
def observe_cpu(rows, losses, targets, interval):
    """As `observe`."""
    for b in range(rows.shape[1]):
        observe_sequence(rows, losses, targets, interval, b)


@cpu_serial()
def modulate_cpu(factors, slopes, rows, sensitivity):
    """As `modulate`."""
    for b in range(rows.shape[1]):
        modulate_sequence(factors, slopes, rows, sensitivity, b)


@cpu_serial_sum()
def sensitivity_backward_cpu(total, x, slope, logit, bias):
    """As `sensitivity_backward`."""
    added = ZERO
    for t in range(x.shape[0]):
        for b in range(x.shape[1]):
            share = ZERO
            for k in range(x.shape[2]):
                share += x[t, b, k] * (through_sigmoid(logit[t, b, k] + bias[k]) if logit.size > 0 else ONE)
            added += share * slope[b]
    total[0] += added
