"""The figure of an ablation study: the loss with each change, one dot per seed."""

from __future__ import annotations

from .figures import FAINT, FIRST, SECOND, WIDTH, styled


@styled
def ablation_page(rows, preset: str):
    """A figure (matplotlib) of the losses of `benchmarks.ablation.Row`s, the worst change at the top; the recipe's mean is the line."""
    from matplotlib.figure import Figure

    base = next((row.loss for row in rows if row.difference is None), None)
    ordered = sorted(rows, key=lambda row: row.loss)
    figure = Figure(figsize=(WIDTH * 0.6, 1.4 + 0.4 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    for height, row in enumerate(ordered):
        color = FAINT if row.difference is None else FIRST if row.difference <= 0 else SECOND
        axes.plot(row.losses, [height] * row.seeds, "o", color=color, alpha=0.5, markersize=6)
        axes.plot([row.loss], [height], "|", color=color, markersize=18, markeredgewidth=2.5)
        shown = "the recipe" if row.difference is None else f"{row.difference:+.4f}"
        axes.annotate(shown, (1.01, height), xycoords=("axes fraction", "data"), va="center", color=color)
    if base is not None:
        axes.axvline(base, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(ordered)), [row.name for row in ordered])
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.set_xlabel("nats per token on held-out text: dots are seeds, bars their means")
    axes.set_title(f"{preset}: one change at a time")
    return figure
