"""Line charts by matplotlib, and matplotlib figures as inline SVG.

The text of a picture is real text. Its colours become variables of the style sheet, so that it follows the
light or dark mode of the browser. Series also differ in dash, so that they can be distinguished in grey.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
COLOURS = {
    "ink": "#1c1e21",
    "soft": "#5d646c",
    "rule": "#e2e2dc",
    "card": "#ffffff",
    "s0": "#1f6fc4",
    "s1": "#c2570c",
    "s2": "#2c8a4b",
    "mark": "#7a3fb0",
    "pale-bar": "#a9b4bf",
}
"""The light colours of ``style.css``; in an embedded figure, each becomes the variable of its name."""
DASHES = ("-", (0, (3, 2)), (0, (1, 2)))
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
"""Size of a chart and its margins in points of 1/72 inch, which are the units of the SVG."""
FONT_SIZE = 11
MOST_POINTS = 400
SMOOTHED_FROM = 40
DOTTED_UP_TO = 24
"""A series with at most this many points has dots with their values."""
LARGEST = 1e100
"""Larger values count as infinite: the range of several could not be represented."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line; points that are not finite are omitted and counted below the title."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its caption.

    Attributes:
        title: title of the chart.
        names: names of the series, in the order of their colours.
        notes: sentences below the title.
        picture: the chart as inline SVG.
    """

    title: str
    names: list[str]
    notes: list[str]
    picture: Markup


def number(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits, without an exponent between 0.001 and a million."""
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else f"{value:.0f}"
    return f"{value:.{digits}g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    note: str = "",
    mark: tuple[float, str] | None = None,
    may_be_logarithmic: bool = False,
) -> Chart | None:
    """Draw several series over a common horizontal axis.

    Args:
        title: title above the chart; with the last values, it is also the text for screen readers.
        series: the lines. Long ones are reduced to means of equally long parts, noisy ones are drawn faintly
            below their moving mean, and short ones with dots.
        x_label: quantity or unit of the horizontal axis.
        note: sentence below the title.
        mark: position on the horizontal axis to mark, and its label; omitted if it is outside the axis.
        may_be_logarithmic: whether positive values that span more than a factor of 50 get a logarithmic axis.

    Returns:
        The chart, or None if no series has two finite points.
    """
    finite = [(line.name, reduce_points([p for p in line.points if _is_finite(p)])) for line in series]
    lines = [(name, points) for name, points in finite if points]
    if max((len(points) for _, points in lines), default=0) < 2:
        return None
    omitted = sum(not _is_finite(point) for line in series for point in line.points)
    description = "; ".join(f"{name} ends at {number(points[-1][1])}" for name, points in lines)
    figure = _draw_lines([points for _, points in lines], x_label, mark, may_be_logarithmic)
    values = {
        f"dots{place}": [f"{number(x)}: {number(y, 4)}" for x, y in points]
        for place, (_, points) in enumerate(lines)
    }
    return Chart(
        title=title,
        names=[name for name, _ in lines],
        notes=[text for text in (note, f"{omitted} values are not finite" if omitted else "") if text],
        picture=embed_figure(figure, f"{title}: {description}", tooltips=values),
    )


