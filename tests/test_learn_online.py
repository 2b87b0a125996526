"""Learning online: that it learns by the trainer's step, within its bounds, and that its reversal is exact."""

import contextlib
import copy
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

import talking
import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.chat import main as chat
from neurogen_numba.errors import ConfigError, TrainingError
from neurogen_numba.generate import main as generate
from neurogen_numba.inference.chat_commands import Dispatcher
from neurogen_numba.inference.conversation import Conversation, Settings
from neurogen_numba.inference.generation import Sampling
from neurogen_numba.learning.online import OnlineLearner
from neurogen_numba.learning.rehearsal import Rehearsal
from neurogen_numba.storage import checkpoint, run_folder
from neurogen_numba.text.batches import open_corpus
from test_chat import Notes
from test_examples import example

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "You: jack keeps hares.\nNeo:"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return talking.make_run(tmp_path_factory.mktemp("online") / "runs" / "tiny-1")


@pytest.fixture
def model(run):
    return NeuroGenModel.load(checkpoint.latest(run), backend="cpu")


def weights(model):
    tensors = {name: x.copy() for name, x in model.optimizer.tensors().items()}
    return model.brain.parameters.flat_value.copy(), tensors, model.optimizer.steps


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    assert one[2] == other[2]
    for name, x in one[1].items():
        np.testing.assert_array_equal(x, other[1][name], err_msg=name)


