"""Draw the next token: temperature, top-k, top-p (nucleus sampling: Holtzman et al. 2020, "The curious case of neural text
degeneration")."""

import numpy as np

from .jit import ONE, ZERO, cpu_serial
from .rng import uniform
from .softmax import softmax_row


@cpu_serial()
def sample_cpu(tokens, logits, temperature, top_k, top_p, key, step):
    """tokens [B] int32: one draw for each row of logits [B, V] float32.

    temperature: 0 takes the most probable token (the first of equals). top_k: only the k most probable, 0 for all. top_p: only the smallest
    set of most probable tokens that holds this share of what top_k left, always at least one. key, step (uint64): random numbers' key and
    place.
    """
    B, V = logits.shape
    p = np.empty(V, np.float32)
    for b in range(B):
        if temperature == ZERO:
            tokens[b] = np.argmax(logits[b])
            continue
        softmax_row(p, logits[b], ONE / temperature)
        order = np.argsort(-p, kind="mergesort")
        kept = V if top_k == 0 else min(top_k, V)
        total = ZERO
        for i in range(kept):
            total += p[order[i]]
        mass, end = ZERO, 0
        while end < kept and (end == 0 or mass < top_p * total):
            mass += p[order[end]]
            end += 1
        left = uniform(key, step * np.uint64(B) + np.uint64(b)) * mass
        pick = 0
        while pick < end - 1 and left >= p[order[pick]]:
            left -= p[order[pick]]
            pick += 1
        tokens[b] = order[pick]
