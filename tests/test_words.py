"""Words that the project has retired: each has a term of the field, or is a riddle. None of them stands in code, docs or notebooks."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = [path for folder in ("kernels", "neurogen_numba", "tests", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
CODE.remove(Path(__file__).resolve())
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"))]

# Identifiers: pattern of a name, without leading underscores -> the term to use, and a name that the pattern matches.
IDENTIFIERS = {
    r"(think|walk|turn)_(back|again)|think|hears?|hearing": ("forward, begin_backward, recompute, load_tokens", "think_back"),
    r"owe[ds]?|owing": ("set_current_grad, source_grad, accumulate_weight_grad", "owed"),
    r"Traffic|arriving|receives?": ("reads, writes, gather, scatter, accumulator", "Traffic"),
    r"silences|spoilt": ("dropped, overflowed", "spoilt"),
    r"lay_out|Stretch|stretch|Field|Share": ("pack, route, work item", "lay_out"),
    r"told|said": ("name the thing: message, output, reports", "said"),
    r"WALKERS|TILERS|FANNERS|LISTERS|SAMPLERS|SUMMING|MOST": ("BLOCK_DIM, MAX_... of what", "SAMPLERS"),
    r"NEXT|ONE_PLACE|ONCE|TWICE|THRICE|AHEAD": ("u32(1), u64(1), PREFETCH", "ONCE"),
    r"place|at|own|here": ("offset, index, local_...", "at"),
    r"hand_in|hand_out|take_fixed|pass_fetched|turn_ring": ("store_partial, scatter_grads, add_fixed_point, accumulate", "hand_in"),
    r"keeping|frugal|apart": ("activation_checkpointing, low_memory_optim, row-wise", "frugal"),
    r"Paper|Sheet|on_paper": ("MetaBackend, MetaArray, on_meta", "on_paper"),
    r"glimpse|portrait": ("val_subset, snapshot", "portrait"),
    r"nobody|somebody|whoever": ("name the caller", "nobody"),
}
IN_KERNELS = {
    r"WIDTH|FEW|ENOUGH|PLENTY|WIDEST|NOBODY": ("BLOCK_DIM, MAX_... of what, NO_TOKEN", "WIDTH"),
    r"lines|kept|keep|span|others|there|together|mine": ("interleaved batch, fraction, name the thing", "kept"),
    r"(\w+_)?own(_\w+)?|(\w+_)?at": ("local_..., ..._offset", "own_column"),
}

# Phrases of comments, docstrings, messages and pages: pattern -> how to write instead, and a sentence that the pattern matches.
PHRASES = {
    r"\bow(?:e[ds]?|ing)\b": ("name what is set or accumulated", "before `owed` is asked for a chunk"),
    r"way back\b|\b(?:think|walk|turn)_back\b": ("backward pass", "On the way back the state is known."),
    r"hears\b|heard by\b": ("reads, ignores", "A neuron that hears this current."),
    r"spoilt\b": ("overflowed, invalidated", "A capture that was spoilt."),
    r"\b(?:is|are|was|were) no number\b(?! \{)": ("NaN, not a number", "where the loss is no number"),
    r"whole numbers\b": ("integers", "a sum of whole numbers"),
    r", or none\b": (", or without; may be empty", "the name of a gate, or none"),
    r"\b(?:is|are|was|were) wanted\b": ("is needed, is required; or give the command", "the folder of a run is wanted"),
    r"so many\b": ("name the number", "in each of so many measurements"),
    r"such as\b": ("for example, like", "flags such as --backend"),
    r"\b[Aa] look\b|\b[Ll]ooks during\b": ("an evaluation, a check", "A look at the held-out text."),
    r"\b[Ww]hat (?:\w+ ){1,4}of it\b": ("repeat the noun", "what is left of it"),
    r"\b[Ww]hoever\b": ("name the caller, the thread, the user", "whoever reads it"),
    r"\b(?:[Nn]obody|[Ss]omebody) (?:\w+ )?(?:reads|asks|wants|watches|needs|looks|waits|hears)\b": ("name who", "nobody reads it"),
    # free relatives as subjects
    r"(?:[.:;\"#]|\.\))\s*(?:What|Whatever|Who) [^.?:;\"]*\b(?:is|are|was|were|has|have|does|comes|goes|says)\b(?![^.]*\?)": (
        "begin with the subject", '"""What fires is sent on."""'),
    r"(?:[.:;,\"#|]|\s{2})\s*[Ww]ho (?:watches|asks|names|reads|trains|sets)\b": (
        "name the person or the part", "ui/  who watches: live view"),
    r"what all neurons share\b": ("equations that all neurons share", "neuron.py   what all neurons share: drive, trace"),
}  # fmt: skip


STRINGS_AND_COMMENTS = re.compile(r"""(\"{3}|'{3})(?:.|\n)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#.*""")
NAMES = re.compile(r"(?<![\w.])[^\W\d]\w*|(?<=self\.)\w+")


