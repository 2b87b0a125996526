"""A conversation with a model: its turns, the settings of replies, and the state of the neurons, which holds the memory of the turns."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..brain.monitor import BrainMonitor
from ..errors import CheckpointError, ConfigError
from ..storage import checkpoint
from ..storage.run_folder import latest_records
from ..text import stories
from .generation import Sampling, Session, stream

if TYPE_CHECKING:
    from ..learning.online import Lesson

SPEAKERS = "You: Neo:"  # of the built-in stories, as `text.speakers` names those of another text
STOPS = {  # end of a reply, unless an end of text comes first -> the string before which it ends
    "turn": "\n",
    "paragraph": "\n\n",
    "sentence": "",
    "length": "",
}
SENTENCE = re.compile(r"(?<!\d)[.!?…]+[\"'”’)]*$")  # a text that ends with a sentence; 3.14 does not end one
SAVED = "conversations"  # folder of a run with the conversations that /save has written
DOCUMENT, TENSORS = "conversation", "state"
LEARNED = "learned"  # folder of a run with what /keep has written: checkpoints
LEARN = ("message", "turn")  # what a conversation learns: what a person wrote, or the reply as well
EXAMPLES = 3
LONGEST_EXAMPLE = 48  # characters


@dataclass(frozen=True)
class Settings:
    """How replies are drawn. stop: one of STOPS, or "" for the one that suits the model; pace: tokens per second at most, 0: no limit.
    learn: one of LEARN, or "" for nothing."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.5, top_p=0.95))
    max_tokens: int = 300
    stop: str = ""
    pace: float = 0.0
    learn: str = ""

    def __post_init__(self):
        if not 1 <= self.max_tokens < 2**31:
            raise ConfigError(f"max-tokens: from 1 to 2^31 - 1, not {self.max_tokens}")
        if self.learn not in ("", *LEARN):
            raise ConfigError(f"learn: {' or '.join(LEARN)}, not {self.learn!r}")
        if not 0 <= self.pace < math.inf:
            raise ConfigError(f"pace: tokens per second, 0 (no limit) or more, not {self.pace}")


@dataclass(frozen=True)
class Counts:
    """Of a reply: tokens drawn, seconds to the first of them and to the last, mean surprise in nats per token (None: not measured)."""

    tokens: int
    first: float
    seconds: float
    nats: float | None

    @property
    def speed(self) -> float:
        """Tokens per second, from the first text on: before that the message is read."""
        return max(0, self.tokens - 1) / max(self.seconds - self.first, 1e-9)


