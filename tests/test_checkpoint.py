"""Checkpoints: what is saved comes back, whole or not at all, whatever happens on the way."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from neurogen_numba import __version__
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.storage import checkpoint

DTYPES = ["bool", "uint8", "uint16", "uint32", "int32", "int64", "float32", "float64"]


class Tokenizer:
    """Saves two files, as the real one does."""

    def save(self, folder):
        (folder / "tokenizer.json").write_text('{"kind": "char"}')
        (folder / "tokenizer.model").write_bytes(bytes(range(256)))


def save(folder, number, loss=None):
    """A small checkpoint in which every array and document says `number`."""
    tensors = {
        "brain": {"weight": np.full((3, 5), number, np.float32), "row_start": np.full(7, number, np.uint32)},
        "state": {"v": np.full((2, 4), number, np.float32)},
    }
    return checkpoint.save(folder, tensors, {"config": {"number": number}, "trainer": {"step": number}}, Tokenizer(), loss)


def number_in(folder):
    """The number that `save` was given, from a checkpoint that must be whole and of one piece."""
    loaded = checkpoint.load(folder)
    found = {int(x) for group in loaded.tensors.values() for array in group.values() for x in array.flat}
    found |= {loaded.documents["config"]["number"], loaded.documents["trainer"]["step"]}
    assert len(found) == 1, found
    assert (loaded.tokenizer_folder / "tokenizer.model").read_bytes() == bytes(range(256))
    return found.pop()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Round trip


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES).flatmap(lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0))),
        max_size=4,
    )
)
def test_arrays_come_back_bit_for_bit(arrays):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "saved", {"brain": arrays}, {})
        found = checkpoint.load(Path(folder) / "saved", ["brain"]).tensors["brain"]
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_arrays_that_do_not_lie_in_order_come_back_in_order(tmp_path):
    matrix = np.arange(12, dtype=np.int32).reshape(3, 4)
    arrays = {"transposed": matrix.T, "columns": matrix[:, ::2], "backwards": matrix[::-1], "scalar": np.array(np.float32(2.5))}
    checkpoint.save(tmp_path / "saved", {"brain": arrays}, {})
    found = checkpoint.load(tmp_path / "saved", ["brain"]).tensors["brain"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_checkpoint_holds_tensors_documents_and_tokenizer(tmp_path):
    tensors = {"brain": {"v": np.ones(3, np.float32)}, "optimizer": {}, "state": {"v": np.zeros(2, np.uint8)}}
    documents = {"config": {"preset": "nano", "ünïcode": [1, 2.5, None]}, "trainer": {"seed": 2**127}}
    size = checkpoint.save(tmp_path / "saved", tensors, documents, Tokenizer())
    loaded = checkpoint.load(tmp_path / "saved")
    assert loaded.documents == documents
    assert loaded.tensors.keys() == tensors.keys()
    assert loaded.folder == tmp_path / "saved"
    assert names(loaded.tokenizer_folder) == ["tokenizer.json", "tokenizer.model"]
    assert names(tmp_path) == ["saved"]
    listed = json.loads((tmp_path / "saved" / "manifest.json").read_text())
    assert (listed["format"], listed["version"]) == ("neurogen-checkpoint", 2)
    assert listed["made_with"]["neurogen"] == __version__ and listed["made_with"]["numpy"] == np.__version__
    assert size == sum(entry["bytes"] for entry in listed["files"].values())
    assert len(listed["files"]) == 7
    for name, entry in listed["files"].items():
        data = (tmp_path / "saved" / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_loaded_arrays_can_be_trained_on(tmp_path):
    save(tmp_path / "saved", 1)
    weight = checkpoint.load(tmp_path / "saved", ["brain"]).tensors["brain"]["weight"]
    weight += 1
    assert number_in(tmp_path / "saved") == 1


def test_only_the_groups_asked_for_are_read(tmp_path):
    save(tmp_path / "saved", 1)
    damage(tmp_path / "saved" / "state.safetensors", lambda data: data[:-1] + b"!")
    assert checkpoint.load(tmp_path / "saved", groups=["brain"]).tensors.keys() == {"brain"}
    assert checkpoint.load(tmp_path / "saved", groups=[]).documents["trainer"] == {"step": 1}
    with pytest.raises(CheckpointError, match="state.safetensors is damaged"):
        checkpoint.load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="no 'optimizer' tensors"):
        checkpoint.load(tmp_path / "saved", ["optimizer"]).tensors["optimizer"]


def test_a_checkpoint_without_tokenizer_says_so(tmp_path):
    checkpoint.save(tmp_path / "saved", {}, {})
    assert checkpoint.load(tmp_path / "saved").tokenizer_folder is None


# Saving in the place of another


def test_a_save_replaces_the_checkpoint_of_that_name(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / "best", number)
        assert number_in(tmp_path / "best") == number
        assert names(tmp_path) == ["best"]


def test_a_save_heals_a_damaged_step(tmp_path):
    save(tmp_path / "step-00000001", 1)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    save(tmp_path / "step-00000001", 2)
    assert number_in(tmp_path / "step-00000001") == 2


@pytest.mark.parametrize("as_file", [True, False])
def test_a_save_never_replaces_what_is_not_a_checkpoint(tmp_path, as_file):
    location = tmp_path / "thesis"
    precious = location if as_file else location / "chapter.tex"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis was not saved: it exists and is not a checkpoint"):
        save(location, 1)
    assert precious.read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


def test_files_of_others_in_a_checkpoint_stay(tmp_path):
    """A save elsewhere than in a run refuses; what a run replaces or prunes leaves them."""
    brain = tmp_path / "brain"
    save(brain, 1)
    (brain / "notes").mkdir()
    (brain / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="it contains notes, no part of a checkpoint"):
        save(brain, 2)
    assert number_in(brain) == 1
    steps = [checkpoint.step_folder(tmp_path, step) for step in (1, 2, 3)]
    for folder in steps:
        save(folder, 1)
        (folder / "note.txt").write_text(folder.name)
    for number in (1, 2):
        save(steps[2], number)
    checkpoint.prune(tmp_path, keep=1)
    kept = {path.read_text() for path in (tmp_path / "checkpoints").rglob("note.txt")}
    assert kept == {folder.name for folder in steps}
    assert number_in(steps[2]) == 2 and names(steps[0]) == ["note.txt"]


def test_a_link_to_a_checkpoint_stays_one(tmp_path):
    save(tmp_path / "brain", 1)
    (tmp_path / "link").symlink_to("brain")
    for number in (2, 3):
        save(tmp_path / "link", number)
        assert (tmp_path / "link").is_symlink() and number_in(tmp_path / "brain") == number


def test_a_file_in_the_place_of_checkpoints_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(CheckpointError, match="checkpoints must be a folder, for checkpoints, and is a file"):
        checkpoint.saved(tmp_path)


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    synced, renamed = set(), []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def watched_rename(self, target):
        if self.name.endswith(".saving"):
            renamed.append(self)
            paths = [path for path in [self, *self.rglob("*")] if os.name == "posix" or path.is_file()]
            assert len(paths) >= 7
            assert {path.name for path in paths if path.stat().st_ino not in synced} == set()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    save(tmp_path / "saved", 1)
    assert len(renamed) == 1


# Saving fails


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("nth", range(1, 10))  # a save of ours syncs 9 times before it renames
def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, nth):
    save(tmp_path / "best", 1)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 88, 12))
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "best", 2)
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{tmp_path / 'best'} was not saved: the disk is full, over 120 bytes are needed and 12 are free, so make room; "
        "the previous checkpoint is intact"
    )
    assert number_in(tmp_path / "best") == 1
    assert names(tmp_path) == ["best"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_that_the_system_refuses_leaves_the_former_checkpoint(tmp_path):
    import resource

    save(tmp_path / "best", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="best was not saved: File too large; the previous checkpoint is intact"):
            checkpoint.save(tmp_path / "best", {"brain": {"v": np.zeros(100_000, np.float32)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert number_in(tmp_path / "best") == 1
    assert names(tmp_path) == ["best"]


def test_a_failed_rename_puts_the_former_checkpoint_back(tmp_path, monkeypatch):
    save(tmp_path / "best", 1)
    rename = Path.rename

    def refused(self, target):
        if self.name == "best.saving":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(CheckpointError, match="no permission to write in .*, so choose another folder"):
        save(tmp_path / "best", 2)
    assert number_in(tmp_path / "best") == 1
    assert names(tmp_path) == ["best"]


def test_an_interrupted_save_leaves_no_litter(tmp_path):
    class Interrupted:
        def save(self, folder):
            raise KeyboardInterrupt

    save(tmp_path / "best", 1)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "best", {}, {}, Interrupted())
    assert number_in(tmp_path / "best") == 1
    assert names(tmp_path) == ["best"]


# Killed. A process of its own forks a child per kill; the child dies at its k-th touch of the file system, for every k, and then at
# random times. Data that a killed process has written stays in the system's cache, so syncing would only make this slow.

KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from test_checkpoint import save, number_in, names
from neurogen_numba.storage import checkpoint

run = Path(sys.argv[1])
os.fsync = lambda descriptor: None
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}

def die_at(k):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        seen += event in EVENTS
        if event in EVENTS and seen == k:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def killed(body, after=None):
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def at_every_event(start, change, check):
    k = 0
    while True:
        shutil.rmtree(run, ignore_errors=True)
        start()
        k += 1
        if not killed(lambda: (die_at(k), change())):
            return k - 1
        check()

step = lambda number: checkpoint.step_folder(run, number)

def overwritten():
    assert number_in(step(1)) in (1, 2)
    assert number_in(checkpoint.latest(run)) in (1, 2)
    checkpoint.prune(run, keep=1)
    assert names(run / "checkpoints") == ["step-00000001"]
    assert number_in(step(1)) in (1, 2)

def advanced():
    assert number_in(checkpoint.latest(run)) in (2, 3)
    checkpoint.prune(run, keep=1)
    assert len(names(run / "checkpoints")) == 1
    save(step(3), 3)
    assert number_in(checkpoint.latest(run)) == 3

print(at_every_event(lambda: save(step(1), 1), lambda: save(step(1), 2), overwritten))
print(at_every_event(lambda: (save(step(1), 1), save(step(2), 2)), lambda: (save(step(3), 3), checkpoint.prune(run, keep=1)), advanced))

def endless():
    while True:
        number = number_in(checkpoint.latest(run)) + 1
        save(step(number), number)
        save(run / "best", number)
        checkpoint.prune(run, keep=2)

save(step(1), 1)
save(run / "best", 1)
shots = random.Random(1)
newest = 0
for _ in range(30):
    killed(endless, after=shots.uniform(0, 0.03))
    assert number_in(run / "best") > 0
    assert number_in(checkpoint.latest(run)) >= newest
    newest = number_in(checkpoint.latest(run))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    current = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(current), str(current.parent), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    overwriting, advancing = map(int, done.stdout.split())
    assert overwriting > 20 and advancing > 20  # moments tried


def test_a_reader_finds_the_former_checkpoint_between_the_two_renames(tmp_path):
    folder = checkpoint.step_folder(tmp_path, 1)
    save(folder, 1)
    folder.rename(folder.with_name("step-00000001.old"))
    save(folder.with_name("step-00000001.saving"), 2)
    assert number_in(folder) == 1
    assert checkpoint.load(folder, ["brain"]).tensors["brain"]["weight"][0, 0] == 1
    assert number_in(checkpoint.latest(tmp_path)) == 1
    save(folder, 3)
    assert number_in(folder) == 3
    assert names(folder.parent) == ["step-00000001"]


# Loading what cannot be loaded


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def with_honest_manifest(folder, name, data):
    """Replace a file, and let the manifest agree."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": checkpoint.seal(manifest)}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    save(folder, 1)
    return folder


