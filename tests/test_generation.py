"""Text out: where a stream begins and ends, what it holds back, and what a session remembers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tiny
from neurogen_numba.backends.cpu import CpuBackend
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Brain, Config, Module
from neurogen_numba.errors import ConfigError
from neurogen_numba.inference.generation import TOGETHER, Sampling, Session, stream
from neurogen_numba.text.tokenizer import ByteTokenizer, CharTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

BYTES = ByteTokenizer(documents=True)
END = BYTES.end_of_text


class Script:
    """A session that says what it is told to."""

    def __init__(self, tokens, heard=()):
        self.tokens, self.drawn, self.fed, self.last_tokens = list(tokens), 0, [], heard

    def feed(self, ids):
        assert ids.shape[1:] == (1,) and ids.dtype == np.int32
        self.fed += ids[:, 0].tolist()
        self.last_tokens = ids[:, 0]

    def draw(self):
        assert len(self.last_tokens), "feed comes before draw"
        self.drawn += 1
        return np.array([self.tokens[self.drawn - 1]], np.int32)


def written(text, length=99, stop="", prompt="p"):
    """(pieces, session) of a stream over a session that says the text, as bytes, and then ends it."""
    session = Script([*(text.encode() if isinstance(text, str) else text), END])
    return list(stream(session, BYTES, prompt, length, stop)), session


# The stream


def test_a_prompt_is_read_once_and_not_repeated():
    pieces, session = written("abc", prompt="xy")
    assert "".join(pieces) == "abc"
    assert session.fed == [END, *b"xy"]


NO_END = ByteTokenizer(documents=False)


@pytest.mark.parametrize("tokenizer, end", [(BYTES, [END]), (NO_END, []), (CharTokenizer("ab", documents=True), [2])])
def test_a_text_begins_after_an_end_of_text_where_there_is_one(tokenizer, end):
    for prompt in ("ab", "a"):
        session = Script([1])
        list(stream(session, tokenizer, prompt, 1))
        assert session.fed == [*end, *tokenizer.encode(prompt)]


@pytest.mark.parametrize("tokenizer, first", [(BYTES, END), (NO_END, 0)])
def test_without_a_prompt_it_starts_where_a_text_starts(tokenizer, first):
    session = Script([1, 1])
    list(stream(session, tokenizer, "", 2))
    assert session.fed == [first]


@pytest.mark.parametrize("prompt", ["", "xy"])
def test_a_session_continues_from_what_it_has_read(prompt):
    session = Script(b"abc", heard=[7])
    assert "".join(stream(session, BYTES, prompt, 3)) == "abc"
    assert session.fed == list(prompt.encode())


def test_it_ends_after_its_length():
    pieces, session = written("abcdef", length=3)
    assert ("".join(pieces), session.drawn) == ("abc", 3)
    assert "".join(written("abc", length=0)[0]) == ""


def test_it_ends_at_the_end_of_text():
    pieces, session = written([*b"ab", END, *b"cd"])
    assert ("".join(pieces), session.drawn) == ("ab", 3)


def test_a_token_is_drawn_only_when_it_is_asked_for():
    session = Script(b"abc")
    pieces = stream(session, BYTES, "p", 3)
    for drawn, letter in enumerate("abc", 1):
        assert next(pieces) == letter and session.drawn == drawn


def test_it_ends_before_the_stop_and_draws_no_further():
    pieces, session = written("Hello.\nYou: no", stop="\nYou:")
    assert ("".join(pieces), session.drawn) == ("Hello.", len("Hello.\nYou:"))


def test_what_may_begin_the_stop_is_held_back_until_it_does_not():
    session = Script([*b"a\nYo\nYou", END])
    pieces = [(piece, session.drawn) for piece in stream(session, BYTES, "p", 99, stop="\nYou:") if piece]
    # "\nYo" waits until the next "\n" shows that no stop begins there; the last "\nYou" until the text ends.
    assert pieces == [("a", 1), ("\nYo", 5), ("\nYou", 9)]


@given(st.text("ab\n", max_size=30), st.text("ab\n", min_size=1, max_size=4))
@example("aab", "ab")
@example("aaab", "aab")
@example("abab", "abb")
@example("ababaa", "abaa")
def test_the_text_ends_before_the_first_stop(text, stop):
    pieces, session = written(text, stop=stop)
    assert "".join(pieces) == text.split(stop)[0]
    assert session.drawn == (text.index(stop) + len(stop) if stop in text else len(text) + 1)


@given(st.text(max_size=12), st.text(min_size=1, max_size=3))
@example("grün 🙂 ok", "🙂")
def test_a_character_is_never_split(text, stop):
    pieces, _ = written(text, stop=stop)
    whole = text.encode().decode()
    assert "".join(pieces) == whole.split(stop)[0]
    assert "�" in text or not any("�" in piece for piece in pieces)


def test_a_character_that_never_becomes_whole_is_shown_as_such():
    euro = "€".encode()
    assert "".join(written([*b"a", *euro[:2], END])[0]) == "a�"
    assert "".join(written([*b"a", *euro], length=3)[0]) == "a�"


def test_a_tokenizer_without_end_of_text_speaks_to_the_last_token():
    session = Script(b"abc")
    assert "".join(stream(session, NO_END, "p", 3)) == "abc"


# Sampling


@pytest.mark.parametrize(
    "settings, written",
    [
        ({"temperature": -0.1}, "temperature: 0 or more, not -0.1"),
        ({"temperature": float("nan")}, "temperature: 0 or more, not nan"),
        ({"temperature": float("inf")}, "temperature: 0 or more, not inf"),
        ({"top_k": -1}, "top-k: 0 (all) or more, not -1"),
        ({"top_p": 0.0}, "top-p: above 0 and at most 1, not 0.0"),
        ({"top_p": 1.1}, "top-p: above 0 and at most 1, not 1.1"),
        ({"top_p": float("nan")}, "top-p: above 0 and at most 1, not nan"),
        ({"seed": -1}, "seed: from 0 to 2^64 - 1, not -1"),
        ({"seed": 2**64}, f"seed: a number of at most 64 bits, not {2**64}"),
    ],
)
def test_sampling_refuses_what_it_cannot_do(settings, written):
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert str(error.value) == written


def test_the_edges_of_what_sampling_can_do():
    Sampling(temperature=0, top_k=0, top_p=1.0, seed=0)
    Sampling(temperature=100.0, top_k=10**6, top_p=1e-9, seed=2**64 - 1)


# Sessions


@pytest.fixture(scope="module")
def model():
    sizes = {"thalamus": 16, "wernicke": 40, "hippocampus": 16, "pfc": 24, "basal_ganglia": 8, "broca": 40}
    modules = {name: Module(n, outputs=6 if name == "pfc" else 0, lateral=3) for name, n in sizes.items()}
    rest = {"embedding": 16, "fan_in": 16, "bundle": 16, "feedback": 3, "delays": 5, "hypercolumn": 8, "memory_heads": 2, "memory_width": 4}
    made = NeuroGenModel.from_config(Config("test", Brain(**modules, **rest, vocabulary=257, memory_fan_in=8, chunk=4)), BYTES)
    made.brain.parameters.value["decoder.weight"][:] *= 6  # opinions: no two tokens are nearly as probable
    return made


def heard(text):
    return BYTES.encode(text)[:, None]


def drawn(session, tokens):
    return [session.draw().tolist() for _ in range(tokens)]


@pytest.mark.parametrize("prompts", [["once", "upon", "a ti"], ["hear me "] * 2])
def test_a_batch_writes_what_each_of_its_sequences_writes_alone(model, prompts):
    session = Session(model, Sampling(temperature=0), batch=len(prompts))
    session.feed(np.concatenate([heard(prompt) for prompt in prompts], axis=1))
    together = drawn(session, 12)
    for b, prompt in enumerate(prompts):
        alone = Session(model, Sampling(temperature=0))
        alone.feed(heard(prompt))
        assert [[row[b]] for row in together] == drawn(alone, 12)


def test_a_session_reads_what_it_draws(model):
    """The next token depends on the whole text so far, drawn tokens included."""
    session = Session(model, Sampling(temperature=0))
    session.feed(heard("once upon"))
    text = [*heard("once upon")[:, 0].tolist(), *(row[0] for row in drawn(session, 10))]
    likely = model.logits(text[:-1]).argmax(1)
    np.testing.assert_array_equal(text[9:], likely[8:])


def test_feed_may_come_between_draws(model):
    session, other = (Session(model, Sampling(temperature=0)) for _ in range(2))
    session.feed(heard("once upon"))
    written = session.draw()
    session.feed(heard(" and then"))
    other.feed(np.concatenate([heard("once upon"), written[None], heard(" and then")]))
    assert drawn(session, 5) == drawn(other, 5)


def test_the_seed_decides_and_nothing_else(model):
    def say(seed, temperature=1.0):
        session = Session(model, Sampling(temperature, seed=seed), batch=2)
        session.feed(np.repeat(heard("once"), 2, axis=1))
        return drawn(session, 20)

    assert say(1) == say(1)
    assert say(1) != say(2)
    assert say(1) != say(1 + 2**32), "the upper half of a seed counts too"
    first, second = zip(*say(1), strict=True)
    assert first != second, "sequences of a batch draw for themselves"
    assert say(1, temperature=0) == say(2, temperature=0)


def test_every_draw_has_random_numbers_of_its_own(model, monkeypatch):
    monkeypatch.setattr(model.brain.decoder, "factor", np.zeros_like(model.brain.decoder.factor))  # all tokens are equally probable
    session = Session(model, Sampling(), batch=3)
    session.feed(np.repeat(heard("once"), 3, axis=1))
    # 120 draws out of 257 tokens leave 96 different ones on average, standard deviation 4.
    assert len({token for row in drawn(session, 40) for token in row}) > 75


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "seed": 4}])
def test_many_written_at_once_are_those_drawn_one_by_one(model, settings):
    one, many = (Session(model, Sampling(**settings), batch=2) for _ in range(2))
    for session in (one, many):
        session.feed(np.concatenate([heard("once"), heard("upon")], axis=1))
    counts = 5, 1, 2 * TOGETHER + 3
    expected = drawn(one, sum(counts))
    parts = [many.write(counts[0]), many.draw()[None], many.write(counts[2])]
    for part, count in zip(parts, counts, strict=True):
        assert (part.shape, part.dtype) == ((count, 2), "int32")
    assert np.concatenate(parts).tolist() == expected
    assert list(many.last_tokens) == list(one.last_tokens) == [expected[-1][0]]
    for session in (one, many):
        session.feed(np.repeat(heard(" and"), 2, axis=1))
    assert many.write(3).tolist() == drawn(one, 3)


def test_what_was_written_stays_as_it_was(model):
    session = Session(model, Sampling(seed=3))
    session.feed(heard("once"))
    first, written = session.write(4), session.draw()
    kept = first.copy(), written.copy()
    session.write(4)
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(written, kept[1])


def test_every_draw_counts_in_every_sequence_and_nothing_else_does(model):
    """The count is what decides which random numbers come next."""
    session = Session(model, Sampling(), batch=3)
    session.feed(np.repeat(heard("once"), 3, axis=1))
    assert session._drawn.dtype == "uint64" and session._drawn.tolist() == [0, 0, 0]
    session.draw()
    session.write(4)
    assert session._drawn.tolist() == [5, 5, 5]
    session.feed(np.repeat(heard("upon"), 3, axis=1))
    assert session._drawn.tolist() == [5, 5, 5]
    session.reset()
    assert session._drawn.tolist() == [0, 0, 0]


def test_what_may_be_drawn_is_what_the_sampling_leaves(model):
    session = Session(model, Sampling(temperature=3.0, top_k=3, seed=1))
    session.feed(heard("once"))
    text = [*heard("once")[:, 0].tolist(), *session.write(30)[:, 0].tolist()]
    best = np.argsort(-model.logits(text[:-1]), axis=1)[3:, :3]
    ranks = [row.tolist().index(token) for row, token in zip(best, text[4:], strict=True)]  # ValueError: none of the three
    assert set(ranks) == {0, 1, 2}


def test_reset_clears_everything(model):
    session = Session(model, Sampling(seed=3))
    session.feed(heard("once upon a time"))
    first = drawn(session, 6)
    session.reset()
    session.feed(heard("once upon a time"))
    assert drawn(session, 6) == first


def test_last_tokens_are_those_read_last(model):
    session = Session(model, Sampling(temperature=0), batch=2)
    assert list(session.last_tokens) == []
    session.feed(np.concatenate([heard("ab"), heard("cd")], axis=1))
    assert list(session.last_tokens) == list(b"ab")
    written = session.draw()
    assert list(session.last_tokens) == [written[0]]
    session.reset()
    assert list(session.last_tokens) == []


def test_a_stream_speaks_for_a_model(model):
    def say(seed, stop=""):
        return "".join(stream(Session(model, Sampling(seed=seed)), model.tokenizer, "once", 30, stop))

    text = say(1)
    assert text and say(1) == text != say(2)
    assert say(1, stop=text[3:5]) == text[: text.index(text[3:5])]


def test_rows_that_only_fill_up_the_decoder_are_never_drawn(monkeypatch):
    """Some backends multiply matrices of whole tiles: what lies beyond the vocabulary is no token."""
    monkeypatch.setattr(CpuBackend, "whole_rows", 64)
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 5}), backend="cpu")
    assert model.brain.decoder.weight.shape[0] == 64
    session = Session(model, Sampling(temperature=100.0), batch=8)
    session.feed(np.zeros((1, 8), np.int32))
    assert set(session.write(20).ravel().tolist()) == set(range(5))
    model.train_step(np.zeros((2, 6), np.int32), np.ones((2, 6), np.int32))
    assert not model.brain.decoder.weight[5:].any() and not model.brain.decoder.bias[5:].any()


def test_a_session_reads_the_wiring_that_was_loaded_last(model):
    """A recording reads the tables at their addresses."""
    other = NeuroGenModel.from_config(model.config.replace(training={"seed": 9}), backend="cpu")
    local = NeuroGenModel.from_config(model.config, backend="cpu")
    session = Session(local, Sampling(seed=3))
    session.feed(np.ones((3, 1), np.int32))
    session.write(2 * TOGETHER)
    local._fill(other.snapshot()[0], 0, "the other one")
    for fresh in (Session(local, Sampling(seed=3)), Session(other, Sampling(seed=3))):
        session.reset()
        for each in (session, fresh):
            each.feed(np.ones((3, 1), np.int32))
        np.testing.assert_array_equal(session.write(2 * TOGETHER), fresh.write(2 * TOGETHER))
