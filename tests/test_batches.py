"""Streams of segments: every target is the next input, whatever the cut; a position goes on bit for bit; held-out text stays out."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurogen_numba.config import Text, Training
from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.presets import get_preset
from neurogen_numba.text.batches import HELD_OUT_SEED, FileBatches, FileCorpus, StoryCorpus, Validation, open_corpus, text_to_score
from neurogen_numba.text.stories import story
from neurogen_numba.text.tokenizer import build

WORDS = "".join(f"{number} sheep, " for number in range(600))
BYTES = build("byte", [], 0, True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sheep.txt"
    path.write_text(WORDS)
    return str(path)


def corpora(file, batch, segment, seed=0):
    training = Training(batch=batch, segment=segment, seed=seed)
    return [FileCorpus(Text(data=file, tokenizer="char"), training), StoryCorpus(Text(tokenizer="byte"), training, BYTES)]


def read(batches, segments):
    """Inputs and targets of some segments on end, [segments * T, B] each."""
    pairs = [batches.next() for _ in range(segments)]
    return [np.concatenate(side) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize("which", [0, 1])
def test_targets_are_the_inputs_one_token_on_across_segments(file, which):
    inputs, targets = read(corpora(file, 3, 7)[which].batches(), 300)
    assert inputs.shape == targets.shape == (2100, 3)
    assert inputs.dtype == targets.dtype == np.int32
    assert np.array_equal(inputs[1:], targets[:-1])


@given(n=st.integers(1, 50), batch=st.integers(1, 5), segment=st.integers(1, 20), seed=st.integers(0, 9), stop=st.integers(0, 9))
def test_read_heads_wrap_round_and_resume_anywhere(n, batch, segment, seed, stop):
    training = Training(batch=batch, segment=segment, seed=seed)
    tokens = np.arange(n, dtype=np.int32)
    batches = FileBatches(tokens, training, None)
    inputs, targets = read(batches, 12)
    assert np.array_equal(targets, (inputs + 1) % n)
    assert np.array_equal(inputs[1:], (inputs[:-1] + 1) % n)
    parts = np.arange(batch + 1) * n // batch
    assert np.all(parts[:-1] <= inputs[0]) and np.all(inputs[0] <= parts[1:])  # each starts in its own part
    again = FileBatches(tokens, training, None)
    for _ in range(stop):
        again.next()
    resumed = FileBatches(tokens, training, json.loads(json.dumps(again.position())))
    rest = read(resumed, 12 - stop)
    assert np.array_equal(rest[0], inputs[stop * segment :]) and np.array_equal(rest[1], targets[stop * segment :])


@given(batch=st.integers(1, 3), segment=st.integers(1, 700), seed=st.integers(0, 9), stop=st.integers(0, 3))
def test_stories_resume_anywhere(batch, segment, seed, stop):
    corpus = StoryCorpus(Text(tokenizer="byte"), Training(batch=batch, segment=segment, seed=seed), BYTES)
    batches = corpus.batches()
    inputs, targets = read(batches, 4)
    again = corpus.batches()
    for _ in range(stop):
        again.next()
    resumed = corpus.batches(json.loads(json.dumps(again.position())))
    rest = read(resumed, 4 - stop)
    assert np.array_equal(rest[0], inputs[stop * segment :]) and np.array_equal(rest[1], targets[stop * segment :])
    assert resumed.position() == batches.position()


@pytest.mark.parametrize("segment", [1, 13, 500])
def test_stream_b_reads_every_bth_story(segment):
    corpus = StoryCorpus(Text(), Training(batch=3, segment=segment, seed=5), BYTES)
    inputs, _ = read(corpus.batches(), math.ceil(3000 / segment))
    for stream in range(3):
        expected = b"".join(story(5, stream + 3 * k).text.encode() + b"|" for k in range(40))
        documents = b"".join(b"|" if token == BYTES.end_of_text else bytes([token]) for token in inputs[:, stream])
        assert expected.startswith(documents)


def test_the_seed_decides_where_reading_starts(file):
    starts = [corpora(file, 4, 8, seed)[which].batches().next()[0] for which in (0, 1) for seed in (1, 1, 2)]
    assert np.array_equal(starts[0], starts[1]) and not np.array_equal(starts[0], starts[2])
    assert np.array_equal(starts[3], starts[4]) and not np.array_equal(starts[3], starts[5])


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte"])
def test_the_end_of_a_file_is_held_out(tmp_path, kind):
    kept, held_out = "abcd " * 360, "xyz? " * 40
    (tmp_path / "a.txt").write_text(kept + held_out)
    corpus = FileCorpus(Text(data=str(tmp_path / "a.txt"), tokenizer=kind, vocabulary=263, validation=0.1), Training(batch=2, segment=16))
    inputs, targets = read(corpus.batches(), 200)
    trained = corpus.tokenizer.decode(np.union1d(inputs, targets))
    assert not set(trained) & set("xyz?") and set(trained) >= set("abcd")
    validation = corpus.validation()
    assert corpus.tokenizer.decode(validation.tokens) == held_out
    assert not any(b"x" in piece and piece != b"x" for piece in corpus.tokenizer.pieces)  # the tokenizer has not peeked
    assert corpus.tokenizer.end_of_text is None


def test_validation_of_a_file(file):
    corpus = corpora(file, 2, 8)[0]
    whole = corpus.validation()
    assert isinstance(whole, Validation) and whole.floor_bits is None and whole.tokens.dtype == np.int32
    held_out = WORDS[int(len(WORDS) * 0.9) :]
    assert whole.bytes == len(held_out) - 1
    part = corpus.validation(50)
    assert part.bytes == 50 and np.array_equal(part.tokens, whole.tokens[:51])
    assert len(corpus.validation(1).tokens) == 9  # never less than a segment
    assert len(corpus.validation(10**9).tokens) == len(whole.tokens)


def test_bytes_count_the_targets_only_and_in_utf8(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 100)
    corpus = FileCorpus(Text(data=str(tmp_path / "a.txt"), tokenizer="char", validation=0.5), Training(batch=1, segment=8))
    assert corpus.validation().bytes == 2 * 49


def test_bytes_of_words_are_counted_in_the_text_known_or_not(tmp_path):
    """A word that is not known stands as " <unk>", of six bytes: the text has as many as it has."""
    text = "tell me \n" * 40 + "a hippopotamus \n" * 40
    (tmp_path / "a.txt").write_text(text)
    named = Text(data=str(tmp_path / "a.txt"), tokenizer="word", vocabulary=4, validation=0.6)
    corpus = FileCorpus(named, Training(batch=1, segment=8))
    tokenizer, held_out = corpus.tokenizer, text[int(len(text) * (1 - 0.6)) :]
    whole = corpus.validation()
    first = tokenizer.measured(held_out)[1][0]
    assert (tokenizer.unknown == whole.tokens).any() and whole.bytes == len(held_out) - first
    assert corpus.validation(8).bytes == tokenizer.measured(held_out)[1][1:9].sum()
    scored = text_to_score(named, tokenizer)
    assert scored.bytes == len(text) - 4 != tokenizer.byte_count(scored.tokens[1:])
    assert text_to_score(named, tokenizer, 2).bytes == len(" me \n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    streamed = text_to_score(Text(data=str(tmp_path / "a.jsonl")), tokenizer)
    assert np.array_equal(streamed.tokens, scored.tokens) and streamed.bytes == scored.bytes


def test_a_part_says_that_it_is_one(file):
    corpus = corpora(file, 2, 8)[0]
    n = len(corpus.validation().tokens) - 1
    assert corpus.validation().whole and corpus.validation(n).whole and not corpus.validation(n - 1).whole
    everything = text_to_score(Text(data=str(file)), corpus.tokenizer)
    n = len(everything.tokens) - 1
    assert everything.whole and text_to_score(Text(data=str(file)), corpus.tokenizer, n).whole
    assert not text_to_score(Text(data=str(file)), corpus.tokenizer, n - 1).whole


def test_documents_of_a_folder_end_with_the_end_of_text(tmp_path):
    for name, text in (("a", "one " * 30), ("b", "two " * 30), ("c", "six " * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    training = Training(batch=1, segment=8)
    corpus = FileCorpus(Text(data=str(tmp_path), tokenizer="char", validation=0.5), training)
    end = corpus.tokenizer.end_of_text
    validation = corpus.validation()
    assert np.flatnonzero(validation.tokens == end).tolist() == [60, 60 + 1 + 120]  # the rest of b, and c
    assert corpus.tokenizer.decode(validation.tokens) == "two " * 15 + "six " * 30
    assert validation.bytes == 180 - 1
    endless = FileCorpus(Text(data=str(tmp_path), validation=0.5), training, build("char", ["onetwosix "], 0, False))
    assert endless.tokenizer.decode(endless.validation().tokens) == "two " * 15 + "six " * 30


def test_validation_of_stories_is_whole_held_out_stories_with_their_bits():
    corpus = StoryCorpus(Text(), Training(segment=8, seed=3), BYTES)
    validation = corpus.validation(2000)
    texts = [story(HELD_OUT_SEED, index, "held-out") for index in range(100)]
    documents = bytes(255 if token == BYTES.end_of_text else token for token in validation.tokens).split(b"\xff")
    assert documents[0] == documents[-1] == b""  # an end of text first, and one after each story
    count = len(documents) - 2
    assert [part.decode() for part in documents[1:-1]] == [text.text for text in texts[:count]]
    assert validation.floor_bits == pytest.approx(sum(text.bits for text in texts[:count]))
    assert validation.bytes == sum(len(text.text.encode()) for text in texts[:count])
    assert list(validation.questions) == [question for text in texts[:count] for question in text.questions]
    assert len(validation.tokens) - 1 >= 2000 > len(validation.tokens) - 1 - len(documents[-2]) - 1  # one story less would not do
    assert len(corpus.validation().tokens) > 50_000
    other_seed = StoryCorpus(Text(), Training(segment=8, seed=4), BYTES)
    assert np.array_equal(other_seed.validation(2000).tokens, validation.tokens)


@pytest.mark.parametrize("kind", ["sentencepiece", "char"])
def test_a_tokenizer_built_for_stories_knows_them_all(kind):
    corpus = StoryCorpus(Text(tokenizer=kind, vocabulary=512), Training(seed=1))
    assert corpus.tokenizer.kind == kind and corpus.tokenizer.end_of_text is not None
    held_out = corpus.validation(20_000)
    assert corpus.tokenizer.decode(held_out.tokens).startswith(story(HELD_OUT_SEED, 0, "held-out").text)
    if kind == "sentencepiece":
        assert corpus.tokenizer.vocabulary == 512 and held_out.bytes > 1.5 * len(held_out.tokens)


def test_open_corpus_picks_by_the_data(file):
    config = get_preset("nano")
    assert isinstance(open_corpus(config, BYTES), StoryCorpus)
    assert isinstance(open_corpus(config.replace(text={"data": file, "tokenizer": "char"})), FileCorpus)
    assert open_corpus(config, BYTES).tokenizer is BYTES
    with pytest.raises(ConfigError, match="knows 256 tokens, the tokenizer has 257"):
        open_corpus(config.replace(brain={"vocabulary": 256}), BYTES)


def test_too_little_text_says_how_much_is_needed(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    corpus = FileCorpus(Text(data=str(tmp_path / "a.txt"), tokenizer="char"), Training(batch=9, segment=10))
    with pytest.raises(DataError, match=r"a\.txt: 90 tokens .*--seq-length 10 .*--batch-size 9 needs 91"):
        corpus.batches()
    with pytest.raises(DataError, match=r"a\.txt: 10 tokens held out, .*--seq-length 10 needs 11"):
        corpus.validation()
    just_enough = FileCorpus(Text(data=str(tmp_path / "a.txt"), tokenizer="char"), Training(batch=11, segment=8))
    assert just_enough.batches().next()[0].shape == (8, 11)
    assert len(just_enough.validation().tokens) == 10


def test_a_text_of_one_character_leaves_nothing_to_train_on(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    corpus = FileCorpus(Text(data=str(tmp_path / "a.txt"), tokenizer="byte"), Training())
    with pytest.raises(DataError, match="0 tokens to train on"):
        corpus.batches()


def test_a_given_tokenizer_must_know_the_text(file):
    with pytest.raises(ConfigError, match="sheep.txt, line 1: the character '0' does not occur in the training text"):
        FileCorpus(Text(data=file), Training(), build("char", ["abc"], 0, False)).batches()
    with pytest.raises(ConfigError, match="end of text"):
        StoryCorpus(Text(), Training(), build("byte", [], 0, False))


def test_a_position_of_something_else_is_refused(file):
    files, documents = corpora(file, 3, 8)
    other_files, other_told = corpora(file, 4, 8)
    for corpus, foreign in ((other_files, files), (other_told, documents), (documents, files), (files, documents)):
        with pytest.raises(CheckpointError, match="saved place in the text"):
            corpus.batches(foreign.batches().position())
    with pytest.raises(CheckpointError, match="for seed 0, not 1"):
        corpora(file, 3, 8, seed=1)[1].batches(documents.batches().position())
