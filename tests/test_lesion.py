"""`model.lesion`: what is named is silent, on every backend and in steps that were recorded before, and comes back bit for bit."""

import contextlib
import copy
import threading

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.errors import ConfigError
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels import mma
from neurogen_numba.text.tokenizer import CharTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = CharTokenizer("abcdefgh .\n", documents=False)
IDS = LETTERS.encode("a bad cab")


def made(backend="cpu", **brain):
    config = tiny.config(brain={"vocabulary": LETTERS.vocabulary, **brain})
    model = NeuroGenModel.from_config(config, LETTERS, backend=backend)
    model.brain.parameters.value["decoder.weight"][:] *= 6
    return model


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request):
    return made(backends.get(request.param, 0, "fp32"))


@pytest.fixture(scope="module")
def on_cpu():
    return made()


def arrays(model):
    """All that the forward pass computes with: parameters, and what is derived from them."""
    brain, fetch = model.brain, model.backend.to_numpy
    derived = {f"{p.name} {what}": array for p in brain.populations for what, array in p.constant.items()}
    synapses = brain.synapses
    copies = [synapses.transposed] if model.backend.name == "cpu" else list(synapses.read)
    derived |= {f"copy {n}": array for n, array in enumerate(copies)}
    return {name: fetch(array).copy() for name, array in (brain.parameters.value | derived).items()}


def same(before, after):
    return all(np.array_equal(before[name].view(np.uint8), after[name].view(np.uint8)) for name in before)


def test_a_lesion_is_a_brain_without_these_synapses(model):
    """A projection is drawn alike in both brains."""
    expected, before, intact = made(without="memory_broca").logits(IDS), model.logits(IDS), arrays(model)
    with model.lesion("memory_broca"):
        np.testing.assert_allclose(model.logits(IDS), expected, atol=2e-3)
        assert not same(intact, arrays(model))
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_array_equal(model.logits(IDS), before)
    assert same(intact, arrays(model))


def test_a_silent_memory_equals_one_without_readers(on_cpu):
    expected = made(without="memory_broca memory_hippocampus").logits(IDS)
    with on_cpu.lesion("memory"):
        np.testing.assert_allclose(on_cpu.logits(IDS), expected, atol=2e-3)


def test_a_silent_module_has_no_events_and_no_readers(on_cpu):
    for module in MODULES:
        with on_cpu.lesion(module):
            recording = on_cpu.listen("a bad cab")
        assert recording.rates.mean[module] == 0
        silent = {name for name, rate in recording.rates.mean.items() if not rate}
        # all input of the brain comes from the Thalamus, and all that the basal ganglia hear from PFC
        assert {"thalamus": set(MODULES), "pfc": {"pfc", "basal_ganglia"}}.get(module, {module}) <= silent
        assert ("thalamus" in silent) == (module == "thalamus")
    with on_cpu.lesion("broca"):
        logits = on_cpu.logits(IDS)
    np.testing.assert_allclose(logits, np.broadcast_to(on_cpu.brain.parameters.value["decoder.bias"], logits.shape), atol=1e-6)


def test_a_module_with_a_readout_is_silent_too():
    from neurogen_numba.config import Module

    model = made(wernicke=Module(48, outputs=16, lateral=4))
    with model.lesion("wernicke"):
        names = [name for name, value in model.brain.parameters.value.items() if not np.any(value) and name != "wernicke.bias"]
    assert {"readout_wernicke.weight", "memory_write.weight", "wernicke_broca.weight", "lateral_wernicke.weight"} <= set(names)
    assert "memory_broca.weight" not in names


def test_several_names_and_patterns(on_cpu):
    def silent(*names):
        with on_cpu.lesion(*names):
            return {name for name, value in on_cpu.brain.parameters.value.items() if name.endswith(".weight") and not np.any(value)}

    assert silent("memory_broca", "pfc_broca") == {"memory_broca.weight", "pfc_broca.weight"}
    assert silent("memory") == silent("memory_broca", "memory_hippocampus") == {"memory_broca.weight", "memory_hippocampus.weight"}
    assert silent("working_memory") == {"working_memory_pfc.weight"}
    assert silent("memory_[bh]*", "memory_broca") == silent("memory")


def test_contexts_nest_overlap_and_end_after_an_exception(on_cpu):
    before = arrays(on_cpu)
    with pytest.raises(KeyError), on_cpu.lesion("memory_broca"):
        inside = arrays(on_cpu)
        with on_cpu.lesion("memory"), on_cpu.lesion("wernicke", "memory_broca"):
            assert not on_cpu.brain.parameters.value["wernicke.gain"].any()
        assert same(inside, arrays(on_cpu))
        raise KeyError
    assert same(before, arrays(on_cpu))
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(on_cpu.lesion("memory"))
    second.enter_context(on_cpu.lesion("memory_broca", "pfc"))
    first.close()  # before what began later
    assert not on_cpu.brain.parameters.value["memory_broca.weight"].any()
    assert on_cpu.brain.parameters.value["memory_hippocampus.weight"].any()
    second.close()
    assert same(before, arrays(on_cpu)) and not on_cpu.brain.lesions


