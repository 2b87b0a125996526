"""NeuroGenModel: what a program that only knows its methods sees."""

import dataclasses
import hashlib
import inspect
import json

import numpy as np
import pytest

import neurogen_numba
import reference as ref
import tiny
from neurogen_numba.backends.cpu import CpuBackend
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Brain, Config, Module, Text, Training
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.planning import budget
from neurogen_numba.presets import PRESETS
from neurogen_numba.storage import checkpoint
from neurogen_numba.text.tokenizer import ByteTokenizer, CharTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = 19
BRAIN = Brain(
    thalamus=Module(12, lateral=3),
    wernicke=Module(30, lateral=3),
    hippocampus=Module(16, lateral=3),
    pfc=Module(20, outputs=6, lateral=3),
    basal_ganglia=Module(8, lateral=3),
    broca=Module(30, lateral=3),
    embedding=10,
    vocabulary=VOCABULARY,
    fan_in=16,
    bundle=16,
    feedback=3,
    delays=4,
    hypercolumn=8,
    memory_heads=2,
    memory_width=4,
    memory_fan_in=8,
    chunk=4,
)
TINY = Config("tiny", BRAIN, Training(learning_rate=0.02), Text(vocabulary=VOCABULARY))


def model(**training):
    return NeuroGenModel.from_config(TINY.replace(training=training))


def text(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape).astype(np.int32)


def one_sentence(error):
    """The message of an error, which must be fit to be shown as it is."""
    message = str(error.value)
    assert message and "\n" not in message and "Traceback" not in message
    return message


# How one comes by a model


def test_it_is_the_package_s_one_name():
    assert neurogen_numba.NeuroGenModel is NeuroGenModel
    with pytest.raises(AttributeError, match="NeuroGenModle"):
        _ = neurogen_numba.NeuroGenModle


def test_the_constructor_is_called_as_ever():
    parameters = inspect.signature(NeuroGenModel).parameters
    assert list(parameters)[:3] == ["vocab_size", "embedding_dim", "gpu_device"]
    assert (parameters["vocab_size"].default, parameters["embedding_dim"].default, parameters["gpu_device"].default) == (32000, 512, 0)


def test_the_constructor_is_the_baseline_with_another_vocabulary(monkeypatch):
    monkeypatch.setitem(PRESETS, "baseline", TINY)
    made = NeuroGenModel(vocab_size=31, embedding_dim=9, gpu_device=0)
    assert made.config == TINY.replace(brain={"vocabulary": 31, "embedding": 9})
    assert made.logits([0, 30]).shape == (2, 31)
    with pytest.raises(ConfigError, match="^gpu_device: cards are numbered from 0; there is no -1$"):
        NeuroGenModel(vocab_size=31, embedding_dim=9, gpu_device=-1)


