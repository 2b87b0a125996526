"""Where does work grow with the events, and does a larger brain make an event dearer?

    python examples/cost_of_an_event.py

On the CPU, prints the time per token of one sequence that a projection takes (128 synapses per neuron, delays 0 to 3):

1. The same number of events through projections of 1,024 to 8,192 neurons. An event passes as many synapses in each. The part that grows
with the
   neurons is the rest: a test of a bit mask for every bundle, the writing of every current, and the way to the cache.
2. One projection of 4,096 neurons, of which 0.5 % to 100 % fire. Here the work grows with the events, but for the backward pass, which
   multiplies whole blocks.

A GPU multiplies whole bundles, whatever fired: its time does not depend on the share.
"""

import time
from functools import partial

import numba
import numpy as np

from neurogen_numba import backends
from neurogen_numba.brain.connectome import Arc
from neurogen_numba.brain.projection import Projection
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.population import make_write_events_cpu
from neurogen_numba.kernels.surrogate import make_surrogate
from neurogen_numba.optim.parameters import Parameters

TOKENS, SEQUENCES, HISTORY, FAN_IN = 16, 16, 3, 128  # a chunk of tokens; HISTORY: the longest delay, in tokens
SIZES, EVENTS = (1024, 2048, 4096, 8192), 32  # neurons, and events per token and sequence, in the first table
NEURONS, SHARES = 4096, (0.005, 0.01, 0.02, 0.05, 0.1, 1.0)  # in the second
SECONDS, CALLS = 30, 10  # seconds of measurement; calls of each function before the next one gets its turn


def draw_events(rng, tokens, neurons, events):
    """Axons [tokens, SEQUENCES, neurons] float32: 1 for `events` neurons of each token and sequence, drawn at random, else 0."""
    x = np.zeros((tokens, SEQUENCES, neurons), np.float32)
    for column in x.reshape(-1, neurons):
        column[rng.choice(neurons, events, replace=False)] = 1
    return x


def fastest(works):
    """Seconds of the fastest call of each. They take turns, so that a short disturbance by other processes affects none of them for
    good."""
    for work in works:
        work()  # compiles
    best, end = [float("inf")] * len(works), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for i, work in enumerate(works):
            for _ in range(CALLS):
                began = time.perf_counter()
                work()
                best[i] = min(best[i], time.perf_counter() - began)
    return best


def prepare(rng, neurons, events):
    """The work of a projection for these events, as three functions: forward, gradient of the sources, gradient of the weights."""
    backend = backends.get("cpu")
    projection = Projection(Arc("example", "a.axon", "b.current", neurons, neurons, FAN_IN, delays=HISTORY + 1), backend)
    parameters = Parameters(projection.parameters(), backend)
    projection.bind(parameters)
    projection.initialise(parameters, seed=0)
    synapses = backend.synapses([projection], parameters)
    synapses.wire()
    synapses.refresh()

    state = synapses.state({"a.axon": (neurons, HISTORY)}, {"b.current": neurons}, TOKENS, SEQUENCES, learning=True, copied={})
    state.set_past("a.axon", draw_events(rng, HISTORY, neurons, events))
    membranes, no_dropout = 2 * draw_events(rng, TOKENS, neurons, events), (np.float32(0), np.zeros(1, np.uint64), mask_offset(0))
    make_write_events_cpu(make_surrogate())(state.axon("a.axon"), 0, membranes, *no_dropout, True)  # graded
    current = np.zeros((TOKENS, SEQUENCES, neurons), np.float32)
    state.set_current_grad("b.current", 0, TOKENS, rng.standard_normal(current.shape, np.float32))

    return (
        partial(state.forward, {"b.current": current}, 0, TOKENS),
        partial(state.source_grad, {"a.axon": current}, 0, TOKENS, TOKENS),
        partial(state.accumulate_weight_grad, TOKENS),
    )


def main():
    rng = np.random.default_rng(0)
    cases = [(neurons, EVENTS) for neurons in SIZES] + [(NEURONS, round(share * NEURONS)) for share in SHARES]
    print(
        f"{SEQUENCES} sequences, {FAN_IN} synapses per neuron, {numba.get_num_threads()} threads; measuring for {SECONDS} seconds",
        flush=True,
    )
    best = np.reshape(fastest([work for case in cases for work in prepare(rng, *case)]), (len(cases), 3))
    micros = 1e6 * best / (TOKENS * SEQUENCES)

    print(f"\n1. {EVENTS} events per token and sequence")
    print(f"{'':>8} {'':>10} {'us/token':>29} {'ns/synapse passed':>26}")
    print(f"{'neurons':>8} {'synapses':>10} {'forward':>11} {'back':>8} {'weights':>8} {'forward':>10} {'back':>7} {'weights':>7}")
    for neurons, times in zip(SIZES, micros, strict=False):
        forward, back, weights = 1e3 * times / (EVENTS * FAN_IN)
        print(f"{neurons:8,} {neurons * FAN_IN:10,} {_row(times)} {forward:10.3f} {back:7.3f} {weights:7.3f}")

    print(f"\n2. {NEURONS:,} neurons")
    print(f"{'':>8} {'':>10} {'us/token':>29}")
    print(f"{'fire':>8} {'events':>10} {'forward':>11} {'back':>8} {'weights':>8}")
    for share, times in zip(SHARES, micros[len(SIZES) :], strict=True):
        print(f"{100 * share:6.1f} % {round(share * NEURONS):10,} {_row(times)}")


def _row(times):
    return "{:11.2f} {:8.2f} {:8.2f}".format(*times)


if __name__ == "__main__":
    main()
