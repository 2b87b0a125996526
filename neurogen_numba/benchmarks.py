"""What `neurogen bench` measures. Every figure is the median of several measurements after three that warm up, and stands beside what the
machine can do: a copy in its memory and a large matrix product, measured in the same breath. What fits into a cache may be faster than the
copy, which does not."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from .brain.activity import Activity
from .brain.model import NeuroGenModel
from .generation import Sampling, Session
from .simulation import Simulation

SHORTEST = 0.02  # seconds: shorter work is done several times between two looks at the clock
COPY = 2**28  # numbers, 1 GiB
SQUARE = 8192  # rows of the matrices whose product is the measure of all products
SMALL = 16  # how much smaller both are where there is no GPU
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.9)


class Bench:
    """Measurements of a configuration on a backend; each returns a table {what: figure}."""

    def __init__(self, config, backend, repeats: int, batch: int):
        self.config, self.backend, self.repeats, self.batch = config, backend, repeats, batch

    def train(self):
        """Whole updates: forward, backward, optimiser."""
        model, training = self._model(), self.config.training
        act = model.activity(training.segment, training.batch, learning=True)
        ids = np.random.default_rng(0).integers(0, self.config.brain.vocabulary, (training.segment + 1, training.batch)).astype(np.int32)
        times = self._times(lambda: model.learn(act, ids[:-1], ids[1:], 1e-4))
        tokens = training.segment * training.batch
        operations = 6 * tokens * model.brain.parameters.table["decoder.weight"].size
        return self._report("tokens", tokens, times, operations=operations, operations_of="the decoder's three products")

    def decode(self):
        """Tokens drawn one after the other, each heard before the next."""
        model, count = self._model(), 100
        session = Session(model, SAMPLING, self.batch)
        session.feed(np.zeros((1, self.batch), np.int32))
        times = self._times(lambda: session.write(count))
        moved = count * model.brain.decoder.factor.nbytes
        return self._report("tokens", count * self.batch, times, moved=moved, moved_of="the decoder's weights")

    def sim(self):
        """Neurons and synapses alone."""
        simulation = Simulation(self.config.brain, self.backend, self.batch, seed=0)
        times = self._times(simulation.run)
        return self._report("ticks", simulation.segment, times) | {"neurons": self.config.brain.neurons}

    def decoder(self):
        """Logits of one token, softmax, top-k and top-p, a draw."""
        model = self._model()
        act = Activity(model.brain, 1, self.batch)
        drawn, decoder, how = self.backend.zeros(self.batch, "uint64"), model.brain.decoder, SAMPLING
        tokens = self.backend.zeros(self.batch, "int32")
        act.signals[decoder.source].x[...] = self.backend.asarray(np.random.default_rng(0).random(act.read.shape, np.float32))

        def draw():
            logits = decoder.logits(act, 0, 1)
            numbers = np.float32(how.temperature), how.top_k, np.float32(how.top_p), np.uint64(1), drawn
            self.backend.sample(tokens, logits, *numbers)

        times = self._times(self.backend.record(draw))
        return self._report("tokens", self.batch, times, moved=decoder.factor.nbytes, moved_of="the decoder's weights")

    def kernels(self):
        """The synapses, forward and back over one chunk, by the current that they bring and the signal that they carry.

        Forward they are walked from each current, back from each signal; what the other one does is hand over. The bytes of a walk: 6 for a
        synapse that is passed (index and weight; 4 where they share a word), 8 more for the gradient of its weight, 4 for a number of a
        current or of the gradient of a signal. Forward a synapse is passed by events, back also for neurons that are near the threshold;
        plain values are never silent. What serves several columns at once, as lanes, tiles and matrices do, may come to more than the copy.
        """
        model, training = self._model(), self.config.training
        act = model.activity(training.segment, training.batch, learning=True)
        ids = np.random.default_rng(0).integers(0, self.config.brain.vocabulary, (training.segment + 1, training.batch)).astype(np.int32)
        for _ in range(3):
            model.learn(act, ids[:-1], ids[1:], 1e-4)
        brain, traffic, chunk, bandwidth = model.brain, act.traffic, act.chunk, self._bandwidth()
        columns = chunk * training.batch
        fired = act.rates(training.segment)
        heard = {name: float((v[1 : training.segment + 1] > 0).mean()) for name, v in act.v.items()}  # there the slope is above 0

        def passed(arcs, rates):
            return sum(columns * arc.targets * arc.synapses_per_target * rates.get(arc.source.removesuffix(".axon"), 1.0) for arc in arcs)

        def row(what, name, size, arcs, forward, back, walked):
            table = {what: name, "synapses_passed": passed(arcs, fired)}
            for way, work in (("forward", forward), ("back", back)):
                seconds = self._median(self.backend.record(work))
                table[f"{way}_us"] = seconds * 1e6
                if way in walked:
                    synapses = passed(arcs, heard if way == "back" else fired)
                    moved = synapse * synapses + (8 * table["synapses_passed"] if way == "back" else 0) + 4 * columns * size
                    table[f"{way}_share_of_copy"] = moved / seconds / bandwidth
            return table

        sparse = [p.arc for p in brain.projections if not p.arc.dense]
        currents, signals, synapse = [], [], 4 if getattr(brain.synapses, "packed", False) else 6
        for name, size in brain.current_sizes.items():
            if arcs := [arc for arc in sparse if arc.target == name]:
                value, gradient = self.backend.zeros((chunk, training.batch, size)), self._noise(chunk, training.batch, size)
                ways = partial(traffic.receive, {name: value}, 0, chunk), partial(traffic.owe, name, 0, chunk, gradient)
                currents.append(row("current", name, size, arcs, *ways, ("forward",)))
        for name, size in brain.signal_sizes.items():
            if arcs := [arc for arc in sparse if arc.source == name]:
                gradient, module = self.backend.zeros((chunk, training.batch, size)), name.removesuffix(".axon")
                send = partial(traffic.send_values, name, 0, chunk, self._noise(chunk, training.batch, size))
                if module in act.v:
                    v, graded = act.v[module][1 : chunk + 1], self.config.brain.events == "graded"
                    send = partial(traffic.send_events, name, 0, chunk, v, act.dropout.at(name, 0, size), graded, False)
                ways = send, partial(traffic.owed, name, 0, chunk, gradient)
                signals.append(row("signal", name, size, arcs, *ways, ("back",)))
        totals = {f"{way}_us": sum(row[f"{way}_us"] for row in (*currents, *signals)) for way in ("forward", "back")}
        return self._machine() | {"copy_bytes_per_second": bandwidth} | totals | {"currents": currents, "signals": signals}

    def _noise(self, *shape):
        return self.backend.asarray(np.random.default_rng(1).standard_normal(shape, np.float32) * np.float32(1e-6))

    def _model(self):
        return NeuroGenModel.from_config(self.config, backend=self.backend)

    def _times(self, work):
        """Seconds of each measurement of `work`."""
        for _ in range(2):  # the first compiles; a GPU records the second, which takes long, too
            self._seconds(work, 1)
        count = max(1, round(SHORTEST / max(self._seconds(work, 1), 1e-9)))
        return [self._seconds(work, count) / count for _ in range(self.repeats)]

    def _median(self, work):
        return float(np.median(self._times(work)))

    def _seconds(self, work, count):
        self.backend.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            work()
        self.backend.synchronize()
        return time.perf_counter() - began

    def _bandwidth(self):
        """Bytes read and written in a second by a copy."""
        size = COPY // (1 if self.backend.name == "cuda" else SMALL)
        a, b = self.backend.zeros(size), self.backend.zeros(size)

        def copy():
            b[...] = a

        return 2 * a.nbytes / min(self._times(copy))

    def _matrix_rate(self):
        """Operations in a second in a product of large matrices of the decoder's type."""
        rows = SQUARE // (1 if self.backend.name == "cuda" else SMALL)
        a, out = self.backend.matrix(rows, rows, self.backend.product_dtype), self.backend.matrix(rows, rows)
        a[...] = self.backend.asarray(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
        return 2 * rows**3 / min(self._times(lambda: self.backend.product(out, a, a)))

    def _machine(self):
        return {
            "preset": self.config.preset,
            "backend": self.backend.name,
            "device": self.backend.device_name(),
            "precision": self.backend.product_dtype,
        }

    def _report(self, unit, count, times, operations=0, operations_of="", moved=0, moved_of=""):
        middle = float(np.median(times))
        result = self._machine() | {
            f"{unit}_per_second": count / middle,
            "slowest": count / max(times),
            "fastest": count / min(times),
            "measurements": len(times),
            "milliseconds": middle * 1e3,
            "memory_bytes": self.backend.memory_used(),
        }
        if operations:
            rate = self._matrix_rate()
            result |= {"operations": operations, "operations_of": operations_of, "share_of_matrix_rate": operations / middle / rate}
            result |= {"matrix_operations_per_second": rate}
        if moved:
            rate = self._bandwidth()
            result |= {
                "bytes": moved,
                "bytes_of": moved_of,
                "share_of_copy_bandwidth": moved / middle / rate,
                "copy_bytes_per_second": rate,
            }
        return result


def show(result: dict):
    """Print a result as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    from .ui.plain import words

    console = Console()
    for name, value in result.items():
        if isinstance(value, list):
            table = Table(*(Column(words(column), no_wrap=isinstance(cell, str)) for column, cell in value[0].items()))
            for row in value:
                table.add_row(*(cell if isinstance(cell, str) else f"{cell:,.3g}" for cell in row.values()))
            console.print(table)
        else:
            console.print(f"{words(name):32} {value if isinstance(value, str) else f'{value:,.4g}'}", highlight=False, markup=False)