FILES = ["brain.safetensors", "state.safetensors", "config.json", "trainer.json", "tokenizer/tokenizer.model", "manifest.json"]


@settings(deadline=None, max_examples=200)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_is_noticed(whole, name, where, flip):
    intact = (whole / name).read_bytes()
    changed = bytearray(intact)
    changed[int(where * len(changed))] ^= flip
    (whole / name).write_bytes(changed)
    try:
        if name == "manifest.json":  # spaces may change without harm
            with contextlib.suppress(CheckpointError):
                assert number_in(whole) == 1
        else:
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoint.load(whole)
    finally:
        (whole / name).write_bytes(intact)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_noticed(tmp_path, name, share):
    save(tmp_path / "saved", 1)
    damage(tmp_path / "saved" / name, lambda data: data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.load(tmp_path / "saved", groups=[])


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path / "saved", 1)
    (tmp_path / "saved" / name).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: '{name}' is missing"):
        checkpoint.load(tmp_path / "saved", groups=[])


HEADER = b'{"x":{"dtype":"%s","shape":[2],"data_offsets":[0,4]}}'
TENSORS = safetensors.numpy.save({"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        TENSORS[:-1],
        TENSORS[:4],
        TENSORS.replace(b"F32", b"F31"),
        TENSORS.replace(b"[2]", b"[3]"),
        b"\xff" * 8 + TENSORS[8:],
        struct.pack("<Q", len(HEADER % b"BF16")) + HEADER % b"BF16" + b"abcd",
    ],
)
def test_safetensors_that_cannot_be_read_are_refused(tmp_path, data):
    save(tmp_path / "saved", 1)
    with_honest_manifest(tmp_path / "saved", "brain.safetensors", data)
    with pytest.raises(
        CheckpointError, match="brain.safetensors (is damaged|has tensors of a dtype that NumPy does not support)"
    ) as caught:
        checkpoint.load(tmp_path / "saved")
    assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 200_000, b'{"a": NaNny}'])
