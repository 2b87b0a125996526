"""`neurogen runs`: what it says of each run, of none, and of what is no run."""

import json
import os
import shlex
from pathlib import Path

import pytest
from rich.cells import cell_len

import talking
from neurogen_numba.cli import main as neurogen
from neurogen_numba.runs import main as runs
from neurogen_numba.runs import names
from neurogen_numba.storage import run_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder with two runs, one of which was never saved, and with what is no run."""
    monkeypatch.chdir(tmp_path)
    run = talking.make_run(tmp_path / "runs" / "älter [b]")
    records = [{"kind": "evaluation", "step": 1, "loss": loss} for loss in (3.5, 2.25)] + [{"kind": "step", "step": 1, "loss": 9.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "evaluation", "lo')
    new = tmp_path / "runs" / "new"
    new.mkdir()
    (new / "config.json").write_text(json.dumps(talking.config().to_dict()))
    (new / "lock").write_text("")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    for path, when in ((run, 1_000_000_000), (new, 2_000_000_000)):
        for file in [path, *path.rglob("*")]:
            os.utime(file, (when, when))
    return tmp_path / "runs"


def as_json(capsys, *flags):
    assert runs(["--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["runs"]


def row_of(out, capsys, name="älter [b]"):
    return next(run for run in as_json(capsys) if run["name"] == name)


def plan(run, steps):
    """Write a plan of `steps` steps into the run's checkpoint."""
    (run / "checkpoints" / "step-00000001" / "trainer.json").write_text(json.dumps({"step": 1, "steps": steps}))


def test_what_is_said_of_a_run(out, capsys):
    new, old = as_json(capsys)
    assert (old["name"], old["preset"], old["steps"], old["steps_planned"], old["checkpoints"]) == ("älter [b]", "tiny", 1, 1000, 1)
    assert old["validation_loss"] == 2.25 and old["changed"].startswith("2001-09-0") and old["state"] == "stopped"
    assert old["bytes"] == sum(path.lstat().st_size for path in (out / "älter [b]").rglob("*") if path.is_file())
    assert old["commands"] == {"resume": "neurogen train --resume 'runs/älter [b]'", "chat": "neurogen chat 'runs/älter [b]'"}
    assert (new["name"], new["steps"], new["validation_loss"], list(new["commands"])) == ("new", 0, None, ["resume"])


@pytest.mark.parametrize("columns", [200, 80, 50])
def test_the_table_keeps_to_the_width(out, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert neurogen(["runs"]) == 0
    text = capsys.readouterr().out
    table = text.split("neurogen", 1)[0]
    assert max(map(cell_len, table.splitlines())) <= columns and "\x1b" not in text
    for word in ("[b]", "new", "2.250", "chat", "resume", *(["tiny", "2001"] if columns > 50 else [])):
        assert word in table
    assert "neurogen chat 'runs/älter [b]'" in text


def test_the_run_below_the_table_is_the_one_that_a_chat_takes(out, capsys):
    """A run with an older checkpoint trains on and writes its log, so it stands on top."""
    other = talking.make_run(out / "other")
    for file in [other, *other.rglob("*")]:
        os.utime(file, (900_000_000, 900_000_000))
    os.utime(other / "config.json", (3_000_000_000, 3_000_000_000))
    assert as_json(capsys)[0]["name"] == "other"
    assert runs([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"neurogen chat {shlex.quote(str(run_folder.latest_run(Path('runs'))))}"


def test_a_run_that_trains_now_cannot_be_resumed(out, capsys):
    with run_folder.lock(out / "älter [b]"):
        (old,) = (run for run in as_json(capsys) if run["name"] == "älter [b]")
    assert old["state"] == "training" and list(old["commands"]) == ["chat"]
    assert not any(run["state"] == "training" for run in as_json(capsys))


def test_a_run_that_is_done_is_resumed_with_more_steps(out, capsys):
    plan(out / "älter [b]", 1)
    assert row_of(out, capsys)["commands"]["resume"] == "neurogen train --resume 'runs/älter [b]'"  # its final evaluation is missing
    (out / "älter [b]" / "summary.json").write_text('{"steps": 1}')
    old = row_of(out, capsys)
    assert (old["state"], old["steps_planned"]) == ("finished", 1)
    assert old["commands"]["resume"] == "neurogen train --resume 'runs/älter [b]' --steps 2"
    assert runs([]) == 0 and "resume --steps 2, chat" in capsys.readouterr().out


def test_the_plan_is_that_of_the_checkpoint_which_a_time_limit_has_lowered(out, capsys):
    plan(out / "älter [b]", 724)
    old = row_of(out, capsys)
    assert (old["steps"], old["steps_planned"], old["state"]) == (1, 724, "stopped")


def test_a_run_that_trains_shows_the_step_of_its_log(out, capsys):
    log = out / "älter [b]" / "metrics.jsonl"
    log.write_text('{"kind": "step", "step": 290, "steps": 724}\n{"kind": "step", "step": 298, "steps": 724}\n{"kind": "st')
    with run_folder.lock(out / "älter [b]"):
        old = row_of(out, capsys)
    assert (old["steps"], old["steps_planned"]) == (298, 724)
    assert row_of(out, capsys)["steps"] == 1  # from its checkpoint it resumes


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_a_name_is_never_broken(out, capsys, monkeypatch, columns):
    name = "a-run-with-a-name-of-35-characters-"
    (out / "new").rename(out / name)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert runs([]) == 0
    assert name in capsys.readouterr().out


def test_damage_is_shown_as_what_is_not_known(out, capsys):
    (out / "älter [b]" / "config.json").write_text("{")
    (out / "älter [b]" / "metrics.jsonl").write_bytes(b"\xff\n[[\n")
    (old,) = (run for run in as_json(capsys) if run["name"] == "älter [b]")
    assert old["preset"] is old["steps_planned"] is old["validation_loss"] is None and old["steps"] == 1
    assert runs([]) == 0 and "?" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["nowhere", "empty", "file"])
def test_where_there_is_none_it_says_what_to_do(tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert runs(["--out", str(tmp_path / folder)]) == 0
    assert capsys.readouterr().out == f"There is no run under {tmp_path / folder}. Train one: neurogen train\n"
    assert as_json(capsys, "--out", str(tmp_path / folder)) == []


def test_names_are_those_that_can_be_talked_to(out):
    assert names(out) == ["älter [b]"]
