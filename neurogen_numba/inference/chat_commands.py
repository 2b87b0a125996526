"""The commands of the chat: their names, arguments and effects."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import did_you_mean
from ..errors import ConfigError
from ..storage.run_folder import BEST, LATEST

STOPS = ("turn", "sentence", "paragraph", "length")  # conversation.STOPS, without what that module imports
STYLES = {  # of /params: temperature, top-k, top-p
    "exact": (0.0, 0, 1.0),
    "careful": (0.5, 0, 0.95),
    "lively": (0.8, 0, 0.95),
    "wild": (1.2, 0, 1.0),
}
REAL, INTEGER = "a number from 0 on", "an integer from 0 on"


@dataclass(frozen=True)
class Command:
    """A row of COMMANDS. argument: what follows the name, in brackets where it may be left out; meaning: a line of /help; kind: REAL or
    INTEGER where the argument is one; example: such an argument; values: the ones that it is one of."""

    argument: str
    meaning: str
    kind: str = ""
    example: str = ""
    values: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        return self.argument.startswith("[") or not self.argument


COMMANDS = {
    "help": Command("[COMMAND]", "list the commands, or explain one"),
    "params": Command(
        "[STYLE]", "show how replies are drawn; with exact, careful, lively or wild: set temperature, top-k and top-p", values=tuple(STYLES)
    ),
    "temperature": Command("X", "how freely words are drawn; 0 takes the most probable", REAL, "0.8", ("0", "0.5", "0.8", "1")),
    "top-k": Command("K", "draw from the K most probable tokens; 0 is all", INTEGER, "40", ("0", "10", "40")),
    "top-p": Command("X", "draw from the most probable tokens that together have this probability", REAL, "0.9", ("0.9", "0.95", "1")),
    "max-tokens": Command("N", "length of a reply at most", INTEGER, "300"),
    "seed": Command("N", "draw with the random numbers of seed N", INTEGER, "7"),
    "stop": Command("WHERE", "end a reply at the end of a turn, sentence or paragraph, or only at its length", values=STOPS),
    "pace": Command("X", "write X tokens per second at most, to watch the brain; 0 is no limit", REAL, "20", ("0", "5", "20")),
    "retry": Command("", "answer the last message again, from the state before it, with the next seed"),
    "reset": Command("", "forget the whole conversation: every neuron and every memory"),
    "forget": Command("", "wipe the associative memory only; the neurons keep their state"),
    "learn": Command(
        "[message|turn|off]",
        "learn your messages from now on, or the replies as well; alone: show the last lesson",
        values=("message", "turn", "off"),
    ),
    "unlearn": Command("", "return to the loaded weights; the neurons keep their state"),
    "keep": Command("NAME", "write the present weights into a new checkpoint"),
    "save": Command("NAME", "save this conversation: the state of the neurons, and the text"),
    "load": Command("NAME", "continue a saved conversation"),
    "model": Command("[RUN]", "talk to another run, to RUN@best or to a checkpoint; alone: say which one this is"),
    "brain": Command("[on|off]", "show or hide the brain", values=("on", "off")),
    "stats": Command("", "tokens read and written, speed, surprise, rate of each module"),
    "quit": Command("", "leave, as do exit, quit and Ctrl-D"),
}
ALSO_CALLED = {"exit": "quit"}
LEAVING = ("exit", "quit")  # said without a slash, they leave as well


def parse(line: str) -> tuple[str, str] | None:
    """(name, argument) of a line like "/temperature 0.8"; None for a line that is said to the model, as is one that begins with "//".

    Raises ConfigError, in one sentence, for a command that does not exist, or an argument too many or too few.
    """
    line = line.strip()
    if line in LEAVING:
        return "quit", ""
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return None
    word, _, argument = line[1:].partition(" ")
    name, argument = ALSO_CALLED.get(word, word), argument.strip()
    if name not in COMMANDS:
        raise ConfigError(f"/{word}: no such command; {did_you_mean(f'/{word}', [f'/{known}' for known in COMMANDS])}")
    known = COMMANDS[name]
    if argument and not known.argument:
        raise ConfigError(f"/{name} takes nothing after it; got {argument!r}")
    if not argument and not known.optional:
        raise ConfigError(f"/{name} needs {_wanted(name)}; got nothing")
    if known.values and not known.kind and argument and argument not in known.values:
        raise ConfigError(f"/{name} {argument}: unknown; {did_you_mean(argument, known.values)}")
    return name, argument


def unescaped(line: str) -> str:
    """The message of a line: a line that begins with "//" loses one slash."""
    return line[1:] if line.startswith("//") else line


def _wanted(name):
    known = COMMANDS[name]
    if known.kind:
        return f"{known.kind}, as in /{name} {known.example}"
    return f"one of {', '.join(known.values)}" if known.values else f"a name: /{name} {known.argument}"


def number(name: str, argument: str) -> float | int:
    """The number that a command takes. Raises ConfigError for anything else."""
    with contextlib.suppress(ValueError, OverflowError):
        value = int(argument) if COMMANDS[name].kind == INTEGER else float(argument)
        if value >= 0 and math.isfinite(value):
            return value
    raise ConfigError(f"/{name} needs {_wanted(name)}; got {argument!r}")


def completions(line: str, conversation, examples: list[str], out: Path) -> Iterator[tuple[str, int, str]]:
    """(text, characters before the cursor that it takes the place of, explanation) of each way to go on with a line."""
    if not line:
        yield from ((example, 0, "try this") for example in examples)
    if not line.startswith("/") or line.startswith("//"):
        return
    name, space, argument = line[1:].partition(" ")
    if not space:
        rows = ((known, command) for known, command in COMMANDS.items() if known.startswith(name))
        yield from ((f"/{known}" + " " * bool(command.argument), len(line), command.meaning) for known, command in rows)
        return
    for value in values_of(name, conversation, out):
        if value.startswith(argument):
            yield value, len(argument), ""


def values_of(name: str, conversation, out: Path) -> list[str]:
    """The arguments of a command that are known."""
    if name == "help":
        return list(COMMANDS)
    if name == "model":
        from ..runs import names

        return [word for run in names(out) for word in (run, run + BEST)] + [LATEST]
    if name in ("load", "save"):
        return conversation.saved_names if conversation else []
    return list(COMMANDS[name].values) if name in COMMANDS else []


class Dispatcher:
    """Takes the lines of a person: says them to the conversation, or obeys them.

    view: shows replies and results (`ui.chat_lines`, `ui.chat_screen`). open_run: opens the conversation with the run that a word names.
    """

    def __init__(self, conversation, view, open_run: Callable[[str], object]):
        self.conversation, self.view, self.open_run = conversation, view, open_run

    def take(self, line: str) -> bool:
        """Answer a message or run a command; False to leave. Raises ConfigError for a wrong command; the conversation continues."""
        if (asked := parse(line)) is None:
            if line.strip():
                self.stream(self.conversation.reply(unescaped(line)))
            return True
        name, argument = asked
        if name == "quit":
            return False
        if name in ("temperature", "top-k", "top-p", "seed", "max-tokens", "pace"):
            value = number(name, argument)
            self.conversation.change(**{name.replace("-", "_"): value})
            self.view.say(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        else:
            getattr(self, f"_{name}")(argument)
        return True

    def stream(self, pieces):
        """Show a reply; and why the lesson of its turn was learned alone, if that of the turn before was not."""
        before = self.conversation.lesson
        self.view.stream(self.conversation, pieces)
        lesson = self.conversation.lesson
        if lesson and lesson.alone and not (before and before.alone):
            self.view.say(lesson.alone)

    def _help(self, argument):
        name = argument.removeprefix("/")
        if argument and name not in COMMANDS:
            raise ConfigError(f"/help {argument}: no such command; {did_you_mean(name, COMMANDS)}")
        rows = {name: COMMANDS[name]} if name else COMMANDS
        self.view.table({f"/{name} {command.argument}".strip(): command.meaning for name, command in rows.items()})
        if not name:
            self.view.say(self.view.keys)

    def _params(self, argument):
        if argument:
            temperature, top_k, top_p = STYLES[argument]
            self.conversation.change(temperature=temperature, top_k=top_k, top_p=top_p)
        self.view.table(params(self.conversation))

    def _stop(self, argument):
        self.conversation.change(stop=argument)
        self.view.say(f"stop {argument}")

    def _retry(self, argument):
        pieces = self.conversation.retry()
        self.view.say(f"again, with seed {self.conversation.settings.sampling.seed}")
        self.view.stream(self.conversation, pieces)

    def _reset(self, argument):
        self.conversation.reset()
        self.view.say("the whole conversation is forgotten")

    def _forget(self, argument):
        self.conversation.forget()
        self.view.say("the associative memory is wiped")

    def _learn(self, argument):
        if argument:
            self.conversation.change(learn=argument.replace("off", ""))
        how, lesson = self.conversation.settings.learn or "off", self.conversation.lesson
        last = f"; the last lesson took its text from {lesson.before:.2f} to {lesson.after:.2f} nats/token" if lesson else ""
        self.view.say(f"learning: {how}{last}")

    def _unlearn(self, argument):
        self.conversation.unlearn()
        self.view.say("the weights are those that were loaded")

    def _keep(self, argument):
        self.view.say(f"kept {self.conversation.keep(argument)}")

    def _save(self, argument):
        self.view.say(f"saved {self.conversation.save(argument)}")

    def _load(self, argument):
        folder = self.conversation.load(argument)
        self.view.replay(self.conversation.turns)
        self.view.say(f"going on with {folder}")

    def _model(self, argument):
        if argument:
            self.conversation = self.open_run(argument)
        self.view.say(f"talking to {self.conversation.folder}")

    def _brain(self, argument):
        shown = self.view.show_brain(self.conversation, {"on": True, "off": False}.get(argument))
        self.view.say(f"the brain is {'shown' if shown else 'hidden'}")

    def _stats(self, argument):
        self.view.table(stats(self.conversation))


def params(conversation) -> dict[str, str]:
    """How replies are drawn, for people."""
    settings, sampling = conversation.settings, conversation.settings.sampling
    return {
        "temperature": f"{sampling.temperature:g}",
        "top-k": str(sampling.top_k or "0 (all)"),
        "top-p": f"{sampling.top_p:g}",
        "max-tokens": str(settings.max_tokens),
        "seed": str(sampling.seed),
        "stop": conversation.stop,
        "pace": f"{settings.pace:g} tokens/s" if settings.pace else "0 (no limit)",
    }


def stats(conversation) -> dict[str, str]:
    """Statistics of a conversation: name -> value."""
    from ..ui.plain import label, percent

    rows = {"tokens read": f"{conversation.read:,}", "tokens written": f"{conversation.written:,}"}
    if last := conversation.last:
        rows["last reply"] = f"{last.tokens:,} tokens, {last.speed:,.0f} tokens/s, first text after {1000 * last.first:.0f} ms"
        if last.nats is not None:
            rows["surprise"] = f"{last.nats:.2f} nats/token, perplexity {math.exp(min(last.nats, 700)):,.1f}"
    act = conversation.session.act
    rates = act.rates(act.length) if conversation.read else {}
    rows |= {label(name): f"{percent(share)} of neurons with an event, at the latest token" for name, share in rates.items()}
    rows["state"] = f"{sum(array.nbytes for array in act.views().values()):,} bytes"
    return rows
