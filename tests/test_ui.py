"""The views: what they show, and that hostile text cannot harm them."""

import io
import json
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

import histories
from neurogen_numba.config import MODULES
from neurogen_numba.learning.report import CheckpointReport, EvalReport, FinalReport, Notice, SampleReport, StepReport
from neurogen_numba.ui import open_view
from neurogen_numba.ui.live import Curve, LiveView, MovingAverage, bars
from neurogen_numba.ui.plain import PlainView, duration, figure, item, printable

ACTIVITY = dict(zip(MODULES, (0.071, 0.04, 0.12, 0.001, 0.25, 0.033), strict=True))
STEP = StepReport(1240, 2310, 634880, 3.21012, 0.3123, 2.10149, 3.1e-3, 0.8211, 3120.4, 185.0, ACTIVITY, 0.0123)
EVAL = EvalReport(1000, 2.5, 0.401, 1.2345, 0.48, 20000)
SAMPLE = SampleReport(1200, "The fox", " ran home.\nIt slept.")
BRAIN = histories.brain(1200)
CHECKPOINT = CheckpointReport(1000, "runs/a/step-1000", 12_345_678, 0.214, 0.018, 6, 74_000_000)
NOTICE = Notice("compiling kernels, once")
FINAL = FinalReport({"steps": 2310, "validation_bits_per_byte": 0.59123, "checkpoint": "runs/a/step-2310"})
HOSTILE = "[/red] [bold]x[/] \x1b[2J\x07\r\x00\x9b1m 日本語 🦊 \u202eabc \ud800 \\[z] \t|" + "w" * 300


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def terminal_for(monkeypatch):
    """Makes standard input and output an 80 by 24 terminal, whatever runs the tests. Not a fixture: pytest's capture would undo it."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stdin", Terminal())
    return screen


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def lines_of(*reports):
    stream = io.StringIO()
    with PlainView("NeuroGen, nano", stream) as view:
        for report in reports:
            view.show(report)
    return stream.getvalue().splitlines()


def live(*reports, width=80, height=24):
    """What a live view leaves on the screen, and the last picture, line by line."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor", legacy_windows=False)
    with LiveView("NeuroGen, nano", console) as view:
        for report in reports:
            view.show(report)
    with console.capture() as picture:
        console.print(view._picture())
    return without_codes(console.file.getvalue()), without_codes(picture.get()).splitlines()


def test_records_name_their_kind_and_hold_every_field():
    assert EVAL.to_record() == {
        "kind": "evaluation",
        "step": 1000,
        "loss": 2.5,
        "accuracy": 0.401,
        "bits_per_byte": 1.2345,
        "floor_bits_per_byte": 0.48,
        "tokens": 20000,
        "last": False,
    }
    kinds = [report.to_record()["kind"] for report in (STEP, EVAL, SAMPLE, BRAIN, CHECKPOINT, NOTICE, FINAL)]
    assert kinds == ["step", "evaluation", "sample", "brain", "checkpoint", "notice", "final"]
    assert BRAIN.to_record() == {"kind": "brain", "step": 1200, "levels": BRAIN.levels}
    assert STEP.to_record()["activity"] == ACTIVITY
    assert FINAL.to_record()["summary"]["steps"] == 2310


def test_records_are_strict_json_even_where_a_number_is_not_finite():
    report = StepReport(1, 2, 3, math.nan, 0.0, math.inf, 0.0, -math.inf, 1.0, 1.0, {"pfc": math.nan})
    record = json.loads(json.dumps(report.to_record(), allow_nan=False))
    assert record["loss"] is record["bits_per_byte"] is record["gradient_norm"] is record["activity"]["pfc"] is None
    assert record["tokens"] == 3


def test_seconds_left_follow_the_present_speed():
    assert STEP.seconds_left == pytest.approx((2310 - 1240) * 512 / 3120.4)
    assert StepReport(0, 10, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 100.0, 0.0, {}).seconds_left == math.inf
    assert StepReport(5, 10, 50, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, {}).seconds_left == math.inf


