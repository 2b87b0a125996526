"""The full-screen chat: transcript, the brain beside or below it, and an input line.

prompt_toolkit draws the screen in the main thread, from lines that Rich formats for the current width. A second thread does all work on the
model. Keys are therefore handled at once, also during a reply, and a change of the terminal's size redraws the screen.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import BufferControl, ConditionalContainer, Float, FloatContainer, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import UIContent, UIControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.styles import Style as ScreenStyle
from rich.console import Console
from rich.style import Style
from rich.text import Text

from ..inference.chat_commands import completions
from ..system.waiting import shown_by
from . import brain_panel
from .chat_history import ChatHistory
from .chat_lines import NEO, YOU, paced
from .plain import printable
from .surprise import style_of
from .word_wrap import Line, WordWrap

MAX_FPS = 15  # of the brain per second, at most
DRAW_SHARE = 0.1  # fraction of the time for drawing, at most: a slow terminal gets fewer frames
SIDE_BY_SIDE = 110  # columns from which on the brain is beside the text
PANEL_WIDTH = 0.45, 56, 90  # width of the brain beside the text: share, least, most
MAX_INPUT_ROWS = 6  # of the input, at most
INDENT = len(NEO)
KINDS = {  # kind of an entry -> (prefix of its first line, style of the prefix)
    "you": (YOU, Style.parse("bold cyan")),
    "neo": (NEO, Style.parse("bold green")),
    "note": (" " * INDENT, Style.null()),
    "error": (" " * INDENT, Style.null()),
    "header": ("", Style.null()),
}
PLAIN = {name: Style.parse({"note": "dim", "error": "red"}.get(name, "none")) for name in KINDS}  # styles of their text
PATIENCE = 2.0  # seconds that a model may take to stop when a person leaves


class Entry:
    """An entry of the transcript, of `kind` you, neo, note, error or header; pieces of text can be appended."""

    def __init__(self, kind: str, text: str = ""):
        self.kind, self._pieces, self._begun = kind, [], False
        self._wrap: WordWrap | None = None  # the lines drawn so far
        self._drawn: tuple = ()  # (width, colours, number of pieces) of these lines
        if text:
            self.add(text)

    def add(self, piece: str, nats: float | None = None) -> None:
        """Append a piece. nats: its surprise, for a reply."""
        shown = printable(piece if self._begun or self.kind == "header" else piece.lstrip())
        self._begun = self._begun or bool(shown)
        self._pieces.append((shown, nats))

    def lines(self, width: int, colors: bool) -> list[Line]:
        """The entry in lines of at most `width` cells."""
        if self._drawn[:2] != (width, colors):
            lead, style = KINDS[self.kind]
            self._wrap, self._drawn = WordWrap(width, lead, style if colors else Style(bold=style.bold)), (width, colors, 0)
        plain = PLAIN[self.kind] if colors else Style(bold=self.kind == "error", dim=PLAIN[self.kind].dim)
        pieces = self._pieces[self._drawn[2] :]
        for piece, nats in pieces:
            self._wrap.feed(piece, plain if nats is None else style_of(nats, colors))
        self._drawn = width, colors, self._drawn[2] + len(pieces)
        return self._wrap.lines()


class Rows(Entry):
    """A table of names and values."""

    def __init__(self, rows: dict[str, str]):
        super().__init__("note")
        self._rows = rows

    def lines(self, width: int, colors: bool) -> list[Line]:
        names, lines = max(map(len, self._rows)), []
        for name, value in self._rows.items():
            wrap = WordWrap(width, f"{' ' * INDENT}{name:{min(names, max(4, width // 2 - INDENT))}}  ", Style.null())
            wrap.feed(printable(value), PLAIN["note"])
            lines += wrap.lines()
        return lines


class Lines(UIControl):
    """A part of the screen that `make(width, height)` fills with lines."""

    def __init__(self, make: Callable[[int, int], list[Line]], colors: bool):
        self._make, self._colors = make, colors

    def create_content(self, width: int, height: int) -> UIContent:
        lines = [[(screen_style(style, self._colors), text) for style, text in line] for line in self._make(width, height)]
        return UIContent(get_line=lambda number: lines[number] if number < len(lines) else [], line_count=max(1, len(lines)))


class Completions(Completer):
    """Tab completion: commands and their arguments; on an empty line the examples."""

    def __init__(self, screen: ChatScreen):
        self._screen = screen

    def get_completions(self, document, complete_event):
        screen, line = self._screen, document.text_before_cursor
        conversation = screen.dispatcher.conversation if screen.dispatcher else None
        for text, back, meaning in completions(line, conversation, screen.examples, screen.out):
            yield Completion(text, start_position=-back, display_meta=meaning)


class ChatScreen:
    """The chat in a terminal that can move its cursor.

    open_chat: returns the handler of lines (`chat_commands.Dispatcher`), a title, facts and examples; it runs in the thread of the model.
    out: the folder of the runs. history: a file, or None.
    """

    keys = (
        "Enter sends, Alt-Enter or a backslash at the end begins a new line, Tab completes, Up looks back, Page Up and Page Down "
        "scroll, Ctrl-C stops a reply or clears the line, Ctrl-D leaves; a line that begins with // is said with one slash"
    )

    def __init__(self, name: str, open_chat: Callable[[ChatScreen], object], out: Path, history: Path | None):
        self.colors = not os.environ.get("NO_COLOR")
        self.dispatcher, self.out = None, out
        self.examples: list[str] = []
        self.entries: list[Entry] = [Entry("header", name)]
        self.frame, self.nats = None, None
        self.shown = True  # whether the brain is visible
        self._open, self._name = open_chat, name
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stop, self._speaking, self._leaving = threading.Event(), False, False
        self._state, self._began, self._speed = "getting ready", time.perf_counter(), ""
        self._work_shown = ""  # what takes long now: kernels are compiled, for example
        self._scroll, self._drew, self._next_frame = 0, 0.0, 0.0
        self._failure: BaseException | None = None
        self._loop = None
        self.worker = threading.Thread(target=self._work, name="model", daemon=True)
        self.typed = Buffer(
            multiline=True,
            history=ChatHistory(history, lambda sentence: self._add("note", sentence)),
            completer=Completions(self),
            accept_handler=self._accept,
            enable_history_search=True,
        )
        self.app = Application(
            layout=self._layout(),
            key_bindings=self._bindings(),
            full_screen=True,
            style=ScreenStyle.from_dict({"status": "reverse", "completion-menu": "reverse", "completion-menu.completion.current": "bold"}),
            before_render=self._before_render,
            after_render=self._after_render,
        )

    # Called from the thread of the model

    def say(self, text: str) -> None:
        """Show a message of the program."""
        self._add("note", text)

    def refuse(self, sentence: str) -> None:
        """Show an error message."""
        self._add("error", sentence)

    def table(self, rows: dict[str, str]) -> None:
        """Show a table of names and values."""
        with self._changing():
            self.entries.append(Rows(rows))
            self._scroll = 0

    def replay(self, turns: list[tuple[str, str]]) -> None:
        """Show earlier turns of the conversation."""
        for message, reply in turns:
            self._add("you", message)
            self._add("neo", reply)

    def show_brain(self, conversation, shown: bool | None) -> bool:
        """Show or hide the brain; None: toggle. Replies are a little faster without it."""
        self.shown = not self.shown if shown is None else shown
        if self.shown != bool(conversation.monitor):
            conversation.watch(self.shown)
        return self.shown

    def stream(self, conversation, pieces: Iterator[str]) -> None:
        """Show a reply while it is generated, and the brain; Ctrl-C ends this reply only."""
        reply = _Reply(conversation)
        with self._changing():
            self.entries.append(reply.entry)
            self._speaking, self._scroll, self._next_frame, self.nats = True, 0, 0.0, None
        try:
            for piece in paced(pieces, conversation.settings.pace, self._stop.wait):
                reply.add(piece)
                if (now := time.perf_counter()) >= self._next_frame:
                    started = time.thread_time()
                    with self._changing():
                        reply.show()
                        if self._next_frame and reply.monitor:  # the first word at once, without waiting for the brain
                            self.frame = reply.monitor.frame()
                    spent = time.thread_time() - started + self._drew
                    self._next_frame = now + max(1 / MAX_FPS, spent / DRAW_SHARE)
                if self._stop.is_set() or self._leaving:
                    break
        finally:
            pieces.close()
            with self._changing():
                self._speaking, last = False, conversation.last
                reply.show()
                self._speed, self.nats = f"{last.speed:,.0f} tokens/s", last.nats
                if self._stop.is_set():
                    self._add("note", "stopped")

    def _work(self):
        """Main function of the thread of the model."""
        try:
            with shown_by(self._show_work):
                self._converse()
        except BaseException as error:
            self._failure = error
        finally:
            self._call(self._exit)

    def _show_work(self, sentence, done, total):
        with self._changing():
            self._work_shown = sentence

    def _converse(self):
        from ..errors import NeuroGenError

        opened = self._open(self)
        with self._changing():
            self.dispatcher, title, self.examples = opened
            self.entries[0] = Entry("header", title)
        self.dispatcher.conversation.warm_up(lambda: self._leaving or not self._lines.empty())
        with self._changing():
            self._state = ""
        more = True
        while more and (line := self._lines.get()) is not None and not self._leaving:
            self._add("you", line)
            try:
                more = self.dispatcher.take(line)
            except NeuroGenError as error:
                self.refuse(" ".join(str(error).splitlines()))
            with self._changing():
                conversation = self.dispatcher.conversation
                self._name, self.frame = conversation.name, conversation.monitor.frame() if conversation.monitor else None
                self._stop.clear()
                self._lines.task_done()

    @property
    def waiting(self) -> bool:
        """Whether a line is being answered or is waiting."""
        return self._lines.unfinished_tasks > 0

    def _add(self, kind, text):
        with self._changing():
            self.entries.append(Entry(kind, text))
            self._scroll = 0

    def _changing(self):
        """A context for a change of the display; the screen is redrawn afterwards."""
        return _Changing(self.app)

    def _call(self, function):
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the screen has closed meanwhile
                self._loop.call_soon_threadsafe(function)

    # Keys

    def _accept(self, buffer):
        """Enter: submit the line. Returns whether the text stays in the input."""
        if buffer.text.strip():
            if not self.waiting:
                self._stop.clear()
            self._lines.put(buffer.text)
        return False

    def _bindings(self):
        keys = KeyBindings()

        @keys.add("enter")
        def send(event):
            buffer = event.current_buffer
            if buffer.complete_state and buffer.complete_state.current_completion:
                buffer.complete_state = None  # accept the text as it is
                return
            if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
                return
            buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def new_line(event):
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("<sigint>")
        def stop(event):
            if self.waiting:
                self._stop.set()
                if waiting := self._take_waiting():  # back into the input line
                    self.typed.text = "\n".join([*waiting, self.typed.text]).rstrip("\n")
                    self.typed.cursor_position = len(self.typed.text)
            elif self.typed.text:
                self.typed.reset()
            else:
                self._add("note", "Ctrl-D or /quit leaves")

        @keys.add("c-d")
        def leave(event):
            if self.typed.text:
                self.typed.delete()
            else:
                self._exit()

        @keys.add("c-l")
        def redraw(event):
            event.app.renderer.clear()

        @keys.add("pageup")
        def up(event):
            self._scroll += max(1, event.app.output.get_size().rows // 2)

        @keys.add("pagedown")
        def down(event):
            self._scroll = max(0, self._scroll - max(1, event.app.output.get_size().rows // 2))

        return keys

    def _take_waiting(self):
        """Remove and return the lines that wait for an answer."""
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._lines.get_nowait())
                self._lines.task_done()
        return waiting

    # Drawing

    def _layout(self):
        shown = Condition(lambda: self.shown)
        beside = Condition(lambda: self._columns >= SIDE_BY_SIDE)
        below = Condition(lambda: bool(brain_panel.height_for(self._rows)))
        text = Window(Lines(self._transcript, self.colors), wrap_lines=False)
        right = Window(Lines(self._brain, self.colors), width=self._panel_width, dont_extend_width=True)
        under = Window(Lines(self._brain, self.colors), height=lambda: brain_panel.height_for(self._rows), dont_extend_height=True)
        line = Window(width=1, char="│", style="class:line")
        control = BufferControl(self.typed, input_processors=[BeforeInput(YOU, "bold")], focus_on_click=True)
        typed = Window(control, height=Dimension(min=1, max=MAX_INPUT_ROWS), wrap_lines=True, dont_extend_height=True)
        status = Window(Lines(self._status, self.colors), height=1, style="class:status", dont_extend_height=True)
        top = VSplit([text, ConditionalContainer(VSplit([line, right]), shown & beside)])
        body = HSplit([top, ConditionalContainer(under, shown & ~beside & below), status, typed])
        menu = Float(CompletionsMenu(max_height=8, scroll_offset=1), xcursor=True, ycursor=True)
        return Layout(FloatContainer(body, [menu]), focused_element=typed)

    @property
    def _columns(self):
        return self.app.output.get_size().columns

    @property
    def _rows(self):
        return self.app.output.get_size().rows

    def _panel_width(self):
        share, least, most = PANEL_WIDTH
        return Dimension.exact(int(min(most, max(least, share * self._columns))))

    def _transcript(self, width, height):
        """The last lines of the transcript, or those `_scroll` lines further up."""
        lines, wanted = [], height + self._scroll
        for entry in reversed(list(self.entries)):
            lines = entry.lines(width - 1, self.colors) + lines
            if len(lines) >= wanted:
                break
        self._scroll = max(0, min(self._scroll, len(lines) - height))
        last = len(lines) - self._scroll
        return lines[max(0, last - height) : last]

    def _brain(self, width, height):
        return [runs(line) for line in brain_panel.draw(self.frame, width, height, self.nats, self.colors)]

    def _status(self, width, height):
        conversation = self.dispatcher.conversation if self.dispatcher else None
        if self._work_shown:
            doing = self._work_shown
        elif self._state:
            seconds = time.perf_counter() - self._began
            doing = f"{self._state}, {seconds:.0f} s"
        elif self.waiting:
            doing = "speaking; Ctrl-C stops" if self._speaking else "a moment"
        else:
            doing = self._speed
        scrolled = f"  {self._scroll} lines below" if self._scroll else ""
        left = f" {printable(self._name)}  {doing}{scrolled}"
        how = conversation.settings if conversation else None
        right = f"temperature {how.sampling.temperature:g}  seed {how.sampling.seed}  /help " if how else ""
        space = width - len(left) - len(right)
        line = Text(left + " " * space + right if space > 0 else left)
        line.truncate(width)
        return [runs(line)]

    def _before_render(self, app):
        self._started = time.thread_time()

    def _after_render(self, app):
        self._drew = time.thread_time() - self._started

    # Start and end

    def run(self) -> None:
        """Run the chat until the user leaves. Raises the exception that ended the thread of the model."""
        self.app.run(pre_run=self._begin)
        self._leaving = True
        self._stop.set()
        self._take_waiting()
        self._lines.put(None)
        self.worker.join(PATIENCE)
        if self._failure:
            raise self._failure

    def _begin(self):
        self._loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; or not the main thread
                    self._loop.add_signal_handler(number, self._interrupted)
        self.app.create_background_task(self._tick())
        self.worker.start()

    async def _tick(self):
        """Update the elapsed seconds while the model is loading."""
        while self._state:
            self.app.invalidate()
            await asyncio.sleep(0.5)

    def _interrupted(self):
        self._failure = self._failure or KeyboardInterrupt()
        self._exit()

    def _exit(self):
        if self.app.is_running and not self.app.future.done():
            self.app.exit()

    def print_transcript(self, console: Console) -> None:
        """Print the transcript, so that it stays in the terminal after the screen closes."""
        for entry in self.entries:
            for line in entry.lines(max(20, console.width - 1), self.colors):
                console.print(Text.assemble(*((text, style) for style, text in line)), soft_wrap=True)


class _Reply:
    """Adds a reply to its entry: pieces wait until the surprise of their tokens is fetched."""

    def __init__(self, conversation):
        self.entry, self.monitor, self._session = Entry("neo"), conversation.monitor, conversation.session
        self._first = self.monitor.drawn if self.monitor else 0
        self._written = self._session.written
        self._waiting: list[tuple[str, int]] = []  # (piece, tokens of the reply drawn up to it)
        self._shown = 0  # tokens of the pieces already added

    def add(self, piece: str) -> None:
        self._waiting.append((piece, self._session.written - self._written))

    def show(self) -> None:
        """Add the waiting pieces. The surprise of a piece is the sum over its tokens."""
        nats = self.monitor.surprise(self._first + self._shown) if self.monitor else []
        for piece, tokens in self._waiting:
            count, self._shown = tokens - self._shown, tokens
            self.entry.add(piece, sum(nats[:count]) if count and nats else None)
            nats = nats[count:]
        self._waiting = []


class _Changing:
    def __init__(self, app):
        self._app = app

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        with contextlib.suppress(RuntimeError):  # the screen closes at this moment
            self._app.invalidate()


@functools.cache
def _console():
    return Console(file=io.StringIO(), width=500, force_terminal=True, color_system="truecolor")


def runs(line: Text) -> Line:
    """A line from Rich as (style, text) pairs."""
    return [(segment.style or Style.null(), segment.text) for segment in line.render(_console()) if segment.text]


@functools.lru_cache(maxsize=256)
def screen_style(style: Style, colors: bool) -> str:
    """A style of Rich, translated for prompt_toolkit."""
    words = [name for name in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, name)]
    if colors and style.color is not None and not style.color.is_default:
        words.append(f"fg:ansi{style.color.name.replace('bright_', 'bright')}")
    return " ".join(words)
