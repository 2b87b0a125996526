"""The whole brain, held to the float64 reference; and properties that hold for all weights."""

import dataclasses
import functools
import re
import zlib

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref
from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba.brain.activity import Activity, Dropout
from neurogen_numba.brain.brain import Brain
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES, Config, Module
from neurogen_numba.config import Brain as BrainConfig
from neurogen_numba.errors import CheckpointError
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels import rng as places
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.optim.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")

T = 11  # tokens of a segment: two chunks of 4 and a shorter one
LEVELS = {"dopamine": 0.4, "norepinephrine": -0.3, "serotonin": 0.6}  # of the first sequence; the others have less
SIZES = {"thalamus": 18, "wernicke": 35, "hippocampus": 17, "pfc": 19, "basal_ganglia": 9, "broca": 21}


def config(outputs, events="graded", **sizes):
    modules = {name: Module(n, outputs.get(name, 0), lateral=3) for name, n in SIZES.items()}
    rest = {
        "vocabulary": 23,
        "fan_in": 16,
        "bundle": 16,
        "feedback": 3,
        "delays": 5,
        "late_delays": 6,
        "hypercolumn": 8,
        "memory_heads": 2,
        "memory_fan_in": 5,
        "chunk": 4,
    }
    return BrainConfig(**modules, **rest, **sizes, events=events)


# Every readout there can be, and a projected embedding; none of them; and rows that are embedding and decoder at once.
READOUTS = config({"wernicke": 18, "pfc": 7, "basal_ganglia": 5, "broca": 12}, embedding=10, memory_width=3, feedback_chunks=2)
PLAIN = config({}, embedding=SIZES["thalamus"], memory_width=4)
TIED = config({"wernicke": 11}, embedding=SIZES["broca"], tied=True, memory_width=3)
MODULATED = dataclasses.replace(READOUTS, neuromodulation=True)
UNNORMALIZED = dataclasses.replace(READOUTS, without="normalization")
CONFIGS = pytest.mark.parametrize("sizes", [READOUTS, PLAIN, TIED, MODULATED], ids=["readouts", "plain", "tied", "modulated"])
EVENTS = pytest.mark.parametrize("events", ["graded", "binary"])


def fill(brain, seed):
    """Give a brain the weights and the wiring of the reference's random model, which fires in every module."""
    params, structure = ref.random_model(dataclasses.asdict(brain.config), np.random.default_rng(seed))
    fixed = {}
    for name, part in structure.items():
        fixed |= {f"{name}.{what}": part[what] for what in ("block", "delay")} if isinstance(part, dict) else {name: part}
    brain.load_structure(fixed)
    assert params.keys() == brain.parameters.value.keys()
    for name, values in params.items():
        brain.parameters.value[name][...] = values
    brain.refresh()


@functools.cache
def lively(sizes, seed=0):
    brain = Brain(sizes, backends.get("cpu"))
    fill(brain, seed)
    return brain


def in_float64(brain):
    """(params, structure) for the reference, of the numbers that the brain has."""
    fixed = brain.structure()
    structure = {f"{name}.input_scale": fixed[f"{name}.input_scale"].astype(np.float64) for name in MODULES}
    for projection in brain.projections:
        structure[projection.arc.name] = {what: fixed[f"{projection.arc.name}.{what}"] for what in ("block", "delay")}
    return {name: value.astype(np.float64) for name, value in brain.parameters.value.items()}, structure


def tokens(seed, length=T, batch=2):
    return np.random.default_rng([77, seed]).integers(0, 23, (length, batch)).astype(np.int32)


def masks_of(brain, dropout, length):
    """The reference's masks: what `dropout` keeps, place by place."""
    size = {"embedding": brain.config.embedding, "decoder": brain.config.broca.output_size} | {
        f"{name}.axon": n for name, n in SIZES.items()
    }
    masks = {}
    for what, n in size.items():
        key = places.key(dropout.seed, dropout.step, zlib.crc32(what.encode()))
        kept = places.uniform(key, np.arange(length * dropout.batch * n, dtype=np.uint64)) >= (rate := dropout.arguments(what, 0, n)[0])
        masks[what.removesuffix(".axon")] = kept.reshape(length, dropout.batch, n) / (1 - float(rate))
    return masks


@dataclasses.dataclass
class Run:
    """One segment, in the brain and in the reference."""

    brain: Brain
    act: Activity
    ids: np.ndarray  # [T, B]
    state: dict  # before the segment; empty: fresh
    logits: np.ndarray  # [T, B, V], the brain's
    masks: dict

    def reference(self, params=None, levels=None):
        part_params, structure = in_float64(self.brain)
        state = {name: values.astype(np.float64) for name, values in self.state.items()}
        settings = dataclasses.asdict(self.brain.config)
        settings["hypercolumn"] = 0 if self.brain.config == UNNORMALIZED else settings["hypercolumn"]
        given = {"masks": self.masks, "targets": np.vstack([self.ids[1:], np.full_like(self.ids[:1], -1)]), "levels": levels}
        return ref.model_forward(settings, params or part_params, structure, self.ids, state, smooth=self.act.smooth, **given)