def test_plain_lines():
    assert lines_of(NOTICE, STEP, EVAL, SAMPLE, BRAIN, CHECKPOINT, FINAL) == [
        "NeuroGen, nano",
        "compiling kernels, once",
        "step 1240/2310  loss 3.2101  bits/byte 2.101  accuracy 31.2 %  rate 3.10e-03  gradient 0.821"
        "  events 0.1-25.0 %  3,120 tokens/s  waited 1.2 %  3:05 gone, 2:56 left",
        "validation at step 1000  loss 2.5000  bits/byte 1.234 (floor 0.480)  accuracy 40.1 %  20,000 tokens",
        'sample at step 1200  "The fox" -> " ran home.\\nIt slept."',
        "saved runs/a/step-1000  12.3 MB in 0.21 s, training held up 0.02 s  6 kept, 74.0 MB in all",
        "finished  steps 2,310  validation bits per byte 0.5912  checkpoint runs/a/step-2310",
    ]
    assert "floor" not in lines_of(EvalReport(1, 2.0, 0.1, 1.0, None, 5))[1]


def test_shares_are_percentages_on_every_screen_and_losses_have_their_unit():
    summary = {"val_loss": 6.92581, "val_accuracy": 0.001499, "question_accuracy": 0.0, "chance_accuracy": 0.06792}
    wanted = {"val loss": "6.926 nats/token", "val accuracy": "0.1 %", "question accuracy": "0.0 %", "chance accuracy": "6.8 %"}
    assert dict(item(name, value) for name, value in summary.items()) == wanted
    assert item("unknown_words", 0.142) == ("unknown words", "14.2 %") and item("perplexity_per_word", None)[1] == "?"
    assert lines_of(FinalReport(summary))[1] == "  ".join(["finished", *(f"{name} {value}" for name, value in wanted.items())])
    screen, picture = live(STEP, FinalReport(summary))
    summary_lines = [line.strip("│ ") for line in screen[screen.rindex("finished") :].splitlines()]
    assert all(any(line.startswith(name) and line.endswith(value) for line in summary_lines) for name, value in wanted.items())
    assert any("loss, nats" in line and "average 3.210" in line for line in picture)


def test_plain_view_survives_hostile_text_and_narrow_encodings():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with PlainView("t", stream=stream) as view:
        for report in (SampleReport(1, HOSTILE, HOSTILE), Notice("one\n" + HOSTILE)):
            view.show(report)
    text = raw.getvalue().decode("ascii")
    assert len(text.splitlines()) == 3
    assert "[/red] [bold]x[/]" in text
    assert not re.search("[\x00-\x09\x0b-\x1f]", text)


@pytest.mark.parametrize("view", [PlainView("t", stream=io.StringIO()), LiveView("t", Console(file=io.StringIO()))])
def test_views_refuse_what_is_not_a_report(view):
    with pytest.raises(TypeError, match="not a report"):
        view.show({"step": 1})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_live_view_shows_everything(width, height):
    screen, picture = live(NOTICE, STEP, EVAL, SAMPLE, BRAIN, CHECKPOINT, FINAL, width=width, height=height)
    facts = ["NeuroGen, nano", "1,240/2,310", "54 %", "3:05 gone", "2:56 left"]
    facts += ["3.210", "average 3.210", "2.101", "floor 0.480", "31.2 %", "3.1e-03", "0.821", "3,120", "634,880 tokens", "waited"]
    facts += ["1.234", "at step 1,000", "validation 40.1 %", "the floor, 0.48"]
    facts += ["thalamus", "wernicke", "hippocampus", "PFC", "basal ganglia", "broca", "25.0 %", "0.1 %"]
    facts += ["it writes, at step 1,200", "The fox ran home.", "It slept.", "compiling kernels, once", "12.3 MB in 0.21 s"]
    text = "\n".join(picture)
    assert [fact for fact in facts if fact not in text] == []
    assert len(picture) < height
    assert max(cell_len(line) for line in picture) <= width
    summary = screen[screen.rindex("finished") :]
    assert "validation bits per byte" in summary and "0.5912" in summary and "runs/a/step-2310" in summary


def test_live_view_keeps_the_best_validation_in_sight():
    _, picture = live(STEP, EVAL, EvalReport(1500, 2.6, 0.3, 1.3, 0.48, 20000))
    row = next(line for line in picture if "validation " in line and "%" not in line.split("│")[1])
    assert "1.300" in row and "best 1.234" in row


def test_the_final_is_called_so_and_is_not_compared_with_those_before():
    last = EvalReport(2310, 2.4, 0.5, 1.1, 0.48, 50000, last=True)
    assert lines_of(last)[1].startswith("final evaluation at step 2310  loss 2.4000")
    _, picture = live(STEP, EVAL, last)
    row = next(line for line in picture if "validation " in line and "%" not in line.split("│")[1])
    assert "1.100" in row and "final" in row
    _, picture = live(STEP, EVAL, last, EvalReport(2400, 2.5, 0.4, 1.5, 0.48, 20000))
    assert any("1.500" in line and "best 1.234" in line for line in picture)


