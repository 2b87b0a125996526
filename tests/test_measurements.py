"""Measurements beside the plain one: neural cache, dynamic evaluation, temperature and random windows, against slow float64 versions."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel, made_from
from neurogen_numba.config import OPTIMIZERS
from neurogen_numba.errors import CheckpointError, ConfigError, DataError, TrainingError
from neurogen_numba.learning import dynamic_evaluation, neural_cache, temperature, windows
from neurogen_numba.learning.dynamic_evaluation import DynamicEvaluation
from neurogen_numba.learning.evaluation import Plain, evaluate
from neurogen_numba.learning.neural_cache import NeuralCache
from neurogen_numba.learning.temperature import fit
from neurogen_numba.learning.windows import evaluate_windows
from neurogen_numba.text.batches import Validation
from neurogen_numba.text.tokenizer import build

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = "abcdefghij"
CONFIG = tiny.config(brain={"vocabulary": len(LETTERS), "chunk": 4}, dropout=0.5, segment=8)
CHUNK, SEGMENT = CONFIG.brain.chunk, CONFIG.training.segment


def made(config, backend):
    """A model whose letters are not equally frequent: its decoder has a bias, which is 0 in a new one."""
    model = NeuroGenModel.from_config(config, build("char", [LETTERS], 0, documents=False), backend=backend)
    model.brain.parameters.value["decoder.bias"][...] = backend.asarray(np.linspace(-1, 1, len(LETTERS)), "float32")
    model.brain.refresh()
    return model


@pytest.fixture(scope="module")
def model(backend):
    return made(CONFIG, backend)


@pytest.fixture(scope="module")
def ids():
    """[T + 1, B]: two streams, whose last segment is short."""
    return np.random.default_rng(1).integers(0, len(LETTERS), (2 * SEGMENT + 4, 2)).astype(np.int32)


def plain(model, ids):
    """(nats [T], vectors that the decoder reads [T, N], logits [T, V]) of a stream [T + 1], float64, from a zero state, one token at a
    time."""
    act, nats, vectors, scores = model.activity(1, 1), [], [], []
    for token, target in zip(ids, ids[1:], strict=False):
        logits = model.backend.to_numpy(model.brain.forward_logits(act, np.array([[token]], np.int32)))[0].astype(np.float64)
        nats.append(math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
        vectors.append(model.backend.to_numpy(act.signals["broca.trace"].x)[0, 0].astype(np.float64))
        scores.append(logits)
        act.advance(1)
    return np.array(nats), np.array(vectors), np.array(scores)


@pytest.fixture(scope="module")
def plain_streams(model, ids):
    return [plain(model, ids[:, b]) for b in range(2)]


def in_segments(scorer, ids):
    """nats [T, B] of streams [T + 1, B], read in segments."""
    ends = range(0, len(ids) - 1, scorer.tokens)
    return np.concatenate([scorer.score(*(ids[t + k : t + k + scorer.tokens][: len(ids) - 1 - t] for k in (0, 1)))[0] for t in ends])


def cached(ids, nats, vectors, size, theta, share):
    """The equations of Grave et al., pair by pair of tokens: nats [T] of a stream [T + 1]. Vectors have length 1, or 0."""
    mixed, h = [], [vector / (math.sqrt(vector @ vector) or 1) for vector in vectors]
    for t in range(len(nats)):
        total = matching = 0.0
        for i in range(max(0, t - size), t):
            total += math.exp(theta * h[t] @ h[i])
            matching += math.exp(theta * h[t] @ h[i]) * (ids[i + 1] == ids[t + 1])
        mixed.append(-math.log((1 - share) * math.exp(-nats[t]) + share * matching / total) if t else nats[t])
    return np.array(mixed)


@pytest.mark.parametrize("size", [5, 100])  # tokens leave the cache, also within a segment; all stay
def test_a_neural_cache_is_that_of_the_equations(model, ids, plain_streams, monkeypatch, size):
    for name, value in (("SIZE", size), ("THETA", 3.0), ("SHARE", 0.3)):
        monkeypatch.setattr(neural_cache, name, value)
    found = in_segments(NeuralCache(model, 2), ids)
    for b, (nats, vectors, _) in enumerate(plain_streams):
        expected = cached(ids[:, b], nats, vectors, size, 3.0, 0.3)
        np.testing.assert_allclose(found[:, b], expected, rtol=1e-4)
        assert np.abs(expected - nats)[1:].max() > 0.05


def test_a_target_below_0_costs_nothing_in_a_cache(model, ids):
    scorer = NeuralCache(model, 2)
    scorer.score(ids[:CHUNK], ids[1 : CHUNK + 1])
    targets = ids[CHUNK + 1 : 2 * CHUNK + 1].copy()
    targets[-1, 1] = -1
    losses, _ = scorer.score(ids[CHUNK : 2 * CHUNK], targets)
    assert losses[-1, 1] == 0 and (losses[targets >= 0] > 0).all()


def test_dynamic_evaluation_scores_each_segment_before_the_update_on_it(model, ids, plain_streams, monkeypatch, full_size):
    """Against predictions of a model that learns by `train_step`, token by token and in float64."""
    monkeypatch.setattr(dynamic_evaluation, "RATE", 0.01)
    stream = ids[:, 0]
    before = model.backend.to_numpy(model.brain.parameters.flat_value)
    found = in_segments(DynamicEvaluation(model, 1), stream[:, None])[:, 0]
    np.testing.assert_array_equal(model.backend.to_numpy(model.brain.parameters.flat_value), before)
    assert model.optimizer.steps == 0

    learner, act = copy.copy(model), model.activity(1, 1)
    learner.config = CONFIG.replace(training={"dropout": 0.0})
    learner.optimizer.stop_decay()
    learner.optimizer.rescale(math.sqrt(CONFIG.training.batch))
    for first in range(0, len(stream) - 1, SEGMENT):
        part = stream[first : first + SEGMENT + 1]
        reader = copy.copy(learner)
        reading = reader.activity(1, 1)
        reading.load_state(act.state())
        for t, (token, target) in enumerate(zip(part, part[1:], strict=False)):
            logits = model.backend.to_numpy(reader.brain.forward_logits(reading, np.array([[token]], np.int32)))[0].astype(np.float64)
            reading.advance(1)
            assert found[first + t] == pytest.approx(np.log(np.exp(logits).sum()) - logits[target], rel=1e-4), first + t
        act = reading
        if len(part) > SEGMENT:
            learner.train_step(part[:-1], part[1:], 0.01, carry_state=first > 0)
    same = plain_streams[0][0]
    np.testing.assert_allclose(found[:SEGMENT], same[:SEGMENT], rtol=1e-4)
    assert np.abs(found - same)[SEGMENT:].max() > 0.01


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_dynamic_evaluation_weights_do_not_decay(backend, ids, monkeypatch, full_size, optimizer):
    monkeypatch.setattr(dynamic_evaluation, "RATE", 0.01)
    scores = []
    for decay in (0.0, 20.0):
        config = CONFIG.replace(training={"weight_decay": decay, "optimizer": optimizer})
        scores.append(in_segments(DynamicEvaluation(made(config, backend), 1), ids[:, :1]))
    np.testing.assert_array_equal(*scores)


def test_without_a_rate_dynamic_evaluation_is_the_plain_score(model, ids, monkeypatch, full_size):
    monkeypatch.setattr(dynamic_evaluation, "RATE", 0.0)
    text = Validation(ids[:, 0], bytes=len(ids))
    assert evaluate(model, text, scorer=DynamicEvaluation).loss == pytest.approx(evaluate(model, text).loss, rel=1e-5)


def test_dynamic_evaluation_refuses_what_it_cannot_learn(model, ids, monkeypatch, full_size):
    broken = copy.copy(model)
    broken.brain.parameters.value["decoder.bias"][...] = np.nan
    broken.brain.refresh()
    with pytest.raises(TrainingError, match="--adapt"):
        in_segments(DynamicEvaluation(broken, 1), ids[:, :1])
    monkeypatch.setattr(model, "quantization", {"bits": 8})
    with pytest.raises(ConfigError, match="quantised"):
        DynamicEvaluation(model, 1)


def at_temperature(logits, targets, T):
    """Nats [T'] of targets [T'] under the softmax of logits [T', V] / T."""
    scaled = logits / T
    return np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(targets)), targets]


