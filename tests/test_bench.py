"""`neurogen bench`: that it measures, says what it measured, and refuses in one sentence. Never how fast anything is."""

import json
import math
import re

import numpy as np
import pytest

import tiny
from neurogen_numba import backends, presets
from neurogen_numba.bench import main
from neurogen_numba.benchmarks import speed
from neurogen_numba.brain.activity import Activity
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Training
from neurogen_numba.kernels.adamw import BLOCK
from neurogen_numba.learning.schedule import learning_rate
from neurogen_numba.storage import run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

MACHINE = {"preset", "backend", "device", "precision"}
RATES = {"copy_bytes_per_second", "matrix_operations_per_second", "memory_bytes"}
COSTS = {"bytes", "operations", "share_of_copy_bandwidth", "share_of_matrix_rate"} | RATES
TIMES = {"slowest", "fastest", "measurements", "milliseconds"} | COSTS
FIGURES = {
    "train": {"tokens_per_second", "ranks"} | TIMES,
    "decode": {"tokens_per_second"} | TIMES,
    "sim": {"ticks_per_second", "neurons"} | TIMES,
    "decoder": {"tokens_per_second"} | TIMES,
    "kernels": {"forward_us", "backward_us", "weights_us", "currents", "signals", "weights", "operations"} | RATES,
}
MAY_BE_NONE = ("operations", "share_of_matrix_rate", "spread")  # of a row


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A preset, and measures of the machine, that take a moment."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config({"vocabulary": 40}))
    monkeypatch.setattr(speed, "SHORTEST", 1e-4)
    monkeypatch.setattr(speed, "COPY", 2**16)
    monkeypatch.setattr(speed, "SQUARE", 512)
    monkeypatch.chdir(tmp_path)


def measured(what, *flags):
    assert main([what, "--backend", "cpu", "--preset", "tiny", "--repeats", "2", "--json", "figures.json", *flags]) == 0
    with open("figures.json") as file:
        return json.load(file)


def positive(value):
    if isinstance(value, list):
        return value and all(positive(cell) or (name in MAY_BE_NONE and cell == 0) for row in value for name, cell in row.items())
    return bool(value) if isinstance(value, str) else 0 < value < math.inf


def shown_as(value):
    """Whether `value`, a figure as shown, is what the file has."""
    return lambda exact: exact == value if isinstance(exact, str) else float(value.replace(",", "")) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("what", FIGURES)
def test_everything_is_measured_and_the_file_says_what_is_shown(what, capsys):
    figures = measured(what)
    shown = capsys.readouterr().out
    assert set(figures) == MACHINE | FIGURES[what]
    assert all(positive(value) for value in figures.values()), figures
    assert (figures["preset"], figures["backend"], figures["precision"]) == ("tiny", "cpu", "float32")
    for name, value in figures.items():
        if isinstance(value, list):
            names = [next(cell for cell in row.values() if isinstance(cell, str)) for row in value]
            assert all(name in shown for name in names), "a name was cut off"
            continue
        (shown_value,) = re.findall(rf"^│ {name.replace('_', ' ')} +│ +(.+?) │$", shown, re.MULTILINE)
        assert shown_as(shown_value)(value), (name, shown_value, value)


@pytest.mark.parametrize("what", ["train", "decode", "sim", "decoder"])
def test_figures_agree_with_each_other(what):
    figures = measured(what)
    unit = "ticks" if what == "sim" else "tokens"
    count = figures[f"{unit}_per_second"] * figures["milliseconds"] / 1e3
    assert count == pytest.approx({"train": 4 * 16, "decode": 100, "sim": 32 * 8, "decoder": 1}[what])
    assert figures["slowest"] <= figures[f"{unit}_per_second"] <= figures["fastest"]
    assert figures["measurements"] == 2
    for share, of, rate in (
        ("share_of_copy_bandwidth", "bytes", "copy_bytes_per_second"),
        ("share_of_matrix_rate", "operations", "matrix_operations_per_second"),
    ):
        assert figures[share] == pytest.approx(figures[of] / figures["milliseconds"] * 1e3 / figures[rate])
    if what == "sim":
        assert figures["neurons"] == tiny.BRAIN.neurons
    if what == "decoder":
        assert figures["operations"] == 2 * 40 * 32
        # 32 numbers that are read, scaled and read again, and a key; weights and bias, logits written and read again; a token, how many
        # were drawn
        assert figures["bytes"] == 4 * 3 * 32 + 8 + 4 * (40 * 32 + 40 + 2 * 40) + 4 + 8


