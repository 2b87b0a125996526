"""What the associative memory recalls: that its split into earlier tokens is exact, and so is the monitor's summary."""

import numpy as np
import pytest

import tiny
from neurogen_numba.brain import monitor as monitoring
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.monitor import BrainMonitor, words_of
from neurogen_numba.brain.recall import RecallTrace
from neurogen_numba.config import MODULES
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels.memory import KEY_FLOOR, OUT_FLOOR
from neurogen_numba.kernels.neuromodulation import WRITE
from neurogen_numba.text.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = CharTokenizer("abcdefgh .\n", documents=False)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def made(**brain):
    config = tiny.config(brain={"vocabulary": LETTERS.vocabulary, **brain})
    made = NeuroGenModel.from_config(config, LETTERS, backend="cpu")
    made.brain.parameters.value["memory.decay"][:] = (1.0, 3.0)  # what fades can be told from what does not
    made.brain.parameters.value["decoder.weight"][:] *= 6
    return made


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def modulated():
    """A brain whose memory writes with the strength that dopamine tells."""
    model = made(neuromodulation=True)
    model.brain.parameters.value["neuromodulation.sensitivity"][WRITE] = 0.8
    return model


def watched(model):
    session = Session(model, Sampling(seed=3))
    state = session.state()
    rng = np.random.default_rng(1)
    state |= {"memory.S": rng.normal(0, 0.3, state["memory.S"].shape), "memory.key": rng.normal(0, 0.3, state["memory.key"].shape)}
    session.load_state(state)
    session.monitor = BrainMonitor(model, session.act)
    return session


def read(session, text):
    session.feed(LETTERS.encode(text)[:, None])


def step_by_step(S, key, keep, query, value, write):
    """(S, readings, contribution of each token to each reading), a token at a time, as kernels/memory.py defines them: one head."""
    W, T = S.shape[0], len(query)
    parts, readings, contributions = [], np.zeros((T, W)), np.zeros((T, T, W))
    for t in range(T):
        x = query[t] * sigmoid(query[t])
        q = x / np.sqrt((x * x).sum() + KEY_FLOOR * W)
        S = keep * S
        u = write[t] * (value[t] - S.T @ key)
        parts = [keep * part for part in parts] + [np.outer(key, u)]
        S = S + parts[-1]
        readings[t], key = S.T @ q, q
        for i, part in enumerate(parts):
            contributions[t, i] = part.T @ q
    return S, readings, contributions


@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_the_split_is_that_of_the_memory_a_token_at_a_time(tokens):
    rng, heads, W = np.random.default_rng(tokens), 2, 6
    S, key = rng.normal(size=(heads, W, W)), rng.normal(0, 0.4, (heads, W))
    query, value = rng.normal(size=(2, tokens, heads * W))
    write, decay, bias = rng.normal(size=(tokens, heads)), np.array([0.5, 2.0]), np.array([0.1, -0.2])
    trace = RecallTrace(S, key, decay, bias, window=200)
    for first in range(0, tokens, 41):  # in parts that are no whole chunks
        part = slice(first, first + 41)
        trace.write(query[part], value[part], write[part], write_scale=np.full(len(query[part]), 0.7))
    expected = np.zeros((tokens, tokens))
    for h in range(heads):
        local = slice(h * W, (h + 1) * W)
        after, readings, contributions = step_by_step(
            S[h], key[h], sigmoid(decay[h]), query[:, local], value[:, local], 0.7 * sigmoid(write[:, h] + bias[h])
        )
        np.testing.assert_allclose(trace.S[h], after, atol=2e-5)
        square = (readings * readings).sum(1) + OUT_FLOOR * W
        expected += np.einsum("tij,tj->ti", contributions, readings) / square[:, None] / heads
    np.testing.assert_allclose(trace.shares(tokens), expected, atol=2e-4)


@pytest.mark.parametrize("of", ["model", "modulated"])
def test_a_monitor_follows_the_memory_of_a_model(of, request):
    session = watched(request.getfixturevalue(of))
    read(session, "a bad cab. " * 9)
    for _ in range(40):
        session.draw()
    session.monitor.frame()
    read(session, "feed")
    session.monitor.frame()
    np.testing.assert_allclose(session.monitor._recall.S, session.act.S[0], atol=1e-4)
    assert session.monitor.tokens == 9 * 11 + 40 + 4


