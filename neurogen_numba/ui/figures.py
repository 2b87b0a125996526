"""What the figures share: their look, and how they become files. `training_page` and `brain_page` draw; nothing here needs a screen."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings

DPI = 100
DOTS = 60  # so few points of a curve are marked
WIDTH = 16.0  # inches: 1,600 pixels
COLORS = {  # module -> color, those of Okabe and Ito (2008), which most of the colour-blind can tell apart
    "thalamus": "#009e73",
    "wernicke": "#0072b2",
    "hippocampus": "#e69f00",
    "pfc": "#d55e00",
    "basal_ganglia": "#555555",
    "broca": "#cc79a7",
}
INK, FAINT, PAPER = "#222222", "#8a8a8a", "#ffffff"
FIRST, SECOND = "#0072b2", "#d55e00"  # of the two curves of a panel
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a dollar in a text is a dollar
}
# For scripts that DejaVu lacks, taken where they are installed; a script that none of them has is drawn as boxes.
OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans"),
    *("Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Nirmala UI", "Noto Emoji", "Segoe UI Emoji", "Arial Unicode MS"),
)


def styled(draw):
    """Decorator: `draw` makes a figure in this style, whatever style the caller has set, and leaves that as it was.

    A notebook shows the figure where pyplot has not been imported, too.
    """

    @functools.wraps(draw)
    def drawing(*arguments, **named):
        import matplotlib

        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "font.family": fonts("DejaVu Sans")}), quiet():
            figure = draw(*arguments, **named)
        figure._repr_png_ = functools.partial(png, figure)
        return figure

    return drawing


@functools.cache
def fonts(first: str) -> list[str]:
    """A font and those to fall back on, as far as they are installed."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [first, *(name for name in OTHER_SCRIPTS if name in installed)]


@contextlib.contextmanager
def quiet():
    """No warnings while drawing, above all not of characters that no font has: they would end up in somebody's terminal."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def png(figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with quiet():
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def over_steps(axes, title: str):
    """Make a panel one over the steps of the run."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def marker(x) -> str:
    """A few points are drawn as points, too: a single one has no line."""
    return "." if len(x) <= DOTS else ""


def no_data(axes, text: str):
    """Say in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT, gid="no data")
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