def test_flags_change_the_sizes():
    figures = measured("train", "--batch-size", "3", "--seq-length", "10", "--vocab-size", "7")
    assert figures["tokens_per_second"] * figures["milliseconds"] == pytest.approx(3 * 10 * 1e3)
    assert figures["operations"] > 6 * 3 * 10 * 7 * 32  # of the decoder's three products
    figures = measured("decode", "--batch-size", "3")
    assert figures["tokens_per_second"] * figures["milliseconds"] == pytest.approx(3 * 100 * 1e3)


def test_every_current_and_signal_of_synapses_has_a_row():
    figures = measured("kernels")
    arcs = [p.arc for p in NeuroGenModel.from_config(presets.PRESETS["tiny"], backend="cpu").brain.projections]
    assert {row["current"] for row in figures["currents"]} == {arc.target for arc in arcs}
    assert {row["signal"] for row in figures["signals"]} == {arc.source for arc in arcs}
    for way, table in (("forward", "currents"), ("backward", "signals"), ("weights", "weights")):
        assert figures[f"{way}_us"] == pytest.approx(sum(row["us"] for row in figures[table]))
        for row in figures[table]:
            assert row["share_of_copy"] * figures["copy_bytes_per_second"] * row["us"] / 1e6 == pytest.approx(row["bytes"])
            assert row["share_of_matrix_rate"] * figures["matrix_operations_per_second"] * row["us"] / 1e6 == pytest.approx(
                row["operations"]
            )
            assert row["operations"] <= 2 * 16 * 4 * sum(arc.targets * arc.synapses_per_target for arc in arcs)


def test_every_operation_of_an_update_has_a_row():
    rows = {row["operation"]: row for row in measured("kernels")["operations"]}
    main = "population_forward population_backward memory_forward memory_backward cross_entropy product adamw sample".split()
    assert set(main) <= set(rows)
    numbers = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 40}), backend="cpu").brain.parameters.flat_value.size
    # gradients are read, values and moments written too; for each block three bounds; norm, and numbers of the update
    assert rows["adamw"]["bytes"] == 4 * (7 * numbers + 3 * numbers // BLOCK + 5) and rows["adamw"]["calls"] == 1
    decoder = 4 * 16 * 40 * 32  # tokens, vocabulary, Broca
    others = 2 * 4 * 16 * 40 + 6 * 4 * 16 * 16 * 24  # the bias; embedding to Thalamus forward, and back twice
    assert rows["product"]["operations"] == 6 * decoder + others
    for row in rows.values():
        assert row["us"] > 0 and row["spread"] >= 0


class Clock:
    """A backend that does nothing but count, and a clock that goes by its work."""

    def __init__(self, *seconds):
        self.seconds, self.now, self.calls, self.waits = list(seconds), 0.0, 0, 0

    def work(self):
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1

    def synchronize(self):
        self.waits += 1

    def perf_counter(self):
        return self.now


def timed(monkeypatch, clock, repeats):
    monkeypatch.setattr(speed.time, "perf_counter", clock.perf_counter)
    return speed.Bench(None, clock, repeats, 1)._times(clock.work)


def test_what_warms_up_is_not_measured(monkeypatch):
    monkeypatch.setattr(speed, "SHORTEST", 1.0)
    clock = Clock(90, 40, 2, 3, 5, 4)  # the first compiles, the second is recorded
    assert timed(monkeypatch, clock, 3) == [3, 5, 4]
    assert clock.waits == 2 * clock.calls  # the clock is read when everything is done


def test_short_work_is_done_several_times_between_two_looks_at_the_clock(monkeypatch):
    monkeypatch.setattr(speed, "SHORTEST", 1.0)
    clock = Clock(90, 40, 0.25)
    assert timed(monkeypatch, clock, 5) == [0.25] * 5
    assert clock.calls == 3 + 5 * 4


def test_a_clock_that_stands_still_is_no_division_by_nought(monkeypatch):
    monkeypatch.setattr(speed, "SHORTEST", 1e-8)
    assert timed(monkeypatch, Clock(0.0), 2) == [0, 0]


def test_the_decoder_that_is_measured_draws_from_logits(monkeypatch):
    drawn = []
    backend = backends.get("cpu")
    sample = type(backend).sample
    monkeypatch.setattr(type(backend), "sample", lambda self, *a: (sample(self, *a), drawn.append((a[0].copy(), a[1].copy()))))
    speed.Bench(presets.PRESETS["tiny"].replace(brain={"vocabulary": 40}), backend, 1, 3).decoder()
    tokens, logits = drawn[-1]
    assert tokens.shape == (3,) and logits.shape == (3, 40) and np.ptp(logits) > 0
    assert len({tuple(tokens) for tokens, _ in drawn}) > 1, "always the same token"


def test_what_is_measured_leaves_no_numbers_that_are_none(monkeypatch):
    """The weights learn all the while: they must stay sound, or the work would not be that of a training."""
    made = []
    activity = NeuroGenModel.activity
    monkeypatch.setattr(NeuroGenModel, "activity", lambda model, *a, **more: made.append(model) or activity(model, *a, **more))
    measured("kernels")
    assert np.isfinite(made[0].brain.parameters.flat_value).all() and made[0].optimizer.steps == 3


def test_a_text_is_learned_on_and_on(monkeypatch):
    """Byte by byte, each sequence from a place of its own; at the rate of a training that has just begun."""
    learned, learn = [], NeuroGenModel.update
    monkeypatch.setattr(
        NeuroGenModel,
        "update",
        lambda model, act, x, y, rate, *how: learned.append((x.copy(), y.copy(), rate)) or learn(model, act, x, y, rate, *how),
    )
    with open("text", "wb") as file:
        file.write(bytes(range(40)) * 5)
    figures = measured("train", "--text", "text", "--after", "9", "--set", "training.learning_rate=0.01")
    assert figures["tokens_per_second"] > 0 and len(learned) > 1 + 9 + 3
    heads = learned[0][0][0]
    assert len(set(heads)) == 4
    for update, (inputs, targets, rate) in enumerate(learned):
        np.testing.assert_array_equal(inputs, (heads + update * 16 + np.arange(16)[:, None]) % 40)
        np.testing.assert_array_equal(targets, (inputs + 1) % 40)
        assert rate == pytest.approx(learning_rate(Training(warmup=5, learning_rate=0.01), update, 1000))


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], ["what"]),
        (["sleep"], ["invalid choice: 'sleep'", "decoder"]),
        (["train", "--preset", "nanno"], ["'nano'"]),
        (["train", "--repeats", "0"], ["--repeats: at least 1, not 0"]),
        (["train", "--repeats", "many"], ["--repeats"]),
        (["decode", "--batch-size", "0"], ["--batch-size: at least 1, not 0"]),
        (["train", "--seq-length", "-3"], ["--seq-length: at least 1, not -3"]),
        (["train", "--vocab-size", "0"], ["--vocab-size: at least 1, not 0"]),
        (["sim", "--stps", "3"], ["unknown flag '--stps'"]),
        (["sim", "--backend", "cpu", "--precision", "bf16"], ["fp32"]),
        (["sim", "--json", "nowhere/figures.json"], ["--json: nowhere/figures.json: there is no folder ", "nowhere"]),
        (["sim", "--json", "."], ["--json: .: the name must end with .json"]),
        (["sim", "--json", "figures"], ["--json: figures: the name must end with .json"]),
        (["decode", "--text", "text"], ["--text: decode does not train"]),
        (["train", "--after", "3"], ["--after 3", "--text"]),
        (["train", "--text", "text", "--after", "-1"], ["--after -1", "at least 0"]),
        (["train", "--text", "nowhere"], ["--text nowhere: No such file"]),
        (["train", "--text", "empty"], ["--text empty: the file is empty"]),
        (["train", "--preset", "tiny", "--text", "text"], ["--text text", "--vocab-size 123"]),
    ],
)
def test_bad_flags(flags, words, capsys, monkeypatch, tmp_path):
    (tmp_path / "text").write_bytes(b"fuzzy")
    (tmp_path / "empty").write_bytes(b"")
    monkeypatch.setattr(speed, "Bench", lambda *_: pytest.fail("measured"))
    assert main(flags) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("neurogen bench: ") and output.err.count("\n") == 1
    for word in words:
        assert word in output.err


