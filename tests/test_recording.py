"""`model.listen`: what it records is what the neurons, the memory and the logits say, token by token; and it disturbs nothing."""

import math

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.inference.recording import Recall, Surprise
from neurogen_numba.text.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = CharTokenizer("abcdefgh .\n", documents=False)
DOCUMENTS = CharTokenizer("abcdefgh .\n", documents=True)
TEXT = "a bad cab fed"  # 13 tokens: a chunk of 8, and a part of one


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request):
    return made(LETTERS, backends.get(request.param, 0, "fp32"))


def made(tokenizer, backend):
    config = tiny.config(brain={"vocabulary": tokenizer.vocabulary})
    model = NeuroGenModel.from_config(config, tokenizer, backend=backend)
    model.brain.parameters.value["memory.decay"][:] = model.backend.asarray(np.array([1.0, 3.0]), "float32")
    model.brain.parameters.value["decoder.weight"][:] *= 6
    return model


@pytest.fixture(scope="module")
def on_cpu():
    return made(LETTERS, "cpu")


def nats_of(model, ids):
    """Surprise of ids[1:], in float64, from the logits."""
    logits = model.logits(ids)[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def test_events_states_and_rates_are_those_of_the_neurons(model):
    names = ("wernicke.v", "wernicke.a", "broca.y", "working_memory.m", "memory.out")
    text = TEXT[:9]  # a chunk, and a token
    recording = model.listen(text, neurons=10, states=names)
    act, fetch = model.activity(1, 1), model.backend.to_numpy
    for t, token in enumerate(LETTERS.encode(text)):
        model.brain.forward_logits(act, np.array([[token]], np.int32))
        for name in MODULES:
            v, raster = fetch(act.v[name][1, 0]), recording.raster(name)
            assert raster.size == len(v) and len(raster.neurons) == len(range(0, len(v), -(-len(v) // 10))) <= 10
            np.testing.assert_array_equal(raster.events[t], v[raster.neurons] > 1)
            assert recording.rates[name][t] == pytest.approx((v > 1).mean())
        neurons = recording.raster("wernicke").neurons
        np.testing.assert_allclose(recording.states["wernicke.v"][t], fetch(act.v["wernicke"][1, 0])[neurons], atol=1e-4)
        np.testing.assert_allclose(recording.states["wernicke.a"][t], fetch(act.neurons["wernicke"]["a"][1, 0])[neurons], atol=1e-4)
        np.testing.assert_allclose(recording.states["working_memory.m"][t], fetch(act.m[1, 0]), atol=1e-4)
        np.testing.assert_allclose(recording.states["memory.out"][t], fetch(act.signals["memory.out"].x[0, 0]), atol=1e-4)
        act.advance(1)
    assert list(recording.states) == list(names) and recording.states["broca.y"].shape == (len(text), len(range(0, 32, 4)))
    assert recording.tokens == tuple(text) and recording.ids.tolist() == LETTERS.encode(text).tolist()
    for name, array in act.state().items():
        np.testing.assert_allclose(recording.final_state[name], array, atol=1e-4, err_msg=name)


def test_the_surprise_is_that_of_the_logits(model):
    surprise = model.listen(TEXT).surprise
    expected = nats_of(model, LETTERS.encode(TEXT))
    assert math.isnan(surprise.nats[0]), "nothing came before it"
    np.testing.assert_allclose(surprise.nats[1:], expected, atol=1e-3)
    np.testing.assert_allclose(surprise.bits[1:], expected / math.log(2), atol=1e-3)
    assert surprise.mean == pytest.approx(expected.mean(), abs=1e-3)


def test_a_text_begins_after_an_end_of_text():
    model = made(DOCUMENTS, "cpu")
    recording = model.listen(TEXT)
    ids = np.append(DOCUMENTS.end_of_text, DOCUMENTS.encode(TEXT))
    np.testing.assert_allclose(recording.surprise.nats, nats_of(model, ids), atol=1e-3)
    assert recording.tokens == tuple(TEXT), "the end of text itself is not recorded"
    assert np.isnan(model.listen(TEXT, state=recording.final_state).surprise.nats[0]), "a text that goes on begins after no end"


def test_readings_are_split_without_rest(model):
    recording = model.listen(TEXT, states=["memory.out"])
    recall, heads = recording.recalled(), 2
    assert recall.shares.shape == (len(TEXT), heads, len(TEXT)) and recall.before.shape == (len(TEXT), heads)
    later = np.triu(np.ones((len(TEXT), len(TEXT)), bool), 1)
    assert not recall.shares.swapaxes(1, 2)[later].any(), "no token recalls what comes after it"
    np.testing.assert_allclose(recall.before, 0, atol=1e-3)
    out = recording.states["memory.out"].reshape(len(TEXT), heads, -1)  # o / sqrt(mean(o^2) + floor), by the kernel
    np.testing.assert_allclose(recall.shares.sum(2) + recall.before, (out * out).mean(2), atol=2e-3)


def test_what_was_stored_before_the_text_is_told_apart(on_cpu):
    whole, first = on_cpu.listen(TEXT).recalled(6), on_cpu.listen(TEXT[:6])
    rest = on_cpu.listen(TEXT[6:], state=first.final_state).recalled()
    np.testing.assert_allclose(rest.shares, whole.shares[:, :, 6:], atol=1e-4)
    np.testing.assert_allclose(rest.before, whole.before + whole.shares[:, :, :6].sum(2), atol=1e-4)
    assert np.abs(rest.before).max() > 0.1


def test_one_reading_of_one_head_by_hand():
    """A memory of one number a head: S[t] = lambda S[t-1] + k u, o = S q, so every share is k[i] u[i] lambda^age / S[t]."""
    from neurogen_numba.brain.recall import RecallTrace

    def unit(x):
        x = x / (1 + np.exp(-x))
        return x / np.sqrt(x * x + 1e-3)

    query, value, keep = np.array([2.0, 1.0, 3.0]), np.array([0.5, -1.0, 2.0]), 0.5
    trace = RecallTrace(np.zeros((1, 1, 1)), np.full((1, 1), 1.0), np.zeros(1), np.full(1, 50.0), 10)  # lambda 1/2, write strength 1
    trace.write(query[:, None], value[:, None], np.zeros((3, 1)), 1.0)
    S, parts, key = 0.0, [], 1.0
    for x, v in zip(query, value, strict=True):
        u = v - keep * S * key
        parts = [keep * part for part in parts] + [key * u]
        S, key = keep * S + key * u, unit(x)
    np.testing.assert_allclose(trace.shares_of_heads(2, 3)[0, 0], np.array(parts) / S, atol=1e-3)


def test_the_words_are_those_of_the_chat(on_cpu):
    from neurogen_numba.brain.monitor import BrainMonitor

    session = Session(on_cpu, Sampling())
    session.monitor = BrainMonitor(on_cpu, session.act)
    session.feed(LETTERS.encode(TEXT)[:, None])
    shown, found = session.monitor.frame().recalls, on_cpu.listen(TEXT).recalled(-13).words()
    assert [(each.token, [source[1] for source in each.sources]) for each in shown] == [
        (each.token, [source[1] for source in each.sources]) for each in found
    ]


def test_a_text_in_two_parts_is_one_text(model):
    whole, first = model.listen(TEXT), model.listen(TEXT[:7])
    rest = model.listen(TEXT[7:], state=first.final_state)
    np.testing.assert_allclose(rest.surprise.nats[1:], whole.surprise.nats[8:], atol=1e-3)
    for name in MODULES:
        np.testing.assert_array_equal(rest.raster(name).events, whole.raster(name).events[7:])
    for name, array in whole.final_state.items():
        np.testing.assert_allclose(rest.final_state[name], array, atol=1e-4, err_msg=name)


def test_listening_disturbs_nothing(on_cpu):
    import copy

    ids, model = LETTERS.encode(TEXT), copy.copy(on_cpu)
    session = Session(model, Sampling(seed=1))
    session.feed(ids[:5, None])
    model.train_step(ids[:8], ids[1:9])
    state, learning = session.state(), model._activity.state()
    values = np.array(model.brain.parameters.flat_value)
    model.listen(TEXT, state=state)
    np.testing.assert_array_equal(model.brain.parameters.flat_value, values)
    for before, after in ((state, session.state()), (learning, model._activity.state())):
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_token_ids_are_text_too(on_cpu):
    ids = LETTERS.encode(TEXT)
    mute = made(LETTERS, "cpu")
    mute.tokenizer = None
    for recording in (on_cpu.listen(ids), on_cpu.listen(ids.tolist()), mute.listen(ids)):
        np.testing.assert_array_equal(recording.ids, ids)
        np.testing.assert_allclose(recording.surprise.nats[1:], on_cpu.listen(TEXT).surprise.nats[1:])
    assert mute.listen(ids).tokens == tuple(str(token) for token in ids)
    with pytest.raises(ConfigError, match="no tokenizer"):
        mute.listen(TEXT)


def test_all_neurons_are_recorded_on_request(on_cpu):
    raster = on_cpu.listen(TEXT, neurons=None).raster("wernicke")
    assert raster.events.shape == (len(TEXT), 48) and raster.neurons.tolist() == list(range(48))
    assert on_cpu.listen(TEXT, neurons=None).rates["wernicke"] == pytest.approx(raster.events.mean(1))


def test_what_it_returns_prints_well(on_cpu):
    recording = on_cpu.listen(TEXT, neurons=10, states=(name for name in ["pfc.v"]))
    lines = repr(recording).splitlines()
    mean = recording.surprise.mean
    assert lines[0] == f"Recording: 13 tokens, {mean:.3f} nats = {mean / math.log(2):.3f} bits per token"
    assert [line.split()[0] for line in lines[1:]] == [*MODULES, "pfc.v"]
    assert repr(recording.raster("wernicke")).startswith("Raster(wernicke: 13 tokens x 10 of 48 neurons, ")
    assert repr(recording.rates).startswith("Rates(thalamus ")
    assert repr(Surprise(np.array([np.nan, 1, 3], np.float32), ("a", "b", "c"))) == (
        "Surprise(mean 2.000 nats = 2.885 bits per token; most: 'c' 3.00, 'b' 1.00)"
    )
    assert repr(on_cpu.listen("a")).startswith("Recording: 1 token\n")
    assert "most: unknown" in repr(on_cpu.listen("a").surprise)
    shares = np.array([[[0.75, 0.25, 0.0], [0.25, 0.25, 0.0]]], np.float32)
    assert repr(Recall(shares, np.zeros((1, 2), np.float32), 1, ("a", " b", "."))).splitlines() == [
        "Recall: the reading at ' b' by 2 heads, of 3 tokens",
        "  head 0     <- 'a' 75%, 'b' 25% (after 'a')",
        "  head 1     <- 'a' 25%, 'b' 25% (after 'a')",
    ]
    several = Recall(np.repeat(shares, 2, 0), np.zeros((2, 2), np.float32), 1, ("a", " b", "."))
    assert repr(several).splitlines() == [
        "Recall: 2 readings by 2 heads, of 3 tokens",
        "  ' b'       <- 'a' 50%, 'b' 25% (after 'a')",
        "  '.'        <- 'a' 50%, 'b' 25% (after 'a')",
    ]
    equal = Recall(np.array([[[0.1, 0, 0.5, 0, 0.4, 0]]], np.float32), np.zeros((1, 1), np.float32), 5, ("a", " b", " a", " b", " a", " b"))
    assert repr(equal).endswith("<- 'a' 50% (after 'a b', token 2), 'a' 40% (after 'a b', token 4), 'a' 10%")
    assert "\n  ... 5 tokens before these\n" in repr(on_cpu.listen("a bee. " * 3).recalled())


def test_what_it_returns_plots_itself(on_cpu):
    recording, long = on_cpu.listen(TEXT), on_cpu.listen("a bee. " * 20)
    for each in (recording, long):
        panels = [axes.get_label() for axes in each.plot().axes]
        assert panels == ["surprise", *MODULES]
    for what, panel in ((recording.raster("pfc"), "raster"), (recording.surprise, "surprise"), (recording.rates, "rates")):
        axes = what.plot().axes[0]
        assert axes.get_label() == panel and axes.get_title(loc="left")
        assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["a", "\u2423", "b"]
    recall = recording.recalled()
    for figure, rows in ((recall.plot(), 13), (recall.plot(head=1), 13), (recording.recalled(-1).plot(), 2)):
        assert figure.axes[0].get_label() == "recall" and figure.axes[0].images[0].get_array().shape == (rows, 13)
    np.testing.assert_array_equal(recall.plot(head=1).axes[0].images[0].get_array(), recall.shares[:, 1])
    for each in (recording, long):
        top, *_, last = each.plot().axes
        assert [entry.get_text() for entry in top.get_legend().get_texts()] == ["above the mean", "at most the mean"]
        top.figure.canvas.draw()
        assert [
            any(label.get_text() for label in axes.get_xticklabels()) and axes.xaxis.get_tick_params()["labelbottom"]
            for axes in (top, last)
        ] == [False, True]
    figure = on_cpu.listen("a").plot()
    assert [text.get_text() for text in figure.axes[0].texts] == ["unknown: nothing came before the first token"]
    assert figure.axes and figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it, with pyplot or without"


@pytest.mark.parametrize(
    "ask, output",
    [
        (lambda model: model.listen(TEXT).raster("wernike"), "there is no module 'wernike'; did you mean 'wernicke'"),
        (lambda model: model.listen(TEXT).rates["cortex"], "there is no module 'cortex'"),
        (lambda model: model.listen(""), "the text has no token"),
        (lambda model: model.listen([]), "integers of shape"),
        (lambda model: model.listen([[1, 2], [3, 4]]), "one sequence of tokens is needed, not 2"),
        (lambda model: model.listen([[1], [3, 4]]), "sequences of one length"),
        (lambda model: model.listen(3), "integers of shape"),
        (lambda model: model.listen([1, 99]), "token id 99 is out of range"),
        (lambda model: model.listen(TEXT, neurons=0), "neurons: how many"),
        (lambda model: model.listen(TEXT, neurons=2.5), "neurons: how many"),
        (lambda model: model.listen(TEXT, states=["wernike.v"]), "did you mean 'wernicke.v'"),
        (lambda model: model.listen(TEXT, states="wernicke.v"), r"names in a list are needed, as in \['wernicke.v'\]"),
        (lambda model: model.listen("a", states=["pfc.v"]).states["pfc.w"], r"states=\['pfc.w'\]\); did you mean 'pfc.v'"),
        (
            lambda model: model.listen("a").states["pfc.v"],
            r"states: 'pfc.v' was not recorded; ask for it, listen\(text, states=\['pfc.v'\]\)$",
        ),
        (lambda model: model.listen(TEXT, state=3), "a table of arrays is needed"),
        (lambda model: model.listen(TEXT).recalled(5, 5), "no token lies from 5 to 5; the recording has 13 tokens"),
        (lambda model: model.listen(TEXT).recalled().words(-1), "there is no head -1"),
        (lambda model: model.listen(TEXT).recalled().plot(head=2), "heads are numbered from 0 to 1; there is no head 2"),
    ],
)
def test_what_does_not_fit_costs_a_sentence(on_cpu, ask, output):
    with pytest.raises(ConfigError, match=output):
        ask(on_cpu)


def test_readings_that_do_not_fit_into_memory_are_asked_for_in_parts(on_cpu, monkeypatch):
    monkeypatch.setattr("neurogen_numba.inference.recording.MOST_SHARES", 100)
    recording = on_cpu.listen(TEXT)
    with pytest.raises(ConfigError, match="ask for recalled"):
        recording.recalled()
    assert recording.recalled(3, 5).shares.shape == (2, 2, 13)


def test_the_state_of_another_brain_is_refused(on_cpu):
    with pytest.raises(CheckpointError, match="thalamus.v"):
        on_cpu.listen(TEXT, state={})
