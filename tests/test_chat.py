"""The chat without its screen: turns, commands, what is kept, and pipes."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import talking
from neurogen_numba.chat import main as chat
from neurogen_numba.chat import title
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.inference import chat_commands
from neurogen_numba.inference.chat_commands import COMMANDS, STOPS, Dispatcher, completions, number, parse, unescaped
from neurogen_numba.inference.conversation import STOPS as ENDS
from neurogen_numba.inference.conversation import Conversation, Settings, examples
from neurogen_numba.inference.generation import Sampling
from neurogen_numba.storage import checkpoint, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return talking.make_run(tmp_path_factory.mktemp("chat") / "runs" / "tiny-1")


@pytest.fixture
def conversation(run):
    return talking.conversation(run)


class Notes:
    """A view that keeps what it is told."""

    keys = "keys"

    def __init__(self):
        self.lines_said, self.replies, self.turns, self.shown = [], [], [], False

    def say(self, text):
        self.lines_said.append(text)

    def table(self, rows):
        self.lines_said += [f"{name}: {value}" for name, value in rows.items()]

    def replay(self, turns):
        self.turns += turns

    def stream(self, conversation, pieces):
        self.replies.append("".join(pieces))

    def show_brain(self, conversation, shown):
        self.shown = not self.shown if shown is None else shown
        conversation.watch(self.shown)
        return self.shown


@pytest.fixture
def chatting(conversation):
    """(take, view) of a conversation."""
    view = Notes()
    dispatcher = Dispatcher(conversation, view, lambda word: talking.conversation(Path(word)))
    view.dispatcher = dispatcher
    return dispatcher.take, view


# Turns


class Scripted:
    """A session that keeps what it is fed and says what it is told to."""

    def __init__(self, model, sampling):
        self.model, self.sampling, self.monitor = model, sampling, None
        self.last_tokens, self.fed, self.written, self.says = (), [], 0, b""

    def state(self):
        return {"last_tokens": self.last_tokens}

    def load_state(self, state):
        self.last_tokens = state["last_tokens"]

    def feed(self, ids):
        self.last_tokens = ids[:, 0]
        self.fed.append(self.model.tokenizer.decode(self.last_tokens))

    def draw(self):
        self.last_tokens, self.says = np.array([self.says[0]]), self.says[1:]
        self.written += 1
        return self.last_tokens


@pytest.fixture
def scripted(monkeypatch):
    """Makes a conversation whose session is scripted; data: what its model has learned from, "" for the stories; speakers: of its lines."""
    monkeypatch.setattr("neurogen_numba.inference.conversation.Session", Scripted)

    def make(data, speakers="", **settings):
        model = SimpleNamespace(tokenizer=talking.BYTES, config=talking.config({"data": data, "speakers": speakers}))
        return Conversation(model, Path("run/checkpoints/step-00000001"), Settings(max_tokens=13, **settings))

    return make


def answered(conversation, message, says):
    conversation.session.says = says.encode() + bytes(20)
    return "".join(conversation.reply(message))


def test_a_turn_begins_on_a_line_of_its_own(scripted):
    talk = scripted("")
    assert answered(talk, " Hi. ", " Hello.\n") == " Hello."
    assert answered(talk, "Where?", " Tom lives in Rome") == " Tom lives in"  # cut off: the line is ended for it
    with pytest.raises(ConfigError, match="surrogate"):
        talk.reply("\ud800")
    talk.session.says = [talking.BYTES.end_of_text]
    assert "".join(talk.reply("Why?")) == ""
    assert answered(talk, "So?", "a" * 20) == "a" * 13
    assert talk.session.fed == ["You: Hi.\nNeo:", "You: Where?\nNeo:", "\nYou: Why?\nNeo:", "You: So?\nNeo:"]
    assert talk.turns == [(" Hi. ", " Hello."), ("Where?", " Tom lives in"), ("Why?", ""), ("So?", "a" * 13)]


def test_a_talk_about_any_text_continues_it(scripted):
    talk = scripted("sheep.txt")
    assert answered(talk, "the sheep", "went home.\n\nx") == "went home."
    assert answered(talk, "on", "and on and on and on") == "and on and on"
    assert answered(talk, "and", "x" * 20) == "x" * 13
    assert talk.session.fed == ["the sheep\n", "on\n", "\nand\n"]


def test_lines_of_dialogues_begin_with_their_speakers(scripted):
    talk = scripted("dialogues.txt", "User: System:")
    assert answered(talk, " A table, please. ", " For when?\nUser: 7") == " For when?"
    assert answered(talk, "At seven.", " Done.\n") == " Done."
    assert talk.session.fed == ["User: A table, please.\nSystem:", "User: At seven.\nSystem:"]


def test_a_text_of_one_line_is_continued_without_an_end_of_line(scripted, monkeypatch):
    monkeypatch.setattr(talking, "BYTES", talking.CharTokenizer("ab ", documents=True))
    talk = scripted("sheep.txt")
    talk.session.says = [0, 1, talking.BYTES.end_of_text] * 2
    assert ["".join(talk.reply(message)) for message in ("a", "b")] == [" a", " a"]
    assert talk.session.fed == ["a", "b"]


@pytest.mark.parametrize(
    "stop, data, reply",
    [
        ("", "", "Hi. 1.5!"),
        ("", "sheep.txt", "Hi. 1.5!\nSo"),
        ("turn", "sheep.txt", "Hi. 1.5!"),
        ("sentence", "", "Hi."),
        ("paragraph", "", "Hi. 1.5!\nSo"),
        ("length", "", "Hi. 1.5!\nSo\n\n"),
    ],
)
def test_a_reply_ends_where_it_is_told_to(scripted, stop, data, reply):
    talk = scripted(data, stop=stop)
    assert answered(talk, "a", "Hi. 1.5!\nSo\n\nand") == reply


def test_a_number_ends_no_sentence(scripted):
    assert answered(scripted("", stop="sentence"), "a", '1.5 "so?"\nand') == '1.5 "so?'
    assert answered(scripted("", stop="sentence"), "a", "in 1999. Yes. No") == "in 1999. Yes."


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(conversation):
    pieces = conversation.reply("go")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.turns == [("go", begun)] and conversation.last.tokens == conversation.written == 2


def test_warming_up_leaves_no_trace(run):
    warm, cold = talking.conversation(run, watched=True), talking.conversation(run)
    warm.warm_up()
    assert warm.monitor.frame().tokens == 0
    assert [*warm.reply("go")] == [*cold.reply("go")]
    assert warm.last.nats > 0 and cold.last.nats is None


# Commands


def test_every_command_is_obeyed_and_explained(chatting, run, tmp_path, monkeypatch):
    take, view = chatting
    words = {
        "temperature": "0.8", "top-k": "5", "top-p": "0.9", "max-tokens": "7", "seed": "3", "stop": "length", "pace": "0",
        "params": "", "learn": "off", "keep": str(tmp_path / "learned"),
        "save": str(tmp_path / "kept"), "load": str(tmp_path / "kept"), "model": str(run), "brain": "on", "help": "",
    }  # fmt: skip
    assert take("go")
    for name in COMMANDS:
        before = len(view.lines_said) + len(view.replies)
        assert take(f"/{name} {words.get(name, '')}") == (name != "quit")
        assert len(view.lines_said) + len(view.replies) > before or name == "quit", f"/{name} says nothing"
    take("/help")
    assert {line.split()[0].rstrip(":") for line in view.lines_said[-len(COMMANDS) - 1 : -1]} == {f"/{name}" for name in COMMANDS}
    take("/help save")
    assert view.lines_said[-1].startswith("/save NAME: ")


def test_settings_change_what_is_drawn(chatting):
    take, view = chatting
    for line in ("/temperature 0", "/top-k 3", "/top-p 0.5", "/seed 9", "/max-tokens 4", "/stop length", "/pace 2.5"):
        take(line)
    settings = view.dispatcher.conversation.settings
    assert settings == Settings(Sampling(0.0, 3, 0.5, 9), 4, "length", 2.5)
    take("/params lively")
    assert view.dispatcher.conversation.settings.sampling == Sampling(0.8, 0, 0.95, 9)
    assert view.lines_said[-7:] == [
        "temperature: 0.8",
        "top-k: 0 (all)",
        "top-p: 0.95",
        "max-tokens: 4",
        "seed: 9",
        "stop: length",
        "pace: 2.5 tokens/s",
    ]
    take("go")
    assert view.dispatcher.conversation.last.tokens == 4


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("/temprature 1", "/temprature: no such command; did you mean '/temperature'?"),
        ("/", "/: no such command; known: " + ", ".join(f"/{name}" for name in COMMANDS)),
        ("/reset now", "/reset takes nothing after it; got 'now'"),
        ("/temperature", "/temperature needs a number from 0 on, as in /temperature 0.8; got nothing"),
        ("/temperature hot", "/temperature needs a number from 0 on, as in /temperature 0.8; got 'hot'"),
        ("/temperature nan", "/temperature needs a number from 0 on, as in /temperature 0.8; got 'nan'"),
        ("/temperature -1", "/temperature needs a number from 0 on, as in /temperature 0.8; got '-1'"),
        ("/temperature 1 2", "/temperature needs a number from 0 on, as in /temperature 0.8; got '1 2'"),
        ("/temperature 1e300", "temperature: 0 or more, not 1e+300"),
        ("/seed 1.5", "/seed needs an integer from 0 on, as in /seed 7; got '1.5'"),
        ("/seed 99999999999999999999", "seed: a number of at most 64 bits, not 99999999999999999999"),
        ("/top-p 2", "top-p: above 0 and at most 1, not 2.0"),
        ("/top-k -1", "/top-k needs an integer from 0 on, as in /top-k 40; got '-1'"),
        ("/max-tokens 0", "max-tokens: from 1 to 2^31 - 1, not 0"),
        ("/stop here", "/stop here: unknown; known: turn, sentence, paragraph, length"),
        ("/stop", "/stop needs one of turn, sentence, paragraph, length; got nothing"),
        ("/params wildest", "/params wildest: unknown; did you mean 'wild'?"),
        ("/brain maybe", "/brain maybe: unknown; known: on, off"),
        ("/help savee", "/help savee: no such command; did you mean 'save'?"),
        ("/retry", "there is no message to answer again; say something first"),
        ("/save", "/save needs a name: /save NAME; got nothing"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_changes_nothing(chatting, line, sentence):
    take, view = chatting
    before = view.dispatcher.conversation.settings
    with pytest.raises(ConfigError) as error:
        take(line)
    assert str(error.value) == sentence
    assert view.dispatcher.conversation.settings == before and not view.replies


def test_what_is_no_command():
    assert [parse(line) for line in ("Once upon a time", "and/or", "", "//temperature", "/a\n/b")] == [None] * 5
    assert unescaped("//temperature") == "/temperature" and unescaped("and//or") == "and//or"
    assert [parse(line) for line in ("exit", " quit ", "/exit", "/quit")] == [("quit", "")] * 4
    assert parse(" /help ") == ("help", "") and parse("/load  my talk ") == ("load", "my talk")
    assert number("seed", "7") == 7 and isinstance(number("seed", "7"), int)


def test_the_ways_to_stop_are_those_of_a_conversation():
    assert tuple(sorted(STOPS)) == tuple(sorted(ENDS))


def test_tab_completes_commands_and_what_they_take(conversation, run, tmp_path):
    def offered(line):
        return [text for text, _, _ in completions(line, conversation, ["Tell me."], run.parent)]

    assert offered("") == ["Tell me."] and offered("You") == [] and offered("//t") == []
    assert offered("/te") == ["/temperature "] and offered("/re") == ["/retry", "/reset"]
    assert len(offered("/")) == len(COMMANDS)
    assert offered("/stop ") == list(STOPS) and offered("/params w") == ["wild"] and offered("/brain o") == ["on", "off"]
    assert offered("/model ti") == ["tiny-1", "tiny-1@best"] and offered("/help top") == ["top-k", "top-p"]
    assert offered("/load ") == []
    conversation.save("monday")
    assert offered("/load m") == ["monday"] and offered("/nonsense ") == []


# State


def test_retry_answers_from_the_state_before_with_another_seed(run):
    conversation, other = talking.conversation(run), talking.conversation(run)
    for each in (conversation, other):
        list(each.reply("one"))
    list(conversation.reply("two"))
    again = "".join(conversation.retry())
    other.change(seed=1)
    assert "".join(other.reply("two")) == again
    assert conversation.settings.sampling.seed == 1 and conversation.turns == other.turns
    for name, array in conversation.session.state().items():
        np.testing.assert_array_equal(array, other.session.state()[name], err_msg=name)


def test_reset_forgets_everything_and_forget_only_the_memory(run):
    conversation, fresh = talking.conversation(run), talking.conversation(run)
    list(conversation.reply("one"))
    before = conversation.session.state()
    conversation.forget()
    after = conversation.session.state()
    assert before["memory.S"].any() and not after["memory.S"].any()
    for name in before.keys() - {"memory.S"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    conversation.reset()
    assert conversation.turns == [] and list(conversation.reply("one")) == list(fresh.reply("one"))


@pytest.mark.parametrize("watched", [False, True])
def test_a_conversation_goes_on_where_it_was_saved(run, tmp_path, watched):
    conversation, other = talking.conversation(run, watched), talking.conversation(run, watched)
    list(conversation.reply("one"))
    folder = conversation.save(str(tmp_path / "kept"))
    list(other.reply("something else"))
    assert other.load(str(folder)) == folder
    assert other.turns == conversation.turns and (other.read, other.written) == (conversation.read, conversation.written)
    assert list(other.reply("two")) == list(conversation.reply("two"))
    other.save(str(folder))  # its own
    with pytest.raises(ConfigError, match="holds a conversation already"):
        talking.conversation(run).save(str(folder))


def test_saving_takes_the_place_of_nothing_else(run, conversation, tmp_path):
    before = sorted(path.read_bytes() for path in conversation.folder.rglob("*") if path.is_file())
    for taken in (conversation.folder, run, tmp_path):
        with pytest.raises(ConfigError, match="holds something that is not a conversation already; choose another name"):
            conversation.save(str(taken))
    assert sorted(path.read_bytes() for path in conversation.folder.rglob("*") if path.is_file()) == before


def test_a_save_that_fails_leaves_nothing(conversation, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        conversation.save(str(tmp_path / "kept"))
    assert list(tmp_path.iterdir()) == []


def document(folder, **changes):
    """Write a conversation's document once more, with changes, under a seal that fits."""
    about = json.loads((folder / "conversation.json").read_text())
    tensors = checkpoint.load(folder).tensors
    checkpoint.save(folder, tensors, {"conversation": about | changes})


