"""The examples run, as far as they do not take their time."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("one_thread")
def test_what_an_event_costs_is_measured_with_events():
    works = example("cost_of_an_event").prepare(np.random.default_rng(0), 256, 5)
    for work in works:
        work()
    forward, back, _ = works
    forward()
    assert np.count_nonzero(forward.args[0]["b.current"])
    back()
    assert np.count_nonzero(back.args[0]["a.axon"])


def test_a_folder_is_trained_on(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "sheep.txt").write_text("The sheep sleep near the shore. " * 400)
    run = example("train_on_a_folder").main(tmp_path / "texts", steps=3, out=tmp_path)
    assert run.summary["steps"] == 3 and run.model.tokenizer.kind == "byte"
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_texts_of_a_generator_are_trained_on(tmp_path, capsys):
    run = example("train_on_your_own_texts").main(steps=3, out=tmp_path)
    assert run.summary["steps"] == 3 and (run.folder / "corpus.jsonl").read_text().count("\n") == 5000
    assert len(capsys.readouterr().out.splitlines()) >= 2


def small(backend):
    return NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 100}), backend=backend)


@pytest.mark.usefixtures("one_thread")
def test_the_state_is_shared_without_a_copy(backend, capsys):
    act, arrays = example("state_in_pytorch").main(small(backend))
    views, xp = act.views(), getattr(backend, "_xp", np)  # CuPy on a GPU
    assert set(arrays) == set(views)
    for name, view in views.items():
        shared = xp.from_dlpack(view)
        if xp is np:
            assert np.shares_memory(shared, view), name
        else:
            assert shared.data.ptr == view.data.ptr, name
    view = views["pfc.v"]
    xp.from_dlpack(view)[...] = 2
    assert float(arrays["pfc.v"].min()) == 2 and act.state()["pfc.v"].min() == 2
    assert "set to 0 from outside, the neurons see 0.0" in capsys.readouterr().out


def test_the_state_is_shared_with_pytorch():
    torch = pytest.importorskip("torch")
    act, arrays = example("state_in_pytorch").main(small("cpu"))
    assert isinstance(arrays["pfc.v"], torch.Tensor) and arrays["pfc.v"].data_ptr() == act.views()["pfc.v"].ctypes.data


def test_the_list_of_examples_is_whole():
    listed = (EXAMPLES / "README.md").read_text()
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(files) > 5 and all(f"]({name})" in listed for name in files)