def with_temperature(model, temperature):
    """A copy of a model, with another temperature."""
    other = copy.copy(model)
    other.brain.decoder.set_temperature(temperature)
    return other


def test_a_temperature_divides_the_logits(model, ids, plain_streams):
    found = in_segments(Plain(with_temperature(model, 0.7), 2), ids)
    for b, (nats, _, logits) in enumerate(plain_streams):
        expected = at_temperature(logits, ids[1:, b], 0.7)
        np.testing.assert_allclose(found[:, b], expected, rtol=1e-4)
        assert np.abs(expected - nats).max() > 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_gradient_is_that_of_a_decoder_divided_by_the_temperature(backend, ids, optimizer):
    new = made(CONFIG.replace(training={"optimizer": optimizer, "dropout": 0.0}), backend)
    T, gradients = 1.5, []
    warm, divided = with_temperature(new, T), copy.copy(new)
    for name in ("decoder.weight", "decoder.bias"):
        divided.brain.parameters.value[name] /= T
    divided.brain.refresh()
    for each in (warm, divided):
        act = each.activity(SEGMENT, 2, learning=True)
        each.load_segment(act, ids[:SEGMENT], ids[1 : SEGMENT + 1])
        each._gradients(act, True, False)
        gradients.append({name: backend.to_numpy(gradient) for name, gradient in each.brain.parameters.gradient.items()})
    for name, found in gradients[0].items():
        expected = gradients[1][name] / (T if name.startswith("decoder.") else 1)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6, err_msg=name)
    assert np.abs(gradients[0]["broca.bias"]).max() > 1e-4


