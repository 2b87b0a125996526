"""Streams of any length: no document is lost or told twice, held-out ones stay out, and a position goes on bit for bit."""

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from neurogen_numba.config import Text, Training
from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.text import encoding, sources, stream
from neurogen_numba.text.batches import FileBatches, StoryCorpus, open_corpus, text_to_score
from neurogen_numba.text.encoding import encoded
from neurogen_numba.text.sources import Piece, open_source
from neurogen_numba.text.stream import StreamBatches, StreamCorpus
from neurogen_numba.text.tokenizer import build

BYTES = build("byte", [], 0, True)
END = BYTES.end_of_text


class Told:
    """A source of documents in memory; its position is the number of the next one."""

    name, single, size = "told", False, None

    def __init__(self, texts):
        self.texts = texts

    def read(self, position=None):
        for number in range(position["at"] if position else 0, len(self.texts)):
            yield Piece(self.texts[number], True, {"at": number + 1})

    def identity(self):
        return {"texts": len(self.texts)}


def streams(texts, position=None, batch=3, segment=5, chunk=40, seed=0, end=None, workers=0):
    text = Text(chunk_tokens=chunk, workers=workers)
    return StreamBatches(Told(texts), {"at": 0}, BYTES, text, Training(batch=batch, segment=segment, seed=seed), position, end)


def numbered(lengths):
    return [f"{number}:" + "x" * length for number, length in enumerate(lengths)]


def read_back(inputs):
    """The documents that one stream told, whole ones only."""
    return ["".join(map(chr, part)) for part in np.split(inputs, np.flatnonzero(inputs == END))][:-1]


def segments(batches, count):
    return [np.stack(batches.next()) for _ in range(count)]  # inputs and targets [2, T, B] each


lengths_of_documents = st.lists(st.integers(0, 30), min_size=1, max_size=25)
settings_of_streams = {
    "batch": st.integers(1, 4),
    "segment": st.integers(1, 12),
    "chunk": st.sampled_from([1, 40, 10**6]),
    "seed": st.integers(0, 3),
}


@given(lengths=lengths_of_documents, stop=st.integers(0, 40), reset=st.booleans(), **settings_of_streams)
def test_a_position_goes_on_bit_for_bit(lengths, stop, reset, **settings):
    texts, end = numbered(lengths), END if reset else None
    whole = streams(texts, end=end, **settings)
    expected = segments(whole, stop + 15)
    first = streams(texts, end=end, **settings)
    segments(first, stop)
    saved = json.loads(json.dumps(first.position()))
    resumed = streams(texts, saved, end=end, **settings)
    assert resumed.position() == saved
    assert np.array_equal(segments(resumed, 15), expected[stop:]) and resumed.position() == whole.position()