def run(brain, seed=0, *, smooth=False, warm=True, rates=(0.0, 0.0), batch=2, learning=False):
    """warm: after another segment, with neuromodulators, if there are any, that are not neutral. It ends where their levels change."""
    act, state = Activity(brain, T, batch, learning, smooth), {}
    if warm:
        modulated = brain.config.neuromodulation
        before = tokens(seed + 1000, 8 if modulated else T, batch)
        brain.forward_logits(act, before)
        act.advance(len(before))
        levels = {name: (level / np.arange(1, batch + 1)).astype(np.float32) for name, level in LEVELS.items()}
        state = act.state() | (levels if modulated else {})
        act.load_state(state)
    act.dropout = Dropout(brain.backend, batch, *rates, seed=5, step=seed)
    ids = tokens(seed, batch=batch)
    logits = brain.forward_logits(act, ids).reshape(T, batch, -1)
    return Run(brain, act, ids, state, logits, masks_of(brain, act.dropout, T) if any(rates) else {})


def away_from_threshold(attempt, margin):
    """The first of `attempt(0)`, `attempt(1)`, ... in which no membrane comes within `margin` of the threshold, where rounding decides,
    and no module is silent in any sequence."""
    for seed in range(30):
        found = attempt(seed)
        potentials = [v[1:] for v in found.act.v.values()]
        if min(abs(v - 1).min() for v in potentials) > margin and all((v > 1).any(axis=(0, 2)).all() for v in potentials):
            return found
    raise AssertionError("every input brings some membrane to the threshold, or silences a module")


# Against the reference


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.2)], ids=["", "dropout"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("smooth", [False, True], ids=["hard", "smooth"])
@EVENTS
@CONFIGS
def test_the_brain_is_the_reference(sizes, events, smooth, warm, rates):
    brain = lively(dataclasses.replace(sizes, events=events))
    found = away_from_threshold(lambda seed: run(brain, seed, smooth=smooth, warm=warm, rates=rates), 0 if smooth else 1e-4)
    expected, act = found.reference(), found.act
    assert all(activity["z"].any() for name, activity in expected["activity"].items() if name in MODULES), "a module is silent"

    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4)
    for name in MODULES:
        for letter, rows in (("v", act.v), ("a", {name: part_ids["a"] for name, part_ids in act.neurons.items()}), ("y", act.y)):
            if name in rows:
                near(rows[name][1:], expected["activity"][name][letter], err_msg=f"{name}.{letter}")
    near(act.m[1:], expected["activity"]["working_memory"]["m"])
    near(act.signals["memory.out"].x, expected["activity"]["memory"]["out"])
    near(found.logits, expected["logits"])
    act.advance(T)
    after = act.state()
    assert after.keys() == expected["state"].keys()
    for name, values in after.items():
        assert values.dtype == np.float32
        near(values, expected["state"][name], err_msg=name)


def test_rates_are_the_share_of_neurons_that_fire():
    found = away_from_threshold(lambda seed: run(lively(READOUTS), seed), 1e-4)
    activity = found.reference()["activity"]
    assert found.act.rates(T) == pytest.approx({name: activity[name]["z"].mean() for name in MODULES})


@CONFIGS
def test_initial_parameters_are_those_of_the_model(sizes):
    brain = Brain(sizes, backends.get("cpu"))
    brain.initialise(0)
    value, fixed = brain.parameters.value, brain.structure()
    assert value.keys() == set(ref.parameter_names(dataclasses.asdict(sizes)))
    for name in MODULES:
        slowest = 30 if name == "pfc" else 8
        for what, low, high in (("log_tau_v", 0.5, slowest), ("log_tau_a", 2, 16), ("log_tau_y", 0.2, 4)):
            if f"{name}.{what}" in value:
                log_tau = value[f"{name}.{what}"]
                assert np.log(low) - 1e-6 <= log_tau.min() < log_tau.max() <= np.log(high) + 1e-6, (name, what)
                assert np.ptp(log_tau) > np.log(high / low) / 3, "it spreads over the range"
        assert 0 <= value[f"{name}.beta"].min() < value[f"{name}.beta"].max() <= 0.5
        assert (value[f"{name}.gain"] == 1).all() and not value[f"{name}.bias"].any()
        alpha = ref.per_token(value[f"{name}.log_tau_v"])
        np.testing.assert_allclose(fixed[f"{name}.input_scale"], np.sqrt(1 - alpha**2), rtol=1e-5)
    np.testing.assert_allclose(value["memory.decay"], np.linspace(5, 8, 2))
    np.testing.assert_allclose(value["working_memory.retain"], np.linspace(1, 5, sizes.pfc.output_size))
    assert not value["memory.write_bias"].any() and not value["decoder.bias"].any()
    widths = {"embedding.weight": 1, "embedding_thalamus.weight": sizes.embedding, "decoder.weight": 3 * sizes.broca.output_size}
    for name, variance in widths.items():
        if name in value:
            assert (value[name] ** 2).mean() * variance == pytest.approx(1, abs=5 * np.sqrt(2 / value[name].size))