def test_json_that_cannot_be_read_is_refused(tmp_path, data):
    save(tmp_path / "saved", 1)
    with_honest_manifest(tmp_path / "saved", "config.json", data)
    with pytest.raises(CheckpointError, match="config.json is damaged: not a JSON object"):
        checkpoint.load(tmp_path / "saved")
    (tmp_path / "saved" / "manifest.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="manifest.json is damaged: not a JSON object"):
        checkpoint.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "gguf"}, "not a NeuroGen checkpoint: its manifest.json is of another format"),
        ({"version": 4}, r"format 4, this NeuroGen \(.+\) reads up to 3; install a newer NeuroGen"),
        ({"version": 1}, "damaged: it does not list the files"),  # the sums of that format were others
        ({"version": 0}, "damaged: it does not list the files"),
        ({"version": "2"}, "damaged: it does not list the files"),
        ({"version": [2]}, "damaged: it does not list the files"),
        ({"files": ["brain.safetensors"]}, "damaged: it does not list the files"),
        ({"files": {"config.json": 12}}, "damaged: it does not list the files"),
        ({"files": {"config.json": {"bytes": "12", "sha256": "1"}}}, "damaged: it does not list the files"),
        ({"files": {"config.json": {"bytes": 12, "sha256": 1}}}, "damaged: it does not list the files"),
        ({"files": {"config\0.json": {"bytes": 12, "sha256": "1"}}}, "is missing"),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, change, message):
    save(tmp_path / "saved", 1)
    path = tmp_path / "saved" / "manifest.json"
    manifest = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps(manifest | {"sha256": checkpoint.seal(manifest)}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "saved")