def test_copies_and_checkpoints_keep_the_temperature(model, ids, tmp_path):
    warm = with_temperature(model, 1.25)
    warm.save(tmp_path / "warm")
    expected = in_segments(Plain(warm, 2), ids)
    for same in (copy.copy(warm), NeuroGenModel.load(tmp_path / "warm", backend=model.backend)):
        assert same.brain.decoder.temperature == 1.25
        np.testing.assert_array_equal(in_segments(Plain(same, 2), ids), expected)


def test_a_temperature_that_divides_nothing_is_refused(model):
    for damaged in (0.0, math.nan):
        tensors, *others = with_temperature(model, 1.25).content()
        tensors["decoder"]["decoder.temperature"][:] = damaged
        with pytest.raises(CheckpointError, match="temperature"):
            made_from(model.config, model.tokenizer, model.backend, tensors, *others)


@pytest.mark.parametrize("T", [0.6, 1.0, 2.2])
def test_the_fitted_temperature_has_the_lowest_loss(model, full_size, T):
    """Of a text that the model has written at the temperature T."""
    text = model.generate([0], 600, temperature=T, seed=1)
    other, (nats, _, logits) = copy.copy(model), plain(model, text)
    fitted = fit(other, Validation(text, bytes=len(text)), 1)
    assert fitted == pytest.approx(T, rel=0.4) and fitted == other.brain.decoder.temperature
    losses = [at_temperature(logits, text[1:], fitted * factor).mean() for factor in (0.95, 1, 1.05)]
    assert losses[1] == min(losses) and losses[1] <= nats.mean() + 1e-6
    assert evaluate(other, Validation(text, bytes=len(text)), most_streams=1).loss == pytest.approx(losses[1], rel=1e-5)


def test_a_temperature_keeps_within_its_bounds(model, full_size):
    """Of a text whose every token is the most probable one."""
    text, other = model.generate([0], 40, temperature=0), copy.copy(model)
    assert fit(other, Validation(text, bytes=len(text)), 1) == pytest.approx(math.exp(temperature.LOWEST))


