"""Checkpoints: a folder of safetensors and JSON, written atomically.

    step-00000100/
        brain.safetensors ...      one file per group of tensors
        config.json ...            one file per document
        tokenizer/                 files of the tokenizer
        manifest.json              versions, loss on held-out text, size and SHA-256 of every file above and of itself; written last

Saving fills `step-00000100.saving`, syncs it to the disk and renames it. An existing checkpoint is first renamed to `step-00000100.old` and
removed afterwards; a reader that finds only the `.old` folder uses it. A process that is killed at any moment therefore leaves a whole
checkpoint. Loading runs no code from the files: safetensors contain numbers, JSON contains text.

A checkpoint is "whole" if all its files have their full size. It is "sound" if their content also matches the saved hashes, for which every
byte is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # NumPy and safetensors are imported where they are used, so that --help stays fast
    import numpy as np

FORMAT = "neurogen-checkpoint"
# Version of the format; raised when older programs cannot read it. Version 1 has CRC-32 instead of SHA-256, and no loss. Version 3 is a
# quantised model; all other checkpoints are written in version 2.
VERSION, QUANTIZED = 2, 3
SUMS = {1: ("crc32", int), 2: ("sha256", str), 3: ("sha256", str)}  # version of the format -> (checksum of a file, its type)
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
STEP = re.compile(r"(step-(\d{8,}))(\.old)?")  # name, step

ANOTHER = "use another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `tensors[group][name]` are new, writable arrays; `documents[name]` are JSON objects. quantization: of a
    quantised model, its bits and what was measured; else None."""

    tensors: dict[str, dict[str, np.ndarray]]
    documents: dict[str, dict]
    folder: Path
    quantization: dict | None = None

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer; None if the checkpoint has none."""
        folder = self.folder / TOKENIZER
        return folder if folder.is_dir() else None


def step_folder(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a training step: run/checkpoints/step-00000100."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


# Saving


def save(
    folder: Path,
    tensors: dict[str, dict[str, np.ndarray]],
    documents: dict[str, dict],
    tokenizer=None,
    loss: float | None = None,
    quantization: dict | None = None,
) -> int:
    """Write a checkpoint atomically; it replaces one that `folder` may contain. Returns its size in bytes.

    `tensors[group][name]`: arrays of any shape and a bool, integer, float or complex64 dtype. `documents[name]`: JSON values. `tokenizer`:
    has a method `save(folder)`. `loss`: on held-out text, by which `best` chooses; None if it was not measured. `quantization`: as in
    `Checkpoint`.
    Memory: a second copy of the largest group.
    Raises CheckpointError if the disk is full, writing is not permitted, or `folder` contains something else.
    """
    folder = Path(folder)
    if folder.is_symlink():  # the link stays; its target is replaced
        folder = Path(os.path.realpath(folder))
    needed = sum(array.nbytes for arrays in tensors.values() for array in arrays.values())
    saving, old = _beside(folder, ".saving"), _beside(folder, ".old")
    try:
        replaced = _refuse_foreign(folder, old)
        try:
            size = _fill(saving, tensors, documents, tokenizer, {"validation_loss": loss}, quantization)
            _replace(folder, saving, old)
        finally:  # clean up after a failure
            _remove(saving)
            if replaced and old.exists() and not folder.exists():
                old.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} was not saved: {_reason(error, folder, needed)}; the previous checkpoint is intact") from None
    if replaced:
        _remove(old)  # if this fails, `prune` removes it later
    return size


def _remove(folder):
    """Remove the files of a checkpoint, whole or not, and its folder. Other files stay, and then the folder stays, too."""
    for name in _files_of(folder):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    for path in (folder / TOKENIZER, folder):
        with contextlib.suppress(OSError):
            path.rmdir()


def _inside(folder):
    """The paths in a checkpoint's folder and in its tokenizer's folder, in the form that the manifest uses."""
    return sorted(path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob(f"{TOKENIZER}/*")])


def _files_of(folder):
    """The files in a folder that belong to the checkpoint: those in the manifest, and the manifest last. If the manifest cannot be read:
    all files with the names of a checkpoint's files."""
    try:
        named = _parse(folder / MANIFEST, (folder / MANIFEST).read_bytes())["files"]
        return [name for name in _inside(folder) if name in named] + [MANIFEST]
    except (OSError, CheckpointError, KeyError, TypeError):
        return [name for name in _inside(folder) if name.endswith((".safetensors", ".json")) or name.startswith(f"{TOKENIZER}/")]


def _foreign(folder):
    """The first file or folder that does not belong to the checkpoint, or None."""
    of_checkpoint = {TOKENIZER, *_files_of(folder)}
    return next((name for name in _inside(folder) if name not in of_checkpoint), None)