def test_a_manifest_that_says_something_else_than_it_did_is_refused(tmp_path):
    save(tmp_path / "saved", 1, loss=1.25)
    damage(tmp_path / "saved" / "manifest.json", lambda data: data.replace(b"1.25", b"0.25"))
    with pytest.raises(CheckpointError, match="manifest.json is damaged: its content is not what was saved"):
        checkpoint.load(tmp_path / "saved")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for location in (tmp_path / "model", tmp_path / "model" / "config.json", tmp_path / "nowhere", Path(".")):
        with pytest.raises(CheckpointError, match="is not a NeuroGen checkpoint: it has no manifest.json; give a folder like"):
            checkpoint.load(location)


def test_loading_executes_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    import pickle

    save(tmp_path / "saved", 1)
    for name in ("brain.safetensors", "config.json"):
        with_honest_manifest(tmp_path / "saved", name, pickle.dumps(Trap()))
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / "saved")
    assert not (tmp_path / "executed").exists()


# Shapes


def test_check_shapes_accepts_what_fits():
    checkpoint.check_shapes(
        {"v": ((2, 3), np.float32), "n": ([], "uint32")}, {"n": np.array(1, np.uint32), "v": np.zeros((2, 3), np.float32)}, "here"
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "step-1: tensor 'v', float32 [2, 3], is missing; "),
        ({"v": np.zeros((3, 2), np.float32)}, "step-1: tensor 'v' is float32 [3, 2] instead of float32 [2, 3]; "),
        ({"v": np.zeros((2, 3), np.float64)}, "step-1: tensor 'v' is float64 [2, 3] instead of float32 [2, 3]; "),
        ({"v": np.zeros((2, 3), np.float32), "a": np.zeros(4, np.int32)}, "step-1: tensor 'a', int32 [4], is not part of the model; "),
    ],
)
def test_check_shapes_names_the_first_that_differs(found, message):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_shapes({"v": ((2, 3), np.float32)}, found, "step-1")
    assert str(caught.value) == message + "use the configuration that it was saved with, or another checkpoint"


# The checkpoints of a run


def run_with(folder, *steps):
    for step in steps:
        save(checkpoint.step_folder(folder, step), step)
    return folder


def test_latest_goes_by_the_step_not_by_the_name(tmp_path):
    run_with(tmp_path, 100_000_000, 20, 99_999_999, 3)
    assert checkpoint.latest(tmp_path).name == "step-100000000"


