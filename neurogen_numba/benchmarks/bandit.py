"""A two-armed bandit told in text (Sutton & Barto 2018, "Reinforcement learning", chapter 2): the model reads a prompt, writes an arm, and
reads the outcome. A win is rewarded. The model learns online, after each pull.

    a or b? b wins!

One arm wins with probability 0.8, the other with 0.2. A pull takes one chunk of tokens, characters. All sequences of a batch play the same
bandit; the state of the brain goes on from pull to pull.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError

ARMS, WIN = "ab", (0.8, 0.2)  # probabilities of the better and the other arm
PROMPT, OUTCOMES = "a or b? ", (" fails\n", " wins!\n")
CHARACTERS = sorted(set("".join((ARMS, PROMPT, *OUTCOMES))))
VOCABULARY = len(CHARACTERS)


class Bandit:
    """Pulls of `batch` sequences, in chunks of `chunk` tokens. better: index of the better arm, by the seed."""

    def __init__(self, model, batch: int, seed: int):
        """Raises ConfigError where a chunk of the model is too short for a pull."""
        if model.config.brain.chunk < len(PROMPT) + 1 + len(OUTCOMES[0]):
            raise ConfigError(
                f"brain.chunk: a pull takes a chunk of {len(PROMPT) + 1 + len(OUTCOMES[0])} tokens or more, not {model.config.brain.chunk}"
            )
        self.model, self.batch, self.rng = model, batch, np.random.default_rng(seed)
        self.better, chunk = int(self.rng.integers(2)), model.config.brain.chunk
        self.prompt = _ids(PROMPT.rjust(chunk - len(OUTCOMES[0]) - 1))
        self.act, self._asking = model.activity(chunk, batch, learning=True), model.activity(len(self.prompt), batch)

    def pull(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Choose, read the outcome, and learn from it. Returns (whether the better arm was chosen, whether it won), [batch] bool."""
        chosen = self.choose()
        won = self.rng.random(self.batch) < np.where(chosen == self.better, *WIN)
        outcomes = np.stack([_ids(OUTCOMES[int(w)]) for w in won], axis=1)
        arms = np.array([CHARACTERS.index(arm) for arm in ARMS])[chosen]
        prompt = np.repeat(self.prompt[:, None], self.batch, axis=1)
        inputs = np.concatenate([prompt, arms[None], outcomes]).astype(np.int32)
        targets = np.concatenate([inputs[1:], prompt[:1]])
        choices = np.zeros(inputs.shape, bool)
        choices[len(prompt) - 1] = True
        if self.model.brain.modulation:
            self.act.reward(np.where(won, 1.0, -1.0))
        self.model.update(self.act, inputs, targets, rate, choices=choices)
        return chosen == self.better, won

    def choose(self) -> np.ndarray:
        """Arms [batch] drawn from the model's probabilities of the two after the prompt; its state stays."""
        self._asking.load_state(self.act.state())
        prompt = np.repeat(self.prompt[:, None], self.batch, axis=1)
        logits = self.model.backend.to_numpy(self.model.brain.forward_logits(self._asking, prompt))[-self.batch :]
        a, b = (logits[:, CHARACTERS.index(arm)] for arm in ARMS)
        return (self.rng.random(self.batch) < 1 / (1 + np.exp(a - b))).astype(int)


def _ids(text):
    return np.array([CHARACTERS.index(character) for character in text])
