"""Token files: nanoGPT's layout, whole or not there, read without being held; and the command that writes them."""

import io
import json
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

import tiny
from neurogen_numba.config import Text, Training
from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.text.batches import FileBatches, FileCorpus, open_corpus, text_to_score
from neurogen_numba.text.sources import Piece
from neurogen_numba.text.tokenfile import MAX_HELD_OUT, TokenFileCorpus, write
from neurogen_numba.text.tokenizer import Tokenizer, build
from neurogen_numba.tokenize import main as tokenize

BYTES = build("byte", [], 0, True)
SHEEP = "".join(f"{number} sheep went home.\n" for number in range(400))


@pytest.fixture
def location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheep.txt").write_text(SHEEP)
    (tmp_path / "sheep.jsonl").write_text("".join(json.dumps({"text": line, "body": "no"}) + "\n" for line in SHEEP.splitlines()))
    return tmp_path


def refused(code, capsys, *words):
    output = capsys.readouterr().err
    assert code == 2 and output.count("\n") == 1 and all(word in output for word in words), output
    return True


def test_a_text_becomes_its_tokens(location, capsys):
    assert tokenize(["sheep.txt", "--out", "deep/tokens.bin", "--tokenizer", "char", "--workers", "0"]) == 0
    tokens = np.fromfile("deep/tokens.bin", "<u2")  # nanoGPT reads it so
    tokenizer = Tokenizer.load("deep/tokens.tokenizer")
    assert tokenizer.decode(tokens) == SHEEP and tokenizer.end_of_text is None
    output = json.loads(Path("deep/tokens.json").read_text())
    assert output == {
        "format": "neurogen-tokens",
        "dtype": "uint16",
        "vocabulary": tokenizer.vocabulary,
        "tokens": len(SHEEP),
        "documents": 1,
        "bytes": len(SHEEP),
        "crc32": zlib.crc32(Path("deep/tokens.bin").read_bytes()),
    }
    output = capsys.readouterr().out
    assert f"deep/tokens.bin: {len(SHEEP):,} tokens" in output and " 1 document, " in output
    assert sorted(path.name for path in Path("deep").iterdir()) == ["tokens.bin", "tokens.json", "tokens.tokenizer"]


def test_documents_end_with_the_end_of_text_with_any_number_of_workers(location):
    for workers in "02":
        assert tokenize(["sheep.jsonl", "--out", f"{workers}.bin", "--vocab-size", "300", "--workers", workers]) == 0
    tokenizer, tokens = Tokenizer.load("0.tokenizer"), np.fromfile("0.bin", "<u2")
    assert (
        tokenizer.vocabulary == 300
        and (tokens == tokenizer.end_of_text).sum() == 400 == json.loads(Path("0.json").read_text())["documents"]
    )
    assert tokenizer.decode(tokens) == SHEEP.replace("\n", "")
    for name in ("bin", "json", "tokenizer/tokenizer.model", "tokenizer/tokenizer.json"):
        assert Path(f"0.{name}").read_bytes() == Path(f"2.{name}").read_bytes()


def test_the_tokenizer_does_not_see_what_will_be_held_out(location):
    (location / "a.txt").write_text("abcd " * 360 + "xyz? " * 40)
    assert tokenize(["a.txt", "--out", "a.bin", "--vocab-size", "263", "--workers", "0"]) == 0
    assert not any(b"x" in piece and piece != b"x" for piece in Tokenizer.load("a.tokenizer").pieces)


def test_standard_input_and_a_given_model(location, monkeypatch):
    assert tokenize(["sheep.txt", "--out", "a.bin", "--vocab-size", "300", "--workers", "0"]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(SHEEP.encode()))))
    assert tokenize(["-", "--out", "b.bin", "--tokenizer", "a.tokenizer/tokenizer.model", "--workers", "0"]) == 0
    assert Path("a.bin").read_bytes() == Path("b.bin").read_bytes()


def test_many_kinds_of_tokens_need_32_bits(location):
    class Wide:
        vocabulary = 2**16 + 1

        def save(self, folder):
            BYTES.save(folder)

    output = write(location / "wide.bin", [(Piece("a", True, {}), np.array([2**16, 1], np.int32))], Wide())
    assert output["dtype"] == "uint32" and np.fromfile(location / "wide.bin", "<u4").tolist() == [2**16, 1]
    Wide.vocabulary -= 1
    assert write(location / "wide.bin", [(Piece("a", True, {}), np.array([2**16 - 1]))], Wide())["dtype"] == "uint16"
    assert np.fromfile(location / "wide.bin", "<u2").tolist() == [2**16 - 1]