def files(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_lesson_is_the_updates_of_the_trainer_and_unlearning_is_exact(model, run):
    other, before = NeuroGenModel.load(checkpoint.latest(run), backend="cpu"), weights(model)
    lesson = model.learn(TEXT, rate=0.01, passes=3)
    assert model.has_learned and lesson.after < lesson.before
    ids, T = other.tokenizer.encode(TEXT), other.config.training.segment
    act, losses = other.activity(T, 1, learning=True), []
    for _ in range(3):
        act.reset()
        for first in range(0, len(ids) - 1, T):
            part = ids[first : first + T + 1]
            inputs, targets = np.zeros((T, 1), np.int32), np.full((T, 1), -1, np.int32)
            inputs[: len(part) - 1, 0], targets[: len(part) - 1, 0] = part[:-1], part[1:]
            losses.append((other.update(act, inputs, targets, 0.01)[0], len(part) - 1))
    assert_same(weights(model), weights(other))
    assert lesson.updates == len(losses) == 6
    assert lesson.before == pytest.approx(sum(loss * n for loss, n in losses[:2]) / (len(ids) - 1))
    model.learn("another text", passes=1)
    model.unlearn()
    assert not model.has_learned
    assert_same(weights(model), before)
    model.unlearn()  # nothing left: nothing happens
    assert_same(weights(model), before)


def test_an_update_moves_no_number_by_more_than_a_few_rates(model):
    before = weights(model)[0]
    model.learn(TEXT, rate=1e-3, passes=4)
    moved = np.abs(weights(model)[0] - before).max()
    assert 0 < moved <= 4 * 2 * 4 * 1e-3  # passes, segments


def test_after_unlearning_it_writes_and_learns_as_before(model):
    text = model.write("jack", 20)
    first = model.learn(TEXT)
    taught = weights(model)
    model.unlearn()
    assert model.write("jack", 20) == text
    assert model.learn(TEXT) == first
    assert_same(weights(model), taught)


LINES = "You: anna keeps cats.\nNeo: anna keeps cats.\nYou: who is there?\nNeo: ben, a dog and a hen.\n"


@pytest.fixture
def reader(tmp_path):
    """A model of a run that was trained on a file, and that file."""
    text = tmp_path / "text.txt"
    text.write_text(LINES * 20)
    return NeuroGenModel.load(checkpoint.latest(talking.make_run(tmp_path / "runs" / "tiny-1", {"data": str(text)})), backend="cpu"), text


@pytest.mark.parametrize("taught, copies", [(TEXT, 1), ("a hen", 1), ("hen", 2), ("ab", 2)])
def test_a_batch_is_copies_of_the_lesson_and_training_text_that_goes_on(reader, taught, copies):
    """The brain has segments of 16 tokens; 2 sequences of 16 targets are training text, and a sixth of 32 is 5."""
    model, other = reader[0], copy.copy(reader[0])
    lesson = model.learn(taught, rate=0.01, passes=3)
    config = other.config.replace(training={"batch": 2})
    ids, T = other.tokenizer.encode(taught), config.training.segment
    act, text, losses = other.activity(T, copies + 2, learning=True), open_corpus(config, other.tokenizer).batches(), []
    for _ in range(3):
        for first in range(0, len(ids) - 1, T):
            part, (inputs, targets) = ids[first : first + T + 1], text.next()
            zero = np.zeros((T, copies), np.int32)
            inputs, targets = np.hstack([zero, inputs]), np.hstack([zero - 1, targets])
            inputs[: len(part) - 1, :copies], targets[: len(part) - 1, :copies] = part[:-1, None], part[1:, None]
            other.update(act, inputs, targets, 0.01, np.array([first == 0] * copies + [False, False]))
            losses.append((act.surprise[0], len(part) - 1))
    assert_same(weights(model), weights(other))
    assert (lesson.updates, lesson.alone) == (len(losses), "")
    in_pass = losses[: len(losses) // 3]
    assert lesson.before == pytest.approx(sum(loss * n for loss, n in in_pass) / (len(ids) - 1))


def test_training_text_begins_anew_after_an_end_of_text_only_where_it_did_in_training():
    for resets in (True, False):
        text = {"tokenizer": "byte", "reset_at_documents": resets}
        model = NeuroGenModel.from_config(tiny.config(text, {"vocabulary": talking.BYTES.vocabulary}), talking.BYTES, backend="cpu")
        rehearsed, learner = np.full((16, 2), 65, np.int32), OnlineLearner(model)
        rehearsed[0, 1] = talking.BYTES.end_of_text
        learner._rehearsal.next = lambda text=rehearsed: (text, text)
        assert next(learner._beside(rehearses=True))[1] == [False, resets]


def test_segments_of_earlier_lessons_are_learned_again(model, monkeypatch):
    """In turn, eight in an update, each from a zero state; not that of a lesson that failed, and none after `unlearn`."""
    update, letters, seen = model.update, model.tokenizer.encode("abcdefghijk"), []

    def noted(act, inputs, targets, rate, reset):
        assert reset.all() and act.batch == inputs.shape[1] and ((targets >= 0).sum(axis=0) == (targets >= 0).sum(axis=0)[0]).all()
        seen.append([letter for column in inputs.T for letter in column if letter in letters])
        if letters[3] in seen[-1][:1]:
            raise KeyboardInterrupt
        return update(act, inputs, targets, rate, reset)

    monkeypatch.setattr(model, "update", noted)
    for letter in letters[:-1]:
        with contextlib.suppress(KeyboardInterrupt):
            model.learn(f"o{model.tokenizer.decode([letter])}.", passes=1)
    learned = [*letters[:3], *letters[4:-1]]
    assert seen == [[letter, *learned[: i - (i > 3)]][:9] for i, letter in enumerate(letters[:-1])]
    del seen[:]
    model.learn("ok.", passes=2)
    assert seen == [[letters[-1], *learned[:8]], [letters[-1], *learned[8:], *learned[:7]]]
    model.unlearn()
    model.learn("ok.", passes=1)
    assert seen[2:] == [[letters[-1]]]


def test_a_lesson_with_the_training_text_makes_more_and_smaller_updates(reader):
    model, text = reader
    other = copy.copy(model)
    usual, named = model.learn(TEXT), other.learn(TEXT, rate=2e-4, passes=60)
    assert usual == named and usual.updates == 60 * 2
    assert_same(weights(model), weights(other))
    text.unlink()
    alone, named = copy.copy(model), copy.copy(model)
    lessons = alone.learn(TEXT), named.learn(TEXT, rate=3e-4, passes=20)
    assert lessons[0] == lessons[1] and lessons[0].updates == 20 * 2
    assert_same(weights(alone), weights(named))


def test_lessons_rehearse_on_and_repeat_after_unlearning(reader):
    model, again = reader[0], copy.copy(reader[0])
    before = weights(model)
    first = model.learn(TEXT, passes=2)
    one = weights(model)
    second = model.learn(TEXT, passes=2)
    two = weights(model)
    model.unlearn()
    assert_same(weights(model), before)
    assert model.learn(TEXT, passes=2) == first and again.learn(TEXT, passes=2) == first
    assert_same(weights(model), one)
    rehearsed = again._online._rehearsal.next()[0]
    again.unlearn()
    assert not np.array_equal(again._online._rehearsal.next()[0], rehearsed)  # the second lesson's are others than the first one's
    assert model.learn(TEXT, passes=2) == second
    assert_same(weights(model), two)


def encode(model):
    """Write the tokens and the settings of a model's run, as training does."""
    open_corpus(model.config, model.tokenizer, model.trained_in).batches()
    run_folder.write_json(model.trained_in / run_folder.CONFIG, model.config.to_dict())


def test_the_tokens_of_the_run_are_rehearsed_where_the_text_is_gone(reader):
    model, text = reader
    with_text = model.learn(TEXT, passes=2)
    learned = weights(model)
    run = model.trained_in
    encode(model)
    text.unlink()
    there = copy.copy(model)
    model.unlearn()
    other = copy.copy(model)
    assert other.learn(TEXT, passes=2) == with_text
    assert_same(weights(other), learned)
    assert there.trained_in == pickle.loads(pickle.dumps(there)).trained_in == run


def test_the_tokens_of_another_run_are_not_rehearsed(reader):
    model, text = reader
    encode(model)
    text.unlink()
    assert model.learn(TEXT, passes=1).alone == ""
    other = copy.copy(model)
    other.config = model.config.replace(text={"data": str(text.with_name("other.txt"))})
    assert "other.txt" in copy.copy(other).learn(TEXT, passes=1).alone


def test_text_can_be_rehearsed_after_an_interrupted_read(reader):
    rehearsal = Rehearsal(reader[0])
    first = rehearsal.next()[0]

    def interrupted():
        raise KeyboardInterrupt

    rehearsal._batches = SimpleNamespace(next=interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehearsal.next()
    np.testing.assert_array_equal(rehearsal.next()[0], first)


def test_a_lesson_whose_text_fails_changes_nothing(reader, monkeypatch):
    model = reader[0]
    model.learn(TEXT, passes=1)
    before, read = weights(model), Rehearsal.next
    left = [None, None]

    def fails(self):
        left.pop()
        return read(self)

    monkeypatch.setattr(Rehearsal, "next", fails)
    with pytest.raises(IndexError):
        model.learn(TEXT, passes=3)
    assert_same(weights(model), before)


def test_a_lesson_without_its_training_text_says_so(reader):
    model, text = reader
    text.unlink()
    lesson, sentence = model.learn(TEXT, passes=1), f"no text is rehearsed: {text}: no such file or folder"
    assert lesson.alone == sentence
    text.write_text(LINES * 20)
    assert model.learn(TEXT, passes=1).alone == ""
    model.config = model.config.replace(text={"data": "-"})
    elsewhere = copy.copy(model)
    assert elsewhere.learn(TEXT, passes=1).alone == "no text is rehearsed: -: cannot be read again here"
    alone = copy.copy(model)
    alone.config = model.config.replace(training={"batch": 1})
    assert alone.learn(TEXT, passes=1).alone == "no text is rehearsed: the model learns one sequence at a time"
    elsewhere.trained_in = None  # made in memory: it has no text
    assert elsewhere.learn(TEXT, passes=1).alone == ""


@pytest.mark.parametrize(
    "text, how, sentence",
    [
        ("a", {}, "fewer than two tokens"),
        ("", {}, "fewer than two tokens"),
        ("jack \u20ac", {}, "\u20ac"),
        (TEXT, {"rate": -1}, r"^rate: "),
        (TEXT, {"rate": "much"}, r"^rate: "),
        (TEXT, {"rate": np.nan}, r"^rate: "),
        (TEXT, {"passes": 0}, r"^passes: "),
        (TEXT, {"passes": 1.5}, r"^passes: "),
        (TEXT, {"passes": True}, r"^passes: "),
        (TEXT, {"rate": True}, r"^rate: "),
    ],
)
def test_what_cannot_be_learned_costs_a_sentence_and_nothing_else(model, text, how, sentence):
    before = weights(model)
    with pytest.raises(ConfigError, match=sentence):
        model.learn(text, **how)
    assert not model.has_learned
    assert_same(weights(model), before)


def test_a_model_without_a_tokenizer_says_so(model):
    model.tokenizer = None
    with pytest.raises(ConfigError, match="has no tokenizer"):
        model.learn(TEXT)


def test_a_lesson_that_diverges_changes_nothing(model):
    model.learn("a b c d", passes=1)
    before = weights(model)
    model.brain.parameters.value["decoder.bias"][0] = np.nan
    damaged = weights(model)
    with pytest.raises(TrainingError, match="^nothing was learned: the loss of this text is nan"):
        model.learn(TEXT)
    assert_same(weights(model)[:1] + before[1:], damaged[:1] + before[1:])


def conversation(run, model, learn="message"):
    return Conversation(model, checkpoint.latest(run), Settings(Sampling(0.5, 0, 0.95, 0), 12, learn=learn))


@pytest.mark.parametrize("learn", ["message", "turn"])
def test_a_conversation_learns_its_turns_and_no_file_changes(run, model, learn):
    before, kept, talk = weights(model), files(run), conversation(run, model, learn)
    reply = "".join(talk.reply("jack keeps hares."))
    once = weights(model)
    model.unlearn()
    model.learn(TEXT + (reply if learn == "turn" else ""))
    assert_same(weights(model), once)
    talk.reset()
    assert_same(weights(model), once)  # /reset forgets what was said, not what was learned
    pieces = talk.reply("anna keeps cats.")
    next(pieces)
    pieces.close()  # broken off
    assert_same(weights(model), once)
    "".join(talk.retry())
    assert_same(weights(model), once)
    talk.unlearn()
    assert_same(weights(model), before)
    assert files(run) == kept


def test_the_commands(run, model, tmp_path):
    notes, talk, before = Notes(), conversation(run, model, ""), weights(model)
    dispatcher = Dispatcher(talk, notes, None)
    for line in ("a cat.", "/learn", "/learn turn", "a dog.", "/learn"):
        dispatcher.take(line)
    assert notes.lines_said[:2] == ["learning: off", "learning: turn"]
    assert notes.lines_said[2].startswith("no text is rehearsed: the built-in stories need a tokenizer with an end of text")
    assert notes.lines_said[3].startswith("learning: turn; the last lesson took its text from ")
    dispatcher.take("a hen.")
    assert len(notes.lines_said) == 4  # said once
    with pytest.raises(ConfigError, match="/keep NAME"):
        dispatcher.take("/save talk")
    dispatcher.take(f"/keep {tmp_path / 'kept'}")
    learned = weights(model)
    np.testing.assert_array_equal(weights(NeuroGenModel.load(tmp_path / "kept", backend="cpu"))[0], learned[0])
    with pytest.raises(ConfigError, match="is there already"):
        dispatcher.take(f"/keep {tmp_path / 'kept'}")
    dispatcher.take("/keep first")
    assert (run / "learned" / "first" / "brain.safetensors").is_file()
    dispatcher.take("/learn off")
    dispatcher.take("a hen.")
    assert_same(weights(model), learned)
    dispatcher.take("/unlearn")
    assert_same(weights(model), before)
    with pytest.raises(ConfigError, match="^learn: "):
        Settings(learn="everything")


def test_the_flags(run, capsys, tmp_path):
    checkpoint_folder, kept = str(checkpoint.latest(run)), files(checkpoint.latest(run))
    assert chat([checkpoint_folder, "--learn-online", "--prompt", "a cat.", "--max-tokens", "5", "--backend", "cpu"]) == 0
    how = [checkpoint_folder, "--prompt", "a cat and a dog", "--length", "3", "--backend", "cpu"]
    assert generate([*how, "--learn-online", "--keep", str(tmp_path / "new")]) == 0
    assert json.loads((tmp_path / "new" / "trainer.json").read_text())["updates"] == 20
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2 and all("no text is rehearsed: the built-in stories need" in line for line in printed)
    for wrong, sentence in (
        (["--keep", str(tmp_path / "other")], "--learn-online"),
        (["--learn-online", "--keep", str(tmp_path / "new")], "is there already"),
        (["--learn-online", "--prompt", ""], "fewer than two tokens"),
    ):
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(generate([*how, *wrong]))
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
    assert files(checkpoint.latest(run)) == kept


def test_the_example_teaches_and_takes_back():
    before, after, again = example("learn_online").main()
    assert after == " hares." and before == again != after
