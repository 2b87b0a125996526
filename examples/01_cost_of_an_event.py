"""What does an event cost, and does a larger brain make it dearer?

    python examples/01_cost_of_an_event.py

Sends the same number of events through projections of 1,024, 2,048, 4,096 and 8,192 neurons (128 synapses each, delays 0 to 3), forward and
back, and prints the time per token of one sequence, per event and per synapse that an event passes. Work should grow with the events, not
with the synapses.
"""

import time
from functools import partial

import numba
import numpy as np

from neurogen_numba.brain.connectome import Arc, draw_synapses
from neurogen_numba.kernels.lanes import LANES
from neurogen_numba.kernels.synapse import synapse_backward_cpu, synapse_forward_cpu

TOKENS, HISTORY, FAN_IN, EVENTS = 64, 3, 128, 32  # EVENTS: per token and sequence


def fill_lists(rng, neurons):
    """Event lists of random events: EVENTS per token and sequence; those that fired in any lane are the only ones listed."""
    rows = HISTORY + TOKENS
    index, value = np.zeros((rows, 1, neurons), np.uint16), np.zeros((rows, 1, neurons, LANES), np.float32)
    fired = np.zeros((rows, 1), np.int32)
    for r in range(rows):
        active = np.zeros((neurons, LANES), np.float32)
        for lane in range(LANES):
            active[rng.choice(neurons, EVENTS, replace=False), lane] = 1
        heard = np.flatnonzero(active.any(1))
        fired[r, 0] = heard.size
        index[r, 0, : heard.size], value[r, 0, : heard.size] = heard, active[heard]
    return index, value, fired


def best(work, repeats=7):
    """Seconds of the fastest of several runs, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main():
    rng, threads = np.random.default_rng(0), numba.get_num_threads()
    print(f"{EVENTS} events per token and sequence, {LANES} sequences, {FAN_IN} synapses per neuron, {threads} threads")
    print(f"{'neurons':>8} {'synapses':>10} {'us/token':>19} {'ns/event':>17} {'ns/synapse passed':>19}")
    print(f"{'':>8} {'':>10} {'forward':>10} {'back':>8} {'forward':>9} {'back':>7} {'forward':>10} {'back':>8}")
    for neurons in (1024, 2048, 4096, 8192):
        arc = Arc("bench", "a.axon", "b.current", neurons, neurons, FAN_IN, delays=HISTORY + 1)
        row_start, target = draw_synapses(arc, 0, "uint16")
        weight = rng.standard_normal(target.size, np.float32)
        index, value, fired = fill_lists(rng, neurons)
        current = np.zeros((TOKENS, 1, neurons, LANES), np.float32)
        d_current = rng.standard_normal(current.shape, np.float32)
        ds, d_weight = np.zeros_like(current), np.zeros_like(weight)
        wiring = row_start, target, weight, arc.first_delay, arc.delays
        lists = index, value, fired
        forward = best(partial(synapse_forward_cpu, current, *lists, HISTORY, *wiring))
        back = best(partial(synapse_backward_cpu, ds, d_weight, d_current, *lists, fired, HISTORY, HISTORY, *wiring, threads))
        columns = TOKENS * LANES
        micro, nano = 1e6 / columns, 1e9 / columns / EVENTS
        print(
            f"{neurons:8,} {target.size:10,} {forward * micro:10.2f} {back * micro:8.2f} {forward * nano:9.1f} {back * nano:7.1f} "
            f"{forward * nano / FAN_IN:10.3f} {back * nano / FAN_IN:8.3f}"
        )


if __name__ == "__main__":
    main()