def reduce_points(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most ``most`` points, each the mean of an equally long part of the series."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    return [_mean(points[start:stop]) for start, stop in pairwise(edges)]


def is_noisy(points: Sequence[Point]) -> bool:
    """Return whether the total variation of a long series exceeds four times its range.

    Losses are noisy in this sense; a learning rate schedule is not.
    """
    ys = [y for _, y in points]
    variation = sum(abs(after - before) for before, after in pairwise(ys))
    return len(points) >= SMOOTHED_FROM and variation > 4 * (max(ys) - min(ys))


def moving_mean(points: Sequence[Point]) -> list[Point]:
    """Return the centred moving mean with a window of a twentieth of the points."""
    half = max(1, len(points) // 40)
    return [
        (x, _mean(points[max(0, place - half) : place + half + 1])[1]) for place, (x, _) in enumerate(points)
    ]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _is_finite(point: Point) -> bool:
    return all(math.isfinite(value) and abs(value) < LARGEST for value in point)


def _draw_lines(
    lines: Sequence[Sequence[Point]], x_label: str, mark: tuple[float, str] | None, may_be_logarithmic: bool
) -> Figure:
    """Draw the lines in a figure of the size of a chart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    box = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
    axes = figure.add_axes(box)
    _set_axes(axes, [point for points in lines for point in points], x_label, may_be_logarithmic)
    low, high = axes.get_xlim()
    if mark and low <= mark[0] <= high:
        _draw_mark(axes, *mark)
    for place, points in enumerate(lines):
        colour = COLOURS[f"s{place % len(DASHES)}"]
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": DASHES[place % len(DASHES)],
            "linewidth": 2,
            "clip_on": False,
        }
        smooth = moving_mean(points) if is_noisy(points) else points
        if smooth is not points:
            axes.plot(*zip(*points, strict=True), **style | {"linewidth": 1}, alpha=0.28)
        axes.plot(*zip(*smooth, strict=True), **style, gid=f"line{place}")
        if len(points) <= DOTTED_UP_TO:
            axes.plot(
                *zip(*points, strict=True), "o", gid=f"dots{place}", color=colour,
                markerfacecolor=COLOURS["card"], markersize=5.2, markeredgewidth=1.6, clip_on=False,
            )  # fmt: skip
    return figure


def _set_axes(axes: Axes, points: Sequence[Point], x_label: str, may_be_logarithmic: bool) -> None:
    """Choose the ranges and ticks of both axes, and whether the vertical one is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    if may_be_logarithmic and low > 0 and high / low > 50:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low >= 1000 else (1, 2, 5), numticks=6))
        axes.minorticks_off()
    else:
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low < (high - low) * 0.6 else low - margin), high + margin
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylim(low, high)
    axes.set_xlim(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=1, clip_on=False)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["soft"])
    axes.tick_params(color=COLOURS["soft"], labelcolor=COLOURS["soft"], labelsize=FONT_SIZE, pad=4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(x_label, fontsize=FONT_SIZE, color=COLOURS["soft"], labelpad=5)


def _draw_mark(axes: Axes, position: float, label: str) -> None:
    """Draw a labelled vertical line at a position of the horizontal axis."""
    low, high = axes.get_xlim()
    is_left = position - low < 0.6 * (high - low)
    axes.axvline(position, color=COLOURS["mark"], linewidth=1.5, linestyle=(0, (2, 2)), clip_on=False)
    axes.annotate(
        label, (position, 1), xycoords=axes.get_xaxis_transform(), xytext=(5 if is_left else -5, -2),
        textcoords="offset points", ha="left" if is_left else "right", va="top", fontsize=FONT_SIZE,
        fontweight="bold", color=COLOURS["mark"], zorder=5,
        bbox={"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1},
    )  # fmt: skip


SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def embed_figure(
    figure: Figure, label: str, *, tooltips: Mapping[str, Sequence[str]] | None = None
) -> Markup:
    """Return a figure as inline SVG without background.

    A page contains many pictures, so that ids, references between elements and style rules of matplotlib's
    SVG are replaced by what they refer to.

    Args:
        figure: the figure, in :data:`COLOURS` and black.
        label: text for screen readers.
        tooltips: ``gid`` of an artist → text of each of its markers, shown when the mouse is over it.
    """
    import matplotlib

    for background in (figure.patch, *(axes.patch for axes in figure.axes)):
        background.set_visible(False)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "signllm"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    shapes = {path.get("id"): path for path in root.iter(f"{SVG}path")}
    for use in list(root.iter(f"{SVG}use")):
        reference = use.attrib.pop(f"{XLINK}href").removeprefix("#")
        use.tag = f"{SVG}path"
        use.set("transform", f"translate({use.attrib.pop('x')} {use.attrib.pop('y')})")
        use.set("d", shapes[reference].get("d", ""))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}defs" or (child.tag == f"{SVG}g" and not len(child)):
                parent.remove(child)
    for gid, texts in (tooltips or {}).items():
        markers = root.iterfind(f".//*[@id='{gid}']//{SVG}path")
        for marker, text in zip(markers, texts, strict=False):
            ElementTree.SubElement(marker, "title").text = text
    for element in root.iter():
        _simplify(element)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _simplify(element: ElementTree.Element) -> None:
    """Replace the attributes of an element of matplotlib's SVG by those that a page needs."""
    element.tag = element.tag.removeprefix(SVG)
    element.text = element.text if (element.text or "").strip() else None
    element.tail = None
    element.attrib.pop("clip-path", None)
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    gid = element.attrib.pop("id", "")
    if re.fullmatch(r"(line|dots)\d", gid):
        element.set("class", gid)
    for name in {"d", "x", "y", "transform"}.intersection(element.keys()):
        rounded = re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name])
        element.set(name, " ".join(rounded.split()))
    if "style" in element.keys():
        style = re.sub(r"font-family: [^;]*;? ?", "", element.attrib["style"])
        for name, colour in (*COLOURS.items(), ("ink", "#000000")):
            style = style.replace(colour, f"var(--{name})")
        element.set("style", style)
