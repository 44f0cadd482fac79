"""Measurements as figures, a PNG and an SVG each; the same data give the same bytes.

Figures are made without pyplot, which would keep them, and a choice of window system, in
global state. matplotlib is imported where it is needed: other benchmarks run without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.atomic_files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, float, float]
"""x, y, and the low and high bounds of y."""

Level = tuple[float, float, float]
"""A y that holds for every x, and its low and high bounds."""

# Okabe and Ito's colours, which the colour-blind tell apart, with grey for their yellow, which is
# too light for a line on white. Markers tell strategies apart in print; lines beyond the eighth
# are dashed, too.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#8C8C8C"),
)
_WIDE = 100.0  # of an axis: labels between powers of ten would overlap
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LEVEL = "#404040"
_LEVEL_DASHES = ("--", ":", "-.")
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.labelsize": "medium",
    "font.size": 12,
    "grid.alpha": 0.3,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "svg.hashsalt": "fusionrag",  # ids inside the file are random without one
    "text.parse_math": False,  # a dollar is a dollar
}
_COLUMNS = 4


def lines_plot(
    path_stem: Path,
    series: Mapping[str, Sequence[Point]],
    levels: Mapping[str, Level],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> None:
    """A line a series over a band from low to high, and a dashed line right across a level; writes
    path_stem.png and path_stem.svg. log: both axes are logarithmic.

    Raises InvalidInputError without matplotlib, and for a series without points, or no series.
    """
    if not series or not all(series.values()):
        raise InvalidInputError(f"{path_stem}: give some series, with a point each at least.")
    with _figure(path_stem, 9.0, 5.0) as figure:
        axes = figure.subplots()
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if log:
            axes.set(xscale="log", yscale="log")
            bounds = [
                bound for points in series.values() for _, _, *pair in points for bound in pair
            ]
            narrow = max(bounds) < _WIDE * min(bounds)
            for axis in (axes.xaxis, axes.yaxis):  # powers would be written as mathematics
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("{x:g}" if narrow and axis is axes.yaxis else "")
        dashes = chain(("-" for _ in _COLOURS), repeat("--"))
        looks = zip(cycle(_COLOURS), cycle(_MARKERS), dashes, strict=False)
        for (name, points), (colour, marker, dash) in zip(series.items(), looks, strict=False):
            x, y, low, high = zip(*sorted(points), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            if len(points) == 1:  # no band is to be seen
                axes.vlines(x, low, high, color=colour)
            axes.plot(x, y, color=colour, marker=marker, linestyle=dash, label=name)
        for (name, level), dash in zip(levels.items(), cycle(_LEVEL_DASHES), strict=False):
            axes.axhspan(level[1], level[2], color=_LEVEL, alpha=0.12, linewidth=0)
            axes.axhline(level[0], color=_LEVEL, linestyle=dash, label=name)
        figure.legend(loc="outside right upper", frameon=False)


def histogram_plot(
    path_stem: Path,
    series: Mapping[str, Sequence[float]],
    bins: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Shares per bin, a panel a strategy on one scale; writes path_stem.png and path_stem.svg.

    Raises InvalidInputError without matplotlib, without series, and where one hasn't a share
    for each bin.
    """
    if not series:
        raise InvalidInputError(f"{path_stem}: there is nothing to draw; give some series.")
    for name, shares in series.items():
        if len(shares) != len(bins):
            raise InvalidInputError(
                f"{path_stem}: {name!r} has {len(shares)} shares for {len(bins)} bins."
            )
    columns = min(_COLUMNS, len(series))
    rows = -(-len(series) // columns)
    with _figure(path_stem, max(6.0, 1.0 + 2.8 * columns), 1.2 + 2.2 * rows) as figure:
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        places = range(len(bins))
        for (name, shares), axes, colour in zip(
            series.items(), panels, cycle(_COLOURS), strict=False
        ):
            axes.bar(places, shares, width=0.9, color=colour)
            axes.grid(visible=False, axis="x")
            axes.set_title(name, fontsize="medium")
            axes.set_xticks(places, bins, rotation=90)
        for number, below in enumerate(panels[columns:], start=columns):
            above = panels[number - columns]
            if number < len(series):
                above.tick_params(labelbottom=False)
                continue
            below.remove()
            for label in above.get_xticklabels():
                label.set_in_layout(False)  # no room needed: it hangs where `below` was
        figure.suptitle(title)
        figure.supxlabel(x_label)
        figure.supylabel(y_label)


@contextmanager
def _figure(path_stem: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure in inches, saved in the end. The user's matplotlib settings have no say."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Figures need matplotlib, which `make` installs.") from error
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height))
        yield figure
        path_stem.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, dict[str, Any]] = {"png": {}, "svg": {"metadata": {"Date": None}}}
        for kind, given in options.items():
            drawn = BytesIO()
            figure.savefig(drawn, format=kind, **given)
            # Not with_suffix, which would cut a stem like "f1-0.15".
            write_output(Path(f"{path_stem}.{kind}"), drawn.getvalue())