def test_latest_passes_over_what_is_not_whole(tmp_path):
    run_with(tmp_path, 1, 2, 3, 4)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000004" / "manifest.json").unlink()
    damage(folder / "step-00000003" / "brain.safetensors", lambda data: data[:-1])
    save(folder / "step-00000005.saving", 5)
    save(folder / "step-final", 6)
    (folder / "step-00000007").write_text("")
    assert checkpoint.latest(tmp_path) == folder / "step-00000002"


def test_latest_says_why_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="has no whole checkpoint: nothing has been saved there"):
        checkpoint.latest(tmp_path)
    run_with(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000001" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no whole checkpoint: of the last one, .* 'config.json' is missing"):
        checkpoint.latest(tmp_path)


def test_prune_keeps_the_newest_whole_ones(tmp_path):
    run_with(tmp_path, 1, 2, 3, 4, 5)
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 5):
        (folder / f"step-0000000{step}" / "manifest.json").unlink()
    save(folder / "step-00000006.saving", 6)
    save(folder / "step-00000003.old", 3)
    save(folder / "notes", 7)
    checkpoint.prune(tmp_path, keep=2)
    assert names(folder) == ["notes", "step-00000001", "step-00000002", "step-00000003", "step-00000004", "step-00000005"]
    checkpoint.prune(tmp_path, keep=1)
    assert names(folder) == ["notes", "step-00000003", "step-00000004", "step-00000005"]


def test_prune_gives_a_set_aside_checkpoint_its_name_back(tmp_path):
    run_with(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step-00000002").rename(tmp_path / "checkpoints" / "step-00000002.old")
    checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path / "checkpoints") == ["step-00000002"]
    assert number_in(checkpoint.latest(tmp_path)) == 2


def test_prune_of_nothing_does_nothing_and_of_everything_is_refused(tmp_path):
    checkpoint.prune(tmp_path, keep=1)
    run_with(tmp_path, 1)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        checkpoint.prune(tmp_path, keep=0)
    assert number_in(checkpoint.latest(tmp_path)) == 1


def flip(path):
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_newest_reads_every_byte_and_says_what_it_passed_over(tmp_path):
    run_with(tmp_path, 1, 2, 3, 4)
    folder = tmp_path / "checkpoints"
    assert checkpoint.newest(tmp_path) == (folder / "step-00000004", [])
    flip(folder / "step-00000004" / "brain.safetensors")
    damage(folder / "step-00000003" / "tokenizer" / "tokenizer.model", lambda data: data[:-1])
    assert checkpoint.latest(tmp_path).name == "step-00000004"  # whole, as far as sizes tell
    found, passed_over = checkpoint.newest(tmp_path)
    assert found == folder / "step-00000002"
    assert [sentence.split(" is skipped: ")[0] for sentence in passed_over] == ["step-00000004", "step-00000003"]
    assert "brain.safetensors is damaged: its content" in passed_over[0] and "255 bytes where manifest.json says 256" in passed_over[1]
    for step in (1, 2):
        flip(folder / f"step-0000000{step}" / "state.safetensors")
    output = r"has no whole checkpoint: step-00000004 is skipped: .*brain.safetensors is damaged.* \(and 3 more\); start anew"
    with pytest.raises(CheckpointError, match=output):
        checkpoint.newest(tmp_path)
    with pytest.raises(CheckpointError, match="has no whole checkpoint: nothing has been saved there"):
        checkpoint.newest(tmp_path / "nowhere")


def scored(run, losses):
    for step, loss in losses.items():
        save(checkpoint.step_folder(run, step), step, loss)
    return run


def test_the_best_is_the_one_with_the_lowest_loss(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of .* has an evaluation on held-out text: .* drop @best"):
        checkpoint.best(scored(tmp_path, {1: None, 2: math.nan}))
    scored(tmp_path, {3: 2.5, 4: 1.5, 5: 1.75, 6: None})
    assert checkpoint.best(tmp_path) == (checkpoint.step_folder(tmp_path, 4), [])
    flip(checkpoint.step_folder(tmp_path, 4) / "brain.safetensors")
    found, passed_over = checkpoint.best(tmp_path)
    assert found == checkpoint.step_folder(tmp_path, 5) and "step-00000004 is skipped" in passed_over[0]


def test_prune_keeps_the_best_besides_the_newest(tmp_path):
    scored(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5})
    kept = checkpoint.prune(tmp_path, keep=2)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000004", "step-00000005"]
    size = save(tmp_path / "another", 5, 2.5)
    assert kept == [(checkpoint.step_folder(tmp_path, step), size) for step in (5, 4, 2)]
    scored(tmp_path, {6: 0.5})
    checkpoint.prune(tmp_path, keep=2)
    assert names(tmp_path / "checkpoints") == ["step-00000005", "step-00000006"]