# Gradients


class HeldEvents:
    """An event function that remembers the events of its first run, and in later ones moves them by what `smooth` has moved since.

    At the numbers of the first run its values are the hard events and its slope is psi: differences of a loss built on it are the surrogate
    gradient, which the loss itself does not have.
    """

    def __init__(self):
        self.offsets, self.hard = None, ref.event

    def __call__(self, v, smooth=False):
        soft = self.hard(v, True)
        if self.remembering:
            self.offsets.append(self.hard(v) - soft)
        self.calls += 1
        return soft + self.offsets[self.calls - 1]

    def begin(self):
        """To be called before every run."""
        self.remembering, self.calls = self.offsets is None, 0
        self.offsets = [] if self.remembering else self.offsets


def directions(gradient, real, draw):
    """What to move: the entry with the largest gradient, and all at once at random; padding stays where it is."""
    largest = np.zeros(gradient.size)
    largest[np.argmax(abs(gradient))] = 1
    yield largest.reshape(gradient.shape)
    yield draw.normal(size=gradient.shape) * real


def wrong_gradients(loss, params, gradients, eps=1e-7):
    """Lines that name every parameter whose gradient is not the slope of `loss(params)`, or is 0 and so shows nothing."""
    draw, wrong, current = np.random.default_rng(0), [], loss(params)
    for name, gradient in gradients.items():
        scale = abs(gradient).max()
        if not scale > 1e-4:
            wrong.append(f"{name}: gradient {scale}")
        real = params[name] != 0 if gradient.ndim == 3 else np.ones(gradient.shape, bool)
        if gradient[~real].any():
            wrong.append(f"{name}: padding has a gradient")
        for direction in directions(gradient, real, draw):
            slope = (loss({**params, name: params[name] + eps * direction}) - current) / eps
            claimed = np.sum(gradient * direction, dtype=np.float64)
            if not abs(slope - claimed) <= 1e-3 * scale * np.linalg.norm(direction):
                wrong.append(f"{name}: {claimed:.6g} where differences give {slope:.6g}, largest entry {scale:.6g}")
    return wrong


@pytest.mark.parametrize(
    "sizes, events, smooth, rates",
    [
        (READOUTS, "graded", True, (0.0, 0.0)),
        (PLAIN, "graded", True, (0.3, 0.2)),
        (PLAIN, "binary", True, (0.0, 0.0)),
        (READOUTS, "binary", True, (0.0, 0.3)),
        (TIED, "graded", True, (0.3, 0.0)),
        (MODULATED, "graded", True, (0.3, 0.2)),
        (UNNORMALIZED, "graded", True, (0.0, 0.0)),
        (READOUTS, "graded", False, (0.0, 0.0)),
        (PLAIN, "binary", False, (0.3, 0.2)),
        (MODULATED, "binary", False, (0.0, 0.0)),
    ],
    ids=[
        "graded",
        "graded plain dropout",
        "binary plain",
        "binary axon dropout",
        "tied dropout",
        "modulated dropout",
        "unnormalized",
        "hard graded",
        "hard binary plain dropout",
        "hard binary modulated",
    ],
)
def test_every_gradient_agrees_with_differences(sizes, events, smooth, rates, monkeypatch):
    brain = lively(dataclasses.replace(sizes, events=events))
    start = 0 if smooth else 6  # where every projection has an event to learn from
    found = away_from_threshold(lambda seed: run(brain, start + seed, smooth=smooth, rates=rates, learning=True), 0 if smooth else 1e-4)
    d_logits = np.random.default_rng(3).normal(size=(T * 2, 23)).astype(np.float32)
    brain.parameters.clear_gradient()
    brain.backward_logits(found.act, d_logits)

    held = HeldEvents()
    if not smooth:
        monkeypatch.setattr(ref, "event", held)

    def loss(params):
        held.begin()
        return float(np.sum(found.reference(params, levels)["logits"].reshape(d_logits.shape) * d_logits))

    params = in_float64(brain)[0]
    held.begin()
    levels = found.reference()["levels"]  # constants to the gradient
    loss(params)
    wrong = wrong_gradients(loss, params, brain.parameters.gradient)
    assert not wrong, "\n".join(wrong)


