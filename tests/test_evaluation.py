"""Scoring held-out text: against a plain pass token by token, and against models that know, or do not know, what comes next."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.evaluate import method, perplexity
from neurogen_numba.learning.evaluation import answer_questions, evaluate, streams_for, streams_of, unknown_share, words_in
from neurogen_numba.text.batches import Validation
from neurogen_numba.text.stories import Question
from neurogen_numba.text.tokenizer import build

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = "abcdefghijklmnopqrstuvwxyz .:?"
CONFIG = tiny.config(brain={"vocabulary": len(LETTERS)}, batch=16)


@pytest.fixture(scope="module")
def model():
    return NeuroGenModel.from_config(CONFIG, build("char", [LETTERS], 0, documents=False))


def token_by_token(model, ids):
    """Nats of each of ids[1:] and whether it was the most probable, from a zero state, one token at a time."""
    act, nats, hits = model.activity(1, 1), [], []
    for heard, expected in zip(ids, ids[1:], strict=False):
        logits = model.brain.forward_logits(act, np.array([[heard]], np.int32))[0].astype(np.float64)
        act.advance(1)
        nats.append(math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[expected])
        hits.append(logits.argmax() == expected)
    return nats, hits


@pytest.mark.parametrize("n", [1, 100, 513])  # targets: one, no whole number of chunks, two read heads with a gap at the end of the second
def test_a_score_is_that_of_a_plain_pass(model, n):
    ids = np.random.default_rng(n).integers(0, len(LETTERS), n + 1).astype(np.int32)
    score = evaluate(model, Validation(ids, bytes=3 * n, floor_bits=1.5 * n))
    parts = [ids] if n < 512 else [ids[:258], ids[257:]]
    passes = [token_by_token(model, part) for part in parts]
    nats, hits = (np.concatenate([each[k] for each in passes]) for k in (0, 1))
    assert nats.size == score.tokens == n
    assert score.loss == pytest.approx(nats.mean(), rel=1e-5)
    assert score.accuracy == pytest.approx(hits.mean())
    assert score.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / (3 * n), rel=1e-5)
    assert score.floor_bits_per_byte == pytest.approx(0.5)


class Stub:
    """What evaluation needs of a model. The loss of a target is its id; all that it is asked is kept, column by column."""

    config = CONFIG

    def activity(self, tokens, batch):
        self.heard, self.asked = np.empty((2, 0, batch), int)
        return SimpleNamespace(tokens=tokens)

    def score(self, act, inputs, targets):
        assert 1 <= len(inputs) <= act.tokens and inputs.shape == targets.shape
        assert inputs.dtype == targets.dtype == np.int32
        self.heard, self.asked = np.concatenate([self.heard, inputs]), np.concatenate([self.asked, targets])
        return np.where(targets < 0, 0, targets).astype(np.float32), targets % 2 == 0


@pytest.mark.parametrize("n", [1, 2, 7, 255, 256, 511, 512, 513, 1000, 4096, 4097, 5000])
def test_every_token_is_counted_once_after_the_one_before_it(n):
    stub = Stub()
    score = evaluate(stub, Validation(np.arange(n + 1, dtype=np.int32), bytes=n))
    counted = stub.asked >= 0
    assert sorted(stub.asked[counted]) == list(range(1, n + 1))
    assert np.array_equal(stub.heard[counted], stub.asked[counted] - 1)
    assert score.loss == pytest.approx((n + 1) / 2)
    assert score.accuracy == pytest.approx((n // 2) / n)
    assert score.floor_bits_per_byte is None
    assert stub.heard.shape[1] == max(1, min(16, n // 256))


PLACES = [(name, home) for name in ("tom", "anna", "benjamin", "lu") for home in ("mill", "inn", "tower", "castle", "hut")]
QUESTIONS = [
    Question(f"{name} lives in the {home}. {'so it goes. ' * (k % 5)}where? neo:", f" {name} lives in the {home}.", 1 / (2 + k % 2))
    for k, (name, home) in enumerate(PLACES)
]


class Knowing(Stub):
    """Goes on as those of the `texts` that it knows by heart which begins most like what it has heard; it knows nothing else."""

    tokenizer = build("char", [LETTERS], 0, documents=False)

    def __init__(self, texts):
        self.known = texts

    def score(self, act, inputs, targets):
        before = len(self.heard)
        super().score(act, inputs, targets)
        right = np.zeros(inputs.shape, bool)
        for t, b in np.ndindex(inputs.shape):
            heard = self.tokenizer.decode(self.heard[: before + t + 1, b])
            nearest = max(self.known, key=lambda text: len(os.path.commonprefix([text, heard])), default="")  # noqa: B023  used at once
            following = nearest[len(heard) : len(heard) + 1] or "?"
            right[t, b] = targets[t, b] == self.tokenizer.encode(following)[0]
        return None, right


def test_who_knows_the_answers_is_right():
    assert len(QUESTIONS) == 20  # more than are asked at a time
    right, chance = answer_questions(Knowing([question.prompt + question.answer for question in QUESTIONS]), QUESTIONS)
    assert right == 1
    assert chance == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.parametrize("index", [0, 5, -1])
def test_one_wrong_letter_makes_an_answer_wrong(index):
    texts = []
    for k, question in enumerate(QUESTIONS):
        letters = list(question.answer)
        if k % 4 == 0:
            letters[index] = "z"
        texts.append(question.prompt + "".join(letters))
    assert answer_questions(Knowing(texts), QUESTIONS)[0] == 0.75


def test_who_knows_nothing_is_wrong():
    assert answer_questions(Knowing([]), QUESTIONS)[0] == 0
    assert answer_questions(Knowing([question.prompt for question in QUESTIONS]), QUESTIONS)[0] == 0  # the prompt alone counts for nothing


def test_an_answer_is_right_if_greedy_generation_says_it(model):
    output = []
    for prompt in ("tom? ", "where does anna live? neo:", "a"):
        ids = model.tokenizer.encode(prompt)
        text = model.tokenizer.decode(model.generate(ids, len(ids) + 6, temperature=0))
        output.append(Question(prompt, text[len(prompt) :], 0.5))
    assert answer_questions(model, output) == (1, 0.5)
    other = [Question(q.prompt, q.answer[:-1] + ("b" if q.answer[-1] == "a" else "a"), 0.5) for q in output[:1]] + output[1:]
    assert answer_questions(model, other)[0] == pytest.approx(2 / 3)


def test_a_score_may_be_asked_for_with_other_streams_than_those_of_training(model):
    """The training settings of a model then do not affect its score."""
    ids = np.random.default_rng(1).integers(0, len(LETTERS), 2049).astype(np.int32)
    few = NeuroGenModel.from_config(CONFIG.replace(training={"batch": 1}), model.tokenizer)
    few.brain.parameters.value.update(model.brain.parameters.value)
    one, four = (evaluate(model, Validation(ids, 2048), most_streams=streams) for streams in (1, 4))
    assert one.loss != four.loss and (streams_for(2048, 4), streams_for(2048, 16), streams_for(99, 4)) == (4, 8, 1)
    stub = Stub()
    stub.config = few.config
    evaluate(stub, Validation(ids, 2048), most_streams=4)
    assert stub.heard.shape[1] == 4


def test_words_are_what_stands_between_white_space_in_each_document():
    for tokenizer in (build("byte", [], 0, True), build("char", ["the cat\n"], 0, True)):
        end = tokenizer.end_of_text
        ids = np.concatenate([tokenizer.encode("the  cat\n"), [end], tokenizer.encode("the"), [end], tokenizer.encode("cat"), [end]])
        assert words_in(ids, tokenizer) == 4 and words_in(ids[1:], tokenizer) == 4 and words_in(ids[3:4], tokenizer) == 0
    words = build("word", ["the cat"], 9, False)
    ids = words.encode("the dog \n <unk> cat")
    assert words_in(ids, words) == 5  # with the end of the line, as tokens are counted
    assert unknown_share(ids, words) == 2 / 5


def test_the_method_of_a_score_is_a_sentence():
    output = method(Validation(np.zeros(9, np.int32), 8), "text", 16, "float32")
    assert output.startswith("nats per token over all of the text") and "16 streams side by side, each from a zero state" in output
    assert output.endswith("bytes of the text in UTF-8; factors of products float32")
    output = method(Validation(np.zeros(9, np.int32), 8, whole=False, estimated=True), "text", 1, "bfloat16")
    assert "the beginning of the text" in output and "; one stream from a zero state" in output and "on average" in output


def test_perplexity_is_none_where_words_have_no_end():
    assert perplexity(math.log(97.7)) == pytest.approx(97.7) and perplexity(2000.0) is perplexity(math.inf) is None


@pytest.mark.parametrize("batch, streams", [(1, 1), (3, 3), (40, 16)])
def test_evaluation_takes_no_more_texts_in_parallel_than_training(batch, streams):
    assert streams_of(tiny.config(batch=batch).training) == streams