def with_state(folder, **changes):
    saved = checkpoint.load(folder)
    checkpoint.save(folder, {"state": saved.tensors["state"] | changes}, saved.documents)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda folder: document(folder, turns=[["a"]]), "turns cannot be read"),
        (lambda folder: document(folder, read="many"), "turns cannot be read"),
        (lambda folder: document(folder, brain="another", model="runs/other"), "another brain, that of runs/other"),
        (lambda folder: with_state(folder, **{"memory.S": np.full((1, 2, 8, 8), np.nan, np.float32)}), "a NaN or an infinite value"),
        (lambda folder: with_state(folder, **{"memory.S": np.zeros((1, 2, 8, 9), np.float32)}), "state array 'memory.S'"),
        (lambda folder: with_state(folder, drawn=np.zeros(2, np.uint64)), "'drawn' is missing or of another shape"),
        (lambda folder: with_state(folder, last_tokens=np.array([10**6], np.int32)), "outside the vocabulary"),
        (lambda folder: (folder / "conversation.json").write_text("{}"), "is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a NeuroGen checkpoint"),
    ],
)
def test_a_damaged_conversation_is_refused_and_the_present_one_goes_on(run, tmp_path, harm, words):
    conversation, same = talking.conversation(run), talking.conversation(run)
    list(same.reply("one"))
    folder = conversation.save(str(tmp_path / "kept"))
    harm(folder)
    list(conversation.reply("one"))
    with pytest.raises(CheckpointError, match=words):
        conversation.load(str(folder))
    assert conversation.turns == same.turns and list(conversation.reply("two")) == list(same.reply("two"))