def test_a_file_is_whole_or_not_there(location, capsys):
    assert tokenize(["sheep.txt", "--out", "a.bin", "--tokenizer", "byte", "--workers", "0"]) == 0
    before = {path.name: path.read_bytes() for path in location.glob("a.*") if path.is_file()}
    (location / "bad.jsonl").write_text('{"text": "fine"}\nbroken')
    capsys.readouterr()
    refused(tokenize(["bad.jsonl", "--out", "a.bin", "--tokenizer", "byte"]), capsys, "bad.jsonl: line 2")
    refused(tokenize(["bad.jsonl", "--out", "new.bin", "--tokenizer", "byte"]), capsys, "bad.jsonl: line 2")
    (location / "empty.jsonl").write_text("\n")
    refused(tokenize(["empty.jsonl", "--out", "a.bin", "--tokenizer", "byte"]), capsys, "a.bin was not written: there is no text")
    assert {path.name: path.read_bytes() for path in location.glob("a.*") if path.is_file()} == before
    assert not list(location.glob("new.*")) and not list(location.glob("*.part"))


def test_bad_flags_are_one_sentence(location, capsys):
    (location / "itself").symlink_to("itself")
    for folder, output in (("sheep.txt", "sheep.txt is a file"), ("itself", "itself is a link to itself")):
        refused(tokenize(["sheep.txt", "--out", f"{folder}/a.bin", "--tokenizer", "byte"]), capsys, f"a.bin was not written: {output}; ")
    refused(tokenize(["sheep.txt"]), capsys, "--out")
    refused(tokenize(["sheep.txt", "--out", "sheep.txt"]), capsys, "--out sheep.txt: the name must end with .bin")
    refused(tokenize(["sheep.txt", "--out", "a.bin", "--workers", "-1"]), capsys, "workers: at least 0, not -1")
    refused(tokenize(["missing.txt", "--out", "a.bin"]), capsys, "missing.txt: no such file or folder; check the path\n")
    refused(tokenize(["missing*.txt", "--out", "a.bin"]), capsys, "missing*.txt: no file matches; check the pattern\n")
    refused(tokenize(["sheep.jsonl", "--out", "a.bin", "--text-field", "id"]), capsys, "no field 'id', but text, body")
    refused(tokenize(["-", "--out", "a.bin", "--tokenizer", "char"]), capsys, "it would need a pass through all of standard input")
    refused(tokenize(["sheep.txt", "--out", "sheep.txt/a.bin", "--tokenizer", "byte"]), capsys, "a.bin was not written: ")
    assert Path("sheep.txt").read_text() == SHEEP


# Reading


def training(**settings):
    return Training(**{"batch": 3, "segment": 7, **settings})


def test_a_token_file_is_read_as_the_same_tokens_in_memory(location):
    assert tokenize(["sheep.jsonl", "--out", "a.bin", "--tokenizer", "byte", "--workers", "0"]) == 0
    corpus = open_corpus(tiny.config({"data": "a.bin"}, batch=3, segment=7))
    assert isinstance(corpus, TokenFileCorpus) and corpus.tokenizer.kind == "byte"
    tokens = np.fromfile("a.bin", "<u2").astype(np.int32)
    cut = int(len(tokens) * 0.9)
    batches, same = corpus.batches(), FileBatches(tokens[:cut], training(), None)
    for _ in range(900):
        (inputs, targets), (same_inputs, same_targets) = batches.next(), same.next()
        assert inputs.dtype == targets.dtype == np.int32
        assert np.array_equal(inputs, same_inputs) and np.array_equal(targets, same_targets)
    assert batches.position() == same.position()
    assert np.array_equal(corpus.batches(json.loads(json.dumps(batches.position()))).next(), same.next())
    validation = corpus.validation()
    assert np.array_equal(validation.tokens, tokens[cut:]) and validation.bytes == (tokens[cut + 1 :] < 256).sum()
    assert np.array_equal(corpus.validation(20).tokens, tokens[cut : cut + 21]) and len(corpus.validation(1).tokens) == 8
    assert np.array_equal(text_to_score(Text(data="a.bin"), BYTES).tokens, tokens)
    assert np.array_equal(text_to_score(Text(data="a.bin"), BYTES, 9).tokens, tokens[:10])


def test_words_of_a_token_file_count_the_bytes_of_its_mean_word(location):
    """The file has lost what was no known word; how many bytes all of it was, it says."""
    (location / "words.txt").write_text("a hippopotamus \n" * 99 + "tell me \n" * 100)
    assert tokenize(["words.txt", "--out", "w.bin", "--tokenizer", "word", "--vocab-size", "4", "--workers", "0"]) == 0
    corpus = open_corpus(tiny.config({"data": "w.bin"}, batch=3, segment=7))
    mean = (location / "words.txt").stat().st_size / (3 * 199)
    for validation in (corpus.validation(), text_to_score(Text(data="w.bin"), corpus.tokenizer)):
        assert validation.estimated and validation.bytes == round(mean * (len(validation.tokens) - 1))
    output = json.loads((location / "w.json").read_text())
    del output["bytes"]
    (location / "w.json").write_text(json.dumps(output))
    with pytest.raises(DataError, match="w.bin: no .json beside it has the bytes"):
        corpus.validation()


