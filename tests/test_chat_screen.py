"""The chat on a terminal: what is drawn at every size, keys, resizing while it speaks, colours, history; and what the panel shows."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import struct
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pyte
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output
from rich.cells import cell_len
from rich.style import Style

import talking
from neurogen_numba.brain.monitor import BrainFrame, Recalled
from neurogen_numba.config import MODULES
from neurogen_numba.errors import CheckpointError
from neurogen_numba.inference.chat_commands import Dispatcher
from neurogen_numba.ui import brain_panel, surprise
from neurogen_numba.ui.chat_history import ChatHistory, path
from neurogen_numba.ui.chat_screen import ChatScreen
from neurogen_numba.ui.plain import printable
from neurogen_numba.ui.word_wrap import WordWrap

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE = 120  # seconds for what happens in a moment on a machine that is not busy
ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "[/red] [bold]x[/] \x1b[2J\x07\r\x00\x9b1m 日本語 🦊 \u202eabc \ud800 \\[z] \t|" + "w" * 300
PASTE = "\x1b[200~", "\x1b[201~"
SLOW = 1e-4  # tokens per second: after the first one, a reply goes on when it is stopped


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return talking.make_run(tmp_path_factory.mktemp("screen") / "runs" / "tiny-1")


@pytest.fixture(autouse=True)
def colors(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "PROMPT_TOOLKIT_COLOR_DEPTH"):
        monkeypatch.delenv(name, raising=False)


class Stage:
    """A chat on a terminal in memory: `play(script)` runs the screen, and the script in another thread."""

    def __init__(self, run, columns=80, rows=24, pace=0.0, history=None, max_tokens=30, opened=None):
        self.run, self.size, self.pace, self.history, self.max_tokens = run, [columns, rows], pace, history, max_tokens
        self.opened = opened or self._opened
        self.terminal, self._lock = pyte.Screen(columns, rows), threading.Lock()
        self._stream = pyte.Stream(self.terminal)

    def _opened(self, screen):
        conversation = talking.conversation(self.run, watched=True, max_tokens=self.max_tokens)
        conversation.change(pace=self.pace)
        return Dispatcher(conversation, screen, lambda word: talking.conversation(Path(word), True)), "a title", ["Tell me."]

    encoding = "utf-8"

    def write(self, text):
        with self._lock:
            self._stream.feed(text)

    def flush(self):
        pass

    def play(self, script):
        failures = []

        def act():
            try:
                script(self)
            except BaseException as error:
                failures.append(error)
            finally:
                self.screen._call(self.screen._exit)

        with create_pipe_input() as self.keys:
            output = Vt100_Output(self, lambda: Size(rows=self.size[1], columns=self.size[0]), term="xterm-256color", enable_cpr=False)
            with create_app_session(input=self.keys, output=output):
                self.screen = ChatScreen("tiny-1", self.opened, self.run.parent, self.history)
                actor = threading.Thread(target=act, daemon=True)
                self.screen._begin = self._after(self.screen._begin, actor.start)
                self.screen.run()
                actor.join(PATIENCE)
        if failures:
            raise failures[0]
        return self

    @staticmethod
    def _after(first, second):
        def both():
            first()
            second()

        return both

    def send(self, text):
        self.keys.send_text(text)

    @property
    def lines(self):
        with self._lock:
            return list(self.terminal.display)

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)

    def until(self, *wanted):
        """Wait until all of this is on the screen: texts, or functions of no arguments that say so."""
        deadline = time.monotonic() + PATIENCE
        while not all(each() if callable(each) else each in self.text for each in wanted):
            assert time.monotonic() < deadline, f"{wanted} is not there:\n{self.text}"
            time.sleep(0.01)

    def resize(self, columns, rows):
        with self._lock:
            self.terminal.resize(rows, columns)
            self.terminal.reset()  # what a terminal makes of the old picture is its own affair
        self.size[:] = columns, rows
        self.screen._call(self.screen.app._on_resize)

    def settled(self):
        """Wait until the picture is the one that is drawn on an empty terminal: nothing is torn, nothing left over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self.lines
            whole = pyte.Screen(*self.size)
            stream = pyte.Stream(whole)
            done = threading.Event()

            def redraw(stream=stream, done=done):
                app, ours = self.screen.app, self._stream
                self._stream = stream
                app.renderer.clear()
                app._redraw()
                self._stream = ours
                app.renderer.reset()
                done.set()

            self.screen._call(redraw)
            assert done.wait(PATIENCE)
            if list(whole.display) == before:
                return
            assert time.monotonic() < deadline, "torn:\n" + "\n".join(before) + "\nwhole:\n" + "\n".join(whole.display)
            time.sleep(0.05)