def test_a_checkpoint_is_no_conversation(conversation):
    with pytest.raises(CheckpointError, match="holds no conversation"):
        conversation.load(str(conversation.folder))
    with pytest.raises(ConfigError, match="there is no conversation .*monday; known: "):
        talking.conversation(conversation.run).load("nothing like monday")


# Examples


def test_the_stories_have_a_fact_and_a_question_about_it(conversation):
    assert examples(conversation.model, conversation.run) == ["Tell me a story.", "Jack keeps hares.", "What does Jack keep?"]


def test_other_text_has_beginnings_of_its_samples(tmp_path):
    model = SimpleNamespace(config=talking.config({"data": "book.txt"}))
    assert examples(model, tmp_path) == []
    prompts = ["ut off the first word and the la", '"|"\nA new line\n__clas', "x " * 40, "ut off the first word and the la", "not reached"]
    records = [{"kind": "sample", "step": n, "prompt": prompt, "text": ""} for n, prompt in enumerate(reversed(prompts))]
    lines = [json.dumps(record) for record in records] + ["{", '{"kind": "sample"}', "[1]", '{"kind": "step"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert examples(model, tmp_path) == ["off the first word and the", "A new line", ("x " * 24).strip()]


# Pipes


@pytest.fixture
def piped(run, monkeypatch, capsys):
    """Runs a chat with this standard input: (exit code, standard output, standard error)."""

    def use(text, *flags):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = chat([str(run), "--backend", "cpu", *flags])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return use


def test_a_pipe_gets_the_answers_alone(run, piped):
    talk = talking.conversation(run)
    expected = "".join("".join(talk.reply(line)).lstrip() + "\n" for line in ("one", "two"))
    code, out, errors = piped("one\n\ntwo\n", "--max-tokens", "30")
    assert (code, out, errors) == (0, expected, "")


def test_in_a_pipe_everything_else_goes_to_standard_error(piped):
    lines = "/seed 3\none\n/nonsense\n/help\n/brain on\ntwo\n/stats\nquit\nthree\n"
    code, out, errors = piped(lines, "--max-tokens", "5")
    assert code == 2 and "neurogen chat: /nonsense: no such command" in errors
    assert "\x1b" not in out + errors and "seed 3" in errors and "/temperature X" in errors and "tokens written" in errors
    assert "wernicke" in errors and "wernicke" not in out
    plain = piped("/seed 3\none\ntwo\n", "--max-tokens", "5")
    assert plain[:2] == (0, out)


def test_prompts_are_answered_one_after_the_other(piped):
    asked = piped("never read\n", "--prompt", "one", "--prompt", "two", "--max-tokens", "9")
    assert asked == piped("one\ntwo\n", "--max-tokens", "9") and asked[0] == 0 and asked[1]
    code, out, errors = piped("", "--prompt", "\U0001f40e")
    assert (code, out, errors.count("\n")) == (2, "", 1)


def test_the_header_says_that_a_run_has_stopped_early(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = talking.make_run(tmp_path / "runs" / "a b")
    conversation = talking.conversation(run)
    stopped = "1 of 724 updates: stopped early; neurogen train --resume 'runs/a b' continues it"
    trainer = checkpoint.latest(run) / "trainer.json"
    trainer.write_text(json.dumps({"step": 1, "steps": 724}))
    assert stopped in title(conversation).splitlines()
    with run_folder.lock(run):
        assert "1 of 724 updates: it is training" in title(conversation).splitlines()
    trainer.write_text(json.dumps({"step": 1, "steps": 1}))
    assert "updates:" not in title(conversation)


def test_the_header_is_silent_about_an_earlier_checkpoint(tmp_path):
    run = talking.make_run(tmp_path / "run")
    conversation = talking.conversation(run)
    (run / "checkpoints" / "step-00000724").mkdir()
    assert "updates:" not in title(conversation)


def test_a_person_on_a_terminal_that_cannot_draw_is_asked_for_lines(run, monkeypatch, capsys):
    lines = iter(["one", KeyboardInterrupt, "/nonsense", "/brain", "two", "exit", "never read"])

    def typed(prompt=""):
        assert prompt == "You: "
        if (line := next(lines)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", typed)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert chat([str(run), "--backend", "cpu", "--max-tokens", "5", "--stop", "length"]) == 0
    out = capsys.readouterr().out
    assert out.count("Neo: ") == 2 and "no such command" in out and "broca" in out and "surprise" not in out and "\x1b" not in out
    assert next(lines) == "never read"


def test_the_interpreter_alone_is_enough_for_help(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; import neurogen_numba.inference.chat_commands; print('numpy' in sys.modules)"],
        capture_output=True, text=True, cwd=Path(chat_commands.__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "False\n", done.stderr