def test_a_text_too_short_for_the_batch_is_one_sentence(capsys):
    with open("text", "wb") as file:
        file.write(b"ab")
    assert main(["train", "--preset", "nano", "--backend", "cpu", "--text", "text", "--repeats", "1"]) == 2
    assert "--text: 2 tokens to train on" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_whole", full)
    flags = ["sim", "--backend", "cpu", "--preset", "tiny", "--repeats", "1", "--json", "figures.json"]
    assert main(flags) == 2
    output = capsys.readouterr()
    assert "ticks per second" in output.out and output.err.endswith("neurogen bench: --json figures.json: No space left on device\n")


def test_the_figures_alone_go_through_a_pipe(capsys):
    assert main(["sim", "--backend", "cpu", "--preset", "tiny", "--repeats", "1", "--json"]) == 0
    assert "ticks_per_second" in json.loads(capsys.readouterr().out)


def test_the_state_that_is_measured_is_of_one_token(monkeypatch):
    """The decoder alone: nothing else of the brain is run."""
    monkeypatch.setattr("neurogen_numba.brain.brain.Brain.forward", lambda *_: pytest.fail("ran"))
    tokens = []
    made = Activity.__init__
    monkeypatch.setattr(Activity, "__init__", lambda self, brain, T, *a, **more: tokens.append(T) or made(self, brain, T, *a, **more))
    measured("decoder")
    assert tokens == [1]
