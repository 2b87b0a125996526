"""Text to ids and back, exactly; training that repeats itself; and a sentence for everything that cannot be used."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.text import tokenizer as module
from neurogen_numba.text.tokenizer import KINDS, Tokenizer, build

CORPUS = [
    "The cat sat on the mat.\nThe dog sat on the log, and the cat looked at the dog.\n\n  Two spaces,\ta tab.\n" * 5,
    "Ein Käse für die Bären – naïve façade. 日本語 😀\n" * 5,
]
PIECES = {kind: build(kind, CORPUS, 400, True) for kind in KINDS}
EXACT = [kind for kind in KINDS if kind != "word"]  # what comes back is what went in
AWKWARD = st.text(st.one_of(st.sampled_from(" \t\n▁é😀\x00\ufeff\ufffdthe<>0s/"), st.characters(exclude_categories=["Cs"])))


@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
@given(text=AWKWARD)
@example(text="  a  \n\n\t▁ ▁▁b\x00é😀\ufeff\ufffd \r\n</s><unk><0x0A> ")
@example(text="")
def test_any_text_comes_back_as_it_was(kind, text):
    tokenizer = PIECES[kind]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_count(ids) == len(text.encode())
    assert tokenizer.end_of_text not in ids


@given(text=st.text(st.sampled_from(sorted(set("".join(CORPUS))))))
def test_text_of_known_characters_comes_back_from_a_char_tokenizer(text):
    tokenizer = PIECES["char"]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_count(ids) == len(text.encode())


@pytest.mark.parametrize("kind", EXACT)
@given(text=st.text(st.sampled_from("cat Käse日😀\n")), cut=st.integers(0, 60))
def test_a_stream_says_what_decode_says_and_never_half_a_character(kind, text, cut):
    tokenizer = PIECES[kind]
    ids = tokenizer.encode(text)[:cut]
    stream = tokenizer.stream()
    pushed = [stream.push(int(token)) for token in ids]
    assert text.startswith("".join(pushed))
    assert "".join(pushed) + stream.finish() == tokenizer.decode(ids)


@given(lines=st.lists(st.lists(st.sampled_from(["the", "cat", "Käse", "日本語", "<unk>"]))))
def test_words_of_a_word_level_text_come_back_as_it_was(lines):
    """Every word behind a space, a space before every end of line."""
    text = " \n".join("".join(f" {word}" for word in line) for line in lines)
    ids = PIECES["word"].encode(text)
    assert PIECES["word"].decode(ids) == text and ids.dtype == np.int32
    assert len(ids) == len(text.split()) + max(0, len(lines) - 1)
    assert PIECES["word"].byte_count(ids) == len(text.encode())


@given(words=st.lists(st.sampled_from(["the", "zebra", "Käse", "日本語", "<unk>", " ", "\t", "\n", "\u3000", "x"]), min_size=1))
def test_the_bytes_of_words_are_those_of_the_text_known_or_not(words):
    text = "".join(words)
    ids, counts = PIECES["word"].measured(text)
    assert np.array_equal(ids, PIECES["word"].encode(text)) and len(counts) == len(ids)
    assert counts.sum() == (len(text.encode()) if len(ids) else 0)


def test_each_word_counts_the_white_space_before_it():
    tokenizer = build("word", ["the cat"], 9, True)
    assert tokenizer.decode(tokenizer.encode("the  zebra\n")) == " the <unk> \n"
    ids, counts = tokenizer.measured("the  zebra\n", ends=True)
    assert counts.tolist() == [3, 7, 1, 0] and ids[1] == tokenizer.unknown and ids[3] == tokenizer.end_of_text
    assert tokenizer.measured("")[1].tolist() == []


@pytest.mark.parametrize("kind", EXACT)
def test_the_bytes_of_other_tokens_are_those_of_their_pieces(kind):
    tokenizer = PIECES[kind]
    ids, counts = tokenizer.measured("Käse 日本 \n")
    assert np.array_equal(ids, tokenizer.encode("Käse 日本 \n")) and counts.tolist() == [len(tokenizer.pieces[i]) for i in ids]
    assert tokenizer.unknown is None


def test_the_most_frequent_words_are_known_and_others_are_one():
    corpus = ["b a a\nc a b", "d"]
    for size, known in ((8, "abcd"), (4, "ab"), (3, "a"), (2, "")):
        tokenizer = build("word", corpus, size, False)
        assert tokenizer.vocabulary == len(known) + 2
        output = tokenizer.decode(tokenizer.encode("a b c d e\n"))
        assert output == "".join(f" {word}" if word in known else " <unk>" for word in "abcde") + " \n"
    assert build("word", ["<unk> x x"], 9, True).vocabulary == 4  # the end of a line, x, <unk>, the end of text


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_text_is_a_token_that_decodes_to_nothing(kind):
    with_end, without = build(kind, CORPUS, 400, True), build(kind, CORPUS, 400, False)
    assert with_end.decode([with_end.end_of_text]) == "" == with_end.stream().push(with_end.end_of_text)
    assert with_end.byte_count([with_end.end_of_text]) == 0
    assert 0 <= with_end.end_of_text < with_end.vocabulary
    assert without.end_of_text is None


def test_sizes():
    characters = len(set("".join(CORPUS)))
    assert [PIECES[kind].vocabulary for kind in EXACT] == [400, characters + 1, 257]
    assert build("char", CORPUS, 0, False).vocabulary == characters
    assert build("byte", CORPUS, 0, False).vocabulary == 256


def test_pieces_are_longer_than_characters_and_stop_at_the_line_end():
    tokenizer = PIECES["sentencepiece"]
    text = CORPUS[0]
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert not any(b"\n" in piece and piece != b"\n" for piece in tokenizer.pieces)


def test_training_is_repeatable_and_silent(tmp_path, capfd):
    for name in "ab":
        build("sentencepiece", iter(CORPUS), 380, True).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_big_corpus_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2000)
    monkeypatch.setattr(module, "WINDOWS", 10)
    text = "".join(chr(48 + i // 1000) * 1000 for i in range(0, 10_000, 1000))
    sample = "\n".join(module.excerpts([text], len(text)))
    assert 1990 <= len(sample) <= 2000 and "\n".join(module.excerpts([sample], len(sample))) == sample
    for size in (7, 999, 4000):  # however it comes
        assert "\n".join(module.excerpts([text[index : index + size] for index in range(0, len(text), size)], len(text))) == sample
    assert all(sample.count(chr(48 + block)) >= 100 for block in range(10))


def test_long_lines_are_trained_on():
    tokenizer = build("sentencepiece", ["abrakadabra" * 2000 + "日本語" * 2000], 270, False)
    assert len(tokenizer.encode("日本語")) < len("日本語".encode())
    assert len(tokenizer.encode("abrakadabra")) < 11


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind, documents, tmp_path):
    saved = build(kind, CORPUS, 400, documents)
    saved.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert (loaded.kind, loaded.pieces, loaded.end_of_text) == (kind, saved.pieces, saved.end_of_text)
    assert np.array_equal(loaded.encode(CORPUS[1]), saved.encode(CORPUS[1]))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("documents", [True, False])
def test_a_given_model_is_used_as_it_is(documents, tmp_path):
    build("sentencepiece", CORPUS, 400, False).save(tmp_path)
    given_model = build(str(tmp_path / "tokenizer.model"), ["of no account"], 7, documents)
    assert given_model.kind == "sentencepiece"
    assert given_model.vocabulary == 400 + documents
    assert given_model.end_of_text == (400 if documents else None)
    assert given_model.decode(given_model.encode(CORPUS[1])) == CORPUS[1]
    given_model.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").pieces == given_model.pieces


def test_a_foreign_model_shows_what_it_does_not_know(tmp_path):
    import sentencepiece

    with open(tmp_path / "foreign.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 9), model_writer=file, vocab_size=20, hard_vocab_limit=False, minloglevel=3
        )
    foreign = build(str(tmp_path / "foreign.model"), [], 0, True)
    assert foreign.decode(foreign.encode("the cat")) == " the cat"  # its dummy prefix
    assert "⁇" in foreign.decode(foreign.encode("the ☃"))
    assert foreign.end_of_text == 2  # its </s>


def refused(error, *output):
    """The block below raises `error` in one sentence that contains every one of `said`."""
    return pytest.raises(error, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{word})" for word in output))


def test_of_a_text_with_fewer_pieces_than_asked_for_there_are_as_many_as_it_has():
    largest = build("sentencepiece", CORPUS, 9000, True).vocabulary
    assert largest < 9000
    sizes = {asked: build("sentencepiece", CORPUS, asked, True).vocabulary for asked in (largest - 1, largest, largest + 1, 10**12)}
    assert sizes == {largest - 1: largest - 1, largest: largest, largest + 1: largest, 10**12: largest}


def test_a_vocabulary_too_small_is_told_the_smallest_that_works():
    with refused(ConfigError, "--vocab-size 10:", "259 or more"):
        build("sentencepiece", CORPUS, 10, True)
    with pytest.raises(ConfigError, match=r"^--vocab-size 262: .*use --vocab-size (\d+) or more$") as raised:
        build("sentencepiece", CORPUS, 262, True)
    smallest = int(str(raised.value).split()[-3])
    assert build("sentencepiece", CORPUS, smallest, True).vocabulary == smallest


def test_kinds_that_do_not_exist(tmp_path):
    with refused(ConfigError, "'byte'"):
        build("bytes", CORPUS, 400, True)
    with refused(ConfigError, "sentencepiece, char, byte"):
        build("xyz", CORPUS, 400, True)
    with refused(ConfigError, "missing.model", "No such file"):
        build(str(tmp_path / "missing.model"), CORPUS, 400, True)
    for content in (b"", b"This is no model.", b"\x00" * 100):
        (tmp_path / "text.model").write_bytes(content)
        with refused(ConfigError, "text.model", "not a SentencePiece model"):
            build(str(tmp_path / "text.model"), CORPUS, 400, True)


def test_texts_without_words():
    with refused(DataError, "--tokenizer byte"):
        build("sentencepiece", ["\n\t\n"], 400, True)
    with refused(DataError, "empty"):
        build("char", [""], 400, True)


@pytest.mark.parametrize("unknown", ["Z", "\x00", "\U0010ffff"])
def test_an_unknown_character_is_named(unknown):
    with refused(ConfigError, "character 4 ", ascii(unknown).strip("'").replace("\\", r"\\")):
        PIECES["char"].encode("cat " + unknown + "!")


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind):
    with refused(ConfigError, "character 3 ", "surrogate"):
        PIECES[kind].encode("cat\ud800")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_outside_the_vocabulary_are_refused(kind):
    tokenizer = PIECES[kind]
    for bad in (-1, tokenizer.vocabulary):
        with refused(ConfigError, "token 1:", str(bad), str(tokenizer.vocabulary - 1)):
            tokenizer.decode([0, bad])
        with refused(ConfigError, str(bad)):
            tokenizer.stream().push(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_save_is_refused(kind, tmp_path):
    PIECES[kind].save(tmp_path)
    settings = tmp_path / "tokenizer.json"
    whole = settings.read_bytes()
    for content in (whole[:-9], b"[]", b"\xff", b"{}", json.dumps(json.loads(whole) | {"vocabulary": 5, "kind": kind}).encode()):
        settings.write_bytes(content)
        with refused(CheckpointError, "tokenizer", "damaged"):
            Tokenizer.load(tmp_path)
    settings.write_bytes(whole.replace(kind.encode(), b"morse"))
    with refused(CheckpointError, "damaged"):
        Tokenizer.load(tmp_path)
    settings.unlink()
    with refused(CheckpointError, "tokenizer.json", "No such file"):
        Tokenizer.load(tmp_path)


def test_a_damaged_or_missing_model_is_refused(tmp_path):
    PIECES["sentencepiece"].save(tmp_path)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:1000])
    with refused(CheckpointError, "tokenizer.model", "damaged"):
        Tokenizer.load(tmp_path)
    model.unlink()
    with refused(CheckpointError, "tokenizer.model", "No such file"):
        Tokenizer.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(CheckpointError, "file", "cannot be written"):
        PIECES["byte"].save(tmp_path / "file")