def gradient_of(brain, act, ids, d_logits):
    """Gradient [parameters] of sum(logits d_logits), d_logits [T, B, V], for a segment from the state that `act` is in."""
    brain.forward_logits(act, ids)
    brain.parameters.clear_gradient()
    brain.backward_logits(act, d_logits.reshape(-1, 23).copy())
    return brain.parameters.flat_gradient.copy()


def test_the_gradient_of_a_batch_is_the_sum_of_its_parts():
    brain = lively(READOUTS)
    ids = away_from_threshold(lambda seed: run(brain, seed, warm=False, batch=7), 1e-5).ids
    d_logits = np.random.default_rng(3).normal(size=(T, 7, 23)).astype(np.float32)
    together = gradient_of(brain, Activity(brain, T, 7, learning=True), ids, d_logits)
    parts = np.zeros(together.shape)
    for part in (slice(0, 3), slice(3, 7)):
        part_ids = np.ascontiguousarray(ids[:, part])
        parts += gradient_of(brain, Activity(brain, T, part_ids.shape[1], learning=True), part_ids, d_logits[:, part])
    np.testing.assert_allclose(together, parts, rtol=0, atol=1e-5 * abs(parts).max())


def test_gradients_are_added_to_those_at_hand():
    brain, ids = lively(READOUTS), tokens(0)
    d_logits = np.random.default_rng(3).normal(size=(T, 2, 23)).astype(np.float32)
    act = Activity(brain, T, 2, learning=True)
    once = gradient_of(brain, act, ids, d_logits)
    act.reset()
    brain.forward_logits(act, ids)
    brain.backward_logits(act, d_logits.reshape(-1, 23) * 2)
    np.testing.assert_allclose(brain.parameters.flat_gradient, 3 * once, rtol=1e-4, atol=1e-5 * abs(once).max())


def test_a_short_segment_leaves_no_trace_of_a_longer_one_before_it():
    brain, ids = lively(READOUTS), tokens(0)
    d_logits = np.random.default_rng(3).normal(size=(6, 2, 23)).astype(np.float32)
    long, short = Activity(brain, T, 2, learning=True), Activity(brain, 6, 2, learning=True)
    gradient_of(brain, long, tokens(1), np.ones((T, 2, 23), np.float32))
    long.reset()
    found, expected = (gradient_of(brain, act, ids[:6], d_logits) for act in (long, short))
    np.testing.assert_array_equal(found, expected)


# Chunks and batches


@functools.cache
def whole(batch):
    """A text of 24 tokens in one segment of six chunks, from a zero state."""
    brain = lively(READOUTS)

    def attempt(seed):
        act, ids = Activity(brain, 24, batch), tokens(seed, 24, batch)
        return Run(brain, act, ids, {}, brain.forward_logits(act, ids).reshape(24, batch, -1), {})

    return away_from_threshold(attempt, 1e-5)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 24), max_size=6), st.sampled_from([1, 3]))
def test_the_logits_do_not_depend_on_how_a_text_is_cut(cuts, batch):
    text = whole(batch)
    ends = sorted({0, 24, *cuts})
    act = Activity(text.brain, max(np.diff(ends)), batch)
    for first, last in zip(ends, ends[1:], strict=False):
        logits = text.brain.forward_logits(act, text.ids[first:last]).reshape(last - first, batch, -1)
        np.testing.assert_allclose(logits, text.logits[first:last], rtol=1e-4, atol=1e-4)
        act.advance(last - first)


@pytest.mark.parametrize("batch", [1, 3])
def test_token_by_token_the_logits_are_the_same(batch):
    text, act = whole(batch), Activity(lively(READOUTS), 1, batch)
    for t in range(24):
        np.testing.assert_allclose(text.brain.forward_logits(act, text.ids[t : t + 1]), text.logits[t], rtol=1e-4, atol=1e-4)
        act.advance(1)


def test_one_chunk_is_many_segments():
    """A chunk as long as the text: nothing of it is carried from chunk to chunk."""
    brain = lively(dataclasses.replace(READOUTS, chunk=12))

    def attempt(seed):
        act, ids = Activity(brain, 12, 3), tokens(seed, 12, 3)
        return Run(brain, act, ids, {}, brain.forward_logits(act, ids).reshape(12, 3, -1), {})

    text, act = away_from_threshold(attempt, 1e-5), Activity(brain, 5, 3)
    for first in (0, 5, 10):
        part = text.ids[first : first + 5]
        np.testing.assert_allclose(brain.forward_logits(act, part), text.logits[first : first + 5].reshape(-1, 23), rtol=1e-4, atol=1e-4)
        act.advance(len(part))


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_sequence_does_not_care_about_its_place_in_a_batch(batch):
    text, last = whole(7), 7 - batch
    ids = np.ascontiguousarray(text.ids[:, last:])
    logits = text.brain.forward_logits(Activity(text.brain, 24, batch), ids)
    np.testing.assert_allclose(logits.reshape(24, batch, -1), text.logits[:, last:], rtol=1e-4, atol=1e-4)