def _fill(folder, tensors, documents, tokenizer, about, quantization):
    """Write all files of a checkpoint into a new folder and sync them to the disk."""
    import platform
    from importlib import metadata

    import numpy as np
    import safetensors.numpy

    assert "manifest" not in documents, "`manifest` is a reserved name"
    _remove(folder)
    folder.mkdir(parents=True)
    files = {}
    for group, arrays in tensors.items():
        # safetensors writes the raw memory: without order="C" a transposed array would be scrambled after loading.
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        files[f"{group}.safetensors"] = _write(folder / f"{group}.safetensors", safetensors.numpy.save(arrays))
    for name, values in documents.items():
        files[f"{name}.json"] = _write(folder / f"{name}.json", _json(values))
    if tokenizer is not None:
        (folder / TOKENIZER).mkdir()
        tokenizer.save(folder / TOKENIZER)
        for path in sorted((folder / TOKENIZER).iterdir()):
            files[f"{TOKENIZER}/{path.name}"] = _write(path, path.read_bytes())  # the same bytes again, synced
        _sync_folder(folder / TOKENIZER)
    versions = {"neurogen": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("numpy", "numba")}
    about |= {"quantization": quantization} if quantization else {}
    manifest = {"format": FORMAT, "version": QUANTIZED if quantization else VERSION, "made_with": versions, **about, "files": files}
    _write(folder / MANIFEST, _json(manifest | {"sha256": seal(manifest)}))
    _sync_folder(folder)
    return _bytes(files)


def seal(manifest: dict) -> str:
    """The SHA-256 of the content of a manifest, without the seal itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(files):
    return sum(entry["bytes"] for entry in files.values())


def _replace(folder, saving, old):
    """Replace `folder` by the filled folder `saving`; the previous one stays readable as `old` until then."""
    if folder.exists():
        _remove(old)
        if old.exists():  # it contains other files
            number = next(n for n in itertools.count(1) if not os.path.lexists(_beside(old, f"-{n}")))
            old.rename(_beside(old, f"-{number}"))
        folder.rename(old)
    saving.rename(folder)
    _sync_folder(folder.parent)


def _refuse_foreign(folder, old):
    """Raise CheckpointError unless `folder` is a checkpoint (possibly damaged) or empty, because saving removes its content.

    If the folder does not have a name that runs use, `old` may be a copy that the user keeps. Returns whether `old` will be the folder that
    this save replaces, and may be removed.
    """
    if STEP.fullmatch(folder.name):
        return True
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists()):
        raise CheckpointError(f"{folder} was not saved: it exists and is not a checkpoint; choose another name")
    if foreign := _foreign(folder):
        raise CheckpointError(
            f"{folder} was not saved: it contains {foreign}, no part of a checkpoint; move that away, or choose another name"
        )
    if os.path.lexists(old):
        raise CheckpointError(
            f"{folder} was not saved: the previous one would be moved to {old}, which exists; move that away, or choose another name"
        )
    return True


def _reason(error, folder, needed):
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.exists())).free
        return f"the disk is full, over {needed:,} bytes are needed and {free:,} are free, so make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write in {folder.parent}, so choose another folder"
    return error.strerror or str(error)


def _beside(folder, suffix):
    return folder.parent / (folder.name + suffix)


def _json(values):
    return (json.dumps(values, indent=2, default=lambda number: number.item()) + "\n").encode()  # NumPy scalars


def _write(path, data):
    """Write a file and sync it to the disk. Returns its entry in the manifest."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_folder(folder):
    """Sync the directory entries of a folder to the disk. Windows has no such call, and NTFS needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Loading


def load(folder: Path, groups: list[str] | None = None) -> Checkpoint:
    """Read a checkpoint: all its documents, and the tensors of `groups` (None: of every group).

    Raises CheckpointError if it is missing, foreign, incomplete, damaged, written by a newer version, or lacks a group.
    """
    folder = _readable(Path(folder))
    manifest = _manifest(folder)
    files = manifest["files"]
    if groups is None:
        groups = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    documents = {}
    for name in files:
        if "/" in name:
            _read(folder, name, files)  # the tokenizer's files: checked here, opened by the tokenizer
        elif name.endswith(".json"):
            documents[name.removesuffix(".json")] = _parse(folder / name, _read(folder, name, files))
    tensors = {group: _tensors(folder, group, files) for group in groups}
    return Checkpoint(tensors, documents, folder, manifest.get("quantization") if manifest["version"] == QUANTIZED else None)


def is_quantized(folder: Path) -> bool:
    """Whether a checkpoint is of a quantised model. Raises CheckpointError if it is not whole."""
    return _manifest(_readable(Path(folder)))["version"] == QUANTIZED


def fingerprint(folder: Path) -> str:
    """The SHA-256 of the manifest's entries for the files of the brain: weights and wiring, embeddings, decoder.

    Raises CheckpointError if the checkpoint is not whole.
    """
    files = _check(_readable(Path(folder)))
    content = {name: files.get(f"{name}.safetensors") for name in ("brain", "embeddings", "decoder")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _readable(folder):
    """The folder itself, or its `.old` name if a save was killed between its two renames."""
    old = _beside(folder, ".old")
    return old if os.path.exists(old) and not os.path.exists(folder) else folder


def _check(folder):
    """The manifest's table of files, name -> {"bytes", "sha256"}, after checking that each file exists with its full size."""
    return _manifest(folder)["files"]