def test_live_view_activity_bars_are_as_long_as_the_activity():
    _, picture = live(STEP, width=120)
    rows = [line.split("│")[-2] for line in picture if line.count("│") == 4]
    lengths = {name: len(re.findall("[█▉▊▋▌▍▎▏]", row)) for row in rows for name in ACTIVITY if row.strip().startswith(name)}
    assert lengths["thalamus"] > lengths["wernicke"] > lengths["broca"] > 0
    assert lengths["hippocampus"] == pytest.approx(3 * lengths["wernicke"], abs=3)


def test_live_view_before_the_first_step():
    _, picture = live(NOTICE)
    assert "getting ready" in picture[1] and picture[-1].strip() == "compiling kernels, once"
    assert len(picture) == 3


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (40, 12), (12, 4), (1, 1)])
def test_live_view_survives_hostile_text_and_small_terminals(width, height):
    wild = StepReport(
        3, 2, 0, math.nan, math.nan, math.inf, 0.0, math.inf, 0.0, math.nan, {"[/red]": math.nan, "pfc": math.inf, "broca": -1.0}
    )
    sample = SampleReport(1, HOSTILE, HOSTILE)
    screen, picture = live(Notice(HOSTILE), STEP, EVAL, wild, sample, FinalReport({HOSTILE: HOSTILE}), width=width, height=height)
    assert not re.search("[\x00\x07\x9b\u202e\ud800]", screen)
    assert max(cell_len(line) for line in picture) <= width
    if width >= 80:
        assert "[/red] [bold]x[/]" in "".join(picture)


def test_live_view_shows_the_end_of_a_long_sample():
    text = " ".join(f"word{n}" for n in range(5000))
    _, picture = live(STEP, SampleReport(1, "start", text))
    shown = "\n".join(picture)
    assert "word4999" in shown and "word4900" not in shown and "start" not in shown


def test_moving_average_has_no_pull_towards_zero():
    average = MovingAverage(0.9)
    average.add(4.0)
    assert average.value == pytest.approx(4.0)
    average.add(math.nan)
    average.add(2.0)
    assert average.value == pytest.approx((0.9 * 4 + 2) / 1.9)


def test_curve_keeps_the_shape_of_any_history():
    curve = Curve(size=64)
    for n in range(10_000):
        curve.add(float(n))
    curve.add(math.nan)
    points = curve.points(20)
    assert len(curve.means) <= 64 and len(points) == 20
    assert points == sorted(points)
    assert points[0] < 500 and points[-1] > 9_200
    assert Curve().points(20) == [] and curve.points(-3) == []


def test_bars_are_logarithmic_between_floor_and_top():
    assert bars([4.0, 2.0, 1.0], rows=1, low=1.0, high=4.0) == ["█▄▁"]
    assert bars([4.0, 2.0, 1.0], rows=2, low=1.0, high=4.0) == ["█  ", "██▁"]
    assert bars([3.0, 3.0], rows=1, low=3.0, high=3.0) == ["██"]
    assert bars([0.0, 9.0], rows=1, low=1.0, high=4.0) == ["▁█"]


def test_wording():
    assert [duration(s) for s in (0, 59.6, 3599, 3661, math.inf, math.nan)] == ["0:00", "1:00", "59:59", "1:01:01", "?", "?"]
    assert [figure(v) for v in (1234567, 0.123456, 1801.2, 12345.6, True, "x", math.nan)] == [
        "1,234,567",
        "0.1235",
        "1,801",
        "12,346",
        "True",
        "x",
        "nan",
    ]
    assert printable("a\r\nb\tc\x1b[0m\u2028é🦊") == "a\nb   c\ufffd[0m\ufffdé🦊"


def test_open_view_follows_the_terminal(monkeypatch):
    terminal = terminal_for(monkeypatch)
    assert isinstance(open_view("t"), LiveView)
    assert isinstance(open_view("t", plain=True), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view("t"), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    terminal.encoding = "ascii"
    assert isinstance(open_view("t"), PlainView)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(open_view("t"), PlainView)
    assert isinstance(open_view("t", plain=False), LiveView)