def ready(stage):
    stage.until("a title", lambda: not stage.screen._state)


# Drawing


SIZES = [(80, 24), (160, 50), (50, 24), (80, 12), (24, 8)]


@pytest.mark.parametrize("columns, rows", SIZES)
def test_a_reply_and_its_brain_at_every_size(run, columns, rows):
    def script(stage):
        ready(stage)
        stage.send("hello\r")
        stage.until("Neo: ", lambda: not stage.screen.waiting)
        reply = stage.screen.dispatcher.conversation.turns[0][1].strip()
        stage.until(lambda: re.sub(r"\s", "", reply)[-12:] in re.sub(r"[\s│]|(?<=\n).{0,3}", "", stage.text) or columns > 100)
        stage.until("You: hello" if rows > 12 else "You:")
        if columns >= 50 and rows >= 24:
            stage.until(*(("basal gang",) if columns < 56 else ("basal ganglia",)), "brain, after", "nats", "broca", " %")
            assert stage.screen.frame.tokens > 30
        assert ("brain" in stage.text) == (rows >= 24 or columns >= 110)
        assert ("│" in stage.text) == (columns >= 110)
        stage.settled()

    Stage(run, columns, rows).play(script)


def test_the_answer_is_the_one_that_a_pipe_gets(run):
    plain = "".join(talking.conversation(run).reply("hello"))

    def script(stage):
        ready(stage)
        stage.send("hello\r")
        stage.until("Neo: ", lambda: not stage.screen.waiting)
        assert stage.screen.dispatcher.conversation.turns == [("hello", plain)]

    Stage(run).play(script)


@pytest.mark.parametrize("columns, rows", [(80, 24), (160, 50), (50, 24)])
def test_resizing_while_it_speaks_tears_no_line_and_loses_no_key(run, columns, rows):
    def script(stage):
        ready(stage)
        stage.send("first\r")
        stage.until("Neo: ", "Ctrl-C stops")
        typed = ""
        for width, height in ((50, 24), (160, 50), (20, 6), (80, 24), (columns, rows)):
            stage.send(f"w{width} ")
            stage.resize(width, height)
            stage.send(f"h{height} ")
            typed += f"w{width} h{height} "
            stage.until(lambda typed=typed: stage.screen.typed.text == typed)
            stage.settled()
        stage.until(typed.strip())
        assert stage.screen._speaking
        stage.send("\x03")
        stage.until("stopped", lambda: not stage.screen.waiting)
        assert stage.screen.typed.text == typed and stage.screen.dispatcher.conversation.last.tokens >= 1
        stage.settled()

    Stage(run, columns, rows, pace=SLOW).play(script)


def styles_of_letters(stage):
    with stage._lock:
        cells = [stage.terminal.buffer[row][column] for row in range(stage.size[1]) for column in range(stage.size[0])]
    return {(cell.fg, cell.bg) for cell in cells if cell.data.strip()}, any(cell.bold or cell.underscore for cell in cells)


@pytest.mark.parametrize("without", [True, False])
def test_no_color(run, monkeypatch, without):
    if without:
        monkeypatch.setenv("NO_COLOR", "1")

    def script(stage):
        ready(stage)
        stage.send("hello\r")
        stage.until("Neo: ", lambda: not stage.screen.waiting, "surprise <0.2")
        stage.settled()
        colors, marked = styles_of_letters(stage)
        assert (colors == {("default", "default")}) == without and marked

    Stage(run).play(script)


def test_hostile_text_is_shown_and_not_obeyed(run):
    def script(stage):
        ready(stage)
        stage.screen.say(HOSTILE)
        stage.screen.refuse(HOSTILE)
        stage.until("[/red] [bold]x[/]")
        assert "\x07" not in stage.text and "\x00" not in stage.text
        stage.settled()

    Stage(run).play(script)


# Keys


