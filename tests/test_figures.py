"""The figures show what was measured: read back from what was drawn, not from the files."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image

import histories
from neurogen_numba.config import MODULES
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning.report import SampleReport
from neurogen_numba.ui import training_page as training
from neurogen_numba.ui.brain_page import brain_page
from neurogen_numba.ui.figures import png, quiet
from neurogen_numba.ui.history import read_history
from neurogen_numba.ui.training_page import LINES, fitting, moving_average, training_page

HOSTILE = [
    "日本語の長い文章。" * 50,
    "Война и мир " * 60,
    "मानक हिन्दी " * 60,
    "مرحبا بالعالم " * 60,
    "🦊 " * 300,
    "w" * 3000,
    "$x_{$ \\frac $y^",
    "\x1b[31m\x00\t\r\n\u202e\ud800",
    "\n" * 100,
    "",
]


def history_of(tmp_path, reports):
    return read_history(histories.write(tmp_path / "run", reports))


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def lines(axes):
    """Every curve by its label: its points."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if not line.get_label().startswith("_")}


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


# Reading metrics.jsonl


def test_a_history_has_every_number_of_the_log(tmp_path):
    reports = histories.life()
    history = history_of(tmp_path, reports)
    assert history.step == 40
    assert history.training["step"].tolist() == list(range(1, 41))
    for name, column in history.training.items():
        logged = np.array([getattr(report, name) for report in reports if report.kind == "step"], float)
        np.testing.assert_array_equal(column, np.where(np.isfinite(logged), logged, np.nan), err_msg=name)
    assert list(history.activity) == list(MODULES) and history.activity["pfc"].tolist() == [0.04] * 40
    assert history.validation["step"].tolist() == [10, 20, 30, 40] and history.validation["accuracy"].tolist() == [0.25] * 4
    assert history.levels["step"].tolist() == [20, 40] and history.levels["serotonin"].tolist() == [-4.0, -8.0]
    assert history.samples == [report for report in reports if report.kind == "sample"]


def test_a_history_ends_where_it_is_told_to(tmp_path):
    run = histories.write(tmp_path / "run", histories.life())
    history = read_history(run, until=20)
    assert history.step == 20 and len(history.training["loss"]) == 20
    assert history.validation["step"].tolist() == [10, 20] and history.levels["step"].tolist() == [20]
    assert [sample.step for sample in history.samples] == [10, 20]


