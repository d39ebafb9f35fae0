"""Pictures as inline SVG: colours of the page's style, ids of their own, the same bytes each time.

What a picture draws with matplotlib gets stand-in colours, which become variables of the style, so
that a picture is dark where the page is.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cammsr.page.markup import Markup, element
from cammsr.titles import cut

__all__ = ["Points", "bars", "figures", "heat", "lines"]

Points = Sequence[tuple[float, float]]

INK, LINE, FLOOR = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{place:02x}" for place in range(16, 22))
COLOURS: Mapping[str, str] = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    FLOOR: "var(--floor)",
    **{stand_in: f"var(--s{place})" for place, stand_in in enumerate(SERIES)},
}
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vX"
WIDTH = 5.2  # inches; 72 units of the picture each, so that its letters are as large as the page's
LABEL = 28  # letters of a label
SETTINGS: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def figures(*pictures: Markup) -> Markup:
    """Pictures side by side where there is room."""
    return element("div", *(Markup(f"\n{picture}") for picture in pictures), class_="figures")


def lines(
    title: str,
    series: Mapping[str, Points],
    x: str,
    y: str,
    *,
    level: tuple[str, float] | None = None,
    top: float | None = None,
) -> Markup:
    """A line a series, told apart by colour, dash and marker; ``level`` is a horizontal one.

    Args:
        title: what it shows.
        series: points of each line, by its name.
        x: what lies to the right; a share is shown in per cent.
        y: what lies upwards.
        level: a name and a value to compare with.
        top: where the axis ends, if pictures are to have the same one; it begins at 0 then.
    """

    def draw(figure: Figure, axes: Axes) -> None:
        for place, (name, points) in enumerate(series.items()):
            axes.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                color=SERIES[place % len(SERIES)],
                linestyle=DASHES[place // len(SERIES) % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                label=cut(name, LABEL),
            )
        if level is not None:
            axes.axhline(level[1], color=FLOOR, linestyle="--", label=cut(level[0], LABEL))
        if top is not None:
            axes.set_ylim(0, top)
        if x.startswith("share"):
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel=x, ylabel=y)
        axes.grid(axis="y")
        count = len(series) + (level is not None)
        figure.legend(loc="outside lower left", ncols=2 if count > 1 else 1, fontsize=9.5)

    extra = 0.2 * ((len(series) + 2) // 2)
    ends = "; ".join(
        f"{cut(name, LABEL)} from {points[0][1]:.4f} to {points[-1][1]:.4f}"
        for name, points in series.items()
    )
    return _figure(title, f"{title}: {y} by {x}. {ends}.", 2.9 + extra, draw)


def bars(
    title: str,
    values: Mapping[str, float],
    grey: Sequence[str],
    spread: Mapping[str, float],
    x: str,
) -> Markup:
    """A bar a name, with its value and, where there is one, its spread; some of them grey."""

    def draw(figure: Figure, axes: Axes) -> None:
        places = range(len(values))
        numbers = list(values.values())
        colours = [FLOOR if name in grey else SERIES[0] for name in values]
        axes.barh(places, numbers, color=colours, height=0.7)
        for place, (name, value) in enumerate(values.items()):
            width = spread.get(name, 0.0)
            if width:
                axes.errorbar(value, place, xerr=width, color=INK, capsize=3, linewidth=1.2)
            # beside the bar, however short it is
            axes.annotate(
                f"{value:.4f}",
                (max(value, 0.0) + width, place),
                xytext=(4, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=9.5,
            )
        axes.set_yticks(places, [cut(name, LABEL) for name in values])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(x)
        axes.grid(axis="x")

    said = "; ".join(
        f"{cut(name, LABEL)} {value:.4f}" + (f" ± {spread[name]:.4f}" if name in spread else "")
        for name, value in values.items()
    )
    return _figure(title, f"{title}: {x}. {said}.", 0.9 + 0.28 * len(values), draw)


def heat(
    title: str, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]
) -> Markup:
    """A matrix of numbers, each written on its colour; one that is not a number is left out."""
    known = [value for row in values for value in row if not isnan(value)]
    highest = max([*known, 1e-12])

    def draw(figure: Figure, axes: Axes) -> None:
        axes.pcolormesh(
            [[max(value, 0.0) / highest for value in row] for row in values],
            cmap="cividis",
            vmin=0,
            vmax=1,
            edgecolors="none",
        )
        for place, row in enumerate(values):
            for column, value in enumerate(row):
                if not isnan(value):
                    axes.text(
                        column + 0.5,
                        place + 0.5,
                        f"{value:.2f}",
                        color="#ffffff" if value < 0.55 * highest else "#000000",
                        ha="center",
                        va="center",
                        fontsize=9.5,
                    )
        axes.set_xticks([place + 0.5 for place in range(len(columns))], [*columns])
        axes.set_yticks([place + 0.5 for place in range(len(rows))], [cut(r, LABEL) for r in rows])
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.spines[:].set_visible(False)

    said = "; ".join(
        f"{cut(name, LABEL)}: "
        + ", ".join(f"{c} {v:.2f}" for c, v in zip(columns, row, strict=True) if not isnan(v))
        for name, row in zip(rows, values, strict=True)
    )
    return _figure(title, f"{title}. {said}.", 0.5 + 0.26 * len(rows), draw)


def _figure(title: str, said: str, height: float, draw: Callable[[Figure, Axes], None]) -> Markup:
    buffer = io.StringIO()
    with mpl.rc_context(dict(SETTINGS)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts draw it
        picture = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(picture, picture.subplots())
        picture.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = _inline(buffer.getvalue(), said)
    return element("figure", element("figcaption", title), drawn)


def _inline(svg: str, said: str) -> Markup:
    """A file of SVG as a part of a page: no name spaces, metadata, sizes, blanks and idle ids."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # the page's style says the same
                parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": said}
    values = [value for one in root.iter() for value in one.attrib.values()]
    used = {name for value in values for name in re.findall(r"(?:^|url\()#([\w-]+)", value)}
    own = f"p{hashlib.sha256((said + svg).encode()).hexdigest()[:8]}-"
    for one in root.iter():
        one.attrib = {
            key.rpartition("}")[2]: _own(key, value, own)
            for key, value in one.attrib.items()
            if key != "id" or value in used
        }
        if not (one.text or "").strip():
            one.text = None
        one.tail = None
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))


def _own(key: str, value: str, own: str) -> str:
    """A value with the page's colours and with ids that no other picture has."""
    if key == "id":
        return own + value
    if key == "style":
        for stand_in, colour in COLOURS.items():
            value = value.replace(stand_in, colour)
    return value if key == "aria-label" else re.sub(r"(^|url\()#", rf"\1#{own}", value)