def test_ctrl_c_stops_a_reply_and_clears_a_line(run):
    def script(stage):
        ready(stage)
        stage.send("first\r")
        stage.until("Ctrl-C stops")
        stage.send("second\rthird\rhalf a li")
        stage.until("half a li")
        stage.send("\x03")  # the lines that wait come back
        stage.until("stopped", lambda: stage.screen.typed.text == "second\nthird\nhalf a li")
        assert len(stage.screen.dispatcher.conversation.turns) == 1
        stage.send("\x03")
        stage.until(lambda: stage.screen.typed.text == "")
        stage.send("\x03")
        stage.until("Ctrl-D or /quit leaves")
        stage.send("again\r")
        stage.until("You: again", "Ctrl-C stops")
        assert not stage.screen._stop.is_set()

    Stage(run, pace=SLOW).play(script)


def test_lines_typed_ahead_are_answered_in_order(run):
    def script(stage):
        stage.send("one\rtwo\r/seed 4\rthree\r")
        stage.until("You: three", lambda: len(stage.screen.dispatcher.conversation.turns) == 3, lambda: not stage.screen.waiting)
        assert [message for message, _ in stage.screen.dispatcher.conversation.turns] == ["one", "two", "three"]
        assert stage.screen.dispatcher.conversation.settings.sampling.seed == 4

    Stage(run).play(script)


@pytest.mark.parametrize("leaving", ["\x04", "exit\r", "quit\r", "/quit\r", "/exit\r"])
def test_ways_to_leave(run, leaving):
    def script(stage):
        ready(stage)
        stage.send(leaving)
        stage.screen.worker.join(PATIENCE)
        assert not stage.screen.worker.is_alive()

    Stage(run).play(script)


def test_leaving_while_it_speaks_ends_the_reply(run):
    def script(stage):
        ready(stage)
        stage.send("one\r")
        stage.until("Ctrl-C stops")
        stage.send("\x04")
        stage.screen.worker.join(PATIENCE)
        assert not stage.screen.worker.is_alive()

    Stage(run, pace=SLOW).play(script)


def test_lines_of_several_lines(run):
    def script(stage):
        ready(stage)
        for keys, text in (
            ("a\x1b\rb", "a\nb"),  # Alt-Enter
            ("a\\\rb", "a\nb"),
            (f"{PASTE[0]}one\rtwo\nthree{PASTE[1]}", "one\ntwo\nthree"),
            (f"x{PASTE[0]}/quit\r\n{PASTE[1]}y", "x/quit\ny"),  # what is pasted is never sent by itself
        ):
            stage.send(keys)
            stage.until(lambda text=text: stage.screen.typed.text == text)
            stage.send("\x03")
            stage.until(lambda: stage.screen.typed.text == "")
        stage.send(f"{PASTE[0]}up\ndown{PASTE[1]}\r")
        stage.until(lambda: stage.screen.dispatcher.conversation.turns, "You: up")
        assert stage.screen.dispatcher.conversation.turns[0][0] == "up\ndown"

    Stage(run).play(script)


def test_tab_completes(run):
    def script(stage):
        ready(stage)
        for keys, text in (
            ("/te\t", "/temperature "),
            ("/model ti\t\t", "/model tiny-1"),
            ("/stop par\t", "/stop paragraph"),
            ("\t", "Tell me."),
        ):
            stage.send(keys)
            stage.until(lambda text=text: stage.screen.typed.text == text)
            stage.send("\x03")
            stage.until(lambda: stage.screen.typed.text == "")
        stage.send("/\t\t")
        stage.until("list the commands, or explain one")

    Stage(run).play(script)


def test_the_text_scrolls(run):
    def script(stage):
        ready(stage)
        stage.send("/help\r")
        stage.until("/quit")
        assert "a title" not in stage.text
        stage.send("\x1b[5~\x1b[5~\x1b[5~")
        stage.until("a title", "lines below")
        stage.send("\x1b[6~\x1b[6~\x1b[6~")
        stage.until(lambda: "lines below" not in stage.text and "a title" not in stage.text)
        stage.send("\x1b[5~")
        stage.until("lines below")
        stage.send("/seed 3\r")
        stage.until("seed 3", lambda: "lines below" not in stage.text)

    Stage(run).play(script)


def test_mistakes_are_told_and_the_chat_goes_on(run):
    def script(stage):
        ready(stage)
        stage.send("/temprature 1\r")
        stage.until("did you mean '/temperature'?")
        stage.send("ÄÖ\r")
        stage.until("'Ä'")
        stage.send("fine\r")
        stage.until("Neo: ")

    Stage(run).play(script)


