"""Any words after a command and any bytes in a file: exit code 0 or 2, one sentence, no traceback.

A few examples in every run of the tests; NEUROGEN_FUZZ=5000 tries 5,000 of each.
"""

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tiny
from neurogen_numba import cli, presets
from neurogen_numba.text import remote

EXAMPLES = int(os.environ.get("NEUROGEN_FUZZ", 10))
TEXT = "".join(f"{number} sheep went home.\n" for number in range(300))
COMMANDS = [name for name in cli.COMMANDS if name not in ("bench", "doctor", "sim")]  # which take seconds whatever the words are
LONG = "x" * 300

fuzz = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def location(tmp_path_factory):
    """A folder with a text, a run, and what people have in theirs."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", tiny.config(steps=1, checkpoint_interval=2, eval_interval=2, sample_interval=3))
        patch.setitem(presets.PRESETS, "nano", presets.PRESETS["tiny"])
        patch.setattr(remote.time, "sleep", lambda seconds: None)
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        Path("sheep.txt").write_text(TEXT)
        Path("rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.split("\n")))
        Path("folder").mkdir()
        Path("empty").mkdir()
        Path("itself").symlink_to("itself")
        shutil.copy("sheep.txt", "folder/a [1].txt")
        assert cli.main(["train", "--data", "sheep.txt", "--plain", "--name", "run"]) == 0
        assert cli.main(["tokenize", "sheep.txt", "--out", "tokens.bin", "--tokenizer", "byte"]) == 0
        yield folder


def ends_well(words, given=b""):
    """The command ends with 0 or 2, and 2 comes with a sentence."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            code = cli.main(words)
        except SystemExit as ended:
            code = ended.code or 0
        output = err.getvalue()
        assert code in (0, 2) and "Traceback" not in output and (code == 0 or output.strip()), (words, code, output)


NAMES = ["sheep.txt", "rows.jsonl", "folder", "empty", "itself", "run", "run@best", "latest", "tokens.bin", "nowhere", ".", "-"]
NAMES += [
    "*.txt",
    "**/*",
    "[",
    "hf:",
    "hf:./folder",
    "hf:run",
    "hf:no/such@x:y",
    "http://",
    "http://[",
    "https://x.invalid/a",
    "/dev/null",
    "~",
]
NAMES += [
    "",
    " ",
    "\0",
    "\n",
    "é",
    "\udcff",
    LONG,
    "runs/run",
    "runs/run/checkpoints",
    "tiny",
    "nano",
    "byte",
    "char",
    "word",
    "sheep.txt/",
    "a=b",
]
NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "1e3",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e-400",
    "1e400",
    "0x10",
    "٣",
    str(2**63),
    str(2**64),
    "9" * 25,
    "1_0",
]
SETTINGS = [
    "training.steps",
    "training.batch",
    "training.seed",
    "training.learning_rate",
    "training.reset_prob",
    "training.optimizer",
    "training",
]
SETTINGS += [
    "brain.thalamus.neurons",
    "brain.chunk",
    "brain.events",
    "brain",
    "text.data",
    "text.validation",
    "text.tokenizer",
    "text",
    "x.y",
    ".",
]

word = st.one_of(st.sampled_from(NAMES), st.sampled_from(NUMBERS), st.text(max_size=8))
assignment = st.builds(
    "{}={}".format, st.sampled_from(SETTINGS), st.one_of(word, st.sampled_from(["[", "{}", "true", "[[1]]", '"', "1979-01-01"]))
)


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(COMMANDS))
    module = importlib.import_module(f"neurogen_numba.{cli.FILES.get(name, name)}")
    words = draw(st.lists(st.sampled_from(NAMES), max_size=2))
    for action in draw(st.lists(st.sampled_from(module.parser()._actions), max_size=4)):
        flag = draw(st.sampled_from([*action.option_strings, None]) if action.option_strings else st.none())
        value = draw(assignment if flag == "--set" else word)
        if flag is None:
            words.append(value)
        elif action.nargs == 0:
            words.append(flag)
        else:
            words += draw(st.sampled_from([[flag, value], [f"{flag}={value}"], [flag]]))
    return [name, *words, *{"train": ["--plain", "--out", "work"], "tokenize": ["--out", "work/a.bin", "--workers", "0"]}.get(name, [])]


@given(words=command_lines(), typed=st.binary(max_size=20))
@example(words=["chat", LONG], typed=b"")  # each was a traceback once
@example(words=["train", "--resume", "itself"], typed=b"")
@fuzz
def test_any_command_line_ends_well(words, typed):
    try:
        ends_well(words, typed)
    finally:
        shutil.rmtree("work", ignore_errors=True)


@given(words=st.lists(word, max_size=3))
@fuzz
def test_any_first_word_ends_well(words):
    if not words or words[0] not in cli.COMMANDS:
        ends_well(words)


def parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), buffer)
    return buffer.getvalue()


CONTENTS = [
    TEXT.encode(),
    TEXT.encode("utf-16"),
    b"\xef\xbb\xbf" + TEXT.encode(),
    gzip.compress(TEXT.encode(), mtime=0),
    bz2.compress(TEXT.encode()),
]
CONTENTS += [
    lzma.compress(TEXT.encode()),
    parquet(TEXT.split("\n")),
    parquet([1, 2]),
    "".join(f'{{"text": "{n}"}}\n' for n in range(99)).encode(),
]
CONTENTS += [np.arange(200).astype(kind).tobytes() for kind in ("<u2", "<u4", "<i8", "<f4")]
CONTENTS += [b"", b"\n", b"[1]", b'{"text": 1}', b'{"text": "\\ud800"}\n' * 50, "日本語 é\r\n".encode() * 99, b"PK\3\4", b"%PDF"]
SUFFIXES = [
    "txt",
    "md",
    "jsonl",
    "json",
    "ndjson",
    "parquet",
    "bin",
    "BIN",
    "txt.gz",
    "jsonl.gz",
    "parquet.gz",
    "txt.zst",
    "txt.bz2",
    "txt.xz",
    "zip",
    "",
]


@st.composite
def contents(draw):
    """What a file might hold: something real, with a part of it changed, cut or repeated; or anything."""
    content = draw(st.one_of(st.sampled_from(CONTENTS), st.binary(max_size=100)))
    for _ in range(draw(st.integers(0, 2))):
        index, size = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 8, 10**6]))
        content = content[:index] + draw(st.one_of(st.just(b""), st.binary(max_size=5), st.just(content[index:]))) + content[index + size :]
    return content


@given(
    content=contents(), suffix=st.sampled_from(SUFFIXES), kind=st.sampled_from(["byte", "char", "word", "sentencepiece"]), beside=contents()
)
@fuzz
def test_any_file_ends_well(content, suffix, kind, beside):
    shutil.rmtree("work", ignore_errors=True)
    Path("work").mkdir()
    data = f"work/a.{suffix}"
    Path(data).write_bytes(content)
    if suffix.lower() == "bin":
        Path("work/a.json").write_bytes(beside)
    Path("work/config.toml").write_bytes(content)
    train = ["train", "--plain", "--out", "work/runs", "--tokenizer", kind, "--vocab-size", "270", "--batch-size", "2", "--seq-length", "4"]
    for words in (
        ["tokenize", data, "--out", "work/out.bin", "--tokenizer", kind, "--vocab-size", "270", "--workers", "0"],
        [*train, "--data", data],
        [*train, "--data", "-"],
        ["evaluate", "run", "--data", data],
        ["evaluate", "run", "--data", "work", "--max-tokens", "9"],
        ["config", "--config", "work/config.toml"],
    ):
        ends_well(words, content)