def test_a_session_that_has_drawn_before_draws_with_the_lesion(model):
    """Its steps are recorded, with the addresses of the arrays that they read."""

    def session():
        made = Session(model, Sampling(temperature=0.7, seed=5))
        made.feed(IDS[:, None])
        made.write(1)
        return made

    old = session()
    state = old.state()
    with model.lesion("memory", "wernicke_broca"):
        lesioned = old.write(2)
        new = Session(model, Sampling(temperature=0.7, seed=5))
        new.load_state(state)
        new.feed(LETTERS.encode("a")[:, None])
        after_a = new.state()
        old.load_state(state)
        old.feed(LETTERS.encode("a")[:, None])
        for name, array in old.state().items():
            np.testing.assert_array_equal(array, after_a[name], err_msg=name)
    intact = session()
    np.testing.assert_array_equal(intact.state()["broca.v"], state["broca.v"])
    old.load_state(state)
    old.feed(LETTERS.encode("a")[:, None])
    intact.feed(LETTERS.encode("a")[:, None])
    np.testing.assert_array_equal(old.state()["broca.v"], intact.state()["broca.v"])
    assert (old.state()["broca.v"] != after_a["broca.v"]).any() and lesioned.shape == (2, 1)


def test_text_is_written_with_the_lesion(on_cpu):
    before = on_cpu.write("a bad cab", 40, seed=2)
    with on_cpu.lesion("memory", "hippocampus"):
        within = on_cpu.write("a bad cab", 40, seed=2)
    assert within != before == on_cpu.write("a bad cab", 40, seed=2)


@pytest.mark.gpu
def test_the_copies_of_a_gpu_follow_in_both_orders():
    """Tensor cores read the weights in 16 bits, in one order forward and in another one backward: they are packed in the simulator, too."""
    model = made(backends.get("cuda", 0, "fp32"))
    synapses = model.brain.synapses
    synapses.kind, synapses.dtype = mma.FLOAT16, "float16"
    model.brain.wire()  # allocates the copies
    model.brain.refresh()  # and packs them
    whole = arrays(model)
    with model.lesion("memory_broca"):
        lesioned = arrays(model)
    first = synapses.weight_offset["memory_broca"] // 4  # four numbers to a word
    words = slice(first, first + model.brain.parameters.value["memory_broca.weight"].size // 4)
    for copy_ in ("copy 0", "copy 1"):
        assert whole[copy_][words].any() and not lesioned[copy_][words].any()
        others = np.ones(len(whole[copy_]), bool)
        others[words] = False
        assert np.array_equal(whole[copy_][others], lesioned[copy_][others])
    assert not np.array_equal(whole["copy 0"][words], whole["copy 1"][words])
    assert same(whole, arrays(model))


def test_a_lesioned_brain_does_not_learn_and_learns_as_before_afterwards(on_cpu):
    one, other = copy.copy(on_cpu), copy.copy(on_cpu)
    with one.lesion("memory"), pytest.raises(ConfigError, match="does not learn during a lesion"):
        one.train_step(IDS[:-1], IDS[1:])
    assert one.train_step(IDS[:-1], IDS[1:]) == other.train_step(IDS[:-1], IDS[1:])
    assert same(arrays(one), arrays(other))


def test_a_copy_keeps_the_lesion(on_cpu):
    with on_cpu.lesion("memory"):
        copied, logits = copy.copy(on_cpu), on_cpu.logits(IDS)
    np.testing.assert_array_equal(copied.logits(IDS), logits)
    assert not copied.brain.lesions


def test_another_thread_is_refused_meanwhile(on_cpu):
    output = []

    def other():
        try:
            on_cpu.logits(IDS)
        except ConfigError as error:
            output.append(str(error))

    with on_cpu.lesion("memory"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in output[0]


@pytest.mark.parametrize(
    "names, output",
    [
        (["memry_broca"], "nothing in this brain is called 'memry_broca'; did you mean 'memory_broca'"),
        (["memory", "wernike"], "nothing in this brain is called 'wernike'; did you mean 'wernicke'"),
        (["readout_*"], "nothing in this brain is called 'readout_\\*'"),
        ([], "the name of a projection, a module or a memory is needed"),
        ([3], "is needed, not 3"),
    ],
)
def test_an_unknown_name_is_one_sentence_and_changes_nothing(on_cpu, names, output):
    before = arrays(on_cpu)
    with pytest.raises(ConfigError, match=output), on_cpu.lesion(*names):
        pass
    assert same(before, arrays(on_cpu)) and not on_cpu.brain.lesions


def test_a_lesion_outside_of_a_with_statement_says_so():
    model = made()
    assert "with model.lesion(...):" in repr(model.lesion("memory_broca")) and not model.brain.lesions