def test_the_brain_is_hidden_and_shown(run):
    def script(stage):
        ready(stage)
        stage.until("wernicke")
        stage.send("/brain off\r")
        stage.until("the brain is hidden", lambda: "wernicke" not in stage.text)
        stage.send("one\r")
        stage.until("Neo: ", lambda: not stage.screen.waiting)
        assert stage.screen.dispatcher.conversation.last.nats is None
        stage.send("/brain\r")
        stage.until("the brain is shown", "wernicke")
        stage.send("two\r")
        stage.until("You: two", lambda: not stage.screen.waiting, "nats/token")

    Stage(run).play(script)


def test_a_conversation_that_is_loaded_is_shown(run, tmp_path):
    conversation = talking.conversation(run)
    list(conversation.reply("what was said"))
    conversation.save(str(tmp_path / "kept"))

    def script(stage):
        ready(stage)
        stage.send(f"/load {tmp_path / 'kept'}\r")
        stage.until("You: what was said", "going on with")
        stage.send("/reset\r")
        stage.until("forgotten")

    Stage(run).play(script)


def test_what_fails_in_the_model_ends_the_chat_with_its_error(run):
    def opened(screen):
        raise CheckpointError("it is damaged")

    with pytest.raises(CheckpointError, match="it is damaged"):
        Stage(run, opened=opened).play(lambda stage: stage.screen.worker.join(PATIENCE))


def test_the_transcript_is_left_on_the_terminal(run, capsys):
    from rich.console import Console

    def script(stage):
        ready(stage)
        stage.send("hello\r")
        stage.until("Neo: ", lambda: not stage.screen.waiting)

    stage = Stage(run).play(script)
    stage.screen.print_transcript(Console(width=60))
    out = capsys.readouterr().out
    assert "a title" in out and "You: hello" in out and "Neo: " in out and max(map(cell_len, out.splitlines())) <= 60


# History


def test_history_goes_from_chat_to_chat(run, tmp_path):
    file = tmp_path / "state" / "neurogen" / "chat_history.jsonl"

    def first(stage):
        ready(stage)
        stage.send("/seed 3\r")
        stage.send(f"{PASTE[0]}two\nlines ü{PASTE[1]}\r")
        stage.until(lambda: stage.screen.dispatcher.conversation.turns or "'ü'" in stage.text)

    def second(stage):
        ready(stage)
        stage.until(lambda: stage.screen.typed._load_history_task is not None and stage.screen.typed._load_history_task.done())
        stage.send("\x1b[A")
        stage.until(lambda: stage.screen.typed.text == "two\nlines ü")
        stage.send("\x1b[A\x1b[A")
        stage.until(lambda: stage.screen.typed.text == "/seed 3")

    Stage(run, history=file).play(first)
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["/seed 3", "two\nlines ü"]
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    Stage(run, history=file).play(second)


def test_a_damaged_history_is_passed_over_and_a_long_one_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("neurogen_numba.ui.chat_history.MAX_ENTRIES", 3)
    file, reports = tmp_path / "history", []
    file.write_bytes(b'"one"\n\xff\xfe\n{"a": 1}\n"two"\n[[\n""\n')
    assert list(ChatHistory(file, reports.append).load_history_strings()) == ["two", "one"]
    file.write_text("".join(f'"{n}"\n' for n in range(7)))
    assert list(ChatHistory(file, reports.append).load_history_strings()) == ["6", "5", "4"]
    assert file.read_text() == '"4"\n"5"\n"6"\n' and not reports


def test_a_history_that_cannot_be_kept_costs_a_sentence(tmp_path):
    reports = []
    (tmp_path / "file").write_text("")
    history = ChatHistory(tmp_path / "file" / "history", reports.append)
    assert list(history.load_history_strings()) == [] or reports
    history.store_string("one")
    history.store_string("two")
    assert len(reports) == 1 and "is not saved for later chats" in reports[0]


def test_where_the_history_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert path() == tmp_path / "neurogen" / "chat_history.jsonl"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path() == tmp_path / ".local/state/neurogen/chat_history.jsonl"


# The panel


def frame(tokens=100, levels=None):
    rng = np.random.default_rng(0)
    raster = {name: rng.random((tokens, 32)) < 0.1 for name in MODULES}
    recalls = tuple(Recalled(f"tok{n}", (("Jack keeps", "hares", 0.36), ("\x1b", "日本", 0.1))) for n in range(8))
    return BrainFrame(tokens, dict(zip(MODULES, (0.071, 0.04, 0.12, 0.001, 0.25, 0.033), strict=True)), raster, levels or {}, recalls)


