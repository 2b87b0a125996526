"""Damaged run folders and odd environments: a command works, or ends with one sentence and exit code 2; side files never stop one.

Hypothesis draws the damage, a few examples each in a plain run; NEUROGEN_FUZZ=100 draws 100 times as many.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from neurogen_numba.cli import main
from neurogen_numba.show import summary_of
from neurogen_numba.storage import checkpoint, run_folder
from neurogen_numba.ui.history import read_history

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
MORE = int(os.environ.get("NEUROGEN_FUZZ", "1"))
SIDE = ("summary.json", "metrics.jsonl", "config.json", "lock")
USES = {
    "chat": ["chat", "{run}", "--max-tokens", "2"],
    "generate": ["generate", "{run}", "--length", "2"],
    "evaluate": ["evaluate", "{run}", "--max-tokens", "20"],
    "figures": ["figures", "{run}"],
    "resume": ["train", "--resume", "{run}", "--steps", "5", "--plain"],
    "migrate": ["migrate", "{run}", "{run}-new", "--set", "brain.pfc.neurons=48"],
}
QUICK = [name for name in USES if name != "figures"]  # drawing takes seconds

numbers = st.integers() | st.floats() | st.sampled_from([-1, 0, 2**63, 10**400, 1e308, float("nan"), float("inf")])
values = st.recursive(st.none() | st.booleans() | numbers | st.text(max_size=5), lambda some: st.lists(some, max_size=3), max_leaves=4)
values |= st.dictionaries(st.text(max_size=5), values, max_size=3)


def examples(count):
    return settings(max_examples=count * MORE, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps that has ended, with two checkpoints and all side files."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    chosen = tiny.config({"data": str(folder / "sheep.txt")}, steps=4, checkpoint_interval=2, eval_interval=2, sample_interval=2)
    chosen = chosen.to_dict() | {"preset": "nano"}
    del chosen["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(chosen))
    assert main(["train", "--config", str(folder / "tiny.toml"), "--backend", "cpu", "--out", str(folder), "--name", "run"]) == 0
    return folder / "run"


def used(run, name):
    """The exit code of a command on a run; what it says must be a sentence."""
    words = [word.format(run=run) for word in USES[name]]
    streams, sys.stdin, sys.stdout, sys.stderr = (sys.stdin, sys.stdout, sys.stderr), io.StringIO("1\n"), io.StringIO(), io.StringIO()
    try:
        code = main([*words, *([] if name == "migrate" else ["--backend", "cpu"])])
        output = sys.stderr.getvalue()
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    assert code in (0, 2) and "Traceback" not in output, output
    assert code == 0 or output.startswith(f"neurogen {words[0]}: ") or output.startswith("neurogen: "), output
    return code


def damaged_json(draw, data):
    """One JSON document with a field that is missing or something else, or something else altogether."""
    try:
        document = json.loads(data)
    except ValueError:  # damaged before
        document = None
    kind = draw(st.sampled_from(["other", "missing", "changed", "changed", "deeper"]))
    if kind == "other" or not isinstance(document, dict) or not document:
        return json.dumps(draw(values)).encode()
    name = draw(st.sampled_from(sorted(document)))
    if kind == "missing":
        del document[name]
    elif kind == "deeper" and isinstance(document[name], dict) and document[name]:
        document[name][draw(st.sampled_from(sorted(document[name])))] = draw(values)
    else:
        document[name] = draw(values)
    return json.dumps(document).encode()


def harm(draw, path):
    """Damage one file."""
    data = path.read_bytes()
    kind = draw(st.sampled_from(["json", "json", "json", "bytes", "cut", "gone", "folder"]))
    if kind == "json" and path.suffix == ".jsonl":
        lines = data.splitlines()
        for _ in range(draw(st.integers(1, 3)) if lines else 0):
            index = draw(st.integers(0, len(lines) - 1))
            lines[index] = damaged_json(draw, lines[index]) if lines[index].startswith(b"{") else b""
        path.write_bytes(b"\n".join(lines))
    elif kind == "json" and path.suffix == ".json":
        path.write_bytes(damaged_json(draw, data))
    elif kind == "cut":
        path.write_bytes(data[: draw(st.integers(0, len(data)))])
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        index = draw(st.integers(0, len(data)))
        path.write_bytes(data[:index] + draw(st.binary(max_size=20)) + data[index + 5 :])
    return kind


@pytest.fixture
def work():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def copied(run, work):
    shutil.rmtree(work)
    return Path(shutil.copytree(run, work / "run"))


@given(data=st.data())
@examples(12)
def test_a_damaged_side_file_stops_nothing(run, work, data):
    copy_of_run = copied(run, work)
    kinds = {name: harm(data.draw, copy_of_run / name) for name in data.draw(st.sets(st.sampled_from(SIDE), min_size=1, max_size=2))}
    name = data.draw(st.sampled_from(QUICK))
    code = used(copy_of_run, name)
    if "folder" not in kinds.values() or name not in ("resume", "migrate"):  # what lies where a file goes is the user's
        assert code == 0, (kinds, name)
    if kinds.get("metrics.jsonl") not in ("gone", "folder"):
        read_history(copy_of_run).columns()


@given(data=st.data())
@examples(1)
def test_figures_of_a_damaged_log_are_drawn(run, work, data):
    copy_of_run = copied(run, work)
    if harm(data.draw, copy_of_run / "metrics.jsonl") not in ("gone", "folder"):
        assert used(copy_of_run, "figures") == 0


@given(data=st.data())
@examples(20)
def test_any_damaged_file_costs_a_sentence_at_most(run, work, data):
    copy_of_run = copied(run, work)
    for _ in range(data.draw(st.integers(1, 3))):
        harm(data.draw, data.draw(st.sampled_from(sorted(path for path in copy_of_run.rglob("*") if path.is_file()))))
    used(copy_of_run, data.draw(st.sampled_from(QUICK)))


def test_the_newest_checkpoint_without_a_sound_manifest_is_passed_over(run, work):
    for content in (b"", b"null", b"[]", b"{}", b'{"format": "neurogen-checkpoint", "version": 2, "files": null}', b"\xff\xfe"):
        copy_of_run = copied(run, work)
        (checkpoint.saved(copy_of_run)[-1] / "manifest.json").write_bytes(content)
        for name in ("chat", "generate", "resume"):
            assert used(copy_of_run, name) == 0


OTHER_JSON = [b"", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("content", [*OTHER_JSON, b"{}", b'{"steps": 4}', b'{"steps": 4, "val_bits_per_byte": [1]}'], ids=range(9))
def test_a_damaged_summary_is_not_shown(run, work, content):
    copy_of_run = copied(run, work)
    (copy_of_run / "summary.json").write_bytes(content)
    assert used(copy_of_run, "chat") == 0

    class Model:
        class config:
            preset = "nano"

        class optimizer:
            steps = 4

        parameters = 5

    facts = summary_of(Model, checkpoint.saved(copy_of_run)[-1])
    assert facts == {"preset": "nano", "parameters": 5, "steps": 4}


@pytest.mark.parametrize("line", [*OTHER_JSON, b'{"step": "4"}', b'{"step": null}', b'{"kind": "step", "step": [1]}'], ids=range(9))
def test_a_log_is_cut_back_past_damaged_lines(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n{"step": 3}\n')
    run_folder.MetricsLog(path, 2).close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


# The environment

COMPILED_ANEW = ["NUMBA_CACHE_DIR", "NUMBA_CACHE_LOCATOR_CLASSES"]  # a minute each time, with a command that computes
NAMES = """NUMBA_NUM_THREADS NUMBA_THREADING_LAYER NUMBA_THREADING_LAYER_PRIORITY NUMBA_DISABLE_JIT NUMBA_OPT NUMBA_BOUNDSCHECK
    NUMBA_ENABLE_CUDASIM NUMBA_DEBUG_CACHE NUMBA_FUNCTION_CACHE_SIZE NUMBA_CUDA_DRIVER NUMBA_DISABLE_CUDA NUMBA_LOOP_VECTORIZE
    PYTHONIOENCODING LC_ALL HOME TERM COLUMNS LINES OMP_NUM_THREADS TMPDIR CUDA_VISIBLE_DEVICES NO_COLOR FORCE_COLOR""".split()
WORDS = [
    "",
    "0",
    "1",
    "-1",
    "2",
    "x",
    "tbb",
    "omp",
    "workqueue",
    "/dev/null/x",
    "ascii",
    "utf-8",
    "C",
    "99999999999",
    "ä",
    "-avx512f",
    "a,b",
]


@given(
    variables=st.dictionaries(st.sampled_from(NAMES + COMPILED_ANEW), st.sampled_from(WORDS), max_size=3),
    use=st.sampled_from(["config nano", "plan --backend cpu", "generate {run} --length 2 --backend cpu", "doctor"]),
)
@examples(2)
def test_any_environment_costs_a_sentence_at_most(run, work, variables, use):
    if use.startswith("generate"):
        variables = {name: value for name, value in variables.items() if name not in COMPILED_ANEW}
    if variables.get("PYTHONIOENCODING") not in ("", "ascii", "utf-8"):  # with others, Python itself does not start
        variables.pop("PYTHONIOENCODING", None)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", **variables}
    words = [sys.executable, "-m", "neurogen_numba", *use.format(run=run).split()]
    done = subprocess.run(words, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr, (done.returncode, done.stderr.decode(errors="replace"))