def test_no_temperature_is_fitted_where_the_loss_is_not_finite(model):
    broken = copy.copy(model)
    broken.brain.parameters.value["decoder.bias"][...] = np.nan
    broken.brain.refresh()
    assert fit(broken, Validation(np.zeros(20, np.int32), bytes=20), 1) == 1


def test_windows_are_scored_from_a_zero_state(model, ids, monkeypatch):
    monkeypatch.setattr(windows, "SPREAD", math.inf)  # one batch
    monkeypatch.setattr(windows, "BATCH", 2)
    monkeypatch.setattr(windows, "SEED", 5)
    length, stream = CHUNK + 1, ids[:, 0]
    score = evaluate_windows(model, Validation(stream, bytes=len(stream)), length)
    starts = np.random.default_rng(5).permutation(len(stream) - length)[:2]  # nanoGPT's range: 0 ... tokens - length - 1
    means = [plain(model, stream[start : start + length + 1])[0].mean() for start in starts]
    assert score.windows == len(set(starts)) == 2
    assert score.loss == pytest.approx(np.mean(means), rel=1e-5)
    assert score.spread == pytest.approx(np.std(means, ddof=1) / math.sqrt(2) * math.sqrt(1 - 2 / (len(stream) - length)), rel=1e-3)


def test_a_short_text_is_scored_window_by_window_once():
    """Four windows of two tokens, in one batch of 64."""
    text = Validation(np.array([0, 1, 1, 0, 0, 1], np.int32), 5)
    assert evaluate_windows(Stub(), text, 2) == windows.WindowScore(loss=0.5, spread=0.0, accuracy=0.5, windows=4)


class Stub:
    """A model that needs a nat for the token 1 and none for the token 0, and whose hits are the tokens 0."""

    config = CONFIG
    read = longest = 0  # tokens since the last reset

    def activity(self, tokens, batch):
        return SimpleNamespace(tokens=tokens, reset=lambda: setattr(self, "read", 0))

    def score(self, act, inputs, targets):
        self.read += len(inputs)
        self.longest = max(self.longest, self.read)
        return targets.astype(np.float32), targets == 0


def test_windows_are_drawn_until_their_mean_is_known(monkeypatch):
    text = Validation((np.random.default_rng(0).random(5001) < 0.3).astype(np.int32), 5000)
    stub, reports = Stub(), []
    score = evaluate_windows(stub, text, 10, lambda *progress: reports.append(progress))
    assert stub.longest == 10
    done, totals = zip(*reports, strict=True)
    assert done == tuple(range(64, score.windows + 1, 64)) and totals[-1] == score.windows
    assert np.median(totals) == pytest.approx(score.windows, rel=0.2) and all(total >= now for now, total in reports)
    assert score.spread < windows.SPREAD and score.windows % windows.BATCH == 0
    independent = 0.3 * 0.7 / 10 / windows.SPREAD**2
    assert score.windows == pytest.approx(independent / (1 + independent / 4991), rel=0.1)  # of the text's 4,991
    assert score.loss == pytest.approx(text.tokens.mean(), abs=4 * windows.SPREAD) and score.accuracy == pytest.approx(1 - score.loss)
    assert evaluate_windows(Stub(), text, 10) == score  # the seed is fixed
    reports.clear()
    assert (
        evaluate_windows(Stub(), text, 5000, lambda *progress: reports.append(progress)).windows == 1
    )  # the whole text is the only window
    assert reports == [(1, 1)]
    with pytest.raises(DataError, match="--windows 5001: the text has 5,000 tokens"):
        evaluate_windows(Stub(), text, 5001)


def test_a_segment_may_be_longer_than_a_chunk(model, ids, full_size):
    np.testing.assert_allclose(in_segments(Plain(model, 2, SEGMENT), ids), in_segments(Plain(model, 2), ids), rtol=1e-5)