def test_a_session_reads_what_the_brain_reads():
    text = whole(3)
    model = NeuroGenModel.from_config(Config("test", READOUTS))
    fill(model.brain, 0)
    np.testing.assert_allclose(model.logits(np.ascontiguousarray(text.ids.T)), text.logits.swapaxes(0, 1), rtol=1e-4, atol=1e-4)
    session = Session(model, Sampling(temperature=0), batch=3)
    for heard in range(1, 25):  # the most probable token after each beginning, fed in two pieces
        session.reset()
        for part in (text.ids[: heard // 3], text.ids[heard // 3 : heard]):
            session.feed(part)
        np.testing.assert_array_equal(session.draw(), text.logits[heard - 1].argmax(1))


@EVENTS
@pytest.mark.parametrize("changed", [0, 3, 4, 7])  # ends of chunks, and between
def test_a_token_changes_nothing_before_it_and_nobody_else(changed, events):
    brain, ids = lively(dataclasses.replace(READOUTS, events=events)), tokens(0)
    other = ids.copy()
    other[changed, 0] = (ids[changed, 0] + 1) % 23
    before, after = (brain.forward_logits(Activity(brain, T, 2), text).reshape(T, 2, -1) for text in (ids, other))
    np.testing.assert_array_equal(before[:changed], after[:changed])
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[changed:, 0] != after[changed:, 0]).any()


def test_a_sequence_does_not_feel_its_neighbours_levels():
    brain, ids = lively(MODULATED), tokens(0)
    neutral, act = Activity(brain, T, 2), Activity(brain, T, 2)
    brain.forward_logits(neutral, tokens(1))  # levels act for a chunk, so the memories must hold something before
    neutral.advance(T)
    start = neutral.state()
    for name in LEVELS:
        neutral.load_state(start)
        act.load_state(start | {name: start[name] + np.array([3, 0], np.float32)})
        one, other = (brain.forward_logits(a, ids).reshape(T, 2, -1) for a in (act, neutral))
        assert (one[:, 0] != other[:, 0]).any(), name
        np.testing.assert_array_equal(one[:, 1], other[:, 1])


# State


@CONFIGS
def test_a_loaded_state_goes_on_bit_for_bit(sizes):
    brain = lively(sizes)
    d_logits = np.random.default_rng(3).normal(size=(T, 5, 23)).astype(np.float32)
    act, loaded = Activity(brain, T, 5, learning=True), Activity(brain, T, 5, learning=True)
    act.dropout = loaded.dropout = Dropout(backends.get("cpu"), 5, 0.2, 0.2)
    brain.forward_logits(act, tokens(0, batch=5))
    act.advance(T)
    state = act.state()
    expected = {name: np.zeros_like(values, np.float32).shape for name, values in ref.fresh_state(dataclasses.asdict(sizes), 5).items()}
    assert {name: values.shape for name, values in state.items()} == expected
    kept = {name: values.copy() for name, values in state.items()}
    brain.forward_logits(loaded, tokens(9, batch=5))  # leaves something behind that loading must overwrite
    loaded.advance(T)
    loaded.load_state(state)
    for segment in (1, 2):
        one, other = (gradient_of(brain, a, tokens(segment, batch=5), d_logits) for a in (act, loaded))
        np.testing.assert_array_equal(one, other)
        act.advance(T)
        loaded.advance(T)
        for name, values in act.state().items():
            np.testing.assert_array_equal(values, loaded.state()[name], err_msg=name)
    for name, values in kept.items():
        np.testing.assert_array_equal(state[name], values, err_msg=f"{name}: the state taken is no copy")


@pytest.mark.parametrize("change", ["batch", "missing", "another brain"])
def test_a_state_that_does_not_fit_is_refused(change):
    act = Activity(lively(READOUTS), T, 2)
    state = Activity(lively(PLAIN if change == "another brain" else READOUTS), T, 3 if change == "batch" else 2).state()
    if change == "missing":
        del state["pfc.history"]
    with pytest.raises(CheckpointError) as error:
        act.load_state(state)
    assert re.fullmatch(
        r"state array '[\w.]+': shape \([\d, ]+\) expected, .+ found; is it of another brain or batch size\?", str(error.value)
    )


def test_reset_is_a_new_activity():
    brain = lively(READOUTS)
    used, new = Activity(brain, T, 2), Activity(brain, T, 2)
    brain.forward_logits(used, tokens(1))
    used.advance(T)
    assert all(values.any() for values in used.state().values())
    used.reset()
    assert not any(values.any() for values in used.state().values())
    for _ in range(2):
        np.testing.assert_array_equal(brain.forward_logits(used, tokens(0)), brain.forward_logits(new, tokens(0)))
        used.advance(T)
        new.advance(T)


@pytest.mark.parametrize("cleared", [[], [1], [0, 2, 6], range(7)], ids=["none", "one", "some", "all"])
def test_reset_clears_some_sequences_and_leaves_the_others(cleared):
    brain = lively(MODULATED)
    act, expected = Activity(brain, T, 7, learning=True), Activity(brain, T, 7, learning=True)
    act.load_state(act.state() | {name: np.full(7, level, np.float32) for name, level in LEVELS.items()})
    brain.forward_logits(act, tokens(1, batch=7))
    act.advance(T)
    state = act.state()
    for name, values in state.items():
        values[(slice(None), list(cleared)) if "history" in name else list(cleared)] = 0  # [H, B, N] or [B, ...]
    expected.load_state(state)
    sequences = np.zeros(7, np.uint8)
    sequences[list(cleared)] = 1
    act.reset(brain.backend.asarray(sequences, "uint8"))
    for name, values in act.state().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)
    d_logits = np.random.default_rng(3).normal(size=(T, 7, 23)).astype(np.float32)
    one, other = (gradient_of(brain, a, tokens(0, batch=7), d_logits) for a in (act, expected))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mark", [1, 2, 255])
