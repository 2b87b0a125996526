"""Tasks with a right answer: what their sequences ask, and the command that trains on them."""

import gzip
import json

import numpy as np
import pytest

from neurogen_numba import tasks as command
from neurogen_numba.benchmarks.tasks import DIGITS, FILES, PIXELS, Copy, Digits, Recall, accuracy
from neurogen_numba.errors import ConfigError, DataError
from neurogen_numba.learning import trainer

IMAGES = {"train": 30, "t10k": 11}


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with the files of MNIST, of a few made-up images: image i has the label i % 10 in every pixel, 25 times as bright."""
    folder = tmp_path_factory.mktemp("mnist")
    for name, (magic, shape) in FILES.items():
        count = IMAGES[name.split("-")[0]]
        labels = (np.arange(count) % DIGITS).astype(np.uint8)
        data = np.broadcast_to(25 * labels[:, None, None], (count, 28, 28)) if shape else labels
        header = np.array([magic, count, *shape], ">i4").tobytes()
        (folder / name).write_bytes(gzip.compress(header + np.ascontiguousarray(data, np.uint8).tobytes()))
    return folder


def test_recall_asks_for_every_key_once():
    task = Recall(5, symbols=8)
    inputs, targets = task.batch(3, 4)
    assert inputs.shape == targets.shape == (20, 4) and inputs.dtype == targets.dtype == np.int32
    for b in range(4):
        value_of_key = dict(zip(inputs[:10:2, b], inputs[1:10:2, b], strict=True))
        asked = inputs[10::2, b]
        assert len(value_of_key) == 5 and sorted(asked) == sorted(value_of_key) and (inputs[11::2, b] == 16).all()
        assert all(targets[10 + 2 * i, b] == value_of_key[key] for i, key in enumerate(asked))
        assert max(value_of_key) < 8 <= min(value_of_key.values()) and max(value_of_key.values()) < 16
        assert (targets[:, b] >= 0).sum() == 5


def test_copy_asks_for_the_symbols_after_the_delay():
    inputs, targets = Copy(6, 3).batch(0, 2)
    assert inputs.shape == (12, 2)
    np.testing.assert_array_equal(inputs[:3], targets[-3:])
    np.testing.assert_array_equal(inputs[3:, 0], [8] * 6 + [9, 8, 8])
    assert (targets[:-3] == -1).all() and inputs[:3].max() < 8


@pytest.mark.parametrize("task", [Recall(4), Copy(5)])
def test_batches_repeat_and_tests_are_others(task):
    same, again, later, other = task.batch(1, 3), task.batch(1, 3), task.batch(2, 3), task.batch(1, 3, seed=5)
    np.testing.assert_array_equal(same, again)
    assert (same[0] != later[0]).any() and (same[0] != other[0]).any() and (same[0] != task.test(3, 1)[0]).any()
    assert max(task.batch(0, 50)[0].max(), task.test(50, 0)[1].max()) < task.vocabulary


def test_digits_are_read_pixel_by_pixel(mnist):
    task = Digits(mnist)
    assert (task.tests, task.length, task.vocabulary) == (11, PIXELS, 74)
    seen = []
    for step in range(3):
        inputs, targets = task.batch(step, 10)
        digits = targets[-1] - task.levels
        assert (targets[:-1] == -1).all() and (inputs == inputs[0]).all()
        np.testing.assert_array_equal(inputs[0], 25 * digits * 64 // 256)
        seen += digits.tolist()
    assert sorted(seen) == sorted(3 * list(range(10))), "every image once an epoch"
    assert [task.test(4, number)[0].shape[1] for number in range(3)] == [4, 4, 3]


def test_a_permutation_is_always_the_same(mnist, tmp_path):
    images = np.arange(PIXELS).reshape(1, 28, 28).astype(np.uint8)
    for name, (magic, shape) in FILES.items():
        data, count = (images, 1) if shape else (np.array([3], np.uint8), 1)
        (tmp_path / name.removesuffix(".gz")).write_bytes(np.array([magic, count, *shape], ">i4").tobytes() + data.tobytes())
    plain, first, second = Digits(tmp_path, levels=256), Digits(tmp_path, True, levels=256), Digits(tmp_path, True, levels=256)
    tokens = [task.batch(0, 1)[0][:, 0] for task in (plain, first, second)]
    np.testing.assert_array_equal(tokens[1], tokens[2])
    assert (tokens[0] != tokens[1]).any() and sorted(tokens[0]) == sorted(tokens[1])


@pytest.mark.parametrize(
    "harm, output",
    [
        (lambda path: path.unlink(), "is missing; give the folder with the four files"),
        (lambda path: path.write_bytes(b"not a gzip file"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot be read"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03")), "not the file of MNIST with this name"),
        (lambda path: path.write_bytes(gzip.compress(b"abcdefghijklmnopqrst")), "not the file of MNIST with this name"),
        (lambda path: path.write_bytes(gzip.compress(b"hello")), "not the file of MNIST with this name"),
        (
            lambda path: path.write_bytes(gzip.compress(np.array([2051, 0, 28, 28], ">i4").tobytes())),
            "not the file of MNIST with this name",
        ),
        (lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])), "damaged, it has"),
    ],
)
def test_files_that_are_not_mnist_are_named(harm, output, mnist, tmp_path):
    for path in mnist.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    harm(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=output):
        Digits(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes((mnist / "train-images-idx3-ubyte.gz").read_bytes())
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes((mnist / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="30 images and 11 labels"):
        Digits(tmp_path)
    labels = bytearray(gzip.decompress((mnist / "train-labels-idx1-ubyte.gz").read_bytes()))
    labels[-1] = 11  # as in other sets of this form, of letters
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(labels)))
    with pytest.raises(DataError, match="a label is 11"):
        Digits(tmp_path)


class Knows:
    """A model that is right about every target of the first sequence and about none of the others."""

    def score(self, act, inputs, targets):
        hits = np.zeros(targets.shape, bool)
        hits[:, 0] = True
        return None, hits

    class Act:
        batch = 4

        def reset(self):
            pass


def test_accuracy_counts_what_was_asked(mnist):
    assert accuracy(Knows(), Knows.Act(), Recall(3), 8) == 2 / 8
    assert accuracy(Knows(), Knows.Act(), Digits(mnist), 11) == 3 / 11  # the last batch is filled up with nothing


def test_the_command_learns_to_recall(capsys):
    words = "recall --pairs 1 --preset nano --steps 40 --batch-size 16 --eval-interval 20 --backend cpu --learning-rate 1e-2".split()
    assert command.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["preset"] == "nano"
        and result["task"] == "recall"
        and result["chance"] == 1 / 128
        and [step for step, _ in result["tests"]] == [20, 40]
    )
    assert result["accuracy"] == result["tests"][-1][1] > 0.05


def test_the_command_asks_about_stories(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [f"--set=brain.{name}.neurons=128" for name in ("wernicke", "hippocampus", "pfc", "broca")]
    words = (
        "stories --steps 2 --batch-size 2 --backend cpu --json --set=training.eval_tokens=500 --set=training.final_eval_tokens=500".split()
    )
    monkeypatch.setattr(trainer, "QUESTIONS", 5)
    assert command.main([*words, *small]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["preset"], result["steps"], result["tested"]) == ("stories", "nano", 2, 5)
    assert 0 <= result["accuracy"] < 0.5 and 0.05 < result["chance"] < 0.1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, output",
    [
        ("recall --pairs 0", "--pairs: from 1 to 128, not 0"),
        ("recall --pairs 129", "--pairs: from 1 to 128, not 129"),
        ("copy --delay 0", "--delay and --items: at least 1, not 0 and 10"),
        ("copy --pairs 3", "--pairs is about recall; leave it out"),
        ("stories --pairs 3", "--pairs is about recall; leave it out"),
        ("recall --data .", "--data is about smnist and psmnist; leave it out"),
        ("psmnist", "psmnist needs the folder with the four files of MNIST"),
        ("smnist --data nowhere", "nowhere: train-images-idx3-ubyte.gz is missing"),
        ("recall --steps 0", "--steps: at least 1, not 0"),
    ],
)
def test_wrong_flags_are_named(words, output, capsys):
    assert command.main(words.split()) == 2
    error = capsys.readouterr().err
    assert output in error and error.count("\n") == 1


def test_settings_of_tasks_are_checked():
    for make in (lambda: Recall(200), lambda: Copy(3, 0)):
        with pytest.raises(ConfigError):
            make()
