"""What people type, what lies in their folders and what other programs wrote: it works, or it is one sentence and nothing is lost."""

import bz2
import codecs
import errno
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import tiny
from dropping_server import DroppingServer
from neurogen_numba import cli, presets
from neurogen_numba.chat import main as chat
from neurogen_numba.config import Text, Training
from neurogen_numba.errors import DataError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.storage import run_folder
from neurogen_numba.text import batches, remote, sources
from neurogen_numba.text.batches import FileCorpus, open_corpus
from neurogen_numba.text.sources import find, open_source
from neurogen_numba.text.tokenfile import TokenFile, TokenFileCorpus
from neurogen_numba.text.tokenizer import build
from neurogen_numba.tokenize import main as tokenize
from neurogen_numba.train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "".join(f"{number} sheep went home.\n" for number in range(300))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
BYTES = build("byte", [], 0, True)


@pytest.fixture
def location(tmp_path, monkeypatch):
    """An empty folder to work in, with a text and a preset that trains in a moment."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=4, checkpoint_interval=2, eval_interval=2, sample_interval=3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheep.txt").write_text(TEXT)
    return tmp_path


def trained(*flags):
    return train(["--preset", "tiny", "--plain", *(() if "--data" in flags else ("--data", "sheep.txt")), *flags])


def refused(code, capsys, *words):
    """A command ended with exit code 2 and one line that has these words."""
    output = capsys.readouterr().err
    assert code == 2 and output.count("\n") == 1 and "Traceback" not in output, output
    for word in words:
        assert word in output, output
    return True


def texts(data, field="text"):
    return [piece.text for piece in open_source(str(data), field).read()]


# How much is held out


def shares(corpus):
    """(characters that are trained on, characters that are held out) of a corpus whose tokens are bytes, all ASCII."""
    held, seen = len(corpus.tokenizer.decode(corpus.validation(10**9).tokens)), 0
    if isinstance(corpus, FileCorpus):
        corpus.batches()
        return len(corpus._tokens), held
    reading = corpus.batches()
    for piece in reading._pieces(corpus._start):
        seen += len(piece.text)
        if piece.after == corpus._start:
            return seen, held


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "one.jsonl", "large-first.jsonl", "large-last.jsonl"])
def test_the_share_that_is_held_out_is_the_one_asked_for(location, name):
    text = "".join(f"{number} sheep went home, and slept.\n" for number in range(15_000))  # of several pieces, with one of a megabyte
    content = text.encode() * 2
    rows = {"one.jsonl": [text], "large-first.jsonl": [text[:480_001], text[:40_000]], "large-last.jsonl": [text[:40_000], text[:480_001]]}
    if name in rows:
        content = "".join(json.dumps({"text": row}) + "\n" for row in rows[name]).encode()
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], bytes)
    (location / name).write_bytes(pack(content))
    total = sum(map(len, rows[name])) if name in rows else len(content)
    for share in (0.1, 0.02):
        corpus = open_corpus(tiny.config({"data": name, "tokenizer": "byte", "validation": share}))
        kept, held = shares(corpus)
        assert kept + held == total and held == pytest.approx(share * total, abs=2)
        assert f"{kept:,} bytes of text to train on, {held:,} held out" in corpus.shares


def test_the_shares_are_said_and_a_cut_document_is_resumed_bit_for_bit(location, capsys):
    (location / "a.jsonl").write_text("".join(json.dumps({"text": TEXT[: 2000 * number]}) + "\n" for number in (3, 1, 2)))
    flags = ["--data", "a.jsonl", "--tokenizer", "byte"]
    assert trained("--name", "whole", *flags) == 0
    assert re.search(r"^10,\d{3} bytes of text to train on, 1,\d{3} held out$", capsys.readouterr().out, re.M)
    assert trained("--name", "cut", "--steps", "2", *flags) == 0 and train(["--resume", "cut", "--steps", "4", "--plain"]) == 0
    positions = [
        json.loads((run_folder.checkpoint.latest(location / "runs" / run) / "trainer.json").read_text())["position"]
        for run in ("whole", "cut")
    ]
    assert positions[0] == positions[1] and positions[0]["held_out"] > 1000
    for data, output in (("", "built-in stories without end"), ("sheep.txt", "5,571 bytes of text to train on, 619 held out")):
        assert output in open_corpus(tiny.config({"data": data, "tokenizer": "byte"}), None if data else BYTES).shares


def test_text_on_a_server_is_held_out_and_scored(location):
    with DroppingServer({"/a.txt": TEXT.encode()}, lambda request: 10**9) as server:
        named = {"data": f"{server.url}/a.txt", "tokenizer": "byte"}
        assert shares(open_corpus(tiny.config(named))) == (len(TEXT) - len(TEXT) // 10, len(TEXT) // 10)
        assert batches.text_to_score(Text(**named), BYTES).bytes == len(TEXT) - 1


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "pipe", "server"])
def test_windows_line_ends_are_one_byte_of_the_shares_from_every_source(location, name):
    content = codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode()
    with DroppingServer({"/a.txt": content}, lambda request: 10**9) as server:
        data = f"{server.url}/a.txt" if name == "server" else name
        if name == "pipe":
            os.mkfifo(name)
            threading.Thread(target=Path(name).write_bytes, args=(content,)).start()
        elif name != "server":
            Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        corpus = open_corpus(tiny.config({"data": data, "tokenizer": "byte"}))
        assert shares(corpus) == (len(TEXT) - len(TEXT) // 10, len(TEXT) // 10)
    (location / "a.jsonl").write_text(json.dumps({"text": "sheep\r\n"}))
    assert texts("a.jsonl") == ["sheep\r\n"]  # a document as it stands


# What lies in a folder


def test_a_run_may_lie_in_its_data_folder(location, capsys):
    elsewhere = location.parent / f"{location.name}-tokens"
    for number, flags in enumerate((["--data", "."], ["--data", "**/*"], ["--data", "*"])):
        name = f"run{number}"
        assert trained("--name", name, "--steps", "2", *flags) == 0
        assert train(["--resume", name, "--plain", "--steps", "4"]) == 0
        assert evaluate([name, "--data", flags[1]]) == 0 and evaluate([name]) == 0
        assert tokenize([flags[1], "--out", str(elsewhere / "tokens.bin"), "--tokenizer", "byte"]) == 0
        assert json.loads((elsewhere / "tokens.json").read_text())["bytes"] == len(TEXT)
    capsys.readouterr()
    assert refused(trained("--data", "runs/run1"), capsys, "a run, whose files are no text")


def test_hidden_files_and_copies_of_notebooks_are_no_text(location):
    for name in (".hidden.txt", ".git/a.txt", ".ipynb_checkpoints/sheep-checkpoint.txt", "deep/.cache/b.md", "._sheep.txt"):
        (location / name).parent.mkdir(parents=True, exist_ok=True)
        (location / name).write_text("secret")
    assert find(".") == ["./sheep.txt"] and texts(".") == [TEXT]
    assert texts(".ipynb_checkpoints") == ["secret"]  # naming it explicitly works


def test_links_are_followed_and_nothing_is_read_twice(location):
    (location / "far").mkdir()
    (location / "far/b.txt").write_text("far away")
    folder = location / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a.txt").write_text("near")
    (folder / "linked").symlink_to(location / "far")
    (folder / "again").symlink_to("deep")
    (folder / "deep/up").symlink_to("..")
    (folder / "copy.txt").symlink_to("deep/a.txt")
    assert texts(folder) == ["near", "far away"]
    assert texts(f"{folder}/**/*.txt") == texts(f"{folder}/*/*.txt") == ["near", "far away"]
    assert texts(f"{folder}/d*/a.txt") == texts(f"{folder}/*") == ["near"]


def test_what_is_in_a_folder_and_cannot_be_read_is_named(location, monkeypatch):
    (location / "deep").mkdir()
    (location / "deep/lost.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"lost\.txt: a broken link"):
        find(".")
    (location / "deep/lost.txt").unlink()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the superuser may read everything, whatever the mode of a folder
    with pytest.raises(DataError, match=r"deep: cannot be read \(Permission denied\)"):
        find(".")


# What can be typed


LONG = "a long story " * 400


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (generate, [LONG]),
        (chat, [LONG]),
        (chat, ["a", LONG]),
        (evaluate, [LONG]),
        (train, ["--data", LONG]),
        (train, ["--resume", LONG]),
        (train, ["--name", LONG]),
        (train, ["--name", LONG + "/\n"]),
        (train, [f"--preset={LONG}"]),
        (train, ["--set", f"training.steps={LONG}"]),
        (train, ["--out", LONG]),
        (train, ["--config", LONG]),
        (train, ["--tokenizer", LONG, "--data", "sheep.txt"]),
        (train, ["--data", f"hf:{LONG}"]),
        (tokenize, [LONG, "--out", "a.bin"]),
        (tokenize, ["sheep.txt", "--out", f"{LONG}.bin", "--tokenizer", "byte"]),
        (train, ["--data", "itself"]),
        (train, ["--data", "itself/a.txt"]),
        (train, ["--resume", "itself"]),
        (train, ["--tokenizer", "itself", "--data", "sheep.txt"]),
        (chat, ["itself"]),
        (tokenize, ["itself", "--out", "a.bin"]),
        (train, ["--data", ""]),
        (train, ["--data", "sheep.txt", "--name", ""]),
        (train, ["--resume", ""]),
        (tokenize, ["", "--out", "a.bin"]),
        (evaluate, ["--data", ""]),
        (chat, [""]),
        (train, ["--steps", "9" * 30]),
        (train, ["--steps", str(2**63)]),
        (train, ["--set", f"training.steps={10**40}"]),
        (train, ["--seed", "-1"]),
        (train, ["--seed", "9" * 5000]),
        (generate, ["--seed", "9" * 30]),
        (generate, ["--gpu-device", "9" * 30]),
        (generate, ["--length", "9" * 30]),
        (tokenize, ["sheep.txt", "--out", "a.bin", "--vocab-size", "9" * 30]),
        (train, ["--data", "sheep.txt", "--name", "run@best"]),
        (train, ["--data", "sheep.txt", "--name", "latest"]),
        (train, ["--data", "sheep.txt", "--name=-run"]),
    ],
)
def test_every_string_is_survived(location, capsys, command, words):
    (location / "itself").symlink_to("itself")
    code, output = command(words), capsys.readouterr().err
    assert code == 2 and output.count("\n") == 1 and "Traceback" not in output and len(output) < 800, output
    assert not (location / "runs").exists() or not os.listdir(location / "runs")


def test_brackets_in_the_name_of_a_folder(location, monkeypatch):
    folder = location / "books [2024]"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    assert texts("books [2024]/*.txt") == ["a.txt", "b.txt"]
    monkeypatch.chdir(folder)
    named = sources.absolute("*.txt")
    monkeypatch.chdir(location)
    assert texts(named) == ["a.txt", "b.txt"]


def test_a_pipe_by_its_name(location):
    os.mkfifo("pipe")

    def fill():
        Path("pipe").write_bytes(TEXT.encode())

    for command in (lambda: trained("--data", "pipe"), lambda: tokenize(["pipe", "--out", "a.bin", "--tokenizer", "byte"])):
        writer = threading.Thread(target=fill)
        writer.start()
        assert command() == 0
        writer.join()
    assert json.loads(Path("a.json").read_text())["bytes"] == len(TEXT)
    command = [sys.executable, "-m", "neurogen_numba", "tokenize", "/dev/stdin", "--out", "b.bin", "--tokenizer", "byte"]
    done = subprocess.run(
        command, input=TEXT.encode(), capture_output=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    )
    assert done.returncode == 0 and Path("b.bin").read_bytes() == Path("a.bin").read_bytes(), done.stderr


def test_a_folder_of_the_name_of_a_run_does_not_hide_it(location):
    (location / "books").mkdir()
    (location / "books/a.txt").write_text(TEXT)
    assert trained("--data", "books", "--name", "books") == 0
    assert generate(["books", "--length", "3"]) == 0 and train(["--resume", "books", "--steps", "5", "--plain"]) == 0


# First contact


def test_words_that_come_to_mind_are_understood(location, capsys):
    assert refused(train(["book.txt"]), capsys, "unexpected 'book.txt'; text is named by --data: neurogen train --data book.txt")
    assert refused(chat(["sheep.txt"]), capsys, "sheep.txt is a file")
    assert cli.main(["help"]) == 0 and "neurogen COMMAND" in capsys.readouterr().out
    assert cli.main(["version"]) == 0 and capsys.readouterr().out.startswith("neurogen ")
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "tokenize"])
    assert not ended.value.code and "FILE.bin" in capsys.readouterr().out
    assert refused(cli.main(["help", "trian"]), capsys, "did you mean 'train'?")


def test_a_row_without_the_text_is_said_and_left_out(location, caplog):
    (location / "a.jsonl").write_text('{"id": 1}\n{"text": "one"}\n\n{"body": "two"}\n{"text": "three"}\n')
    source = open_source(str(location / "a.jsonl"), "text")
    for _ in range(2):
        first, second = source.read()
        assert (first.text, second.text) == ("one", "three")
        assert [piece.text for piece in source.read(first.after)] == ["three"]  # whose rows are known by their bytes
    assert len(caplog.messages) == 1 and "a.jsonl: line 1 has no field 'text'" in caplog.messages[0]
    (location / "b.jsonl").write_text('{"body": "one"}\n' * 500)
    with pytest.raises(DataError, match=r"b\.jsonl: there is no field 'text', but body"):
        texts("b.jsonl")


def test_a_row_with_null_for_its_text_is_said_and_left_out(location, caplog, monkeypatch):
    monkeypatch.setattr(sources, "_reported", set())  # another test may have told of files of these names
    (location / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"id": 1}\n{"text": "two"}\n{"text": null}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "", None, "two", None]}), location / "b.parquet")
    for name, row in (("a.jsonl", "line 2"), ("b.parquet", "row 3"), (f"hf:{location / 'hub'}", "a row")):
        if name.startswith("hf:"):
            (location / "hub").mkdir()
            (location / "b.parquet").rename(location / "hub/train.parquet")
        assert texts(name) == ["one", "two"]
        assert caplog.messages == [
            f"{name}: {row} has null in the field 'text', and is skipped, as all rows without text; --text-field names another field"
        ]
        caplog.clear()


def test_a_character_without_a_token_is_found(location, capsys):
    assert trained("--tokenizer", "char") == 0
    (location / "folder").mkdir()
    (location / "folder/a.txt").write_text("sheep")
    (location / "folder/b.txt").write_text("sheep\nwent\nhome é\n")
    (location / "c.jsonl").write_text('{"text": "sheep"}\n{"text": "went\\nhöme"}\n')
    capsys.readouterr()
    assert refused(evaluate(["--data", "folder"]), capsys, "folder/b.txt, line 3: the character 'é' does not occur", "take it out")
    assert refused(evaluate(["--data", "c.jsonl"]), capsys, "c.jsonl: line 2, line 2: the character 'ö'")


def test_text_that_moved_is_asked_for(location, capsys):
    assert trained("--steps", "2") == 0
    (location / "sheep.txt").rename(location / "flock.txt")
    capsys.readouterr()
    assert refused(train(["--resume", "--steps", "4"]), capsys, "sheep.txt: no such file", "--resume runs/tiny-1 --data PATH")
    assert refused(evaluate([]), capsys, "sheep.txt: no such file", "with --data")
    assert train(["--resume", "--steps", "4", "--data", "flock.txt", "--plain"]) == 0


# No retries of what no retry can mend


@pytest.mark.parametrize(
    ("data", "output"),
    [
        ("http://", "there is no such server"),
        ("http:///a.txt", "there is no such server"),
        ("http://host:port/a.txt", "there is no such server"),
        ("http://exa mple.com/a.txt", "there is no such server"),
        ("HTTP://a..b/a.txt", "cannot be read"),
        ("http://[::1/a.txt", "cannot be read"),
        ("http://no-such-host.invalid/a.txt", "there is no such server|the connection failed"),  # where names cannot be asked for at all
        ("hf:./missing", "there is no such folder; hf: is for data sets of the hub"),
        ("hf:./sheep.txt", "is a local file"),
        ("hf:./empty", "is a folder"),
        ("hf:a b", "cannot be read"),
        ("s3://bucket/a.txt", "only http://, https:// and hf: are read"),
        ("file:///sheep.txt", "only http://, https:// and hf: are read"),
    ],
)
def test_a_wrong_name_says_so_at_once(location, monkeypatch, data, output):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    (location / "empty").mkdir()
    with pytest.raises(DataError, match=output) as refused:
        texts(data)
    assert "\n" not in str(refused.value) and (not waits or "the connection failed" in str(refused.value))


class OfflineModeIsEnabled(ConnectionError):
    """As huggingface_hub has it."""


@pytest.mark.parametrize(
    ("error", "output"),
    [
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), "without the package datasets"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), "/cache: Permission denied.*HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/cache"), "/cache: Read-only file system.*HF_HOME"),
        (OSError(errno.ENOSPC, "No space left on device", "/cache"), "/cache: No space left on device"),
        (TypeError("unexpected keyword"), "cannot be read"),
        (OfflineModeIsEnabled("Cannot reach https://hub: offline mode is enabled."), "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"),
    ],
)
def test_what_this_machine_lacks_is_said_at_once(location, monkeypatch, error, output):
    def rows(self, state):
        raise error

    monkeypatch.setattr(sources.Hub, "_rows", rows)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(DataError, match=output):
        texts("hf:some/name")


# Files that other programs wrote


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4"])
@pytest.mark.parametrize(("vocabulary", "kind"), [(256, "byte"), (50257, None), (100_277, None)])
def test_the_format_of_a_token_file_is_found_out(location, dtype, vocabulary, kind):
    tokens = np.random.default_rng(0).integers(0, vocabulary, 5000)
    if vocabulary > 2**16 and dtype == "<u2":
        return
    tokens.astype(dtype).tofile("a.bin")
    known = type("Known", (), {"vocabulary": vocabulary})
    assert np.array_equal(TokenFile.open("a.bin", known).part(0, 10**9), tokens)


def test_other_formats_of_tokens_are_refused(location):
    known = type("Known", (), {"vocabulary": 256})
    tokens = np.random.default_rng(0).integers(1, 256, 5000)
    for content, output in (
        (tokens.astype("<i8").tobytes(), "64 bits"),
        (np.array([20240520, 1] + [0] * 254, "<i4").tobytes() + tokens.astype("<u2").tobytes(), "header of llm.c"),
    ):
        Path("a.bin").write_bytes(content)
        with pytest.raises(DataError, match=output):
            TokenFile.open("a.bin", known)
    (location / "b.bin").mkdir()
    (location / "b.bin/a.txt").write_text(TEXT)
    assert isinstance(open_corpus(tiny.config({"data": "b.bin", "tokenizer": "byte"})), FileCorpus)
    assert tokenize(["sheep.txt", "--out", "c.BIN", "--tokenizer", "byte"]) == 0
    assert isinstance(open_corpus(tiny.config({"data": "c.BIN"})), TokenFileCorpus)


@pytest.mark.parametrize(
    ("name", "content", "output"),
    [
        ("a.txt", codecs.BOM_UTF16_LE + "text".encode("utf-16-le"), "UTF-16 text"),
        ("a.txt", codecs.BOM_UTF32_LE + "text".encode("utf-32-le"), "UTF-32 text"),
        ("a.txt", bz2.compress(b"text"), "compressed by bzip2"),
        ("a.txt", lzma.compress(b"text"), "compressed by xz"),
        ("a.zip", b"PK\3\4" + b"\0" * 30, "a zip archive"),
        ("a.pdf", b"%PDF-1.7\n\xff", "a PDF document"),
        ("a.tar.gz", gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\0" + b"\0" * 250, mtime=0), "a tar archive"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed by gzip"),
    ],
)
def test_files_of_other_formats_are_named(location, name, content, output):
    (location / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {output}.*; "):
        texts(name)


# Long texts


def test_text_is_read_and_encoded_in_little_memory(location):
    """The memory in use does not grow with the text."""
    text = TEXT * 300
    (location / "large.txt").write_text(text)
    for kind in ("byte", "char", "sentencepiece", "word"):
        named = Text(data="large.txt", tokenizer=kind, vocabulary=300)
        build_first = FileCorpus(Text(data="sheep.txt", tokenizer=kind, vocabulary=300), Training()).tokenizer
        tracemalloc.start()
        corpus = FileCorpus(named, Training(), None if kind == "byte" else build_first, location / "run")
        corpus.batches()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60 * sources.PIECE
        whole = FileCorpus(named, Training(), corpus.tokenizer)
        whole.batches()
        assert np.array_equal(corpus._tokens.part(0, 10**9), whole._tokens)


def test_a_run_on_a_long_text_takes_little_memory(location):
    """As a command does it; its tokens are on the disk."""
    text = TEXT * 2500
    (location / "large.txt").write_text(text)
    words = ["--tokenizer", "byte", "--set", "text.validation=0.001", "--steps", "1"]
    assert trained("--set", "training.final_eval_tokens=50", "--steps", "1") == 0  # kernels are compiled now
    tracemalloc.start()
    code = trained("--data", "large.txt", "--name", "a", *words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == 0 and peak < 3 * len(text)
    assert (location / "runs/a/encoded/tokens.bin").stat().st_size == 2 * int(0.999 * len(text))


def test_a_text_is_encoded_once(location, monkeypatch, capsys):
    assert trained("--name", "a", "--steps", "2") == 0
    kept = location / "runs/a" / run_folder.TOKENS
    first = kept.stat().st_mtime_ns

    def encoded(*given):
        raise AssertionError("encoded again")

    with monkeypatch.context() as watched:
        watched.setattr(batches, "encoded", encoded)
        assert train(["--resume", "a", "--steps", "4", "--plain"]) == 0
    assert kept.stat().st_mtime_ns == first
    before = kept.read_bytes()
    for steps, damaged in (("5", before[:-2]), ("6", bytes(2) + before[2:])):  # made again
        kept.write_bytes(damaged)
        assert train(["--resume", "a", "--steps", steps, "--plain"]) == 0
        assert kept.read_bytes() == before
    kept.unlink()
    kept.mkdir()
    assert train(["--resume", "a", "--steps", "7", "--plain"]) == 2 and "move that away" in capsys.readouterr().err
    kept.rmdir()
    (location / "sheep.txt").write_text(TEXT.replace("home", "hmoe"))  # another text of the same size
    assert train(["--resume", "a", "--steps", "7", "--plain"]) == 0
    assert len(kept.read_bytes()) == len(before) and kept.read_bytes() != before


def test_what_takes_long_shows_progress_and_obeys_ctrl_c(location):
    (location / "large.txt").write_text(TEXT * 20_000)  # seconds of reading, most of which are interrupted
    command = [sys.executable, "-m", "neurogen_numba", "train", "--data", "large.txt", "--tokenizer", "word", "--name", "a"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ENVIRONMENT, text=True)
    output = running.stderr.readline()
    assert "large.txt" in output and "%" in output
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read()
    assert running.wait(60) == 130 and "interrupted" in rest and "Traceback" not in rest
    assert not (location / "runs/a").exists()