def test_reset_takes_any_mask_but_0_as_true(mark):
    """The mask is of bytes on the device, and is left as it was."""
    brain = lively(READOUTS)
    act = Activity(brain, T, 3)
    brain.forward_logits(act, tokens(1, batch=3))
    act.advance(T)
    act.reset_mask[...] = brain.backend.asarray([0, mark, 0], "uint8")
    before = act.state()
    act.reset(act.reset_mask)
    assert brain.backend.to_numpy(act.reset_mask).tolist() == [0, mark, 0]
    for name, values in act.state().items():
        column = (slice(None),) if "history" in name else ()
        assert not values[(*column, 1)].any(), name
        for b in (0, 2):
            np.testing.assert_array_equal(values[(*column, b)], before[name][(*column, b)], err_msg=name)
            assert values[(*column, b)].any(), name


@CONFIGS
def test_views_are_the_state_itself_under_its_names(sizes):
    brain = lively(sizes)
    act = Activity(brain, T, 2)
    views, state = act.views(), act.state()
    assert views.keys() == {name for name in state if "history" not in name} and len(state) > len(views)
    for name, view in views.items():
        assert (view.shape, view.dtype) == (state[name].shape, "float32"), name
    used = set()
    for segment in (0, 1):  # the same memory from segment to segment
        brain.forward_logits(act, tokens(segment))
        act.advance(T)
        state = act.state()
        used |= {name for name, view in views.items() if view.any()}
        for name, view in views.items():
            np.testing.assert_array_equal(view, state[name], err_msg=name)
            assert np.shares_memory(view, act.views()[name]) and not np.shares_memory(view, state[name]), name
            assert np.shares_memory(np.from_dlpack(view), view), name
    unmoved = {"neuromodulation.reward", "dopamine"}  # nobody rewards, and dopamine only moves from the second change on
    assert used | unmoved == views.keys() | unmoved
    act.reset()
    assert not any(view.any() for view in views.values())


@CONFIGS
def test_what_is_written_to_a_view_is_what_the_brain_goes_on_from(sizes):
    brain = lively(sizes)
    act, other = Activity(brain, T, 2), Activity(brain, T, 2)
    draw = np.random.default_rng(0)
    written = {name: draw.normal(0, 0.5, view.shape).astype(np.float32) for name, view in act.views().items()}
    for name, values in written.items():
        act.views()[name][...] = brain.backend.asarray(values)
    other.load_state(other.state() | written)
    for name, values in act.state().items():
        np.testing.assert_array_equal(values, other.state()[name], err_msg=name)
    fresh = brain.forward_logits(Activity(brain, T, 2), tokens(0))
    one, two = brain.forward_logits(act, tokens(0)), brain.forward_logits(other, tokens(0))
    np.testing.assert_array_equal(one, two)
    assert (one != fresh).any()


def past_in(ring, history, size):
    """[history, B, M]: what was sent before the segment, read from a ring's NumPy arrays as it is documented."""
    value, start = ring["value"], int(ring["start"][0])
    value = np.concatenate(list(value), axis=2)[..., :size]  # words of 64 neurons
    return np.stack([value[(start + h - history) % len(value)] for h in range(history)]).astype(np.float32)


