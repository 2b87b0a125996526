"""The command line: `neurogen COMMAND ...`, and what every command shares.

A command is a row of COMMANDS and a module of that name (or the one in FILES), in which

    from .cli import Parser, command

    @command("train")
    def main(argv=None):
        parser = Parser("train")
        parser.add_argument("--steps", type=int, default=1000, help="updates")
        args = parser.parse_args(argv)
        ...  # imports that take time come here, so that --help is quick

`main` may raise any NeuroGenError: `command` prints it in one line, "neurogen train: ...", and returns 2; so it does for an OSError, for a
MemoryError, and for a GPU that runs out of memory; where memory is short it names those flags of the command that ask for less.
Exit codes: 0 done, 2 something that the user can mend, 130 interrupted, 141 the reader of a pipe has gone.
A bug keeps its traceback.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import functools
import importlib
import json
import os
import shlex
import sys
import threading
from pathlib import Path

from . import __version__
from .config import did_you_mean
from .errors import ConfigError, NeuroGenError, OutOfMemory
from .system import streams

COMMANDS = {
    "train": "train a model, on the built-in stories or on your text",
    "chat": "talk to a trained model, and see its brain",
    "runs": "list the runs, and what can be done with each",
    "generate": "continue a prompt",
    "evaluate": "measure a trained model on held-out text",
    "figures": "draw the figures of a run once more",
    "tokenize": "turn text into a token file, to train on it at the speed of the disk",
    "config": "print every setting of a preset, to edit and train with",
    "migrate": "take a trained model over into a brain of another size",
    "plan": "say what a training run will need of a GPU's memory",
    "bench": "measure how fast it is here",
    "sim": "run the neurons alone, driven by noise",
    "doctor": "say what of this machine can be used, and how to mend the rest",
}
FILES = {"config": "configure"}  # commands whose module has another name
RETRY = 0.05  # seconds until a Ctrl-C comes again that Python has dropped
LONGEST = 300  # characters of a word of the command line that messages repeat as it is
STDOUT = "-"  # what --json is without a file
FEWEST, MOST = -(2**63), 2**64 - 1  # what a number of 64 bits holds, with a sign or without
METAVARS = {int: "N", float: "X", "--memory-limit": "SIZE", "--text-field": "FIELD", "--out": "FOLDER"}  # of a type, or of a flag


def command(name: str):
    """Decorator: makes `main(argv=None)` the command `neurogen name`, which returns an exit code (see above) for what happens in it."""

    def decorate(body):
        @functools.wraps(body)
        def main(argv=None) -> int:
            with streams.usable(), _interruptible():
                code = _outcome(name, body, argv)
                if (error := streams.flush()) and (code == 0 or isinstance(code, SystemExit)):
                    return _refused(name, error, argv)
            if isinstance(code, SystemExit):  # of --help
                raise code
            return code

        return main

    return decorate


@contextlib.contextmanager
def _interruptible():
    """In this context a Ctrl-C that Python drops, in a callback or a destructor, comes again a moment later, without a traceback."""
    before, waiting = sys.unraisablehook, []

    def hook(dropped):
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        waiting.append(threading.Timer(RETRY, _thread.interrupt_main))
        waiting[-1].daemon = True
        waiting[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in waiting:
            timer.cancel()


def _outcome(name, body, argv) -> int | SystemExit:
    """The exit code of a command, after the sentence that explains it."""
    try:
        return body(argv) or 0
    except SystemExit as ended:
        return 141 if ended.code == 1 else ended  # Rich ends so where the reader of a pipe has gone
    except NeuroGenError as error:
        advice = f"; {_smaller(name)}" if isinstance(error, OutOfMemory) else ""
        streams.complain(f"{_prog(name)}: {_shortened(' '.join(str(error).splitlines()), argv)}{advice}")
        return 2
    except MemoryError as error:
        what = " ".join(str(error).split()) or "no more of it"
        streams.complain(f"{_prog(name)}: out of memory: {what}; {_smaller(name)}")
        return 2
    except KeyboardInterrupt:
        exec("")  # `python -m` ends by SIGINT, whatever the exit code, where the last text that Python executed was interrupted
        streams.complain(f"\n{_prog(name)}: interrupted")
        return 130
    except OSError as error:
        return _refused(name, error, argv)
    except Exception as error:
        from .backends import probe

        if not probe.is_short_of_memory(error):
            raise
        streams.complain(f"{_prog(name)}: out of memory on the GPU: {probe.first_line(error)}; {_smaller(name)}")
        return 2


def _shortened(sentence, argv):
    """A sentence without its middle, where that is a word that was typed and is so long that nobody would find the rest."""
    long = any(len(word) > LONGEST for word in (sys.argv[1:] if argv is None else argv))
    return f"{sentence[:LONGEST]} ... {sentence[-LONGEST:]}" if long and len(sentence) > 2 * LONGEST else sentence


def _refused(name, error: OSError, argv) -> int:
    """What the system refused, in a sentence, unless a reader has gone, who needs none."""
    if isinstance(error, BrokenPipeError):
        return 141
    why = error.strerror or error
    if error.filename:
        streams.complain(f"{_prog(name)}: {_shortened(str(error.filename), argv)}: {why}; change that, or name another file or folder")
    else:
        streams.complain(f"{_prog(name)}: the output cannot be written: {why}; make room, or send it elsewhere")
    return 2


class Parser(argparse.ArgumentParser):
    """The flags of `neurogen name`: help with defaults, no abbreviations, mistakes as ConfigError in one line.

    more: what its --help says after the row of COMMANDS.
    """

    def __init__(self, name: str, more: str = ""):
        row = COMMANDS[name]
        description = f"{row[0].upper()}{row[1:]}. {more}".strip()
        super().__init__(prog=_prog(name), description=description, formatter_class=_Help, allow_abbrev=False)

    def add_argument(self, *names, **how):
        """As argparse's; the same flag is shown with the same METAVARS in every command, wherever its value goes."""
        if metavar := METAVARS.get(names[0]) or METAVARS.get(how.get("type")):
            how = {"metavar": metavar, **how}
        if (kind := how.get("type", str)) is int:
            how["type"] = _number
        elif kind in (str, Path) and how.get("action", "store") == "store" and how.get("default") != "":
            how["type"] = functools.partial(_name, kind)
        return super().add_argument(*names, **how)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            if word.startswith("-"):
                self.error(f"unknown flag {word!r}; {did_you_mean(word, flags)}")
            named = f"; text is named by --data: {self.prog} --data {shlex.quote(unknown[0])}" if "--data" in flags else ""
            self.error(f"unexpected {unknown[0]!r}{named}")
        return parsed

    def error(self, message):
        raise ConfigError(message)

    def _print_message(self, message, file=None):
        (file or sys.stderr).write(message)  # argparse's own lets a failure pass


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default only where there is one, and once."""

    def _get_help_string(self, action):
        empty = action.default is None or action.default is False or action.default in ("", [])
        return action.help if empty or "(default: " in action.help else super()._get_help_string(action)


def add_backend_flag(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that computes; `backend_of` says what they mean."""
    from .backends import MODES, NAMES, PRECISIONS

    where = "where it runs; auto takes the GPU if there is one, else the CPU, and never the CPU in place of a GPU that fails"
    parser.add_argument("--backend", choices=NAMES, default="auto", help=where)
    add_gpu_flag(parser)
    factors = "of what the GPU multiplies: decoder, and with bf16 synapses too; sums and learned numbers are fp32; auto: bf16 where it can"
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=factors)
    parser.add_argument("--mode", choices=MODES, default="sequential", help="whether modules may overlap on the GPU; the bits are the same")


