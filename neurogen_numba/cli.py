"""The command line: `neurogen COMMAND ...`, and the code that all commands share.

A command is a row of COMMANDS and a module of that name (or the one in FILES), in which

    from .cli import Parser, command

    @command("train")
    def main(argv=None):
        parser = Parser("train")
        parser.add_argument("--steps", type=int, default=1000, help="updates")
        args = parser.parse_args(argv)
        ...  # imports that take time come here, so that --help is quick

`main` may raise any NeuroGenError: `command` prints it in one line, "neurogen train: ...", and returns 2. It treats OSError, MemoryError
and a GPU without free memory alike; if memory runs out, it names the flags of the command that reduce it.
Exit codes: 0 done, 2 an error that the user can fix, 130 interrupted, 141 the reader of a pipe has exited.
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
    "migrate": "transfer a trained model into a brain of another size",
    "prune": "remove the synapses of a trained model that matter least",
    "quantize": "store a trained model in 8 or 4 bits per weight",
    "plan": "estimate the GPU memory of a training run",
    "bench": "measure the speed on this machine",
    "sim": "run the neurons alone, driven by noise",
    "doctor": "check this machine, and print a fix for everything that does not work",
}
FILES = {"config": "configure"}  # commands whose module has another name
RETRY = 0.05  # seconds after which a Ctrl-C that Python has dropped is raised again
LONGEST = 300  # characters up to which messages repeat an argument in full
STDOUT = "-"  # value of --json without a file
LOWEST, HIGHEST = -(2**63), 2**64 - 1  # range of signed and unsigned 64-bit integers
METAVARS = {int: "N", float: "X", "--memory-limit": "SIZE", "--text-field": "FIELD", "--out": "FOLDER"}  # of a type, or of a flag


def command(name: str):
    """Decorator: makes `main(argv=None)` the command `neurogen name`, which returns an exit code (see above)."""

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
    """In this context, a Ctrl-C that Python drops in a callback or a destructor is raised again a moment later, without a traceback."""
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
    """Print the sentence that explains an exception; return the exit code."""
    try:
        return body(argv) or 0
    except SystemExit as ended:
        return 141 if ended.code == 1 else ended  # Rich exits with 1 if the reader of a pipe has exited
    except NeuroGenError as error:
        advice = f"; {_smaller(name)}" if isinstance(error, OutOfMemory) else ""
        streams.complain(f"{_prog(name)}: {_shortened(' '.join(str(error).splitlines()), argv)}{advice}")
        return 2
    except MemoryError as error:
        what = " ".join(str(error).split()) or "the host has none left"
        streams.complain(f"{_prog(name)}: out of memory: {what}; {_smaller(name)}")
        return 2
    except KeyboardInterrupt:
        exec("")  # otherwise `python -m` exits by SIGINT instead of the exit code, if the last executed source was interrupted
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
    """A sentence without its middle, if it repeats a very long argument."""
    long = any(len(word) > LONGEST for word in (sys.argv[1:] if argv is None else argv))
    return f"{sentence[:LONGEST]} ... {sentence[-LONGEST:]}" if long and len(sentence) > 2 * LONGEST else sentence


def _refused(name, error: OSError, argv) -> int:
    """Print an OSError as a sentence, unless the reader of a pipe has exited; return the exit code."""
    if isinstance(error, BrokenPipeError):
        return 141
    why = error.strerror or error
    if error.filename:
        streams.complain(f"{_prog(name)}: {_shortened(str(error.filename), argv)}: {why}; change that, or name another file or folder")
    else:
        streams.complain(f"{_prog(name)}: the output cannot be written: {why}; make room, or redirect it")
    return 2


class _Flags:
    """Adds flags to a parser or to a group of it."""

    def add_argument(self, *names, **how):
        """As argparse's method; a flag has the same metavar (METAVARS) in every command."""
        if metavar := METAVARS.get(names[0]) or METAVARS.get(how.get("type")):
            how = {"metavar": metavar, **how}
        if (kind := how.get("type", str)) is int:
            how["type"] = _integer
        elif kind is float:
            how["type"] = _real
        elif kind in (str, Path) and how.get("action", "store") == "store" and how.get("default") != "":
            how["type"] = functools.partial(_name, kind)
        return super().add_argument(*names, **how)


class _Group(_Flags, argparse._ArgumentGroup):
    """Flags under a heading of their own in --help."""