def test_rings_hold_what_is_still_on_its_way(backend):
    brain = Brain(READOUTS, backend)
    brain.initialise(0)
    for population in brain.populations:
        brain.parameters.value[f"{population.name}.bias"][:] = 1
    act = Activity(brain, T, 2)
    for segment in (0, 1):
        brain.forward_logits(act, tokens(segment))
        act.advance(T)
    rings, state = act.rings(), act.state()
    assert rings.keys() == {name for name in state if name not in act.views()}
    for name, ring in rings.items():
        ring = {what: backend.to_numpy(view) for what, view in ring.items()}
        np.testing.assert_array_equal(past_in(ring, len(state[name]), state[name].shape[2]), state[name], err_msg=name)
    assert any(state[name].any() for name in rings)
    if backend.name == "cpu":
        ring = act.rings()["wernicke.history"]
        assert np.shares_memory(ring["value"], act.rings()["wernicke.history"]["value"])
        assert np.shares_memory(np.from_dlpack(ring["fired"]), ring["fired"])


@pytest.mark.gpu
@pytest.mark.skipif(SIMULATED, reason="the simulator has NumPy arrays")
def test_views_and_rings_are_arrays_of_the_card_that_others_can_take():
    import cupy

    act = Activity(Brain(READOUTS, backends.get("cuda", 0, "fp32")), T, 2)
    arrays = [*act.views().values(), *(view for ring in act.rings().values() for view in ring.values())]
    for array in arrays:
        address = array.__cuda_array_interface__["data"][0]
        assert cupy.from_dlpack(array).data.ptr == cupy.asarray(array).data.ptr == address


def test_a_gradient_that_is_not_finite_is_found_where_it_began():
    """It may spread to those after it in the backward pass."""
    brain = lively(READOUTS)
    assert brain.non_finite_gradient() == ""
    order = "embedding.weight thalamus.bias memory.decay working_memory_pfc.weight pfc.gain broca.beta decoder.bias".split()
    for name in order:
        brain.parameters.gradient[name].reshape(-1)[-1] = np.inf
        assert brain.non_finite_gradient() == name.split(".")[0]
    brain.parameters.clear_gradient()
    for name, gradient in brain.parameters.gradient.items():  # nobody is passed over
        gradient.reshape(-1)[0] = np.nan
        assert brain.non_finite_gradient() == name.split(".")[0]
        gradient[...] = 0


# Dropout


def places_of(dropout):
    """Rate, key and first place of every mask, for a few tokens."""
    return {(what, first): dropout.arguments(what, first, 7) for what in Dropout.SITES for first in (0, 4)}


def test_a_mask_is_a_matter_of_seed_step_and_place():
    dropout, names = Dropout(backends.get("cpu"), 3, 0.2, 0.1, seed=5, step=8), set(Dropout.SITES)
    assert names == {"embedding", "decoder", "synapses", "words", *(f"{name}.axon" for name in MODULES)}
    assert len(names) == len(Dropout.SITES)
    for (what, first), (rate, key, offset) in places_of(dropout).items():
        assert rate == np.float32(0.1 if what.endswith(".axon") else 0 if what in ("synapses", "words") else 0.2) and offset == mask_offset(
            first * 3 * 7, 3 * 7
        )
        assert (key.shape, key.dtype) == ((1,), "uint64")
        assert key[0] == places.key(5, 8, zlib.crc32(what.encode()))
    drawn = [Dropout(backends.get("cpu"), 3, 0.2, 0.1, seed=seed, step=step).keys for seed, step in ((5, 8), (5, 9), (6, 8), (8, 5))]
    assert len(set(np.concatenate(drawn))) == 4 * len(names), "no two masks are the same"


def test_set_step_overwrites_the_keys_in_place():
    """A recorded step reads the same array."""
    dropout = Dropout(backends.get("cpu"), 3, 0.2, 0.1, seed=5)
    keys, before = dropout.keys, places_of(dropout)
    old = dropout.keys.copy()
    for step in (1, 2**40, 0):
        dropout.set_step(step)
        assert dropout.step == step and dropout.keys is keys
        np.testing.assert_array_equal(keys, Dropout(backends.get("cpu"), 3, 0.2, 0.1, seed=5, step=step).keys)
        assert (step == 0) == np.array_equal(keys, old) == np.isin(keys, old).any()
        for where, (_, key, _) in places_of(dropout).items():
            assert np.shares_memory(key, before[where][1]) and key[0] == before[where][1][0], where


