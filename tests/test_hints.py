"""Command lines that messages end with, as they can be typed."""

import os
import sys
from pathlib import Path

import pytest

import tiny
from neurogen_numba.hints import hint

RUN = Path("runs/a b")


def test_a_hint_names_each_neuron_of_ones_own_once():
    config = tiny.config().with_neuron("mine:leaky", "pfc", "broca").with_neuron("lif", "thalamus").with_neuron("__main__:cell", "wernicke")
    assert hint("chat", RUN, config) == "neurogen chat 'runs/a b' --set brain.broca.neuron=mine:leaky"
    assert hint("train --resume", RUN, tiny.config()) == hint("train --resume", RUN, None) == "neurogen train --resume 'runs/a b'"


@pytest.mark.skipif(os.name != "posix", reason="programs have suffixes")
@pytest.mark.parametrize("home", ["{cwd}/.venv/bin", "/elsewhere/bin"])
def test_a_program_outside_of_path_is_named_with_its_path(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = Path(home.format(cwd=tmp_path))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    if not folder.is_relative_to(tmp_path):
        assert hint("chat", RUN, None) == f"{folder}/python -m neurogen_numba chat 'runs/a b'"
        return
    folder.mkdir(parents=True)
    (folder / "neurogen").touch(0o755)
    assert hint("chat", tmp_path / RUN, None) == ".venv/bin/neurogen chat 'runs/a b'"
