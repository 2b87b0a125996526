"""Tasks with a known answer: recall of pairs, copying after a delay, digits read pixel by pixel.

A task generates batches of inputs and targets [T, B] int32 for `NeuroGenModel.update`; a target is -1 at positions without a question.
Training and test batches share neither random numbers nor images.
"""

from __future__ import annotations

import gzip
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError

TEST_SEED = 2**32  # training seeds are smaller
PIXELS, DIGITS = 784, 10
FILES = {  # the standard split: name -> (magic number, shape of an entry)
    "train-images-idx3-ubyte.gz": (2051, (28, 28)),
    "train-labels-idx1-ubyte.gz": (2049, ()),
    "t10k-images-idx3-ubyte.gz": (2051, (28, 28)),
    "t10k-labels-idx1-ubyte.gz": (2049, ()),
}


class Task(ABC):
    """vocabulary: tokens; length: tokens of a sequence; chance: accuracy of a guess, 0 to 1."""

    vocabulary: int
    length: int
    chance: float

    @abstractmethod
    def batch(self, step: int, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) [length, batch] int32 of training step `step`."""

    @abstractmethod
    def test(self, batch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of test batch `number`, always the same."""


class Generated(Task):
    """A task with an unlimited number of random sequences."""

    def batch(self, step, batch, seed=0):
        return self.draw(np.random.default_rng([seed, step]), batch)

    def test(self, batch, number):
        return self.draw(np.random.default_rng([TEST_SEED, number]), batch)

    @abstractmethod
    def draw(self, rng: np.random.Generator, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) [length, batch] int32."""


class Recall(Generated):
    """Multi-query associative recall (Arora et al. 2023, "Zoology"): `pairs` of a key and a value, then every key once, in random order,
    with a filler after it. The target at a key is its value. Keys and values are drawn from `symbols` each."""

    def __init__(self, pairs: int, symbols: int = 128):
        if not 1 <= pairs <= symbols:
            raise ConfigError(f"--pairs: from 1 to {symbols}, not {pairs}")
        self.pairs, self.symbols = pairs, symbols
        self.vocabulary, self.length, self.chance = 2 * symbols + 1, 4 * pairs, 1 / symbols

    def draw(self, rng, batch):
        filler, half = 2 * self.symbols, 2 * self.pairs
        inputs, targets = np.full((self.length, batch), filler, np.int32), np.full((self.length, batch), -1, np.int32)
        for b in range(batch):
            keys = rng.permutation(self.symbols)[: self.pairs]
            values, asked = self.symbols + rng.integers(self.symbols, size=self.pairs), rng.permutation(self.pairs)
            inputs[:half:2, b], inputs[1:half:2, b] = keys, values
            inputs[half::2, b], targets[half::2, b] = keys[asked], values[asked]
        return inputs, targets


class Copy(Generated):
    """Copy `items` symbols of eight after a `delay` (Hochreiter & Schmidhuber 1997): symbols, blanks, a marker, then the symbols again."""

    SYMBOLS = 8

    def __init__(self, delay: int, items: int = 10):
        if delay < 1 or items < 1:
            raise ConfigError(f"--delay and --items: at least 1, not {delay} and {items}")
        self.delay, self.items = delay, items
        self.vocabulary, self.length, self.chance = self.SYMBOLS + 2, delay + 2 * items, 1 / self.SYMBOLS

    def draw(self, rng, batch):
        blank, marker = self.SYMBOLS, self.SYMBOLS + 1
        inputs, targets = np.full((self.length, batch), blank, np.int32), np.full((self.length, batch), -1, np.int32)
        symbols = rng.integers(self.SYMBOLS, size=(self.items, batch))
        inputs[: self.items], targets[-self.items :] = symbols, symbols
        inputs[-self.items] = marker
        return inputs, targets


class Digits(Task):
    """Sequential MNIST (Le et al. 2015, "A simple way to initialize recurrent networks of rectified linear units"): the 784 pixels of a
    digit one by one, each a token of `levels` grey levels, and the digit as the last target. permuted: in a fixed random order."""

    def __init__(self, folder: str | Path, permuted: bool = False, levels: int = 64):
        images, labels = (_read(Path(folder), name) for name in list(FILES)[:2])
        test_images, test_labels = (_read(Path(folder), name) for name in list(FILES)[2:])
        order = np.random.default_rng(0).permutation(PIXELS) if permuted else np.arange(PIXELS)
        self.levels = levels
        self._train, self._test = ((self._tokens(x)[:, order], y) for x, y in ((images, labels), (test_images, test_labels)))
        for x, y in (self._train, self._test):
            if len(x) != len(y):
                raise DataError(f"{folder}: {len(x):,} images and {len(y):,} labels; use both files from one copy of MNIST")
            if y.max() >= DIGITS:
                raise DataError(f"{folder}: a label is {y.max()}, and digits are 0 to {DIGITS - 1}; use a copy of MNIST")
        self.vocabulary, self.length, self.chance = levels + DIGITS, PIXELS, 1 / DIGITS

    @property
    def tests(self) -> int:
        """The number of test images."""
        return len(self._test[1])

    def batch(self, step, batch, seed=0):
        images, labels = self._train
        epoch, first = divmod(step * batch, len(labels))
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        chosen = np.take(order, np.arange(first, first + batch), mode="wrap")
        return self._sequences(images[chosen], labels[chosen])

    def test(self, batch, number):
        images, labels = self._test
        chosen = slice(number * batch, (number + 1) * batch)
        return self._sequences(images[chosen], labels[chosen])

    def _tokens(self, images):
        return (images.reshape(-1, PIXELS).astype(np.int32) * self.levels) // 256

    def _sequences(self, images, labels):
        targets = np.full((PIXELS, len(labels)), -1, np.int32)
        targets[-1] = self.levels + labels.astype(np.int32)
        return np.ascontiguousarray(images.T, np.int32), targets


def _read(folder: Path, name: str) -> np.ndarray:
    """An idx file, compressed or not, as uint8. Raises DataError if it is missing, damaged or something else."""
    magic, shape = FILES[name]
    path = next((path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: {name} is missing; give the folder with the four files of MNIST")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get it again") from None
    numbers = 2 + len(shape)
    header = np.frombuffer(content[: 4 * numbers].ljust(4 * numbers, b"\0"), ">i4")
    if header[0] != magic or header[1] < 1 or tuple(header[2:]) != shape or len(content) < header.nbytes:
        raise DataError(f"{path}: not the file of MNIST with this name; download it again")
    data = np.frombuffer(content, np.uint8, offset=header.nbytes)
    if data.size != header[1] * int(np.prod(shape)):
        raise DataError(
            f"{path}: damaged, it has {data.size:,} bytes of data where {header[1] * int(np.prod(shape)):,} are expected; download it again"
        )
    return data.reshape(header[1], *shape)


def accuracy(model, act, task: Task, sequences: int) -> float:
    """The fraction of test targets that are predicted correctly, over the first `sequences` test sequences."""
    right = asked = 0
    for number in range(-(-sequences // act.batch)):
        inputs, targets = task.test(act.batch, number)
        given = inputs.shape[1]
        if given < act.batch:  # the last batch of a data set may be smaller
            pad = ((0, 0), (0, act.batch - given))
            inputs, targets = np.pad(inputs, pad), np.pad(targets, pad, constant_values=-1)
        act.reset()
        hits = model.score(act, inputs, targets)[1]
        right, asked = right + int(hits[targets >= 0].sum()), asked + int((targets >= 0).sum())
    return right / max(1, asked)