def test_the_shares_of_all_tokens_add_up_to_one_but_for_heads_that_are_silent(model):
    session = Session(model, Sampling(seed=3))
    session.monitor = BrainMonitor(model, session.act)
    for text in ("a bad cab. " * 3, "g", "fed a cab"):
        read(session, text)
        session.monitor.frame()
        out = session.act.signals["memory.out"].x[session.act.length - 1, 0]  # o / sqrt(mean(o^2) + floor)
        assert session.monitor._recall.shares(1).sum() == pytest.approx((out * out).mean(), abs=1e-3)


def test_the_surprise_is_that_of_the_tokens_drawn(model):
    session = Session(model, Sampling(temperature=2.0, seed=3))
    session.monitor = BrainMonitor(model, session.act)
    text = LETTERS.encode("a bad ").tolist()
    read(session, "a bad ")
    drawn = [int(session.draw()[0]) for _ in range(70)]  # more than are kept on the device
    logits = model.logits(np.array(text + drawn))[len(text) - 1 : -1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(drawn)), drawn]
    np.testing.assert_allclose(session.monitor.surprise(0), nats, atol=1e-4)
    np.testing.assert_allclose(session.monitor.surprise(60), nats[60:], atol=1e-4)
    assert session.monitor.drawn == 70


def test_watching_changes_nothing_that_is_said(model):
    def say(monitored):
        session = Session(model, Sampling(seed=5))
        session.monitor = BrainMonitor(model, session.act) if monitored else None
        read(session, "a bad cab.")
        return session.write(3 * 16 + 2).ravel().tolist(), session.state()

    (text, state), (same, other) = say(False), say(True)
    assert text == same
    for name, array in state.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_rates_and_raster_are_those_of_the_neurons(model):
    session = watched(model)
    events = {name: [] for name in MODULES}
    for letter in "a bad cab":
        read(session, letter)
        for name in MODULES:
            events[name].append(np.array(session.act.v[name][1, 0] > 1))
    frame = session.monitor.frame()
    for name in MODULES:
        expected = np.array(events[name])
        assert frame.rates[name] == pytest.approx(expected[-monitoring.RATE_TOKENS :].mean())
        np.testing.assert_array_equal(frame.raster[name], expected[:, :: -(-expected.shape[1] // monitoring.RASTER)])
    assert frame.levels == {}


def test_levels_are_shown_where_there_are_any(modulated):
    session = watched(modulated)
    read(session, "a bad cab. a bad cab. ")
    levels = session.monitor.frame().levels
    assert levels == {name: session.act.levels[name][0] for name in ("dopamine", "norepinephrine", "serotonin")}
    assert levels["norepinephrine"] > 0 > levels["serotonin"]


def test_what_is_wiped_is_recalled_no_longer(model):
    session = Session(model, Sampling(seed=3))
    session.monitor = BrainMonitor(model, session.act)
    read(session, "bad cab ")
    assert session.monitor.frame().recalls[-1].sources
    session.act.S[...] = 0
    session.monitor.forget()
    assert session.monitor.frame().recalls == ()
    read(session, "fed")
    assert {word for recalled in session.monitor.frame().recalls for _, word, _ in recalled.sources} <= {"fed"}
    np.testing.assert_allclose(session.monitor._recall.S, session.act.S[0], atol=1e-4)


def test_tokens_are_gathered_into_words():
    pieces = ["You", ":", " Jack", " ke", "eps", " hares", ".", "\n", "Neo", " ", "x"]
    words = ["".join(pieces[first:last]) for first, last in words_of(pieces)]
    assert words == ["You", ":", " Jack", " keeps", " hares", ".", "\n", "Neo", " ", "x"]
    assert words_of(["a"]) == [(0, 1)]


@pytest.mark.gpu
def test_a_monitor_says_the_same_of_a_gpu(model):
    """Of float32 products; others differ by their rounding."""
    from neurogen_numba import backends

    gpu = NeuroGenModel.from_config(model.config, LETTERS, backend=backends.get("cuda", 0, "fp32"))
    gpu._fill(model.snapshot()[0], 0, "the same")
    frames, nats = [], []
    for each in (model, gpu):
        session = Session(each, Sampling(temperature=0))
        session.monitor = BrainMonitor(each, session.act)
        read(session, "a bad cab")
        for _ in range(3):
            session.draw()
        nats.append(session.monitor.surprise(0))
        frames.append(session.monitor.frame())
    np.testing.assert_allclose(nats[0], nats[1], atol=1e-3)
    assert frames[0].rates == pytest.approx(frames[1].rates, abs=0.05) and frames[0].tokens == frames[1].tokens
    for name in MODULES:
        assert (frames[0].raster[name] != frames[1].raster[name]).mean() < 0.05
