"""Event files as TensorBoard reads them: what was measured, and after a resume nothing twice."""

import struct
import sys

import pytest

import histories
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning.report import CheckpointReport, EvalReport, SampleReport
from neurogen_numba.ui import tensorboard
from neurogen_numba.ui.tensorboard import TensorBoard, check

CHECKPOINT = CheckpointReport(3, "runs/a/step-3", 1000, 0.1, 0.1, 1, 1000)


def fail(notice):
    pytest.fail(notice.text)


def events(run):
    """All events, in the order that TensorBoard reads the files: by name."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(run):
    """{tag: [(step, value)]}, with what later sessions take back left out, as TensorBoard does."""
    kept = {}
    for event in events(run):
        if event.HasField("session_log"):
            kept = {tag: [(step, value) for step, value in points if step < event.step] for tag, points in kept.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                kept.setdefault(value.tag, []).append((event.step, value.simple_value))
    return kept


def test_what_was_measured_is_in_the_events(tmp_path):
    pytest.importorskip("tensorboardX")
    with TensorBoard(tmp_path, 0, fail) as view:
        last = EvalReport(20, 4.0, 0.25, 3.0, 0.5, 5000, last=True)
        for report in [*histories.life(20), last, SampleReport(20, "a", "two\nlines", None), CHECKPOINT]:
            view.show(report)
    kept = scalars(tmp_path)
    assert [step for step, _ in kept["training/loss"]] == list(range(1, 21))
    for tag, value in {"training/accuracy": 0.02, "training/tokens_per_second": 1020.0, "activity/pfc": 0.04}.items():
        assert kept[tag][-1] == (20, pytest.approx(value))
    assert kept["validation/bits_per_byte"] == [(10, 2.0), (20, 2.0)] and kept["final/bits_per_byte"] == [(20, 3.0)]
    assert kept["neuromodulators/serotonin"] == [(20, pytest.approx(-4.0))]
    texts = [value.tensor.string_val[0].decode() for event in events(tmp_path) for value in event.summary.value if value.HasField("tensor")]
    assert "it wrote:\n\n    wrote 10\n\nthe truth:\n\n    truth 10" in texts[0]
    assert texts[-1] == "it was given:\n\n    a\n\nit wrote:\n\n    two\n    lines"


def test_a_resumed_run_takes_back_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    killed = TensorBoard(tmp_path, 0, fail).__enter__()
    for number in (1, 2, 3):
        killed.show(histories.step(number))
    killed.show(CHECKPOINT)
    assert scalars(tmp_path)["training/loss"][-1][0] == 3, "with a checkpoint everything before it is on the disk"
    for number in (4, 5):
        killed.show(histories.step(number, loss=100.0))
    killed._file.close()
    with TensorBoard(tmp_path, 3, fail) as view:
        for number in (4, 5, 6):
            view.show(histories.step(number))
    points = scalars(tmp_path)["training/loss"]
    assert points == [(number, pytest.approx(5 - number / 100)) for number in range(1, 7)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_disk_that_fills_up_costs_a_warning(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    reports = []

    def full(event):
        raise OSError(28, "No space left on device")

    with TensorBoard(tmp_path, 0, reports.append) as view:
        view.show(histories.step(1))
        monkeypatch.setattr(view._file, "write_event", full)
        for number in (2, 3):
            view.show(histories.step(number))
    (notice,) = reports
    assert notice.text.startswith(f"warning: no more events for TensorBoard: {tmp_path / 'tensorboard'} cannot be written: No space left")


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "tensorboard").write_text("in the way")
    reports = []
    with TensorBoard(tmp_path, 0, reports.append) as view:
        view.show(histories.step(1))
    assert "cannot be written: File exists" in reports[0].text and len(reports) == 1


def test_where_it_is_missing_the_flag_is_refused_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^--tensorboard: tensorboardX is not installed: pip install 'neurogen-numba\[tensorboard\]'$"):
        check()
    for name in [*sys.modules, "tensorboardX"]:
        if name.split(".")[0] == "tensorboardX":
            monkeypatch.setitem(sys.modules, name, None)
    reports = []
    with TensorBoard(tmp_path, 7, reports.append) as view:
        view.show(histories.step(8))
    assert "tensorboardX is not installed" in reports[0].text and len(reports) == 1
