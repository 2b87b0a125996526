"""A tiny run to talk to, made in milliseconds: its replies are letters at random."""

import functools
import json
from pathlib import Path

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.inference.conversation import Conversation, Settings
from neurogen_numba.inference.generation import Sampling
from neurogen_numba.storage import checkpoint
from neurogen_numba.text.tokenizer import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer(documents=True)
LETTERS = CharTokenizer("abcdefghijklmnopqrstuvwxyz .,?!YN:\n", documents=False)


def config(text=None):
    return tiny.config({"tokenizer": "char", **(text or {})}, {"vocabulary": LETTERS.vocabulary})


def make_run(folder: Path, text: dict | None = None) -> Path:
    """Write a run with one checkpoint, of fields `text` of config.Text. Returns its folder."""
    model = NeuroGenModel.from_config(config(text), LETTERS, backend="cpu")
    model.brain.parameters.value["decoder.bias"][LETTERS.encode("\n")] = -30  # only a length ends a reply
    model.save(checkpoint.step_folder(folder, 1))
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder


@functools.cache
def _model(folder):
    return NeuroGenModel.load(checkpoint.latest(folder), backend="cpu")


def conversation(run: Path, watched: bool = False, max_tokens: int = 30) -> Conversation:
    """A conversation with the run, as `neurogen chat` begins it."""
    return Conversation(_model(run), checkpoint.latest(run), Settings(Sampling(0.5, 0, 0.95, 0), max_tokens), watched)
