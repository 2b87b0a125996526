"""Shared code of the figures: style, and conversion to files. `training_page` and `brain_page` draw; no display is needed."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings

DPI = 100
DOTS = 60  # a curve with at most this number of points has markers
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
    """Decorator: `draw` makes a figure in this style, independent of the caller's style, which it restores.

    A notebook shows the figure even if pyplot has not been imported.
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
    """A font and its installed fallbacks."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [first, *(name for name in OTHER_SCRIPTS if name in installed)]


@contextlib.contextmanager
def quiet():
    """A context without warnings, above all of missing characters: they would appear in the user's terminal."""
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
    """Give a panel the steps of the run as its x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def marker(x) -> str:
    """Add markers to a curve with few points: a single point has no line."""
    return "." if len(x) <= DOTS else ""


def no_data(axes, text: str):
    """Write into an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT, gid="no data")
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
