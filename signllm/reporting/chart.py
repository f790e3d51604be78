"""Line charts as inline SVG: axes, ticks, labels, up to three series, colours from the page's style sheet.

The SVG of matplotlib would add half a megabyte of glyph outlines per page and fix the colours. These charts
follow the light or dark mode of the browser, and stay legible when printed in grey, because series also
differ in dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from signllm.reporting.markup import Markup, join_markup, number, tag

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
MOST_POINTS = 400
SMOOTHED_FROM = 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line; points that are not finite are omitted and counted below the title."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic mapping from values to coordinates of the picture.

    Attributes:
        low: smallest value.
        high: largest value.
        start: coordinate of ``low``.
        stop: coordinate of ``high``.
        logarithmic: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def position(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high, value = (self._transform(v) for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / (high - low)

    def _transform(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Return round values between the ends, for labels."""
        return _decades(self.low, self.high) if self.logarithmic else round_ticks(self.low, self.high)


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten between two values."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return the powers of ten between two positive values; if they are few, also 2 and 5 times them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // 5)
    ticks = [10.0**d for d in decades if low <= 10.0**d <= high][::every]
    if len(ticks) >= 3:
        return ticks
    return [f * 10.0**d for d in decades for f in (1, 2, 5) if low <= f * 10.0**d <= high]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    note: str = "",
    mark: tuple[float, str] | None = None,
    may_be_logarithmic: bool = False,
) -> Markup | None:
    """Draw several series over a common horizontal axis.

    Args:
        title: title above the chart; with the last values, it is also the text for screen readers.
        series: the lines. Long ones are reduced to means of equally long parts, noisy ones are drawn faintly
            below their moving mean, and one with a single value is drawn as a dot.
        x_label: quantity or unit of the horizontal axis.
        note: sentence below the title.
        mark: position on the horizontal axis to mark, and its label; omitted if it is outside the axis.
        may_be_logarithmic: whether positive values that span more than a factor of 50 get a logarithmic axis.

    Returns:
        A ``figure`` element, or None if no series has two finite points.
    """
    finite = [(line.name, reduce_points([p for p in line.points if _is_finite(p)])) for line in series]
    finite = [(name, points) for name, points in finite if points]
    if max((len(points) for _, points in finite), default=0) < 2:
        return None
    x_axis, y_axis = _axes([point for _, points in finite for point in points], may_be_logarithmic)
    omitted = sum(not _is_finite(point) for line in series for point in line.points)
    description = "; ".join(f"{name} ends at {number(points[-1][1])}" for name, points in finite)
    picture = tag(
        "svg",
        _grid(x_axis, y_axis, x_label),
        _mark(mark, x_axis) if mark and x_axis.low <= mark[0] <= x_axis.high else None,
        *(_line(points, x_axis, y_axis, place) for place, (_, points) in enumerate(finite)),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {description}",
    )
    caption = [tag("b", title), *(_legend(finite) if len(finite) > 1 else [])]
    lines = [note, f"{omitted} values are not finite" if omitted else ""]
    return tag(
        "figure",
        tag("figcaption", *caption, *(tag("small", line) for line in lines if line)),
        picture,
        class_="chart",
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
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _axes(points: Sequence[Point], may_be_logarithmic: bool) -> tuple[Axis, Axis]:
    """Choose the ranges of both axes, and whether the vertical one is logarithmic."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    is_log = may_be_logarithmic and low > 0 and high / low > 50
    if not is_log:
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low < (high - low) * 0.6 else low - margin), high + margin
    x_low, x_high = min(xs), max(xs)
    x_axis = Axis(low=x_low, high=x_high if x_high > x_low else x_low + 1, start=LEFT, stop=WIDTH - RIGHT)
    return x_axis, Axis(low=low, high=high, start=HEIGHT - BOTTOM, stop=TOP, logarithmic=is_log)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str) -> Markup:
    """Draw grid lines, tick labels and the label of the horizontal axis."""
    parts: list[Markup] = []
    for value in y_axis.ticks():
        y = y_axis.position(value)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", number(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
    base = HEIGHT - BOTTOM
    for value in x_axis.ticks():
        x = x_axis.position(value)
        parts.append(tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(tag("text", number(value), x=x, y=base + 16, text_anchor="middle"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", x_label, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="label"))
    return join_markup(parts)


def _line(points: Sequence[Point], x_axis: Axis, y_axis: Axis, place: int) -> Markup:
    """Draw one series: a noisy one faintly below its moving mean, a short one with dots."""
    noisy = is_noisy(points)
    main_line = moving_mean(points) if noisy else points
    parts = [tag("path", d=_path(points, x_axis, y_axis), class_=f"line s{place} faint")] if noisy else []
    parts.append(tag("path", d=_path(main_line, x_axis, y_axis), class_=f"line s{place}"))
    if len(points) <= 24:
        parts += [
            tag(
                "circle", tag("title", f"{number(x)}: {number(y, 4)}"),
                cx=x_axis.position(x), cy=y_axis.position(y), r=2.6, class_=f"dot s{place}",
            )
            for x, y in points
        ]  # fmt: skip
    return join_markup(parts)


def _path(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    return "M" + "L".join(f"{x_axis.position(x):.1f} {y_axis.position(y):.1f}" for x, y in points)


def _mark(mark: tuple[float, str], x_axis: Axis) -> Markup:
    """Draw a labelled vertical line at a position of the horizontal axis."""
    x, is_left = x_axis.position(mark[0]), x_axis.position(mark[0]) < WIDTH * 0.6
    anchor, offset = ("start", 5) if is_left else ("end", -5)
    return join_markup(
        (
            tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"),
            tag("text", mark[1], x=x + offset, y=TOP + 9, text_anchor=anchor, class_="marked"),
        )
    )


def _legend(series: Sequence[tuple[str, Sequence[Point]]]) -> list[Markup]:
    """Return the name of each series, next to a short piece of its line."""
    line = "M0 4L22 4"
    return [
        tag(
            "span",
            tag("svg", tag("path", d=line, class_=f"line s{place}"), viewBox="0 0 22 8", aria_hidden="true"),
            name,
            class_="key",
        )
        for place, (name, _) in enumerate(series)
    ]
