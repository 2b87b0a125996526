"""Imports between the rooms of the package point one way: what is below never needs what is above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neurogen_numba"
KERNELS = PACKAGE.parent / "kernels"
# From the ground up. A room imports rooms of lower levels; those of one level know each other.
LEVELS = [
    {"system"},
    {"kernels"},
    {"backends", "neurons"},
    {"optim", "text", "storage", "distributed"},
    {"brain"},
    {"learning", "planning", "inference", "lab", "benchmarks"},
    {"ui"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# NeuroGenModel offers text generation and learning online as methods; the saver passes reports to the trainer; a chat lists runs and draws;
# a rank makes the model that another one has made.
LATE = {
    ("brain", "inference"),
    ("brain", "learning"),
    ("storage", "learning"),
    ("inference", "ui"),
    ("benchmarks", "ui"),
    ("lab", "ui"),
    ("planning", "learning"),
    ("distributed", "brain"),
    ("distributed", "learning"),
}


def imported(file: Path, parts: list[str]) -> set[str]:
    """The rooms of the package that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else []
            target = [*base, *(node.module.split(".") if node.module else [])]
            if target[:1] == ["neurogen_numba"]:
                rooms |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
    return rooms & LEVEL.keys()


def test_every_room_has_a_level():
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()} | {"kernels"} == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_a_room_imports_nothing_from_above(room):
    folder = KERNELS if room == "kernels" else PACKAGE / room
    for file in folder.glob("*.py"):
        for other in imported(file, ["neurogen_numba", room, file.stem]) - {room}:
            assert LEVEL[other] <= LEVEL[room] or (room, other) in LATE, f"{room}/{file.name} imports {other}"