def test_a_part_of_a_token_file_says_that_it_is_one(location):
    assert tokenize(["sheep.txt", "--out", "a.bin", "--tokenizer", "byte", "--workers", "0"]) == 0
    corpus, tokenizer = open_corpus(tiny.config({"data": "a.bin"}, batch=3, segment=7)), build("byte", [], 0, False)
    n = len(corpus.validation().tokens) - 1
    assert corpus.validation(n).whole and not corpus.validation(n - 1).whole and not corpus.validation().estimated
    assert text_to_score(Text(data="a.bin"), tokenizer).whole
    assert text_to_score(Text(data="a.bin"), tokenizer, len(SHEEP) - 1).whole
    assert not text_to_score(Text(data="a.bin"), tokenizer, len(SHEEP) - 2).whole


def test_what_is_held_out_of_a_large_file_has_a_bound(location):
    np.zeros(30 * MAX_HELD_OUT, "<u2").tofile("a.bin")
    corpus = TokenFileCorpus(Text(data="a.bin", tokenizer="byte"), training())
    assert len(corpus.validation().tokens) == MAX_HELD_OUT + 1 == len(corpus.validation(2 * MAX_HELD_OUT).tokens)


def test_a_file_is_not_held_in_memory(location):
    np.zeros(20_000_000, "<u2").tofile("a.bin")
    tracemalloc.start()
    batches = TokenFileCorpus(Text(data="a.bin", tokenizer="byte"), training()).batches()
    for _ in range(50):
        batches.next()
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    assert "a.bin" not in Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else True
    tracemalloc.stop()


def test_nanogpt_train_and_val(location):
    np.arange(200, dtype="<u2").tofile("train.bin")
    np.arange(30, dtype="<u2").tofile("val.bin")
    corpus = TokenFileCorpus(Text(data="train.bin", tokenizer="byte"), training())
    assert corpus.validation().tokens.tolist() == list(range(30)) and corpus.tokenizer.end_of_text == 256
    assert len(corpus.batches()._tokens) == 200
    Path("val.bin").unlink()
    assert TokenFileCorpus(Text(data="train.bin", tokenizer="byte"), training()).validation().tokens.tolist() == list(range(180, 200))


def test_a_file_of_characters_trains_as_its_text_does(location):
    assert tokenize(["sheep.txt", "--out", "a.bin", "--tokenizer", "char", "--workers", "0"]) == 0
    mapped = TokenFileCorpus(Text(data="a.bin"), training())
    held = FileCorpus(Text(data="sheep.txt", tokenizer="char"), training())
    assert mapped.tokenizer.pieces == held.tokenizer.pieces
    assert np.array_equal(mapped.batches().next(), held.batches().next()) and mapped.batches().position() == held.batches().position()


def opened(path="a.bin", tokenizer=None, **text):
    return TokenFileCorpus(Text(data=path, **text), training(), tokenizer)


def test_damaged_token_files_are_one_sentence(location):
    with pytest.raises(DataError, match=r"a\.bin: cannot be read \(No such file or directory\); `neurogen tokenize"):
        opened()
    Path("a.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.bin: no whole token file, 0 bytes where an even number"):
        opened(tokenizer=BYTES)
    Path("a.bin").write_bytes(b"a" * 501)
    with pytest.raises(DataError, match=r"a\.bin: no whole token file, 501 bytes where an even number"):
        opened(tokenizer=BYTES)
    Path("a.bin").write_bytes(b"a" * 500)
    with pytest.raises(ConfigError, match=r"no a\.json beside it says which tokenizer wrote it; name it: --tokenizer"):
        opened()
    with pytest.raises(DataError, match=r"a\.bin: token 24929 is beyond the vocabulary of 257"):
        opened(tokenizer=BYTES).batches().next()
    with pytest.raises(DataError, match=r"a\.bin: token 24929 is beyond the vocabulary of 257"):
        opened(tokenizer=BYTES).validation()


def test_what_lies_beside_must_fit(location):
    assert tokenize(["sheep.txt", "--out", "a.bin", "--tokenizer", "byte", "--workers", "0"]) == 0
    whole, output = Path("a.bin").read_bytes(), Path("a.json").read_text()
    Path("a.bin").write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"a\.bin: no whole token file, .* where .* bytes are expected; write it again"):
        opened()
    Path("a.bin").write_bytes(whole)
    with pytest.raises(DataError, match="another tokenizer wrote it than the model's"):
        opened(tokenizer=build("byte", [], 0, True))
    with pytest.raises(CheckpointError, match="saved place in the text is for tokens"):
        opened().batches({"tokens": 5, "batch": 3, "heads": [0, 0, 0]})
    Path("a.json").write_text(output.replace("uint16", "uint32"))
    with pytest.raises(DataError, match=r"a\.bin: no whole token file"):
        opened()
    for broken in (output.replace("uint16", "int8"), output[:-9], "[]"):
        Path("a.json").write_text(broken)
        with pytest.raises(DataError, match=r"a\.json: not a description of a\.bin"):
            opened()
    Path("a.json").write_text(output)
    Path("a.tokenizer/tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"a\.bin: its tokenizer, a\.tokenizer beside it, is gone or damaged"):
        opened()


def test_a_file_that_goes_away_while_it_is_read(location):
    np.zeros(1000, "<u2").tofile("a.bin")
    batches = opened(tokenizer=BYTES).batches()
    batches.next()
    Path("a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin: cannot be read any more .*; restore it, then continue with --resume"):
        batches.next()