@pytest.mark.parametrize("colors", [True, False])
@pytest.mark.parametrize("shown", [None, frame(), frame(0), frame(1, {"dopamine": 0.25})])
def test_the_panel_keeps_to_its_room(shown, colors):
    for width in (1, 10, 24, 30, 50, 72, 80, 200):
        for height in (0, 1, 6, 7, 8, 9, 10, 11, 17, 24, 50):
            lines = brain_panel.draw(shown, width, height, 0.5, colors)
            assert len(lines) <= height and all(line.cell_len <= width for line in lines)
            assert "\x1b" not in "".join(line.plain for line in lines)
            if height >= brain_panel.MIN_ROWS and width >= 24:
                assert sum(line.plain.strip().startswith(("thal", "wern", "hipp", "PFC", "basal", "broca")) for line in lines) == 6


def test_the_panel_says_what_is_known():
    text = "\n".join(line.plain for line in brain_panel.draw(frame(), 80, 12, 0.5))
    for fact in (
        "after 100 tokens",
        "0.50 nats/token",
        "7.1 %",
        "12.0 %",
        "25.0 %",
        "tok7 recalls  Jack keeps hares 36 %",
        "surprise <0.2",
    ):
        assert fact in text
    assert "dopamine" not in text
    assert "dopamine +0.25" in "\n".join(line.plain for line in brain_panel.draw(frame(levels={"dopamine": 0.25}), 80, 12, 0.5))


@pytest.mark.parametrize("rows, height", [(24, 10), (50, 10), (18, 9), (16, 7), (15, 0), (6, 0)])
def test_the_panel_below_a_text_leaves_it_room(rows, height):
    assert brain_panel.height_for(rows) == height


def test_a_raster_in_braille():
    events = np.zeros((5, 8), bool)
    events[4, 0] = events[3, 7] = events[0, 2] = True
    # 2 neurons to a dot: of the last 4 tokens, neuron 0 at the last one and neuron 7 at the one before
    assert brain_panel.braille(events, 2, 1) == [chr(0x2800) + chr(0x2800 | 0x08 | 0x40)]
    assert brain_panel.braille(events, 3, 1) == [chr(0x2800 | 0x10) + chr(0x2800) + chr(0x2800 | 0x08 | 0x40)]
    assert brain_panel.braille(events[:0], 2, 2) == [chr(0x2800) * 2] * 2
    assert brain_panel.braille(events, 0, 1) == [""]
    assert [len(line) for line in brain_panel.braille(np.ones((9, 3), bool), 7, 3)] == [7, 7, 7]


def test_surprise_has_a_style_for_each_range():
    for colors in (True, False):
        styles = [surprise.style_of(nats, colors) for nats in (None, 0.1, 0.2, 1.5, 3, 4, 1e9, float("inf"))]
        assert styles[0] == styles[1] and len(set(styles)) == 5 and styles[5] == styles[6] == styles[7]
        assert colors or not any(style.color for style in styles)
    assert surprise.legend(True).plain == "surprise <0.2 0.2-1 1-2 2-4 >4 nats"


# Wrapping


def wrapped(width, pieces, lead="Neo: "):
    wrap, shown = WordWrap(width, lead), []
    for piece in pieces:
        wrap.feed(piece, Style.null())
        shown.append(["".join(text for _, text in line) for line in wrap.lines()])
    return shown


def test_words_wrap_whole_however_they_come():
    text = "once upon a time there was\nan owl"
    expected = ["Neo: once upon a", "     time there was", "     an owl"]
    for pieces in (["on", "ce upon", " a time there", " was\nan ow", "l"], list(text), [text]):
        assert wrapped(20, pieces)[-1] == expected


@pytest.mark.parametrize("word", ["x" * 100, "日本" * 40, "🦊 " * 50, HOSTILE])
def test_no_line_passes_the_edge(word):
    word = printable(word)
    for lines in wrapped(20, [word[:7], word[7:]]):
        assert max(cell_len(line.rstrip()) for line in lines) <= 20
    assert "".join(lines).replace(" ", "") == "Neo:" + re.sub(r"\s", "", word)


def test_styles_stay_with_their_letters():
    wrap, bold = WordWrap(9, "N: "), Style(bold=True)
    wrap.feed("ab", Style.null())
    wrap.feed("cd ef", bold)
    wrap.feed("gh", Style.null())
    lines = wrap.lines()
    bolds = "".join(text for line in lines for style, text in line if style.bold)
    assert bolds.replace(" ", "") == "cdef" and ["".join(text for _, text in line) for line in lines] == ["N: abcd", "   efgh"]


