"""`neurogen sim`: the brain that noise drives, and the output of the command."""

import dataclasses
import re

import numpy as np
import pytest

import tiny
from neurogen_numba import backends, presets
from neurogen_numba.brain import simulation
from neurogen_numba.brain.simulation import Simulation
from neurogen_numba.config import MODULES
from neurogen_numba.kernels.rng import key, uniform
from neurogen_numba.sim import main
from neurogen_numba.ui.plain import label

pytestmark = pytest.mark.usefixtures("one_thread")

TICKS = tiny.BRAIN.chunk * 32  # of a segment of one copy; of two copies half as many


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config())


@pytest.mark.parametrize("batch, chunks", [(1, 32), (2, 16), (128, 8)])
def test_segments_of_few_copies_are_longer(batch, chunks):
    assert simulated(batch=batch).segment == chunks * tiny.BRAIN.chunk


def simulated(config=tiny.BRAIN, backend="cpu", segments=1, **settings):
    made = Simulation(config, backends.get(backend), **settings)
    for _ in range(segments):
        made.run()
    return made


def state(made):
    return {name: np.array(value) for name, value in made.act.state().items()}


def test_the_thalamus_reads_the_noise_and_the_others_read_the_thalamus(monkeypatch):
    forward, heard = simulation.Stimulus.forward, []

    def watched(noise, act, first, last):
        before = act.currents["thalamus.current"].value[first:last].copy()
        forward(noise, act, first, last)
        heard.append(act.currents["thalamus.current"].value[first:last] - before)

    monkeypatch.setattr(simulation.Stimulus, "forward", watched)
    made = simulated(batch=2, rate=0.2, strength=4.0, seed=3, segments=2)
    assert made.segment == TICKS // 2 and made.brain.components[0].ticks.tolist() == [TICKS]
    places = np.arange(TICKS * 2 * 24, dtype=np.uint64).reshape(TICKS, 2, 24)
    np.testing.assert_allclose(np.concatenate(heard)[-TICKS:], 4.0 * (uniform(key(3), places) < np.float32(0.2)), atol=1e-5)
    rates = made.act.rates(TICKS // 2)
    assert list(rates) == list(MODULES) and all(0 < rate < 1 for rate in rates.values()), rates


def test_time_goes_on_from_run_to_run():
    twice, once = simulated(segments=2, seed=5), simulated(segments=1, seed=5)
    assert twice.brain.components[0].ticks.tolist() == [2 * TICKS]
    before = state(once)
    once.run()
    for name, value in state(twice).items():
        np.testing.assert_array_equal(value, state(once)[name], err_msg=name)
    assert any((before[name] != value).any() for name, value in state(once).items())


def test_a_run_of_two_segments_is_a_longer_one(monkeypatch):
    two = simulated(segments=2, seed=5)
    monkeypatch.setattr(simulation, "chunks", lambda batch: 64)
    long = simulated(segments=1, seed=5)
    assert long.segment == 2 * two.segment
    for name, value in state(two).items():
        np.testing.assert_allclose(value, state(long)[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_seed_decides():
    first, again, other = (state(simulated(seed=seed)) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert any((first[name] != other[name]).any() for name in first)


def test_copies_have_noise_of_their_own():
    v = simulated(batch=3).act.v["wernicke"]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (v[1:, one] != v[1:, other]).any()


def test_without_noise_nothing_stirs():
    rates = simulated(rate=0.0).act.rates(TICKS)
    assert not any(rates.values())


def test_more_noise_is_more_activity_of_the_thalamus():
    quiet, loud = (simulated(dataclasses.replace(tiny.BRAIN, feedback=0), rate=rate, segments=4) for rate in (0.02, 0.4))
    assert quiet.act.rates(TICKS)["thalamus"] < loud.act.rates(TICKS)["thalamus"]


def test_the_vocabulary_costs_nothing():
    made = simulated(dataclasses.replace(tiny.BRAIN, vocabulary=10**9))  # the decoder of which would fill a data centre
    assert made.brain.parameters.table["decoder.weight"].shape[0] == 1


# The command


def run(*flags):
    return main(["--backend", "cpu", "--preset", "tiny", *flags])


def test_what_the_command_says(capsys):
    assert run("--steps", "100", "--batch-size", "2", "--seed", "4", "--rate", "0.3") == 0
    first, *modules = capsys.readouterr().out.splitlines()
    ticks, seconds, speed = re.fullmatch(r"176 neurons, 2 at once: ([\d,]+) ticks in ([\d.]+) s, ([\d,]+) ticks/s", first).groups()
    assert int(ticks) == TICKS // 2  # whole segments: at least 100
    assert [line[2:17].strip() for line in modules] == [label(name) for name in MODULES]
    shown = [float(re.search(r"([\d.]+) % of the neurons fire in a tick", line)[1]) / 100 for line in modules]
    made = simulated(segments=2, batch=2, seed=4, rate=0.3)  # two that warm up
    made.run()
    np.testing.assert_allclose(shown, list(made.act.rates(TICKS // 2).values()), atol=6e-4)


@pytest.mark.parametrize("steps, ticks", [(1, TICKS), (TICKS, TICKS), (TICKS + 1, 2 * TICKS)])
def test_whole_segments_are_run(steps, ticks, capsys):
    assert run("--steps", str(steps)) == 0
    assert f"1 at once: {ticks:,} ticks in" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--rate", "0"], ["--rate", "1"], ["--strength", "-2"], ["--seed", str(2**64 - 1)]], ids=" ".join)
def test_the_edges_of_what_can_work(flags):
    assert run("--steps", "1", *flags) == 0


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--steps", "0"], "--steps: at least 1, not 0"),
        (["--steps", "-5"], "--steps: at least 1, not -5"),
        (["--steps", "1.5"], "--steps: an integer is needed, not '1.5'"),
        (["--steps", "nan"], "--steps"),
        (["--batch-size", "0"], "--batch-size: at least 1, not 0"),
        (["--rate", "-0.1"], "--rate: a share from 0 to 1, not -0.1"),
        (["--rate", "1.1"], "--rate: a share from 0 to 1, not 1.1"),
        (["--rate", "nan"], "--rate: a share from 0 to 1, not nan"),
        (["--rate", "inf"], "--rate: a share from 0 to 1, not inf"),
        (["--strength", "nan"], "--strength: a number from -1e+06 to 1e+06, not nan"),
        (["--strength=-inf"], "not -inf"),
        (["--strength", "1e39"], "--strength"),
        (["--seed", "-1"], "--seed: from 0 to 2^64 - 1, not -1"),
        (["--seed", str(2**64)], "--seed"),
        (["--preset", "nanno"], "'nano'"),
        (["--precision", "fp16"], "fp32"),
        (["word"], "unexpected 'word'"),
    ],
)
def test_bad_flags(flags, words, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "Simulation", lambda *_: pytest.fail("simulated"))
    assert run(*flags) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("neurogen sim: ") and output.err.count("\n") == 1 and words in output.err
