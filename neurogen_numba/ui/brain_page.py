"""The page on the brain: activity of its modules, and the state of its neurons and synapses."""

from __future__ import annotations

import numpy as np

from ..learning.report import BrainReport
from .figures import COLORS, DPI, FAINT, INK, WIDTH, marker, no_data, over_steps, styled
from .history import History
from .plain import label, percent, printable
from .training_page import fitting

TAUS = np.geomspace(np.exp(-2), np.exp(5), 57)  # edges of the histogram of time constants, tokens; the ends are their bounds
QUANTILES = (5, 25, 50, 75, 95)  # percent of the weights of a projection that lie below
DASHES = ("-", "--", ":")
HEARD = 90  # cells of a line of the text under the raster


@styled
def brain_page(brain: BrainReport, history: History, title: str = ""):
    """A matplotlib Figure with the panels activity, raster, time constants, weights, neuromodulators, memory read and working memory
    (so their axes are labelled)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 14.0), dpi=DPI)
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.5), left=0.075, right=0.965, top=0.93, bottom=0.05, hspace=0.28)
    upper = rows[0].subgridspec(1, 2, width_ratios=(1, 2), wspace=0.24)
    lower = rows[1].subgridspec(2, 3, width_ratios=(1, 0.95, 1.05), wspace=0.42, hspace=0.3)
    places = {
        "activity": upper[0],
        "raster": upper[1],
        "time constants": lower[0, 0],
        "weights": lower[:, 1],
        "neuromodulators": lower[1, 0],
        "memory read": lower[0, 2],
        "working memory": lower[1, 2],
    }
    panels = {name: figure.add_subplot(position, label=name) for name, position in places.items()}
    figure.text(0.075, 0.97, printable(title), fontsize=16, weight="bold", va="center")
    figure.text(0.965, 0.97, f"the brain at step {brain.step:,}", fontsize=11, ha="right", va="center")
    _activity(panels["activity"], history)
    _raster(panels["raster"], brain)
    _time_constants(panels["time constants"], brain)
    _weights(panels["weights"], brain.weights)
    _neuromodulators(panels["neuromodulators"], history)
    _heat(figure, panels["memory read"], brain.memory, "Read from the associative memory", "head", brain.memory_heads)
    _heat(figure, panels["working memory"], brain.working_memory, "Slots of the working memory", "slot", brain.working_memory.shape[1])
    return figure


def _activity(axes, history):
    over_steps(axes, "Activity: neurons with an event per token, %")
    steps = history.training["step"]
    if not len(steps):
        return no_data(axes, "nothing measured yet")
    for name, share in history.activity.items():
        text = f"{label(name)} {percent(share[-1])}"
        axes.plot(steps, 100 * share, color=COLORS.get(name, INK), linewidth=1.2, marker=marker(steps), label=text)
    axes.set_ylim(0, 130 * max([0.001, *(np.nanmax(share, initial=0) for share in history.activity.values())]))  # room for the legend
    axes.legend(ncols=2, loc="upper center")


def _raster(axes, brain):
    """One line of dots per neuron, the modules below each other in the order that a token passes them."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"Events of one sequence, {max(events.shape[1] for events in brain.events.values())} neurons of a module at most")
    axes.grid(False)
    top, middles = 0, []
    for name, events in brain.events.items():
        token, neuron = np.nonzero(events)
        axes.scatter(token, top + neuron, marker="|", s=9, linewidths=1.1, color=COLORS.get(name, INK), label=name)
        middles.append(top + (events.shape[1] - 1) / 2)
        top += events.shape[1]
        axes.axhline(top - 0.5, color="#dddddd", linewidth=0.8)
    axes.set_yticks(middles, [label(name) for name in brain.events])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(-1, max(len(events) for events in brain.events.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(top - 0.5, -0.5)
    axes.set_xlabel(f"token\nIt heard: {fitting(brain.text, HEARD, rows=2)}", fontsize=9)


def _time_constants(axes, brain):
    """A histogram per module, each on a line of its own."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_title("Time constants, tokens")
    tallest = 0.0
    shares = {}
    for name in brain.membrane:
        for kind, logs in (("membrane", brain.membrane[name]), ("adaptation", brain.adaptation[name])):
            shares[name, kind] = np.histogram(np.clip(np.exp(logs), TAUS[0], TAUS[-1]), TAUS)[0] / max(1, len(logs))
            tallest = max(tallest, shares[name, kind].max())
    centres = np.sqrt(TAUS[:-1] * TAUS[1:])
    for row, name in enumerate(reversed(brain.membrane)):
        color = COLORS.get(name, INK)
        membrane, adaptation = (row + 0.9 * shares[name, kind] / (tallest or 1) for kind in ("membrane", "adaptation"))
        axes.fill_between(centres, row, membrane, step="mid", color=color, alpha=0.35, linewidth=0)
        axes.step(centres, adaptation, where="mid", color=color, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(TAUS[0], TAUS[-1])
    axes.set_xticks([0.2, 1, 5, 20, 100], ["0.2", "1", "5", "20", "100"])
    axes.minorticks_off()
    axes.set_yticks(range(len(brain.membrane)), [label(name) for name in reversed(brain.membrane)])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(0, len(brain.membrane) + 0.7)
    axes.legend(
        [Patch(color=FAINT, alpha=0.5, linewidth=0), Line2D([], [], color=FAINT)], ["membrane", "adaptation"], ncols=2, loc="upper right"
    )


def _weights(axes, weights):
    """The spread of the weights of each projection."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Weights: 5, 25, 50, 75, 95 %")
    boxes = []
    for name, sample in weights.items():
        low, first, middle, third, high = np.percentile(sample, QUANTILES) if np.isfinite(sample).all() else [np.nan] * 5
        boxes.append({"label": label(name), "whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high})
    axes.bxp(
        boxes[::-1],
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        boxprops={"facecolor": "#9ecae1", "linewidth": 0},
        medianprops={"color": INK},
        whiskerprops={"color": FAINT},
        capprops={"color": FAINT},
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.tick_params(axis="y", length=0, labelsize=8)


def _neuromodulators(axes, history):
    over_steps(axes, "Neuromodulators, mean level; 0 is neutral")
    steps = history.levels["step"]
    if not len(steps):
        return no_data(axes, "nothing measured yet")
    colors, levels = list(COLORS.values())[1:], {name: level for name, level in history.levels.items() if name != "step"}
    if not any(level.any() for level in levels.values()):
        return no_data(axes, "all of them at 0:\nbrain.neuromodulation is off")
    for number, (name, level) in enumerate(levels.items()):
        color, dash = colors[number % len(colors)], DASHES[number % len(DASHES)]  # dashed: they may lie on top of each other
        axes.plot(steps, level, color=color, linestyle=dash, marker=marker(steps), label=f"{name} {level[-1]:.3g}")
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(0.1, (high - low) / 2)
    axes.set_ylim(middle - half, middle + 1.6 * half)  # room for the legend
    axes.legend(loc="upper left")


def _heat(figure, axes, values, title, group, groups):
    """values [T, cells] as a heat map; the cells belong to `groups` groups, counted from 1, with lines between the groups if they are
    few."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("token")
    axes.set_ylabel(group)
    axes.grid(False)
    most = np.nanpercentile(np.abs(values), 99) if np.isfinite(values).any() else 0.0
    extent = (-0.5, len(values) - 0.5, groups + 0.5, 0.5)
    scale = {"cmap": "RdBu_r", "vmin": -most or -1, "vmax": most or 1}
    picture = axes.imshow(values.T, aspect="auto", interpolation="nearest", extent=extent, **scale)
    for border in range(1, groups) if groups <= 16 else ():
        axes.axhline(border + 0.5, color=INK, linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.colorbar(picture, ax=axes, pad=0.02).outline.set_visible(False)
