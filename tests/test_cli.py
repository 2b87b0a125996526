"""The command line: the table of commands, and what `command` and `Parser` make of mistakes."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import neurogen_numba
from neurogen_numba.cli import COMMANDS, FILES, Parser, command, main
from neurogen_numba.config import counted
from neurogen_numba.errors import DataError
from neurogen_numba.train import TEXT_FLAGS, TRAINING_FLAGS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "cupy",
    "datasets",
    "matplotlib",
    "numba",
    "numpy",
    "prompt_toolkit",
    "rich",
    "safetensors",
    "sentencepiece",
    "tensorboardX",
)  # each takes a tenth of a second or more


def python(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, line in COMMANDS.items():
        assert [name, line] in [row.split(maxsplit=1) for row in lines]


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_works_and_imports_nothing_heavy(words, tmp_path):
    code = f"""if True:
        import sys
        from neurogen_numba.cli import main
        try:
            code = main({words!r})
        except SystemExit as exit:
            code = exit.code
        print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules))
        sys.exit(code)"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" ".join(["usage: neurogen", *words[:-1]]))
    assert done.stdout.endswith("loaded:\n")


def test_version_through_the_module(tmp_path):
    done = python("-m", "neurogen_numba", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"neurogen {neurogen_numba.__version__}\n")


def test_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "neurogen: unknown command 'trian'; did you mean 'train'?\n"


def test_a_module_that_is_no_command_is_refused(capsys):
    assert main(["errors"]) == 2
    assert "unknown command 'errors'" in capsys.readouterr().err