def test_the_step_determines_what_a_brain_drops():
    brain, ids, found = lively(READOUTS), tokens(0), {}
    act = Activity(brain, T, 2, learning=True, dropout=0.3, axon_dropout=0.2, seed=9)
    assert (act.dropout.batch, act.dropout.seed) == (2, 9)
    for step in (0, 1, 0):
        act.reset()
        act.dropout.set_step(step)
        logits = brain.forward_logits(act, ids).copy()
        np.testing.assert_array_equal(found.setdefault(step, logits), logits)
        other = Activity(brain, T, 2, learning=True)
        other.dropout = Dropout(brain.backend, 2, 0.3, 0.2, seed=9, step=step)
        np.testing.assert_array_equal(brain.forward_logits(other, ids), logits)
    assert (found[0] != found[1]).any()


def test_without_dropout_no_step_changes_anything():
    brain, act = lively(READOUTS), Activity(lively(READOUTS), T, 2, learning=True, seed=9)
    assert not any(act.dropout.rates.values())
    expected = brain.forward_logits(act, tokens(0)).copy()
    act.reset()
    act.dropout.set_step(3)
    assert act.dropout.step == 3
    np.testing.assert_array_equal(brain.forward_logits(act, tokens(0)), expected)


# Events


def masks(act, name):
    """(fired, wanted), each [T, B, N] bool, of the segment: the bits of an axon, by which the CPU finds its work."""
    axon, size = act.synapses.axon(f"{name}.axon"), SIZES[name]
    rows, bits = slice(int(axon.start[0]), int(axon.start[0]) + T), np.arange(64, dtype=np.uint64)
    return (np.concatenate([(word[rows, :, None] >> bits) & np.uint64(1) == 1 for word in what], axis=2)[..., :size] for what in axon[2:])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_masks_hold_what_fired_and_what_has_a_gradient_and_nothing_more(batch):
    """Forward, the work grows with the neurons that fired; backward, also with those near the threshold."""
    brain = lively(READOUTS)
    act = Activity(brain, T, batch, learning=True)
    brain.forward_logits(act, tokens(0, batch=batch))
    for name in MODULES:
        v, (fired, wanted) = act.v[name][1:], masks(act, name)
        np.testing.assert_array_equal(fired, v > 1)
        np.testing.assert_array_equal(wanted, v > 0)
        assert 0 < fired.mean() < 1, f"{name} is silent, or everything in it fires"


def test_a_brain_at_rest_has_nothing_to_do():
    brain = Brain(READOUTS, backends.get("cpu"))
    brain.initialise(0)
    for name in MODULES:
        brain.parameters.value[f"{name}.bias"][:] = -50
    act = Activity(brain, T, 2, learning=True)
    logits = brain.forward_logits(act, tokens(0))
    for name in MODULES:
        assert not any(mask.any() for mask in masks(act, name)), name
    assert not act.currents["wernicke.current"].value.any() and not logits.any()


# Updates


def test_an_update_leaves_no_parameter_where_it_must_not_be():
    brain = Brain(READOUTS, backends.get("cpu"))
    brain.initialise(0)
    optimizer, value = AdamW(brain.parameters, brain.backend), brain.parameters.value
    bounds = {f"{p.name}.weight": (-np.inf, 0) for p in ref.projections(dataclasses.asdict(READOUTS)) if p.inhibitory}
    for name in value:
        bounds |= {name: (-2, 5)} if ".log_tau" in name else {name: (0, 3)} if name.endswith(".beta") else {}
    assert len(bounds) == 2 + 6 * 3 + 3  # inhibitory projections; two time constants and beta of each module; traces
    for sign in (1, -1):
        before = {name: values.copy() for name, values in value.items()}
        brain.parameters.flat_gradient[:] = sign
        for _ in range(8):
            optimizer.update(1.0)
        for name, (low, high) in bounds.items():
            assert low <= value[name].min() and value[name].max() <= high, name
            edge = low if sign == 1 else high  # the way against the gradient
            assert np.isinf(edge) or (value[name] == edge).all(), f"{name}: the bound was not reached, or lies elsewhere"
        for name in value.keys() - bounds.keys():
            assert (abs(value[name] - before[name]) > 1).all(), f"{name}: held, though it has no bounds"
        optimizer = AdamW(brain.parameters, brain.backend)


# Threads


def test_no_result_depends_on_the_number_of_threads():
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("a single thread")
    brain, found = lively(READOUTS), []
    d_logits = np.random.default_rng(3).normal(size=(T, 5, 23)).astype(np.float32)
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            act = Activity(brain, T, 5, learning=True)
            act.dropout = Dropout(backends.get("cpu"), 5, 0.2, 0.2)
            brain.forward_logits(act, tokens(1, batch=5))
            act.advance(T)
            gradient = gradient_of(brain, act, tokens(0, batch=5), d_logits)
            act.advance(T)
            found.append({"gradient": gradient, **act.state()})
    finally:
        numba.set_num_threads(before)
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name], err_msg=name)