class Parser(_Flags, argparse.ArgumentParser):
    """The flags of `neurogen name`: help with defaults, no abbreviations, mistakes as ConfigError in one line.

    more: further text of its --help, after the row of COMMANDS. examples: lines at its end, a command line each.
    """

    def __init__(self, name: str, more: str = "", examples: tuple[str, ...] = ()):
        row = COMMANDS[name]
        description = f"{row[0].upper()}{row[1:]}. {more}".strip()
        shown = "\n".join(["examples:", *(f"  {line}" for line in examples)]) if examples else None
        super().__init__(prog=_prog(name), description=description, epilog=shown, formatter_class=_Help, allow_abbrev=False)

    def add_argument_group(self, *arguments, **named):
        """As argparse's method."""
        self._action_groups.append(_Group(self, *arguments, **named))
        return self._action_groups[-1]

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
        raise ConfigError(message.removeprefix("argument "))

    def _print_message(self, message, file=None):
        (file or sys.stderr).write(message)  # argparse's method ignores failures


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a help text, if there is one and the text does not contain it. Examples keep their lines."""

    def _fill_text(self, text, width, indent):
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _get_help_string(self, action):
        empty = action.default is None or action.default is False or action.default in ("", [])
        return action.help if empty or "(default: " in action.help else super()._get_help_string(action)


def add_backend_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that computes; `backend_of` interprets them."""
    from .backends import NAMES, PRECISIONS

    where = "where it runs; auto uses the GPU if there is one, else the CPU; it never replaces a GPU that fails by the CPU"
    parser.add_argument("--backend", choices=NAMES, default="auto", help=where)
    add_gpu_flag(parser)
    factors = "of the factors that the GPU multiplies: decoder and synapses; sums and parameters are fp32; auto: bf16 if the GPU has it"
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help=factors)


def _integer(text):
    digits = text.strip().lstrip("+-").lstrip("0")
    try:
        value = int(text) if len(digits) < 100 or not digits.isdecimal() else HIGHEST + 1  # Python refuses to parse thousands of digits
    except ValueError:
        raise argparse.ArgumentTypeError(f"an integer is needed, not {text!r}") from None
    if not LOWEST <= value <= HIGHEST:
        raise argparse.ArgumentTypeError(f"{text[:30]}{'...' * (len(text) > 30)} is beyond 64 bits")
    return value


def _real(text):
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, not {text!r}") from None


def _name(kind, text):
    """A name or a path. An empty one is an error, usually an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; give one, or drop the flag")
    return kind(text)


def typed(text: str) -> str:
    """The type of a flag whose value is text for a model: its bytes are decoded as UTF-8 in every locale."""
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is {error.object[error.start]:#04x}, which is not UTF-8; type it as UTF-8"
        raise argparse.ArgumentTypeError(wrong) from None
    except UnicodeEncodeError:
        return text  # half of a surrogate pair, not from a byte; the tokenizer raises for it


def add_gpu_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu-device", type=_gpu_number, default=0, metavar="N", help="which GPU, counted from 0")


def _gpu_number(text):
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"{text[:30]!r}: GPUs are counted from 0")
    return int(text)


def backend_of(args):
    """The backend that the flags choose. Raises BackendError if it cannot run."""
    from . import backends

    return backends.get(args.backend, args.gpu_device, args.precision)


def add_json_flag(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add --json [FILE]. `args.json` is None; STDOUT, if the command shall print only one JSON object; or a file, which `tell_json` writes
    in addition to the normal output. names: entries that identify a file of this command, which it may replace."""
    meaning = "print one JSON object and nothing else; with FILE (.json), print as usual and write it there"
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, default=None, type=functools.partial(_json_file, names), metavar="FILE", help=meaning
    )


def tell_json(where: str | None, values: dict) -> None:
    """Print or write the result for --json. Raises ConfigError if the file cannot be written."""
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
    """The type of --json, checked before anything is computed. The suffix .json distinguishes a file from a positional argument, for
    example a run."""
    if file == STDOUT:
        return file
    if not file.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{file}: the name must end with .json; without a name the object is printed")
    if not (folder := Path(file).absolute().parent).is_dir():
        raise argparse.ArgumentTypeError(f"{file}: there is no folder {folder}")
    if os.path.lexists(file) and not _has(file, names):
        raise argparse.ArgumentTypeError(f"{file}: exists, and is not an output of this command; choose another name")
    return file


def _has(file, names):
    """Whether a file is a JSON object with these entries."""
    try:
        values = json.loads(Path(file).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and all(name in values for name in names)


def _smaller(name):
    """Advice if memory runs out: the flags of the command that reduce it."""
    flags = _module(name).parser()._option_string_actions
    lower = " or ".join(flag for flag in ("--batch-size", "--seq-length") if flag in flags)
    take = "use a smaller --preset" if "--preset" in flags else "use a smaller model"
    return f"lower {lower}, or {take}" if lower else take


def _module(name):
    return importlib.import_module(f".{FILES.get(name, name)}", __package__)


def _prog(name):
    return f"neurogen {name}".strip()


def _overview():
    rows = "\n".join(f"  {name:10}{line}" for name, line in COMMANDS.items())
    return f"usage: neurogen COMMAND ...\n\n{rows}\n\nneurogen COMMAND --help lists its flags; neurogen --version prints the version."


@command("")
def main(argv=None):
    """The console script: calls the command that the first argument names."""
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
