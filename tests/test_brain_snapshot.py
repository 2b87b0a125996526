"""A snapshot shows the values of the brain, on every backend; and the held-out pieces that samples go on from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.learning import brain_snapshot as module
from neurogen_numba.learning.brain_snapshot import brain_snapshot
from neurogen_numba.learning.samples import PROMPT_TOKENS, SAMPLE_TOKENS, pieces
from neurogen_numba.text.tokenizer import build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def read(backend):
    """A tiny model, and its activity after it has read 6 tokens where it had room for 8."""
    tokenizer = build("byte", [], 0, documents=False)
    brain = {"vocabulary": tokenizer.vocabulary, "neuromodulation": True}
    model = NeuroGenModel.from_config(tiny.config(brain=brain), tokenizer, backend=backend)
    act = model.activity(8, 2)
    act.levels["dopamine"][...] = backend.asarray(np.array([0.3, 0.6], "f4"))
    model.brain.forward_logits(act, np.stack([tokenizer.encode(text) for text in ("the ca", "abcdef")], 1))
    return model, act


def test_a_portrait_is_of_the_first_sequence_and_of_this_segment(read):
    model, act = read
    numpy, report = model.backend.to_numpy, brain_snapshot(model, act, 7)
    assert (report.step, report.text, report.memory_heads) == (7, "the ca", 2)
    assert report.levels == {"dopamine": pytest.approx(0.45), "norepinephrine": 0.0, "serotonin": 0.0}
    for name in MODULES:
        np.testing.assert_array_equal(report.events[name], numpy(act.v[name])[1:7, 0] > 1)
        np.testing.assert_array_equal(report.membrane[name], numpy(model.brain.parameters.value[f"{name}.log_tau_v"]))
        np.testing.assert_array_equal(report.adaptation[name], numpy(model.brain.parameters.value[f"{name}.log_tau_a"]))
    assert any(events.any() for events in report.events.values())
    assert list(report.weights) == [arc.name for arc in model.brain.arcs]
    weights = numpy(model.brain.parameters.value["wernicke_pfc.weight"])
    np.testing.assert_array_equal(report.weights["wernicke_pfc"], weights.ravel())
    np.testing.assert_array_equal(report.memory, numpy(act.signals["memory.out"].x)[:6, 0])
    np.testing.assert_array_equal(report.working_memory, numpy(act.m)[1:7, 0])
    assert report.memory.shape == (6, 16) and report.working_memory.shape == (6, 8)
    arrays = [report.memory, report.working_memory, *report.events.values(), *report.weights.values(), *report.membrane.values()]
    assert all(type(array) is np.ndarray for array in arrays)


def test_of_many_a_few_are_taken_from_all_over(read, monkeypatch):
    monkeypatch.setattr(module, "NEURONS", 10)
    monkeypatch.setattr(module, "SAMPLE", 30)
    model, act = read
    report = brain_snapshot(model, act, 7)
    np.testing.assert_array_equal(report.events["wernicke"], model.backend.to_numpy(act.v["wernicke"])[1:7, 0, ::5] > 1)
    weights = model.backend.to_numpy(model.brain.parameters.value["wernicke_pfc.weight"]).ravel()
    assert len(weights) > 30
    np.testing.assert_array_equal(report.weights["wernicke_pfc"], weights[:: -(-len(weights) // 30)])
    assert all(len(sample) <= 30 for sample in report.weights.values())


def test_pieces_of_a_long_text_are_spread_over_it_and_of_full_length():
    tokens = np.arange(10_000, dtype=np.int32)
    found = pieces(tokens, None)
    assert [piece.prompt[0] for piece in found] == [0, 2500, 5000, 7500]
    assert all(len(piece.prompt) == PROMPT_TOKENS and len(piece.truth) == SAMPLE_TOKENS for piece in found)
    assert [len(piece.context) - len(piece.prompt) for piece in found] == [0, 1, 1, 1]


def test_short_documents_are_taken_whole_after_their_end_of_text():
    story = [*range(1, 31), 0]
    found = pieces(np.array([0, *story * 8], np.int32), 0)
    assert len(found) == 4
    for piece in found:
        assert piece.context[0] == 0 and [*piece.prompt, *piece.truth] == story[:-1] and len(piece.prompt) == 15


@given(st.lists(st.integers(0, 3), min_size=2, max_size=900), st.sampled_from([None, 0]))
def test_pieces_are_parts_of_documents(tokens, end):
    tokens = np.array(tokens, np.int32)
    long_enough = any(len(document) > 1 for document in "".join(map(str, tokens)).split("0"))
    found = pieces(tokens, end)
    assert found
    for piece in found:
        assert 1 <= len(piece.prompt) <= PROMPT_TOKENS and 1 <= len(piece.truth) <= SAMPLE_TOKENS
        whole = np.concatenate([piece.context, piece.truth])
        assert any(np.array_equal(whole, tokens[first : first + len(whole)]) for first in range(len(tokens)))
        if end is not None and long_enough:
            assert end not in piece.prompt and end not in piece.truth


@pytest.mark.parametrize("kept", ["half", "recompute"])
def test_with_checkpointing_the_first_chunk_is_drawn(kept):
    tokenizer = build("byte", [], 0, documents=False)
    ids = np.stack([tokenizer.encode(text) for text in ("one two three", "a second one.")], 1)
    reports = {}
    for memory in ("full", kept):
        config = tiny.config(brain={"chunk": 4, "vocabulary": tokenizer.vocabulary}, activation_memory=memory)
        model = NeuroGenModel.from_config(config, tokenizer, backend="cpu")
        act = model.activity(16, 2, learning=True)
        model.update(act, ids[:-1], ids[1:], 0.0)
        reports[memory] = brain_snapshot(model, act, 1)
    assert (reports[kept].text, reports["full"].text) == ("one ", "one two thre")
    for name in MODULES:
        np.testing.assert_array_equal(reports[kept].events[name], reports["full"].events[name][:4])
    np.testing.assert_allclose(reports[kept].memory, reports["full"].memory[:4], rtol=1e-2, atol=1e-2)
    assert len(reports[kept].working_memory) == 4