def _manifest(folder):
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} is not a NeuroGen checkpoint: it has no {MANIFEST}; give a folder like runs/NAME/checkpoints/step-00000100"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    manifest = _parse(path, data)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a NeuroGen checkpoint: its {MANIFEST} is of another format; {ANOTHER}")
    version, files = manifest.get("version"), manifest.get("files")
    if isinstance(version, int) and version > QUANTIZED:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, this NeuroGen ({__version__}) reads up to {QUANTIZED}; install a newer NeuroGen"
        )
    known = isinstance(version, int) and version in SUMS and isinstance(files, dict)
    known = known and (version != QUANTIZED or isinstance(manifest.get("quantization"), dict))
    if version != 1 and manifest.get("sha256") != seal(manifest):
        raise CheckpointError(f"{path} is damaged: its content is not what was saved; {ANOTHER}")
    if not known or not all(_is_entry(entry, *SUMS[version]) for entry in files.values()):
        raise CheckpointError(f"{path} is damaged: it does not list the files of a checkpoint; {ANOTHER}")
    for name, entry in files.items():
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"{folder} is incomplete: {name!r} is missing; {ANOTHER}")
        size = os.path.getsize(folder / name)
        if size != entry["bytes"]:
            raise CheckpointError(f"{folder / name} is damaged: {size} bytes where {MANIFEST} says {entry['bytes']}; {ANOTHER}")
    return manifest


def _is_entry(entry, sum_, kind):
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get(sum_), kind)


def _read(folder, name, files):
    """The bytes of one file, after checking their hash."""
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {ANOTHER}") from None
    entry = files[name]
    same = hashlib.sha256(data).hexdigest() == entry["sha256"] if "sha256" in entry else zlib.crc32(data) == entry["crc32"]
    if not same:
        raise CheckpointError(f"{path} is damaged: its content is not what was saved; {ANOTHER}")
    return data


def _parse(path, data):
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object; {ANOTHER}")
    return values


def _tensors(folder, group, files):
    import safetensors
    import safetensors.numpy

    name = f"{group}.safetensors"
    if name not in files:
        raise CheckpointError(f"{folder} holds no {group!r} tensors; {ANOTHER}")
    try:
        return safetensors.numpy.load(_read(folder, name, files))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{folder / name} is damaged: {error}; {ANOTHER}") from None
    except KeyError as error:
        raise CheckpointError(f"{folder / name} has tensors of a dtype that NumPy does not support, {error}; {ANOTHER}") from None


def check_shapes(expected: dict[str, tuple], found: dict[str, np.ndarray], where: str) -> None:
    """Check tensors against the configuration, `expected[name] = (shape, dtype)`.

    Raises CheckpointError naming the first tensor that is missing, of another shape or dtype, or unexpected. `where` starts the sentence.
    """
    import numpy as np

    remedy = "use the configuration that it was saved with, or another checkpoint"
    for name, (shape, dtype) in expected.items():
        needed = f"{np.dtype(dtype)} {list(shape)}"
        if name not in found:
            raise CheckpointError(f"{where}: tensor {name!r}, {needed}, is missing; {remedy}")
        array = found[name]
        if array.shape != tuple(shape) or array.dtype != dtype:
            raise CheckpointError(f"{where}: tensor {name!r} is {array.dtype} {list(array.shape)} instead of {needed}; {remedy}")
    for name, array in found.items():
        if name not in expected:
            raise CheckpointError(f"{where}: tensor {name!r}, {array.dtype} {list(array.shape)}, is not part of the model; {remedy}")


# The checkpoints of a run