# A terminal of its own


@contextlib.contextmanager
def on_a_terminal(words, columns, rows, **environment):
    """A process on a terminal of this size: (its screen, send keys or a signal, wait until texts are there, resize, wait for its exit
    code)."""
    pid, ours = os.forkpty()
    if pid == 0:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            os.environ.pop(name, None)
        os.environ.update({"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment})
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        for number in (signal.SIGINT, signal.SIGHUP):  # ignored in the background of a shell, and under nohup
            signal.signal(number, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-m", "neurogen_numba", *words])
    screen = pyte.Screen(columns, rows)
    stream, code = pyte.ByteStream(screen), []

    def read():
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError as error:
                assert error.errno == errno.EIO
                data = b""
            if not data:
                break
            stream.feed(data)
        code.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def until(*texts):
        deadline = time.monotonic() + PATIENCE
        while not all(each() if callable(each) else each in "\n".join(screen.display) for each in texts):
            assert time.monotonic() < deadline and not code, f"{texts} is not there:\n" + "\n".join(screen.display)
            time.sleep(0.02)

    def resize(columns, rows):
        screen.resize(rows, columns)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(what):
        if isinstance(what, str):
            os.write(ours, what.encode())
        else:
            os.kill(pid, what)

    def ended():
        reader.join(PATIENCE)
        return code[0]

    try:
        yield screen, send, until, resize, ended
    finally:
        if not code:
            os.kill(pid, signal.SIGKILL)
            reader.join(PATIENCE)
        os.close(ours)


def test_a_process_on_a_terminal(run, tmp_path):
    words = ["chat", str(run), "--backend", "cpu", "--pace", str(SLOW), "--max-tokens", "20"]
    with on_a_terminal(words, 80, 24, XDG_STATE_HOME=str(tmp_path)) as (screen, send, until, resize, ended):
        send("typed before it is ready")
        until("typed before it is ready", "/help lists the commands", "Tell me a story.")
        send("\r")
        until("You: typed before it is ready", "Neo: ", "Ctrl-C stops", "wernicke")
        for columns, rows in ((50, 24), (160, 50), (80, 24)):
            resize(columns, rows)
            send(f"w{columns} ")
            until(f"w{columns}", "Ctrl-C stops", "wernicke")
            until(*(["│"] if columns >= 110 else []))
        until("You: w50 w160 w80")
        send("\x03")
        until(lambda: "Ctrl-C stops" not in "\n".join(screen.display))  # "stopped early" may stand in the header
        send("\x03\x04")
        assert ended() == 0
        assert "You: typed before it is ready" in "\n".join(screen.display)  # the transcript stays
    assert (tmp_path / "neurogen" / "chat_history.jsonl").read_text() == '"typed before it is ready"\n'


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 130), (signal.SIGHUP, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(run, tmp_path, number, code):
    with on_a_terminal(["chat", str(run), "--backend", "cpu"], 80, 24, XDG_STATE_HOME=str(tmp_path)) as (screen, send, until, _, ended):
        until("/help lists the commands")
        send("/stats\r")
        until("tokens read")
        send(number)
        assert ended() == code
        assert "interrupted" in "\n".join(screen.display)


@pytest.mark.parametrize("words, environment", [((), {"TERM": "dumb"}), (("--plain",), {}), ((), {"PYTHONIOENCODING": "ascii"})])
def test_a_terminal_that_cannot_draw_gets_lines(run, tmp_path, words, environment):
    arguments = ["chat", str(run), "--backend", "cpu", "--max-tokens", "5", *words]
    with on_a_terminal(arguments, 80, 24, XDG_STATE_HOME=str(tmp_path), **environment) as (screen, send, until, _, ended):
        until("tiny-1", "You:")
        send("hello\n")
        until("Neo: ", lambda: "\n".join(screen.display).count("You:") == 2)
        send("half\x03")
        until(lambda: "\n".join(screen.display).count("You:") == 3)
        send("exit\n")
        assert ended() == 0
        assert "wernicke" not in "\n".join(screen.display)


def test_a_mistake_on_a_terminal_is_one_sentence(run):
    with on_a_terminal(["chat", "nowhere", "--out", str(run.parent)], 80, 24) as (screen, _, _, _, ended):
        assert ended() == 2
        assert "neurogen chat: there is no nowhere" in "\n".join(screen.display)