def names(source: str) -> set[str]:
    """The names in Python source, without attributes of other objects than self, which may be those of libraries."""
    return set(NAMES.findall(STRINGS_AND_COMMENTS.sub(" ", source)))


def prose(source: str) -> str:
    """The text of a file in one line; comments of several lines are joined, and names of tests are sentences."""
    lines, comment = [], False
    for line in map(str.strip, source.splitlines()):
        lines.append(line.lstrip("# ") if comment and line.startswith("#") else line or ".")
        comment = line.startswith("#")
    return re.sub(r"def (test_\w+)", lambda found: "# " + found[1].replace("_", " ") + " #", " ".join(lines))


def read(path: Path) -> tuple[set[str], str]:
    """(names, prose) of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return names("\n".join(source for kind, source in cells if kind == "code")), prose("\n\n".join(source for _, source in cells))
    return names(text) if path.suffix == ".py" else set(), prose(text)


def retired(names: set[str], prose: str, kernels: bool = False) -> list[str]:
    """A line for each retired name and phrase: what stands there, and what to write."""
    tables = IDENTIFIERS | (IN_KERNELS if kernels else {})
    wrong = sorted(filter(re.compile(f"_*(?:{'|'.join(tables)})").fullmatch, names))
    found = [f"{name}: {instead}" for name in wrong for pattern, (instead, _) in tables.items() if re.fullmatch(f"_*(?:{pattern})", name)]
    for pattern, (instead, _) in PHRASES.items():
        for match in re.finditer(pattern, prose):
            found.append(f"{match.group()!r} in {prose[max(0, match.start() - 40) : match.end() + 40]!r}: {instead}")
    return found


def test_no_retired_word():
    found = {path: retired(*read(path), kernels=path.parent.name == "kernels") for path in [*CODE, *NOTEBOOKS, *PAGES]}
    report = [f"{path.relative_to(ROOT)}: {line}" for path, lines in found.items() for line in lines]
    assert not report, "\n".join(report)


@pytest.mark.parametrize("pattern", [*IDENTIFIERS, *IN_KERNELS])
def test_a_retired_name_is_found(pattern):
    _, example = (IDENTIFIERS | IN_KERNELS)[pattern]
    for source in (f"{example} = 1", f"def f(_{example}):", f"self.{example} = 2"):
        assert retired(names(source), "", kernels=True), source
    assert not retired(names(f"x.{example} = '{example}'  # {example}"), "", kernels=True)


@pytest.mark.parametrize("pattern", PHRASES)
def test_a_retired_phrase_is_found(pattern):
    assert re.search(pattern, PHRASES[pattern][1])


def test_phrases_are_found_across_lines_and_in_names_of_tests():
    for source in (
        '"""A capture that was\n    spoilt."""',
        "x = 1  # a sum\n# of whole\n# numbers\n",
        "def test_nobody_reads_it():\n    pass\n",
    ):
        assert retired(set(), prose(source)), source
    assert not retired(set(), prose('"""Which neuron fires is drawn."""\nx = "What is new?"'))


def test_retired_files_are_gone():
    gone = "kernels/affine.py kernels/stream.py kernels/forget.py kernels/softmax_blocks.py keeping.py frugal.py blocks.py"
    assert not [name for name in gone.split() for path in CODE if path.as_posix().endswith(f"/{name}")]
