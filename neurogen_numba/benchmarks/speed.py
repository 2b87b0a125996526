"""Speed measurements of `neurogen bench`. Every figure is the median of several measurements after three warm-up runs. It is compared with
two limits of the machine, measured alternately with it: a copy in memory and a large matrix product. Data that fits into a cache may exceed
the limit of the copy, which does not fit."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from ..brain.activity import Activity
from ..brain.model import NeuroGenModel
from ..brain.simulation import Simulation
from ..distributed.communicator import SOLO, Solo
from ..distributed.team import assemble, begin
from ..inference.generation import Sampling, Session
from ..learning.schedule import learning_rate
from ..planning.costs import SYNAPTIC, SynapseCosts, cost, recorded
from ..text.batches import file_batches

SHORTEST = 0.02  # seconds: shorter work is repeated within one measurement
COPY = 2**28  # numbers, 1 GiB
SQUARE = 8192  # rows of the matrices of the reference product
SMALL = 16  # both are smaller by this factor without a GPU
WIDEST = 160  # characters of a table of kernels: a terminal may break lines, but no figure is cut off
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.9)


class Bench:
    """Measurements of a configuration on a backend; each returns a table {what: figure}.

    text: trained on for `after` updates before the measurements; without it, tokens are random and there is no training before.
    communicator: to the ranks that train with this one; bytes and operations are those of this one.
    """

    def __init__(self, config, backend, repeats: int, batch: int, text: bytes = b"", after: int = 0, communicator: Solo = SOLO):
        self.config, self.backend, self.repeats, self.batch, self.text, self.after = config, backend, repeats, batch, text, after
        self.communicator = communicator

    def train(self):
        """Whole updates: forward, backward, optimiser."""
        begin(self.communicator, self.config, None)
        team, training = assemble(self.communicator, self._model), self.config.training
        model, (act, update) = team.model, self._update(team)
        with recorded(self.backend, act.synapses) as calls:
            update()  # the first one; later ones may be replayed from a recording
        for _ in range(self.after):
            update()
        times = self._times(update)
        costs = SynapseCosts(model.brain, act, training.segment).total(calls)
        return self._report("tokens", training.segment * training.batch, times, *costs) | {"ranks": self.communicator.size}

    def decode(self):
        """Generation: tokens are drawn one after another, each fed back before the next."""
        model, count = self._model(), 100
        session = Session(model, SAMPLING, self.batch)
        session.feed(np.zeros((1, self.batch), np.int32))
        with recorded(self.backend, session.act.synapses) as calls:
            session.write(1)
        times = self._times(lambda: session.write(count))
        moved, operations = SynapseCosts(model.brain, session.act, 1).total(calls)
        return self._report("tokens", count * self.batch, times, count * moved, count * operations)

    def sim(self):
        """Neurons and synapses alone."""
        simulation = Simulation(self.config.brain, self.backend, self.batch, seed=0)
        with recorded(self.backend, simulation.act.synapses) as calls:
            simulation.run()
        times = self._times(simulation.run)
        costs = SynapseCosts(simulation.brain, simulation.act, simulation.segment).total(calls)
        return self._report("ticks", simulation.segment, times, *costs) | {"neurons": self.config.brain.neurons}

    def decoder(self):
        """Logits of one token, softmax, top-k and top-p, a draw."""
        draw = self._draw(self._model())
        with recorded(self.backend) as calls:
            draw()
        moved, operations = (sum(figures) for figures in zip(*map(cost, calls), strict=True))
        return self._report("tokens", self.batch, self._times(self.backend.record(draw)), moved, operations)

    def kernels(self):
        """The synapses per current (forward over a chunk) and per signal (backward over a chunk), the gradient of all weights over a
        segment (over a chunk, with eligibility traces), every other operation as often as an update calls it, and a draw."""
        model, training, bandwidth, matrix = self._model(), self.config.training, self._bandwidth(), self._matrix_rate()
        act, update = self._update(assemble(SOLO, lambda: model))
        with recorded(self.backend, act.synapses) as calls:
            update()
        for _ in range(self.after):
            update()
        with recorded(self.backend) as drawing:
            self._draw(model)()
        calls = [call for call in (*calls, drawing[-1]) if call.name not in SYNAPTIC]
        update()
        update()
        brain, synapses, chunk, length = model.brain, act.synapses, act.chunk, act.tokens
        costs = SynapseCosts(brain, act, length)

        def row(what, name, work, moved, computed):
            table = {what: name} | self._spread("", self._times(self.backend.record(work)))
            seconds = table["us"] / 1e6
            shares = {"share_of_copy": moved / seconds / bandwidth, "share_of_matrix_rate": computed / seconds / matrix}
            return table | {"bytes": moved, "operations": computed} | shares

        currents, signals = [], []
        for name in dict.fromkeys(arc.target for arc in costs.arcs):
            value = self.backend.zeros((chunk, training.batch, brain.current_sizes[name]))
            work = partial(synapses.forward, {name: value}, 0, chunk)
            currents.append(row("current", name, work, *costs.forward(name, value)))
            synapses.set_current_grad(name, 0, chunk, self._noise(*value.shape))
        for name in dict.fromkeys(arc.source for arc in costs.arcs):
            gradient = self.backend.zeros((chunk, training.batch, brain.signal_sizes[name]))
            work = partial(synapses.source_grad, {name: gradient}, 0, chunk, length)
            signals.append(row("signal", name, work, *costs.backward(name, gradient)))
        work = partial(synapses.accumulate_weight_grad, length)
        weights = [row("gradient", "weights of all synapses", work, *costs.weights(length))]
        totals = {"forward_us": sum(row["us"] for row in currents), "backward_us": sum(row["us"] for row in signals)}
        totals |= {"weights_us": weights[0]["us"]}
        operations = []
        for name in dict.fromkeys(call.name for call in calls):
            same = [call for call in calls if call.name == name]
            operations.append({"calls": len(same)} | row("operation", name, partial(_repeat, same), *costs.total(same)))
        rates = {"copy_bytes_per_second": bandwidth, "matrix_operations_per_second": matrix, "memory_bytes": self.backend.memory_used()}
        return self._machine() | rates | totals | {"currents": currents, "signals": signals, "weights": weights, "operations": operations}

    def _update(self, team):
        """(activity, a function that makes one update, on fixed random tokens or on the next tokens of the text)."""
        training = self.config.training
        model, act, shape = team.model, team.act, (training.segment + 1, training.batch)
        if not self.text:
            ids = np.random.default_rng(0).integers(0, self.config.brain.vocabulary, shape).astype(np.int32)
            return act, lambda: team.update(ids[:-1], ids[1:], 1e-4)
        batches = file_batches("--text", np.frombuffer(self.text, np.uint8).astype(np.int32), training, None, None)
        return act, lambda: team.update(*batches.next(), learning_rate(training, model.optimizer.steps, training.steps))

    def _draw(self, model):
        """A function that draws a token of each sequence from made-up activity."""
        act = Activity(model.brain, 1, self.batch)
        drawn, decoder, how = self.backend.zeros(self.batch, "uint64"), model.brain.decoder, SAMPLING
        tokens = self.backend.zeros(self.batch, "int32")
        act.signals[decoder.source].x[...] = self.backend.asarray(np.random.default_rng(0).random(act.decoder_input.shape, np.float32))

        def draw():
            logits = decoder.scores(act, 0, 1), decoder.bias
            numbers = np.float32(how.temperature), how.top_k, np.float32(how.top_p), np.uint64(1), drawn
            self.backend.sample(tokens, *logits, *numbers, decoder.shape[0])

        return draw

    def _noise(self, *shape):
        return self.backend.asarray(np.random.default_rng(1).standard_normal(shape, np.float32) * np.float32(1e-6))

    def _model(self):
        return NeuroGenModel.from_config(self.config, backend=self.backend)

    def _times(self, work):
        return times(self.backend, work, self.repeats)

    @staticmethod
    def _spread(which, times):
        """The median of the times in microseconds, and their relative spread."""
        middle = float(np.median(times))
        return {f"{which}us": middle * 1e6, f"{which}spread": (max(times) - min(times)) / middle}

    def _bandwidth(self):
        return copy_bandwidth(self.backend, self.repeats)

    def _matrix_rate(self):
        """Operations per second of a product of large matrices of the decoder's dtype."""
        rows = SQUARE // (1 if self.backend.memory() else SMALL)
        a, out = self.backend.matrix(rows, rows, self.backend.product_dtype), self.backend.matrix(rows, rows)
        a[...] = self.backend.asarray(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
        return 2 * rows**3 / float(np.median(self._times(lambda: self.backend.product(out, a, a))))

    def _machine(self):
        return {
            "preset": self.config.preset,
            "backend": self.backend.name,
            "device": self.backend.device_name(),
            "precision": self.backend.product_dtype,
        }

    def _report(self, unit, count, times, moved, operations):
        middle, held = float(np.median(times)), self.backend.memory_used()  # before the reference measurements allocate memory
        bandwidth, matrix = self._bandwidth(), self._matrix_rate()
        return self._machine() | {
            f"{unit}_per_second": count / middle,
            "slowest": count / max(times),
            "fastest": count / min(times),
            "measurements": len(times),
            "milliseconds": middle * 1e3,
            "memory_bytes": held,
            "bytes": moved,
            "copy_bytes_per_second": bandwidth,
            "share_of_copy_bandwidth": moved / middle / bandwidth,
            "operations": operations,
            "matrix_operations_per_second": matrix,
            "share_of_matrix_rate": operations / middle / matrix,
        }


def times(backend, work, repeats: int) -> list[float]:
    """Seconds of `work`, a function, in each of `repeat` measurements."""
    return times_in_turn(backend, [work], repeats)[0]


def times_in_turn(backend, works, repeats: int) -> list[list[float]]:
    """Seconds of several functions in each of `repeat` measurements. The functions alternate, so that other load affects all of them."""
    counts = []
    for work in works:
        for _ in range(2):  # the first compiles; on a GPU the second is recorded, which is also slow
            _seconds(backend, work, 1)
        counts.append(max(1, round(SHORTEST / max(_seconds(backend, work, 1), 1e-9))))
    rounds = [[_seconds(backend, work, n) / n for work, n in zip(works, counts, strict=True)] for _ in range(repeats)]
    return [list(each) for each in zip(*rounds, strict=True)]


def _seconds(backend, work, count):
    backend.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    backend.synchronize()
    return time.perf_counter() - began


def copy_bandwidth(backend, repeats: int) -> float:
    """Bytes per second that a copy reads and writes."""
    memory = backend.memory()
    size = min(COPY, memory[0] // 32) if memory else COPY // SMALL  # numbers; two such arrays take a quarter of the free memory
    return 2 * 4 * size / float(np.median(times(backend, make_copy(backend, size), repeats)))


def make_copy(backend, size: int):
    """A function that copies an array of `size` numbers, float32; it reads and writes 4 bytes of each."""
    a, b = backend.zeros(size), backend.zeros(size)
    a[...] = 1  # pages of an array that nobody has written are one page of zeros, which stays in a cache

    def copy():
        b[...] = a

    return copy


def _repeat(calls):
    for call in calls:
        call.repeat()


def show(result: dict):
    """Print a result as tables: one of its figures, and one per list."""
    from rich.console import Console
    from rich.table import Column, Table

    from ..ui.plain import words

    def cell(value):
        return value if isinstance(value, str) else f"{value:,.0f}" if 1e4 <= value < 1e9 else f"{value:,.4g}"

    console = Console()
    figures = Table("figure", Column("value", justify="right", no_wrap=True))
    for name, value in result.items():
        if not isinstance(value, list):
            figures.add_row(words(name), cell(value))
    console.print(figures)
    console.width = max(console.width, WIDEST)
    for rows in (value for value in result.values() if isinstance(value, list)):
        table = Table(*(Column(words(column), no_wrap=True) for column in rows[0]))
        for row in rows:
            table.add_row(*map(cell, row.values()))
        console.print(table)