def test_a_log_that_is_being_written_or_damaged_is_read_as_far_as_it_is_whole(tmp_path):
    run = histories.write(tmp_path / "run", [histories.step(1), histories.step(2)])
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n"x"\n{"kind": "new", "step": 2}\n{"kind": []}\n\xff\n{"kind": "notice", "text": "a"}\n{"kind": "step", "ste')
    assert read_history(run).training["step"].tolist() == [1, 2]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics.jsonl cannot be read: No such file.*; give the folder of a run"):
        read_history(tmp_path)


def test_tables_for_json(tmp_path):
    reports = [*histories.life(20), histories.step(21, loss=math.nan, gradient_norm=math.inf)]
    history = history_of(tmp_path, [*reports, SampleReport(21, "a", "b")])
    columns = json.loads(json.dumps(history.columns(), allow_nan=False))
    assert columns["step"] == list(range(1, 22)) and columns["accuracy"] == [number / 1000 for number in range(1, 22)]
    assert {type(number) for number in columns["step"]} == {int}
    assert columns["loss"][-2:] == [4.8, None] and columns["gradient_norm"][-1] is None
    assert columns["activity"]["thalamus"] == [0.01] * 21 and columns["validation"]["step"] == [10, 20]
    assert history.texts()[0] == {"step": 10, "prompt": "given 10", "continuation": "wrote 10", "truth": "truth 10"}
    assert history.texts()[-1] == {"step": 21, "prompt": "a", "continuation": "b", "truth": None}


# The page on learning


def test_the_panels_of_the_training_page(tmp_path):
    history = history_of(tmp_path, histories.life(600))
    figure = training_page(history, "nano-1")
    shown, columns = panels(figure), history.training
    loss, accuracy = lines(shown["loss"]), lines(shown["accuracy"])
    np.testing.assert_array_equal(loss["reports"], np.stack([columns["step"], columns["loss"]], 1))
    np.testing.assert_array_equal(loss["moving average"][:, 1], moving_average(columns["loss"]))
    np.testing.assert_array_equal(loss["held-out text"][:, 0], history.validation["step"])
    assert loss["entropy of the text"][0, 1] == 0.5 * 4.0 / 2.0  # nats per token, from bits per byte
    np.testing.assert_array_equal(accuracy["reports"][:, 1], 100 * columns["accuracy"])
    assert accuracy["held-out text"][:, 1].tolist() == [25.0] * 60 and "entropy of the text" not in accuracy
    np.testing.assert_array_equal(lines(shown["throughput"])["tokens_per_second"][:, 1], columns["tokens_per_second"])
    np.testing.assert_array_equal(lines(shown["learning rate"])["learning_rate"][:, 1], columns["learning_rate"])
    (cloud,) = shown["loss against accuracy"].collections
    np.testing.assert_array_equal(cloud.get_offsets(), np.stack([100 * columns["accuracy"], columns["loss"]], 1))
    np.testing.assert_array_equal(cloud.get_array(), columns["step"])
    recent, other = lines(shown["last 500 steps"]), lines(shown["accuracy of the last steps"])
    assert recent["loss, nats per token"][[0, -1], 0].tolist() == [101, 600]
    np.testing.assert_array_equal(recent["loss, nats per token"][:, 1], columns["loss"][100:])
    np.testing.assert_array_equal(other["accuracy, %"][:, 1], 100 * columns["accuracy"][100:])
    assert "nano-1" in words(figure) and any("step 600 of 100" in text and "(floor 0.500)" in text for text in words(figure))


def test_the_final_is_no_point_of_the_curve_of_those_before(tmp_path):
    last = dataclasses.replace(histories.evaluation(40), loss=9.0, bits_per_byte=4.5, last=True)
    history = history_of(tmp_path, [*histories.life(40), last])
    figure = training_page(history)
    assert history.validation["last"].tolist() == [0, 0, 0, 0, 1]
    assert lines(panels(figure)["loss"])["held-out text"][:, 1].tolist() == [4.0] * 4
    assert any("held out 4.500" in text for text in words(figure))


def test_the_table_has_the_newest_samples_on_top(tmp_path):
    figure = training_page(history_of(tmp_path, histories.life(80, samples=7)))
    cells = [text for text in panels(figure)["samples"].texts if text.get_gid()]
    rows = sorted({text.get_position()[1] for text in cells}, reverse=True)
    table = [[text.get_text() for text in cells if text.get_position()[1] == row] for row in rows]
    assert table == [[f"{n}", f"given {n}", f"wrote {n}", f"truth {n}"] for n in (70, 60, 50, 40)]


@pytest.mark.parametrize("word", ["word", "\u0700\u0780"])
def test_lines_of_a_cell_have_their_places_whatever_is_in_them(tmp_path, word):
    figure = training_page(history_of(tmp_path, [histories.step(1), SampleReport(1, "a", " ".join([word] * 90), "b")]))
    cells = [text for text in panels(figure)["samples"].texts if text.get_gid() == "it wrote"]
    places = [text.get_position()[1] for text in cells]
    assert len(places) > 3 and {text.get_verticalalignment() for text in cells} == {"baseline"}
    np.testing.assert_allclose(np.diff(places), -(0.94 / training.SAMPLES - 0.015) / training.LINES)


def test_a_sample_without_its_truth_says_so(tmp_path):
    figure = training_page(history_of(tmp_path, [histories.step(1), SampleReport(1, "a", "b")]))
    assert "(not kept)" in words(figure)


@pytest.mark.parametrize("reports", [[], [histories.step(1)], [histories.step(1, loss=math.nan, tokens_per_second=math.inf)]])
def test_a_page_can_be_drawn_when_there_is_little_to_show(tmp_path, reports):
    history = history_of(tmp_path, reports)
    figure = training_page(history)
    assert words(figure).count("nothing measured yet") == (0 if reports else 6) and "no text written yet" in words(figure)
    assert png(figure).startswith(b"\x89PNG") and png(brain_page(histories.brain(1), history)).startswith(b"\x89PNG")


def test_the_moving_average_follows_and_ignores_nan_and_infinity():
    assert moving_average(np.array([])).tolist() == []
    few = np.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(moving_average(few), few)
    many = moving_average(np.concatenate([np.ones(500), [math.nan], np.full(500, 3.0)]))
    assert many[499] == pytest.approx(1) and many[500] == many[499] and 1 < many[505] < 3 and many[-1] == pytest.approx(3)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_the_table_holds_any_text(text, last):
    from rich.cells import cell_len

    rows = fitting(text, 40, last).split("\n")
    assert len(rows) <= LINES and max(map(cell_len, rows)) <= 40


def test_a_long_text_keeps_its_beginning_or_its_end():
    text = " ".join(map(str, range(1000)))
    assert fitting(text, 40).startswith("0 1 2 ") and fitting(text, 40).endswith("…")
    assert fitting(text, 40, last=True).split()[-2:] == ["998", "999"] and fitting(text, 40, last=True).startswith("…")
    assert fitting("a\nb c", 40) == "a↵ b c"


def test_nothing_reaches_into_another_column_or_out_of_the_page(tmp_path):
    reports = [SampleReport(number, text, text, text) for number, text in enumerate(HOSTILE[-7:-3] + HOSTILE[:4], 1)]
    for some in (reports[:4], reports[4:]):
        figure = training_page(history_of(tmp_path, [histories.step(1), *some]))
        axes = panels(figure)["samples"]
        edges = [left for _, left, _ in training.COLUMNS] + [1.0]
        with quiet():
            figure.canvas.draw()
            for text in axes.texts:
                if text.get_gid():
                    column = [name for name, *_ in training.COLUMNS].index(text.get_gid())
                    right = axes.transAxes.transform((edges[column + 1], 0))[0]
                    drawn = text.get_window_extent()
                    assert min(drawn.x1, text.get_clip_box().x1) <= right + 1e-6 and drawn.y0 >= 0


def test_no_font_no_style_and_no_warning_gets_out(tmp_path, recwarn, caplog, capfd):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.facecolor": "black", "text.usetex": True, "font.family": "no such font"}):
        for texts in (HOSTILE[:4], HOSTILE[4:8]):
            reports = [histories.step(1), *(SampleReport(number, text, text, text) for number, text in enumerate(texts))]
            history = history_of(tmp_path, reports)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for figure in (training_page(history, HOSTILE[0][:20]), brain_page(histories.brain(1, text=texts[0]), history)):
                    content = png(figure)
                    assert all(axes.get_facecolor()[:3] == (1, 1, 1) for axes in figure.axes)
            assert content.startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    assert not recwarn.list and not caplog.records and capfd.readouterr() == ("", "")


def test_a_page_is_1600_pixels_wide(tmp_path):
    (tmp_path / "a.png").write_bytes(png(training_page(history_of(tmp_path, histories.life()))))
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1600 and image.getpixel((2, 2))[:3] == (255, 255, 255)


# The page on the brain


def test_the_panels_of_the_brain_page(tmp_path):
    history, brain = history_of(tmp_path, histories.life()), histories.brain(40)
    shown = panels(brain_page(brain, history, "nano-1"))
    activity = lines(shown["activity"])
    assert [label.rsplit(" ", 2)[0] for label in activity] == ["thalamus", "wernicke", "hippocampus", "PFC", "basal ganglia", "broca"]
    np.testing.assert_array_equal(activity["PFC 4.0 %"], np.stack([history.training["step"], np.full(40, 4.0)], 1))
    for row_, events in enumerate(shown["raster"].collections):
        token, neuron = np.nonzero(brain.events[events.get_label()])
        assert events.get_label() == MODULES[row_]
        np.testing.assert_array_equal(events.get_offsets(), np.stack([token, 8 * row_ + neuron], 1))
    assert "the cat sat" in shown["raster"].get_xlabel()
    boxes = shown["weights"]
    assert [text.get_text() for text in boxes.get_yticklabels()] == ["lateral PFC", "wernicke PFC"]
    quantiles = {tuple(np.round(line.get_xdata(), 4)) for line in boxes.get_lines()}
    assert {(0.25, 0.05), (0.5, 0.5), (0.75, 0.95)} <= quantiles, "whiskers and median of the weights from 0 to 1"
    for name, filled in zip(reversed(MODULES), shown["time constants"].collections, strict=True):
        outline = filled.get_paths()[0].vertices
        peak = outline[outline[:, 1] > outline[:, 1].min() + 0.5, 0]
        assert 0.8 * peak.max() < MODULES.index(name) + 1 < 1.2 * peak.min()
    levels = {label.split()[0]: points for label, points in lines(shown["neuromodulators"]).items()}
    assert {name: points.tolist() for name, points in levels.items()} == {
        name: [[20, 20 * level], [40, 40 * level]] for name, level in histories.LEVELS.items()
    }
    (read,), (kept,) = shown["memory read"].images, shown["working memory"].images
    np.testing.assert_array_equal(read.get_array(), brain.memory.T)
    np.testing.assert_array_equal(kept.get_array(), brain.working_memory.T)


def test_levels_that_nothing_moves_are_said_to_be_neutral(tmp_path):
    brain = dataclasses.replace(histories.brain(20), levels=dict.fromkeys(histories.LEVELS, 0.0))
    shown = panels(brain_page(brain, history_of(tmp_path, [histories.step(1), brain])))
    assert not shown["neuromodulators"].get_lines() and not shown["neuromodulators"].get_xticks().size
    assert "at 0" in shown["neuromodulators"].texts[0].get_text()


def test_a_single_report_has_its_step_on_the_axis_once(tmp_path):
    figure = training_page(history_of(tmp_path, [histories.step(1)]))
    figure.canvas.draw()
    for axes in figure.axes:
        shown = [text.get_text() for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels() if text.get_text() == "1"]
        assert len(shown) <= 1, axes.get_label() or "colour bar"