class Conversation:
    """A conversation with the model of the checkpoint `folder`, worded as it learned: lines of a text of dialogues begin with its speakers,
    in the built-in stories "You:" and "Neo:"; other text is continued."""

    def __init__(self, model, folder: Path, settings: Settings, watched: bool = False):
        """Raises ConfigError if a quantised model is to learn."""
        if settings.learn:
            model.check_learns()
        self.model, self.folder, self.settings = model, Path(folder), settings
        self.session = Session(model, settings.sampling)
        text = model.config.text
        self.speakers = (text.speakers if text.data else SPEAKERS).split()
        try:
            model.tokenizer.encode("\n")
            self._line_end = "\n"
        except ConfigError:  # a text of characters in one line
            self._line_end = ""
        self.turns: list[tuple[str, str]] = []
        self.last: Counts | None = None  # of the latest reply
        self.lesson: Lesson | None = None  # of the latest turn that was learned
        self.read = self.written = 0  # tokens
        self._before: tuple[dict, str] | None = None  # the state before the latest message, and the message
        self._own_folder: Path | None = None  # the folder that was saved or loaded last, which may be replaced
        self.watch(watched)

    @property
    def run(self) -> Path:
        """The folder of the run, or the one that the checkpoint lies in."""
        parent = self.folder.absolute().parent
        return parent.parent if parent.name == "checkpoints" else parent

    @property
    def name(self) -> str:
        """The run's name, or the checkpoint's where it lies in no run."""
        return self.run.name if self.folder.absolute().parent.name == "checkpoints" else self.folder.absolute().name

    @property
    def stop(self) -> str:
        """Where replies end: a name in STOPS."""
        return self.settings.stop or ("turn" if self.speakers else "paragraph")

    def watch(self, watched: bool):
        """Start or stop recording the activity of the brain."""
        self.session.monitor = BrainMonitor(self.model, self.session.act) if watched else None

    @property
    def monitor(self) -> BrainMonitor | None:
        return self.session.monitor

    def change(self, **settings):
        """Change settings, those of the sampling included. Raises ConfigError for a value out of range, and changes nothing then."""
        sampling = {name: settings.pop(name) for name in list(settings) if hasattr(self.settings.sampling, name)}
        self.settings = replace(self.settings, sampling=replace(self.settings.sampling, **sampling), **settings)
        self.session.sampling = self.settings.sampling

    def warm_up(self, enough=lambda: False):
        """Compile and record the steps that a reply will take, as long as `enough()` is false. Only before the first message."""
        session = self.session
        for length in [1, *range(session.act.tokens, 1, -1)]:
            for _ in range(1 if self.model.backend.name == "cpu" else 2):  # on a GPU, the second run captures a graph
                if enough():
                    break
                session.feed(np.zeros((length, 1), np.int32))
                session.draw()
        session.reset()
        self._restart()

    # Turns

    def reply(self, message: str) -> Iterator[str]:
        """The reply to a message, piece by piece. Raises ConfigError at once for a message that the model cannot read."""
        prompt = self._prompt(message)
        self.model.tokenizer.encode(prompt)
        self._before = self.session.state(), message
        self.turns.append((message, ""))
        return self._learning(message, self._speak(prompt)) if self.settings.learn else self._speak(prompt)

    def _learning(self, message, pieces):
        """The pieces of a reply; after the last one, learn the turn. A reply that is broken off is not learned."""
        yield from pieces
        reply = self.turns[-1][1] if self.settings.learn == "turn" else ""
        self.lesson = self.model.learn(self._worded(message) + reply)

    def retry(self) -> Iterator[str]:
        """Another reply to the latest message, from the state before it, with the next seed. Raises ConfigError where there is none."""
        if self._before is None:
            raise ConfigError("there is no message to answer again; say something first")
        state, message = self._before
        self.change(seed=(self.settings.sampling.seed + 1) % 2**64)
        self.session.load_state(state)
        self._restart()
        self.turns[-1:] = [(message, "")]
        return self._speak(self._prompt(message))

    def _worded(self, message):
        """A message as the model has read such lines, up to the reply."""
        if not self.speakers:
            return f"{message}{self._line_end}"
        asks, answers = self.speakers
        return f"{asks} {message.strip()}\n{answers}"

    def _prompt(self, message):
        prompt = self._worded(message)
        before = self.model.tokenizer.decode(self.session.last_tokens)
        return self._line_end + prompt if before and not before.endswith("\n") else prompt  # the last reply was cut off before its end

    def _speak(self, prompt):
        session, stop, reply_text, start = self.session, self.stop, "", time.perf_counter()
        drawn, first, measured = session.written, None, self.monitor and self.monitor.drawn
        pieces = stream(session, self.model.tokenizer, prompt, self.settings.max_tokens, STOPS[stop])
        try:
            for piece in pieces:
                first = time.perf_counter() - start if first is None else first
                reply_text += piece
                yield piece
                if stop == "sentence" and SENTENCE.search(reply_text):
                    break
        finally:  # also where Ctrl-C closes the reply
            pieces.close()
            tokens, seconds = session.written - drawn, time.perf_counter() - start
            nats = self.monitor.surprise(measured) if self.monitor and measured is not None else []
            self.turns[-1] = (self.turns[-1][0], reply_text)
            self.read += len(self.model.tokenizer.encode(prompt))
            self.written += tokens
            self.last = Counts(tokens, first or seconds, seconds, float(np.mean(nats)) if len(nats) else None)

    # State

    def reset(self):
        """Forget the whole conversation: the state before the first token."""
        self.session.reset()
        self.turns, self._before, self._own_folder = [], None, None
        self._restart()

    def unlearn(self):
        """Return to the weights that were loaded, bit for bit; the state of the neurons goes on."""
        self.model.unlearn()
        self.lesson = None

    def keep(self, name: str) -> Path:
        """Write the weights as they are now into a new checkpoint: learned/NAME of the run, or where a path leads.

        Raises ConfigError where something is in its place, CheckpointError where it cannot be written.
        """
        folder = Path(name) if Path(name).name != name else self.run / LEARNED / name
        if folder.exists():
            raise ConfigError(f"{folder} is there already; choose another name")
        self.model.save(folder)
        return folder

    def forget(self):
        """Wipe the associative memory; membranes, axons and the working memory keep their state."""
        self.session.act.S[...] = 0
        if self.monitor:
            self.monitor.forget()

    def _restart(self):
        if self.monitor:
            self.monitor.restart()

    @property
    def saved_names(self) -> list[str]:
        """Names of the conversations that this run keeps."""
        return sorted(path.parent.name for path in (self.run / SAVED).glob(f"*/{DOCUMENT}.json"))

    def save(self, name: str) -> Path:
        """Write the state and the turns atomically into a folder: conversations/NAME of the run, or the folder of a path.

        Raises ConfigError where something else is in its place, CheckpointError where it cannot be written.
        """
        if self.model.has_learned:
            raise ConfigError("the weights have learned, so this state fits no saved brain; /keep NAME and talk to that, or /unlearn first")
        folder = self._folder_of(name)
        if folder.exists() and folder != self._own_folder:
            what = "a conversation" if (folder / f"{DOCUMENT}.json").is_file() else "something that is not a conversation"
            raise ConfigError(f"{folder} holds {what} already; choose another name")
        about = {"brain": checkpoint.fingerprint(self.folder), "model": str(self.folder), "turns": [list(turn) for turn in self.turns]}
        about |= {"read": self.read, "written": self.written}
        checkpoint.save(folder, {TENSORS: self.session.state()}, {DOCUMENT: about})
        self._own_folder = folder
        return folder

    def load(self, name: str) -> Path:
        """Continue a conversation that `save` wrote, of the same brain. Raises CheckpointError if it is damaged or of another brain; then
        the present conversation continues."""
        folder = self._folder_of(name)
        if not folder.is_dir():
            known = ", ".join(self.saved_names) or "none yet; /save NAME keeps one"
            raise ConfigError(f"there is no conversation {folder}; known: {known}")
        saved = checkpoint.load(folder)
        about, state = saved.documents.get(DOCUMENT), saved.tensors.get(TENSORS)
        if about is None or state is None:
            raise CheckpointError(f"{folder} holds no conversation; give the name of one that /save has written")
        turns, counts = about.get("turns"), [about.get("read"), about.get("written")]
        sound = isinstance(turns, list) and all(isinstance(turn, list) and [type(part) for part in turn] == [str, str] for turn in turns)
        if not sound or not all(isinstance(count, int) for count in counts):
            raise CheckpointError(f"{folder} is damaged: its turns cannot be read; use another one")
        if about.get("brain") != checkpoint.fingerprint(self.folder):
            raise CheckpointError(f"{folder} is a conversation with another brain, that of {about.get('model')}; load that one with /model")
        if not all(np.isfinite(array).all() for array in state.values()):
            raise CheckpointError(f"{folder} is damaged: it holds a NaN or an infinite value; use another one")
        if ((tokens := state.get("last_tokens", np.zeros(0))) < 0).any() or (tokens >= self.model.tokenizer.vocabulary).any():
            raise CheckpointError(f"{folder} is damaged: its last tokens are outside the vocabulary; use another one")
        self.session.load_state(state)
        self.turns, self._before, self._own_folder = [tuple(turn) for turn in turns], None, folder
        self.read, self.written = counts
        self._restart()
        return folder

    def _folder_of(self, name):
        return Path(name) if Path(name).name != name else self.run / SAVED / name


def examples(model, run: Path) -> list[str]:
    """Three lines to try: for the built-in stories a fact and a question about it; else beginnings of the held-out text of its samples."""
    if not model.config.text.data:
        fact = stories.Fact(stories.KINDS[3], "Jack", "hares")
        return ["Tell me a story.", fact.sentence, fact.kind.asking.format(fact.name)]
    found = []
    for record in latest_records(run, "sample"):
        words = _beginning(record.get("prompt", ""))
        if words and words not in found:
            found.append(words)
        if len(found) == EXAMPLES:
            break
    return found


def _beginning(prompt):
    """The first whole words, not too many, of the longest line of a text that may begin and end inside a word."""
    whole = re.sub(r"^\S+\s|\s\S+$", "", str(prompt))
    line = max((line.strip() for line in whole.splitlines()), key=len, default="")
    words = line[: LONGEST_EXAMPLE + 1]
    return words.rpartition(" ")[0] if len(words) > LONGEST_EXAMPLE else words