def test_from_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY.replace(text={"vocabulary": 25}))
    assert NeuroGenModel.from_preset("tiny").config.brain.vocabulary == 25
    assert NeuroGenModel.from_preset("tiny", vocab_size=21).config.brain.vocabulary == 21
    tokenizer = CharTokenizer("abc", documents=True)
    made = NeuroGenModel.from_preset("tiny", tokenizer=tokenizer)
    assert made.config.brain.vocabulary == 4 and made.tokenizer is tokenizer
    with pytest.raises(ConfigError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        NeuroGenModel.from_preset("tinny")


def test_a_model_is_drawn_from_its_seed():
    one, same, other = model(seed=1), model(seed=1), model(seed=2)
    np.testing.assert_array_equal(one.logits(text(6)), same.logits(text(6)))
    assert (one.logits(text(6)) != other.logits(text(6))).any()


def test_parameters_counts_what_is_learned():
    made = model()
    assert made.parameters == sum(array.size for array in made.brain.parameters.value.values())


# Logits


def test_logits_of_a_sequence_are_those_of_the_batch_it_is_in():
    made, ids = model(), text(3, 10)
    together = made.logits(ids)
    assert (together.shape, together.dtype) == ((3, 10, VOCABULARY), "float32")
    for b in range(3):
        alone = made.logits(ids[b])
        assert alone.shape == (10, VOCABULARY)
        np.testing.assert_allclose(alone, together[b], rtol=1e-4, atol=1e-4)


def test_logits_start_from_a_zero_state_every_time():
    made = model()
    first = made.logits(text(10))
    made.logits(text(7, seed=1))
    np.testing.assert_array_equal(made.logits(text(10)), first)


@pytest.mark.parametrize("kind", [list, np.int64, np.uint8, np.asfortranarray])
def test_ids_may_be_of_any_integer_type(kind):
    made, ids = model(), text(3, 6)
    given = ids.tolist() if kind is list else kind(ids)
    np.testing.assert_array_equal(made.logits(given), made.logits(ids))


WRONG_IDS = [
    ([0, VOCABULARY], "token id 19 is out of range; this model knows 0 to 18"),
    ([0, -1], "token id -1 is out of range; this model knows 0 to 18"),
    ([2**40], "token id 1099511627776 is out of range; this model knows 0 to 18"),
    ([0.0, 1.0], "integers of shape [T] or [B, T] are needed, at least one; got float64 (2,)"),
    ([True], "integers of shape [T] or [B, T] are needed, at least one; got bool (1,)"),
    ("word", "integers of shape [T] or [B, T] are needed, at least one; got <U4 ()"),
    ([], "integers of shape [T] or [B, T] are needed, at least one; got float64 (0,)"),
    (np.zeros((2, 0), np.int32), "integers of shape [T] or [B, T] are needed, at least one; got int32 (2, 0)"),
    (3, "integers of shape [T] or [B, T] are needed, at least one; got int64 ()"),
    ([[[1]]], "integers of shape [T] or [B, T] are needed, at least one; got int64 (1, 1, 1)"),
]


@pytest.mark.parametrize("ids, output", WRONG_IDS, ids=lambda value: "" if isinstance(value, str) else str(value))
def test_wrong_ids_are_named(ids, output):
    made = model()
    for method, what in ((made.logits, "input_ids"), (lambda ids: made.train_step(ids, ids), "input_ids")):
        with pytest.raises(ConfigError) as error:
            method(ids)
        assert one_sentence(error) == f"{what}: {output}"
    with pytest.raises(ConfigError) as error:
        made.generate(ids, 9)
    assert one_sentence(error) == f"prompt_ids: {output}"


# Learning


@pytest.mark.parametrize("shape", [(12,), (3, 12)], ids=["one sequence", "a batch"])
def test_a_repeated_text_is_learned(shape):
    made, ids = model(), text(*shape)
    inputs, targets = ids[..., :-1], ids[..., 1:]
    first, _ = made.train_step(inputs, targets)
    for _ in range(60):
        loss, accuracy = made.train_step(inputs, targets)
    assert isinstance(loss, float) and isinstance(accuracy, float)
    assert first > 2 and loss < 0.5 * first and accuracy > 0.8


def test_loss_and_accuracy_are_those_of_before_the_update():
    made, ids = model(), text(3, 10)
    targets = text(3, 10, seed=1)
    targets[0, :4] = -1
    targets[2, 5] = made.logits(ids)[2, 5].argmax()
    expected = ref.cross_entropy(made.logits(ids), targets)
    loss, accuracy = made.train_step(ids, targets)
    assert (loss, accuracy) == pytest.approx(expected, rel=1e-4)
    assert accuracy > 0
    after, _ = made.train_step(ids, targets)
    assert after < loss


def values(made):
    return made.brain.parameters.flat_value.copy()


def test_targets_below_zero_count_for_nothing():
    made, before = model(weight_decay=0.0), None
    before = values(made)
    assert made.train_step(text(6), np.full(6, -1)) == (0.0, 0.0)
    np.testing.assert_array_equal(values(made), before)


def test_the_learning_rate_is_the_configuration_s_unless_it_is_given():
    local, given, none = model(learning_rate=0.003), model(), model()
    before = values(none)
    local.train_step(text(6), text(6))
    given.train_step(text(6), text(6), learning_rate=0.003)
    none.train_step(text(6), text(6), learning_rate=0.0)
    np.testing.assert_array_equal(values(local), values(given))
    np.testing.assert_array_equal(values(none), before)
    assert (values(local) != before).any()


def test_state_is_carried_when_asked_for_and_only_then():
    made, ids = model(), text(2, 13)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    rest = ref.cross_entropy(made.logits(inputs)[:, 6:], targets[:, 6:])[0]
    alone = ref.cross_entropy(made.logits(inputs[:, 6:]), targets[:, 6:])[0]
    assert abs(rest - alone) > 1e-2

    def second_half(carry_state):
        made.train_step(inputs[:, :6], targets[:, :6], 0.0)
        return made.train_step(inputs[:, 6:], targets[:, 6:], 0.0, carry_state)[0]

    assert second_half(True) == pytest.approx(rest, rel=1e-4)
    assert second_half(False) == pytest.approx(alone, rel=1e-4)


def test_dropout_is_for_learning_only():
    dropped, whole = model(dropout=0.5, axon_dropout=0.5), model()
    np.testing.assert_array_equal(dropped.logits(text(8)), whole.logits(text(8)))
    losses = [dropped.train_step(text(8), text(8), 0.0)[0] for _ in range(2)]
    expected = whole.train_step(text(8), text(8), 0.0)[0]
    assert len({*losses, expected}) == 3, "a mask for every update"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_where_the_loss_is_not_finite_nothing_is_updated(value):
    made = model()
    made.brain.parameters.value["decoder.bias"][text(6)[2]] = value  # of a target
    before = values(made)
    loss, _ = made.train_step(text(6), text(6))
    assert not np.isfinite(loss)
    np.testing.assert_array_equal(values(made), before)
    assert made.optimizer.steps == 0


def test_where_the_gradient_is_not_finite_nothing_is_updated(monkeypatch):
    made, twin = model(dropout=0.2, axon_dropout=0.2), model(dropout=0.2, axon_dropout=0.2)
    before, back = values(made), made.brain.backward

    def poisoned(*how):
        back(*how)
        made.brain.parameters.gradient["pfc.bias"][3] = np.inf

    with monkeypatch.context() as patch:
        patch.setattr(made.brain, "backward", poisoned)
        loss, _ = made.train_step(text(6), text(6))
    assert np.isfinite(loss) and not np.isfinite(made.optimizer.norm[0])
    np.testing.assert_array_equal(values(made), before)
    assert made.optimizer.steps == 0 and not made.optimizer.m.any()
    for each in (made, twin):  # and what comes after it is as if it had not been
        each.train_step(text(6), text(6))
    np.testing.assert_array_equal(values(made), values(twin))


def test_a_step_resets_sequences_before_the_update():
    """reset: as `Activity.reset`, but within the step; a step without it resets nothing."""
    inputs, targets = text(6, 3), text(6, 3, seed=1)
    one, other = model(), model()
    acts = one.activity(6, 3, learning=True), other.activity(6, 3, learning=True)
    for reset in (None, [True, False, False], None, np.array([False, True, True]), np.zeros(3, bool)):
        found = one.update(acts[0], inputs, targets, 0.01, reset)
        if reset is not None:
            acts[1].reset(other.backend.asarray(reset, "uint8"))
        assert other.update(acts[1], inputs, targets, 0.01) == found
        np.testing.assert_array_equal(values(one), values(other))
        states = acts[0].state(), acts[1].state()
        for name in states[0]:
            np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
    one.update(acts[0], inputs, targets, 0.01, np.ones(3, bool))
    other.update(acts[1], inputs, targets, 0.01)
    assert (values(one) != values(other)).any(), "there was no state to reset"


def test_a_step_is_recorded_once_for_each_length():
    made, recorded = model(), []
    record = made.backend.record
    act = made.activity(6, 2, learning=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.backend, "record", lambda step: recorded.append(step) or record(step))
        for _ in range(2):
            for length in (6, 5):
                made.update(act, text(length, 2), text(length, 2, seed=1), 0.01)
                made.update(act, text(length, 2), text(length, 2, seed=1), 0.01, np.array([True, False]))
                made.score(act, text(length, 2), text(length, 2, seed=1))
    assert len(recorded) == 8 == len(act.recorded)  # of each length: gradients with and without a reset, update, score


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])  # the decoder whole, and in blocks
def test_the_share_of_a_target_fits_into_float16_and_is_taken_back(optimizer, monkeypatch):
    """As long as nothing is rounded to 16 bits, a factor that is a power of two and taken back leaves no trace."""
    plain, scaled = model(optimizer=optimizer), model(optimizer=optimizer)
    acts = [made.activity(8, 4, learning=True) for made in (plain, scaled)]
    monkeypatch.setattr(scaled.brain.decoder, "dtype", "float16")  # of the arrays that are there already, none is
    recorded = {}

    def run(act, what, step):
        if what[0] == "gradients":
            assert recorded.setdefault(what, act.loss_scale) == act.loss_scale  # what is recorded keeps its numbers
        step()

    monkeypatch.setattr(scaled, "run", run)
    for counted in (32, 1, 3, 32, 4, 0):
        inputs, targets = text(8, 4), text(8, 4, seed=1)
        targets.reshape(-1)[counted:] = -1
        for made, act in zip((plain, scaled), acts, strict=True):
            made.update(act, inputs, targets, 0.01)
        assert 32 <= acts[1].weight[0] < 64 and acts[1].weight[0] == acts[0].weight[0] * acts[1].loss_scale
        for name, value in plain.brain.parameters.value.items():
            np.testing.assert_array_equal(scaled.brain.parameters.value[name], value, name)
    assert set(recorded.values()) == {2.0**10, 2.0**7, 2.0**5}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_what_the_gradients_were_before_an_update_makes_no_difference(optimizer):
    """All of them are cleared, but for the one that is overwritten."""
    clean, dirty = model(optimizer=optimizer), model(optimizer=optimizer)
    dirty.brain.parameters.flat_gradient[:] = 9
    for made in (clean, dirty):
        made.update(made.activity(6, 2, learning=True), text(6, 2), text(6, 2, seed=1), 0.01)
    for name, value in clean.brain.parameters.value.items():
        np.testing.assert_array_equal(dirty.brain.parameters.value[name], value, name)


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_the_update_does_not_depend_on_the_block_of_logits(tokens, monkeypatch):
    """Blocks of tokens: loss, dropout of what is read, gradients, and what is only scored."""
    batch, inputs, targets = 3, text(7, 3), text(7, 3, seed=1)
    whole, blocks = model(dropout=0.3, axon_dropout=0.3), model(dropout=0.3, axon_dropout=0.3)
    act = whole.activity(7, batch, learning=True)
    monkeypatch.setattr(CpuBackend, "logits", (tokens * batch + 1) * VOCABULARY)  # not quite one token more
    cut = blocks.activity(7, batch, learning=True)
    assert (len(act.logits), len(cut.logits)) == (7 * batch, tokens * batch)
    assert blocks.brain.decoder.blocks(cut, 0, 7) == [(first, min(7, first + tokens)) for first in range(0, 7, tokens)]
    assert whole.brain.decoder.blocks(act, 0, 7) == [(0, 7)]
    for step in range(3):
        expected, found = whole.update(act, inputs, targets, 0.01), blocks.update(cut, inputs, targets, 0.01)
        assert found == pytest.approx(expected, rel=1e-5), step
        gradient = whole.brain.parameters.flat_gradient
        np.testing.assert_allclose(blocks.brain.parameters.flat_gradient, gradient, rtol=1e-4, atol=1e-5 * abs(gradient).max())
    for one, other in zip(whole.score(act, inputs, targets), blocks.score(cut, inputs, targets), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(blocks.logits(inputs.T), whole.logits(inputs.T), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(blocks.generate(inputs.T, 15, temperature=0), whole.generate(inputs.T, 15, temperature=0))


def test_what_is_scored_is_the_text_token_by_token():
    made, ids, targets = model(), text(3, 10), text(3, 10, seed=1)
    targets[1, 2:5] = -1
    act, logits = made.activity(6, 3), made.logits(ids).astype(np.float64)
    parts = [made.score(act, ids.T[first : first + 6], targets.T[first : first + 6]) for first in (0, 6)]
    nats, hits = (np.concatenate([part[k] for part in parts]).T for k in (0, 1))
    assert (nats.dtype, hits.dtype) == ("float32", "bool")
    likely = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - likely
    np.testing.assert_allclose(nats, np.where(targets < 0, 0, expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == targets)


def test_an_activity_drops_the_training_s_share_while_learning_and_only_then():
    made = model(dropout=0.3, axon_dropout=0.2, seed=8)
    dropout = made.activity(6, 2, learning=True).dropout
    assert (dropout.batch, dropout.seed) == (2, 8)
    assert {site: round(float(rate), 6) for site, rate in dropout.rates.items() if rate} == {
        "embedding": 0.3,
        "decoder": 0.3,
        **dict.fromkeys(dropout.AXONS, 0.2),
    }
    idle = made.activity(6, 2).dropout
    assert not any(idle.rates.values())


@pytest.mark.parametrize(
    "inputs, targets, output",
    [
        (text(6), text(5), "input_ids and target_ids: one shape is needed, got (6,) and (5,)"),
        (text(2, 6), text(3, 6), "input_ids and target_ids: one shape is needed, got (2, 6) and (3, 6)"),
        (text(6), [VOCABULARY] * 6, "target_ids: token id 19 is out of range; this model knows 0 to 18"),
        (text(6), [0.5] * 6, "target_ids: integers of shape [T] or [B, T] are needed, at least one; got float64 (6,)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(inputs, targets, output):
    made = model()
    before = values(made)
    with pytest.raises(ConfigError) as error:
        made.train_step(inputs, targets)
    assert one_sentence(error) == output
    np.testing.assert_array_equal(values(made), before)


# Generation


def test_a_generated_text_goes_on_from_its_prompt():
    made, prompt = model(), text(5)
    drawn = made.generate(prompt, 12, seed=3)
    assert (drawn.shape, drawn.dtype) == ((12,), "int32")
    np.testing.assert_array_equal(drawn[:5], prompt)
    assert drawn.min() >= 0 and drawn.max() < VOCABULARY
    np.testing.assert_array_equal(made.generate(prompt, 12, seed=3), drawn)
    assert any((made.generate(prompt, 12, seed=seed) != drawn).any() for seed in (4, 5))


def test_a_batch_is_generated_side_by_side():
    made, prompts = model(), text(3, 5)
    drawn = made.generate(prompts, 11, temperature=0)
    assert (drawn.shape, drawn.dtype) == ((3, 11), "int32") and drawn.flags.c_contiguous
    for b in range(3):
        np.testing.assert_array_equal(made.generate(prompts[b], 11, temperature=0), drawn[b])
    sampled = made.generate(np.repeat(prompts[:1], 3, axis=0), 25, temperature=2.0)
    assert len({tuple(row) for row in sampled}) == 3, "each sequence has random numbers of its own"


def test_temperature_0_draws_the_most_probable_token():
    made = model()
    drawn = made.generate(text(5), 15, temperature=0)
    likely = made.logits(drawn[:-1]).argmax(1)
    np.testing.assert_array_equal(drawn[5:], likely[4:])
    np.testing.assert_array_equal(made.generate(text(5), 15, top_k=1), drawn)
    np.testing.assert_array_equal(made.generate(text(5), 15, top_p=1e-6), drawn)


def test_a_prompt_of_full_length_comes_back():
    np.testing.assert_array_equal(model().generate(text(5), 5), text(5))
    with pytest.raises(ConfigError) as error:
        model().generate(text(5), 4)
    assert one_sentence(error) == "max_length 4: shorter than the prompt, which has 5 tokens"


def test_a_thalamus_that_no_synapse_reaches_learns():
    """Without feedback and lateral synapses its current comes from the tokens alone."""
    config = tiny.config(brain={"vocabulary": 40, "feedback": 0, "thalamus": Module(tiny.BRAIN.thalamus.neurons, lateral=0)})
    model = NeuroGenModel.from_config(config, backend="cpu")
    assert not any(arc.target == "thalamus.current" for arc in model.brain.arcs)
    ids = np.random.default_rng(0).integers(0, 40, (4, 25))
    losses = [model.train_step(ids[:, :-1], ids[:, 1:], 0.01)[0] for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0] and sum(budget.plan(config, budget.Card.assumed(config)).values()) > 0


def test_generation_leaves_the_model_and_its_training_alone():
    one, other = model(), model()
    for made in (one, other):
        made.train_step(text(6), text(6))
    one.generate(text(5), 12)
    one.logits(text(5))
    for made in (one, other):
        made.train_step(text(6, seed=1), text(6, seed=2), carry_state=True)
    np.testing.assert_array_equal(values(one), values(other))


# Checkpoints


@pytest.fixture(scope="module")
def trained():
    made = model(dropout=0.1, axon_dropout=0.1)
    for seed in range(3):
        made.train_step(text(2, 9, seed=seed), text(2, 9, seed=seed + 10))
    return made


def test_a_saved_model_comes_back_and_learns_on_bit_for_bit(trained, tmp_path):
    size = trained.save(tmp_path / "saved")
    assert size == sum(path.stat().st_size for path in (tmp_path / "saved").iterdir() if path.name != "manifest.json")
    loaded = NeuroGenModel.load(tmp_path / "saved")
    assert loaded.config == trained.config and loaded.tokenizer is None
    np.testing.assert_array_equal(loaded.logits(text(2, 9)), trained.logits(text(2, 9)))
    # `trained` is shared: its twin takes the step.
    twin = NeuroGenModel.load(tmp_path / "saved")
    straight = model(dropout=0.1, axon_dropout=0.1)
    for seed in range(3):
        straight.train_step(text(2, 9, seed=seed), text(2, 9, seed=seed + 10))
    steps = [made.train_step(text(2, 9, seed=7), text(2, 9, seed=8)) for made in (loaded, twin, straight)]
    assert steps[0] == steps[1] == steps[2]
    np.testing.assert_array_equal(values(loaded), values(straight))
    for moment in ("m", "v"):
        np.testing.assert_array_equal(getattr(loaded.optimizer, moment), getattr(straight.optimizer, moment))


def test_state_trainer_and_tokenizer_come_back(tmp_path):
    tokenizer = ByteTokenizer(documents=True)
    made = NeuroGenModel.from_config(TINY.replace(brain={"vocabulary": 257}), tokenizer)
    act = made.activity(4, 2)
    made.brain.forward_logits(act, text(4, 2))
    act.advance(4)
    made.save(tmp_path / "saved", act.state(), {"step": 12, "note": "ä"})
    loaded, state, trainer = NeuroGenModel.restore(tmp_path / "saved")
    assert (trainer["step"], trainer["note"]) == (12, "ä")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("grün")) == "grün"
    assert state.keys() == act.state().keys()
    again = loaded.activity(4, 2)
    again.load_state(state)
    more = text(4, 2, seed=1)
    np.testing.assert_array_equal(loaded.brain.forward_logits(again, more), made.brain.forward_logits(act, more))


def forge(made, folder, change):
    """Save a model, let `change(tensors, documents)` tamper with it, and make a checkpoint of the result that is whole."""
    made.save(folder)
    saved = checkpoint.load(folder)
    change(saved.tensors, saved.documents)
    checkpoint.save(folder, saved.tensors, saved.documents)


def set_in(section, name, value):
    return lambda tensors, documents: documents["config"][section].update({name: value})


@pytest.mark.parametrize(
    "change, output",
    [
        (set_in("brain", "embedding", 11), "tensor 'embedding.weight' is float32 [19, 10] instead of float32 [19, 11]"),
        (set_in("brain", "memory_width", 9), "tensor 'memory_query.block' is int32 [1, 1] instead of int32 [2, 1]"),
        (set_in("brain", "fan_in", 40), "thalamus_wernicke.block"),
        (set_in("brain", "events", "analog"), "its configuration cannot be read: brain.events"),
        (set_in("training", "stps", 1), "its configuration cannot be read: config.training: unknown setting 'stps'"),
        (lambda tensors, documents: documents.pop("config"), "'config' is missing"),
        (lambda tensors, documents: documents.pop("trainer"), "'trainer' is missing"),
        (lambda tensors, documents: documents["trainer"].pop("updates"), "does not say how many updates were made"),
        (lambda tensors, documents: tensors.pop("optimizer"), "'optimizer' is missing"),
        (lambda tensors, documents: tensors["decoder"].pop("decoder.bias"), "tensor 'decoder.bias', float32 [19], is missing"),
        (lambda tensors, documents: tensors["brain"].update(more=np.zeros(3)), "tensor 'more', float64 [3], is not part of the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(change, output, trained, tmp_path):
    forge(trained, tmp_path / "saved", change)
    with pytest.raises(CheckpointError) as error:
        NeuroGenModel.load(tmp_path / "saved")
    message = one_sentence(error)
    assert output in message and message.startswith(str(tmp_path / "saved"))


@pytest.mark.parametrize("what, value", [("block", 99), ("block", -1), ("delay", 4), ("delay", -1)])
def test_a_wiring_that_leads_out_of_memory_is_refused(what, value, trained, tmp_path):
    """Kernels do not check bounds: tables from a file must be checked before they run."""

    def tamper(tensors, documents):
        name = f"wernicke_pfc.{what}"
        tensors["brain"][name] = tensors["brain"][name].copy()
        tensors["brain"][name][-1, 0] = value

    forge(trained, tmp_path / "saved", tamper)
    with pytest.raises(CheckpointError) as error:
        NeuroGenModel.load(tmp_path / "saved")
    assert "wernicke_pfc" in one_sentence(error)


def truncated(folder):
    path = folder / "brain.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def turned_bit(folder):
    path = folder / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign_tensors(folder):
    """A whole checkpoint by its manifest, whose tensors are none."""
    path = folder / "brain.safetensors"
    path.write_bytes(b"not tensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": 11, "sha256": hashlib.sha256(b"not tensors").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": checkpoint.seal(manifest)}))


@pytest.mark.parametrize(
    "harm, output",
    [
        (truncated, "brain.safetensors is damaged"),
        (turned_bit, "optimizer.safetensors is damaged"),
        (foreign_tensors, "brain.safetensors is damaged"),
        (lambda folder: (folder / "decoder.safetensors").unlink(), "is incomplete: 'decoder.safetensors' is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a NeuroGen checkpoint"),
    ],
    ids=["truncated", "turned bit", "foreign tensors", "file missing", "foreign"],
)
def test_a_damaged_checkpoint_is_refused(harm, output, trained, tmp_path):
    trained.save(tmp_path / "saved")
    harm(tmp_path / "saved")
    with pytest.raises(CheckpointError) as error:
        NeuroGenModel.load(tmp_path / "saved")
    assert output in one_sentence(error)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        NeuroGenModel.load(tmp_path / "nothing")
    assert "is not a NeuroGen checkpoint" in one_sentence(error)


def test_load_checks_the_card(trained, tmp_path):
    trained.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="^gpu_device"):
        NeuroGenModel.load(tmp_path / "saved", gpu_device=-1)


def test_a_config_survives_as_a_dataclass(trained, tmp_path):
    trained.save(tmp_path / "saved")
    loaded = NeuroGenModel.load(tmp_path / "saved").config
    assert dataclasses.asdict(loaded) == TINY.replace(training={"dropout": 0.1, "axon_dropout": 0.1}).to_dict()