def _number(text):
    digits = text.strip().lstrip("+-").lstrip("0")
    value = int(text) if len(digits) < 100 or not digits.isdecimal() else MOST + 1  # Python refuses to read thousands of digits
    if not FEWEST <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text[:30]}{'...' * (len(text) > 30)} is beyond 64 bits")
    return value


_number.__name__ = "int"  # as argparse calls it in "invalid int value"


def _name(kind, text):
    """A name or a path. An empty one is a variable of a shell that was not set, not a wish for the default."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; give one, or leave it out")
    return kind(text)


def typed(text: str) -> str:
    """The type of a flag whose value is text for a model: its bytes count as UTF-8, whatever the locale."""
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} of it is {error.object[error.start]:#04x}, which is no UTF-8; type it as UTF-8"
        raise argparse.ArgumentTypeError(wrong) from None
    except UnicodeEncodeError:
        return text  # half of a surrogate pair: no byte is behind it, and a tokenizer refuses it


def add_gpu_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu-device", type=_gpu_number, default=0, metavar="N", help="which GPU, counted from 0")


def _gpu_number(text):
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"{text[:30]!r}: GPUs are counted from 0")
    return int(text)


def backend_of(args):
    """The backend that the flags ask for. Raises BackendError where it cannot run."""
    from . import backends

    return backends.get(args.backend, args.gpu_device, args.precision, args.mode)


def add_json_flag(parser: argparse.ArgumentParser, *names: str) -> None:
    """--json [FILE]: `args.json` is STDOUT, where the command prints one JSON object and nothing else there; or a file, which `tell_json`
    writes besides what is printed; or None. names: entries by which the command knows a file of its own, which it may replace."""
    said = "print one JSON object and nothing else; with FILE (.json), print as usual and write it there"
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, default=None, type=functools.partial(_json_file, names), metavar="FILE", help=said
    )


def tell_json(where: str | None, values: dict) -> None:
    """What --json asks for, printed or written. Raises ConfigError where it cannot be written."""
    from .storage.run_folder import write_whole

    text = json.dumps(values, indent=2) + "\n"
    if where == STDOUT:
        print(text, end="")
    elif where:
        try:
            write_whole(Path(where), text.encode())
        except OSError as error:
            raise ConfigError(f"--json {where}: {error.strerror}") from None


def _json_file(names, file):
    """Refused before anything is computed. The ending tells a file from a word that is meant for the command, such as a run."""
    if file == STDOUT:
        return file
    if not file.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{file}: a name that ends with .json is wanted, or none, to print")
    if not (folder := Path(file).absolute().parent).is_dir():
        raise argparse.ArgumentTypeError(f"{file}: there is no folder {folder}")
    if os.path.lexists(file) and not _has(file, names):
        raise argparse.ArgumentTypeError(f"{file}: this command did not write what is there, and leaves it alone; choose another name")
    return file


def _has(file, names):
    """Whether a file is a JSON object with these entries."""
    try:
        values = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and all(name in values for name in names)


def _smaller(name):
    """What to do where memory is short: the flags of the command that ask for less of it."""
    flags = _module(name).parser()._option_string_actions
    lower = " or ".join(flag for flag in ("--batch-size", "--seq-length") if flag in flags)
    take = "take a smaller --preset" if "--preset" in flags else "take a smaller model"
    return f"lower {lower}, or {take}" if lower else take


def _module(name):
    return importlib.import_module(f".{FILES.get(name, name)}", __package__)


def _prog(name):
    return f"neurogen {name}".strip()


def _overview():
    rows = "\n".join(f"  {name:10}{line}" for name, line in COMMANDS.items())
    return f"usage: neurogen COMMAND ...\n\n{rows}\n\nneurogen COMMAND --help lists its flags; neurogen --version tells the version."


@command("")
def main(argv=None):
    """The console script: hands over to the command that the first word names."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        streams.complain(_overview())
        return 2
    name, *rest = words
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name in ("--version", "version") and rest:
        raise ConfigError(f"unexpected {rest[0]!r}: {name} takes nothing more")
    elif name in ("--version", "version"):
        print("neurogen", __version__)
    elif name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    else:
        return _module(name).main(rest)