@given(lengths=lengths_of_documents, **settings_of_streams)
def test_every_document_is_told_once_before_any_is_told_again(lengths, **settings):
    texts = numbered(lengths)
    batches = streams(texts, **settings)
    taken, take = [], batches._take

    def watched():
        number, ids = take()
        assert number == len(taken)
        taken.append(BYTES.decode(ids))
        return number, ids

    batches._take = watched
    inputs = np.concatenate([batches.next()[0] for _ in range(400 // settings["segment"] + 1)])
    for first in range(0, len(taken), len(texts)):
        once = taken[first : first + len(texts)]
        assert len(set(once)) == len(once) and set(once) <= set(texts)
    whole = [document.strip(chr(END)) for b in range(settings["batch"]) for document in read_back(inputs[:, b])]
    under_way = {number for queue in batches._queues for number, _ in queue}
    assert sorted(whole) == sorted(text for number, text in enumerate(taken) if number not in under_way)


def test_targets_are_the_inputs_one_token_on_and_seeds_differ():
    texts = numbered(range(20))
    pairs = segments(streams(texts), 60)
    inputs, targets = np.concatenate(pairs, axis=1)
    assert inputs.dtype == np.int32 and np.array_equal(inputs[1:], targets[:-1])
    assert not np.array_equal(segments(streams(texts, seed=1), 60), pairs)
    in_order = np.concatenate([streams(texts, chunk=1, batch=1, segment=400).next()[0][:, 0]])
    assert "".join(chr(token) if token != END else "|" for token in in_order).startswith("|".join(texts)[:400])


def test_the_number_of_workers_changes_nothing():
    texts = numbered(range(60))
    with_workers = streams(texts, workers=2)
    assert np.array_equal(segments(with_workers, 50), segments(streams(texts), 50))
    assert with_workers.position() == json.loads(json.dumps(with_workers.position()))


def test_workers_encode_in_order_and_their_errors_arrive(monkeypatch):
    monkeypatch.setattr(encoding, "PARCEL", 50)
    pieces = [Piece(f"{number} sheep", number % 2 == 0, {"at": number}) for number in range(100)]
    alone, together = (list(encoded(pieces, BYTES, True, workers)) for workers in (0, 2))
    for (piece, ids), (same, same_ids) in zip(alone, together, strict=True):
        assert piece == same and np.array_equal(ids, same_ids) and (ids[-1] == END) == piece.ends
    with pytest.raises(ConfigError, match="does not occur in the training text"):
        list(encoded(pieces, build("char", ["sheep "], 0, True), True, 2))


def test_a_source_that_became_empty_is_refused():
    batches = streams(["one"])
    batches._source.texts = []
    with pytest.raises(DataError, match="told: there is no more text"):
        batches.next()


def test_a_position_of_something_else_is_refused():
    saved = streams(numbered(range(9))).position()
    for other in ({"texts": numbered(range(8))}, {"batch": 2}, {"seed": 1}, {"chunk": 41}):
        with pytest.raises(CheckpointError, match="saved place in the text"):
            streams(**({"texts": numbered(range(9)), "position": saved} | other))


# Documents that begin a segment


@given(lengths=lengths_of_documents, **settings_of_streams)
def test_with_reset_no_segment_holds_more_than_one_document(lengths, **settings):
    """Joined again, the targets that count are the same tokens as without."""
    plain, cut = (streams(numbered(lengths), end=end, **{**settings, "batch": 1}) for end in (None, END))
    length = settings["segment"]
    inputs = np.concatenate([plain.next()[1][:, 0] for _ in range(30)])
    learned = []
    while len(learned) < 30:
        given, wanted = (side[:, 0] for side in cut.next())
        counted = wanted >= 0
        used = int(counted.sum())
        assert used and counted[:used].all() and not counted[used:].any()  # a head that counts, a tail that does not
        assert END not in given[1:used] and (used == length or wanted[used - 1] == END)
        learned += wanted[:used].tolist()
    assert learned[:30] == inputs[:30].tolist()


def test_every_kind_of_corpus_stops_at_documents():
    training = Training(batch=2, segment=64)
    tokens = np.array([1, 2, END, 3, END, END, 4, 5, 6], np.int32)
    heads = FileBatches(tokens, Training(batch=1, segment=3), {"tokens": 9, "batch": 1, "heads": [0]}, END)
    read = [[side[:, 0].tolist() for side in heads.next()] for _ in range(5)]
    assert read == [
        [[1, 2, END], [2, END, -1]],
        [[END, 3, END], [3, END, -1]],
        [[END, END, END], [END, -1, -1]],
        [[END, 4, 5], [4, 5, 6]],
        [[6, 1, 2], [1, 2, END]],
    ]
    stories = StoryCorpus(Text(reset_at_documents=True), training, BYTES)
    batches = stories.batches()
    for _ in range(20):
        inputs, targets = batches.next()
        for b in range(2):
            ends = np.flatnonzero(targets[:, b] == END)
            assert len(ends) <= 1 and (not len(ends) or (targets[ends[0] + 1 :, b] == -1).all())
    with pytest.raises(ConfigError, match="--reset-at-documents: this text is a single document"):
        open_corpus(tiny.config({"data": __file__, "tokenizer": "byte", "reset_at_documents": True}))


# Corpora


def lines(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def corpus(data, given=BYTES, **text):
    return StreamCorpus(Text(data=data, **text), Training(batch=2, segment=8), given)


def test_the_first_documents_are_held_out(tmp_path):
    texts = [f"{number:02}:" + "x" * 97 for number in range(100)]
    small = corpus(lines(tmp_path / "a.jsonl", texts))
    validation = small.validation()
    held = BYTES.decode(validation.tokens)
    assert held == "".join(texts[:10]) and validation.bytes == len(held) - 1  # a tenth
    assert (validation.tokens == END).sum() == 10 and len(small.validation(20).tokens) == 21
    inputs = np.concatenate([block for block, _ in segments(small.batches(), 1000)])
    trained = "".join(BYTES.decode(inputs[:, b]) for b in range(2))
    assert all(text[:12] not in trained for text in texts[:10]) and all(text[:12] in trained for text in texts[10:])


def test_of_a_large_source_only_so_much_is_held_out_or_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "HELD_OUT_BYTES", 500)
    texts = [f"{number:02}:" + "x" * 97 for number in range(100)]
    seen, text_of = [], sources._text_of
    monkeypatch.setattr(sources, "_text_of", lambda *given: seen.append(0) or text_of(*given))
    large = corpus(lines(tmp_path / "a.jsonl", texts))
    assert BYTES.decode(large.validation().tokens) == "".join(texts[:5]) and len(seen) == 50


def test_a_tokenizer_is_trained_on_what_is_not_held_out(tmp_path):
    path = lines(tmp_path / "a.jsonl", ["held out qqqq " * 9] * 2 + [f"{number} sheep went home. " * 5 for number in range(30)])
    trained = corpus(path, None, vocabulary=300)
    assert trained.tokenizer.kind == "sentencepiece" and trained.tokenizer.end_of_text is not None
    assert any(b"sheep" in piece for piece in trained.tokenizer.pieces) and not any(b"qq" in piece for piece in trained.tokenizer.pieces)
    assert set("held out q") <= set(corpus(path, None, tokenizer="char").tokenizer._characters)


def test_too_little_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl: 3 bytes of text; too little to hold some out"):
        corpus(lines(tmp_path / "a.jsonl", ["one"]))
    with pytest.raises(DataError, match=r"a\.jsonl: 0 bytes of text"):
        corpus(lines(tmp_path / "a.jsonl", []))
    with pytest.raises(DataError, match="1 token held out, but --seq-length 8 needs 9"):
        corpus(lines(tmp_path / "a.jsonl", ["abcdefghi", "jklmnopqr"])).validation()
    with pytest.raises(ConfigError, match="--tokenizer char: it would need a pass through all of hf:"):
        stream.tokenizer_for(Text(tokenizer="char"), open_source("hf:a/b", "text"), iter(()), 1.0)


def test_large_text_is_streamed_and_little_text_is_not(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join(f"{number} sheep\n" for number in range(9000)))
    config = tiny.config({"data": str(tmp_path / "a.txt"), "tokenizer": "char"})
    held = open_corpus(config)
    monkeypatch.setattr(sources, "ENCODED_ONCE", 1000)
    monkeypatch.setattr(sources, "PIECE", 1000)
    streamed = open_corpus(config)
    assert (type(held).__name__, type(streamed).__name__) == ("FileCorpus", "StreamCorpus")
    assert streamed.tokenizer.pieces == held.tokenizer.pieces and streamed.tokenizer.end_of_text is None
    assert streamed.batches().next()[0].shape == (16, 4)


def test_text_to_score(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", ["one", "two!"])
    whole = text_to_score(Text(data=path), BYTES)
    assert BYTES.decode(whole.tokens) == "onetwo!" and whole.tokens.tolist()[3::5] == [END, END] and whole.bytes == 6
    assert BYTES.decode(text_to_score(Text(data=path), BYTES, 5).tokens) == "onetw"
    (tmp_path / "a.txt").write_text("plain text")
    assert BYTES.decode(text_to_score(Text(data=str(tmp_path / "a.txt")), BYTES, 3).tokens) == "plai"
    monkeypatch.setattr(sources, "ENCODED_ONCE", 3)
    assert BYTES.decode(text_to_score(Text(data=str(tmp_path / "a.txt")), BYTES).tokens) == "plain text"
    with pytest.raises(ConfigError, match="may have no end; limit it with --max-tokens"):
        text_to_score(Text(data="hf:a/b"), BYTES)
    with pytest.raises(DataError, match="0 tokens; scoring needs at least 2"):
        text_to_score(Text(data=lines(tmp_path / "b.jsonl", [])), BYTES)


def test_a_worker_that_is_killed_costs_a_sentence(monkeypatch):
    monkeypatch.setattr(encoding, "PARCEL", 50)
    pieces = (Piece("sheep " * 20, True, {"at": number}) for number in range(1000))
    going = encoded(pieces, BYTES, True, 1)
    next(going)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(DataError, match="a process that encodes text was killed.*--workers"):
        list(going)