def latest(run: Path) -> Path:
    """The whole checkpoint of the highest step under run/checkpoints. Incomplete ones are skipped; hashes are not checked.

    Raises CheckpointError if there is none.
    """
    problem = "nothing has been saved there"
    for folder in reversed(saved(run)):
        try:
            _check(folder)
            return folder
        except CheckpointError as error:
            problem = f"of the last one, {error}"
    raise CheckpointError(f"{run} has no whole checkpoint: {problem}")


def newest(run: Path) -> tuple[Path, list[str]]:
    """The sound checkpoint of the highest step, and for each checkpoint of a higher step a sentence that says why it was skipped.

    Raises CheckpointError if there is none.
    """
    return _first_sound(run, reversed(saved(run)))


def best(run: Path) -> tuple[Path, list[str]]:
    """As `newest`: the sound checkpoint with the lowest loss on held-out text. Raises CheckpointError if there is none with a loss."""
    ranked = sorted((loss, folder) for folder in saved(run) if (loss := _loss(folder)) is not None)
    if not ranked:
        raise CheckpointError(f"no checkpoint of {run} has an evaluation on held-out text: @best needs the first one; drop @best")
    return _first_sound(run, (folder for _, folder in ranked))


def verify(folder: Path) -> None:
    """Read a checkpoint from end to end. Raises CheckpointError unless it is sound."""
    folder = _readable(Path(folder))
    files = _check(folder)
    for name in files:
        _read(folder, name, files)


def _first_sound(run, folders: Iterable[Path]):
    passed_over = []
    for folder in folders:
        try:
            verify(folder)
            return folder, passed_over
        except CheckpointError as error:
            passed_over.append(f"{folder.name} is skipped: {error}")
    if not passed_over:
        raise CheckpointError(f"{run} has no whole checkpoint: nothing has been saved there")
    more = f" (and {len(passed_over) - 1} more)" if len(passed_over) > 1 else ""
    raise CheckpointError(f"{run} has no whole checkpoint: {passed_over[0]}{more}; start anew under another --name")


def _loss(folder):
    """The loss on held-out text of a whole checkpoint; None if it is not whole or was not measured."""
    try:
        loss = _manifest(folder).get("validation_loss")
    except CheckpointError:
        return None
    return loss if isinstance(loss, (int, float)) and math.isfinite(loss) else None


def prune(run: Path, keep: int) -> list[tuple[Path, int]]:
    """Remove the checkpoints of a run except the `keep` newest whole ones and the best, and remove leftovers of killed saves.

    Returns the remaining ones, newest first, each with its size in bytes. A damaged checkpoint that is newer than those stays until a save
    replaces it. Only the process that writes the run may call this.
    Raises ConfigError if `keep` is below 1, CheckpointError if the folder cannot be read or changed.
    """
    if keep < 1:
        raise ConfigError(f"checkpoints to keep: at least 1, not {keep}")
    for folder in saved(run):
        if folder.name.endswith(".old"):
            try:
                folder.rename(folder.with_name(folder.name.removesuffix(".old")))
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be renamed: {error.strerror}; change the permissions of its folder") from None
    for leftover in [*(Path(run) / "checkpoints").glob("step-*.saving"), *(Path(run) / "checkpoints").glob("step-*.old")]:
        _remove(leftover)
    folders = saved(run)
    known = [(loss, folder) for folder in folders if (loss := _loss(folder)) is not None]
    chosen = min(known)[1] if known else None
    remaining, numbered = [], 0
    for folder in reversed(folders):
        if numbered == keep and folder != chosen:
            _remove(folder)  # a partly removed checkpoint is damaged, so it is skipped, and removed the next time
        elif (size := _size(folder)) is not None:
            remaining.append((folder, size))
            numbered += numbered < keep
    return remaining


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint folder of a run, from its name; None for any other name."""
    match = STEP.fullmatch(Path(folder).name)
    return int(match[2]) if match else None


def saved(run: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, lowest step first. Raises CheckpointError if the folder cannot be read."""
    checkpoints = Path(run) / "checkpoints"
    try:
        found = [STEP.fullmatch(name) for name in os.listdir(checkpoints)]
    except FileNotFoundError:
        found = []
    except NotADirectoryError:
        if checkpoints.exists():
            raise CheckpointError(f"{checkpoints} must be a folder, for checkpoints, and is a file; move it away") from None
        found = []
    except OSError as error:
        raise CheckpointError(f"{checkpoints} cannot be read: {error.strerror}; change its permissions") from None
    names = {match[1]: int(match[2]) for match in found if match}
    return [_readable(checkpoints / name) for name in sorted(names, key=names.get)]


def _size(folder):
    """The bytes of a whole checkpoint; None if it is not whole."""
    try:
        return _bytes(_check(folder))
    except CheckpointError:
        return None