def test_no_command_shows_the_commands_as_a_mistake(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "usage: neurogen COMMAND" in shown.err


def raises(error):
    @command("train")
    def body(argv=None):
        raise error

    return body


def test_an_error_that_the_user_can_mend_is_one_line(capsys):
    assert raises(DataError("a.txt: not text\nuse UTF-8"))([]) == 2
    assert capsys.readouterr().err == "neurogen train: a.txt: not text use UTF-8\n"


def test_too_little_memory_is_one_line(capsys):
    assert raises(MemoryError("Unable to allocate 2.28 PiB"))([]) == 2
    advice = "lower --batch-size or --seq-length, or use a smaller --preset"
    assert capsys.readouterr().err == f"neurogen train: out of memory: Unable to allocate 2.28 PiB; {advice}\n"
    assert raises(MemoryError())([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("output", ["[CUresult.CUDA_ERROR_OUT_OF_MEMORY] Call to cuLaunchKernel", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_gpu_without_room_for_more_than_arrays_is_one_line(capsys, output):
    of_the_driver = type("CudaAPIError", (Exception,), {"__module__": "numba.cuda.cudadrv.driver"})
    assert raises(of_the_driver(output))([]) == 2
    assert capsys.readouterr().err.startswith(f"neurogen train: out of memory on the GPU: {output}; lower --batch-size")
    with pytest.raises(of_the_driver, match="ILLEGAL_ADDRESS"):
        raises(of_the_driver("CUDA_ERROR_ILLEGAL_ADDRESS"))([])
    with pytest.raises(ValueError, match="out of memory"):
        raises(ValueError("out of memory"))([])


def test_interrupt_is_130(capsys):
    assert raises(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err == "\nneurogen train: interrupted\n"


def test_an_interrupt_that_python_drops_comes_again(capsys):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt

    @command("train")
    def main(argv=None):
        Interrupted()
        for _ in range(3000):  # an interrupt that Python itself makes does not end a sleep
            time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
    try:
        assert main([]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\nneurogen train: interrupted\n"


def test_an_interrupt_of_text_that_python_executes_is_130(tmp_path):
    script = """
from neurogen_numba.cli import command
@command("train")
def main(argv=None):
    exec("raise KeyboardInterrupt")
raise SystemExit(main([]))
"""
    (tmp_path / "interrupted.py").write_text(script)
    done = python("-m", "interrupted", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "\nneurogen train: interrupted\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="a bug"):
        raises(ValueError("a bug"))([])


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["generate", "--seed", "1" * 5000], f"--seed: {'1' * 30}... is beyond 64 bits"),
        (["generate", "--seed", "x"], "neurogen generate: --seed: an integer is needed, not 'x'"),
        (["generate", "--temperature", "hot"], "--temperature: a number is needed, not 'hot'"),
        (["version", "--bogus"], "unexpected '--bogus': version takes nothing more"),
    ],
)
def test_a_word_that_says_nothing_is_refused(words, output, capsys):
    assert main(words) == 2
    assert output in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the last flush", "in the middle"])
def test_a_closed_pipe_is_quiet(lines):
    code = f"""if True:
        import sys
        from neurogen_numba.cli import command
        @command("generate")
        def main(argv=None):
            sys.stdin.read()
            for _ in range({lines}):
                print("a line of text")
        sys.exit(main([]))"""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # with a buffer the last lines are only written at the end
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, **pipes)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


@command("generate")
def example(argv=None):
    parser = Parser("generate")
    parser.add_argument("--steps", type=int, default=0, help="how many")
    parser.add_argument("--out", default="", help="where to")
    parser.add_argument("--quiet", action="store_true", help="say less")
    print(parser.parse_args(argv).steps)


@pytest.mark.parametrize(
    "words, output",
    [
        (["--stps=3"], "unknown flag '--stps'; did you mean '--steps'?"),
        (["--stps", "3"], "unknown flag '--stps'; did you mean '--steps'?"),
        (["--step", "3"], "unknown flag '--step'; did you mean '--steps'?"),
        (["--zzz"], "unknown flag '--zzz'; known: -h, --help, --steps, --out, --quiet"),
        (["word"], "unexpected 'word'"),
        (["--steps", "many"], "--steps: an integer is needed, not 'many'"),
    ],
)
def test_a_wrong_flag_is_one_line(words, output, capsys):
    assert example(words) == 2
    assert capsys.readouterr() == ("", f"neurogen generate: {output}\n")


def test_right_flags_pass(capsys):
    assert example(["--steps", "3"]) == 0
    assert capsys.readouterr().out == "3\n"


def test_help_names_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit) as exit:
        example(["--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Continue a prompt. " in text
    assert "how many (default: 0)" in text
    assert "where to --quiet say less" in text and "say less (default" not in text


def helps():
    """The parser of every command."""
    for name in COMMANDS:
        yield name, importlib.import_module(f"neurogen_numba.{FILES.get(name, name)}").parser()


def test_every_command_says_what_it_does_in_a_sentence():
    for name, parser in helps():
        first = COMMANDS[name][0].upper() + COMMANDS[name][1:] + "."
        assert parser.description.startswith(first) and parser.description.endswith("."), name
    assert "the GPU memory" in dict(helps())["plan"].description


def test_the_flags_of_train_stand_in_groups_and_examples_at_the_end():
    parser = dict(helps())["train"]
    text = parser.format_help()
    groups = [group.title for group in parser._action_groups if group._group_actions]
    assert groups[:4] == ["options", "what to train on", "how long", "where"] and groups[-1] == "advanced"
    assert [action.dest for action in parser._optionals._group_actions] == ["help"]
    assert {*TRAINING_FLAGS, *TEXT_FLAGS} <= parser._option_string_actions.keys()
    first, *examples = text[text.index("examples:") :].splitlines()
    assert len(examples) == 2
    for line in examples:
        parser.parse_args(shlex.split(line)[2:])


def test_help_shows_no_empty_default_and_no_default_twice():
    for name, parser in helps():
        rows = [" ".join(row.split()) for row in re.split(r"\n  (?=-)", parser.format_help())]
        assert not any("(default: [])" in row or row.count("(default:") > 1 for row in rows), name


def test_a_flag_has_the_same_metavar_in_every_command():
    shown = {}
    for name, parser in helps():
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.choices:
                metavar = action.metavar or action.dest.upper()
                shown.setdefault(action.option_strings[0], {}).setdefault(metavar, []).append(name)
    shown.pop("--out")  # a file for `tokenize`, else a folder
    assert {flag: metavars for flag, metavars in shown.items() if len(metavars) > 1} == {}


def test_numbers_of_things_agree_with_them():
    assert [counted(number, "token") for number in (0, 1, 2, 2000)] == ["0 tokens", "1 token", "2 tokens", "2,000 tokens"]
