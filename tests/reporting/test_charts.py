"""Charts: ticks are round, lines are at their values, and noise is distinguished from a schedule."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

import signllm.reporting
from signllm.reporting.charts import (
    COLOURS,
    Chart,
    Series,
    embed_figure,
    is_noisy,
    line_chart,
    moving_mean,
    reduce_points,
)


def draw(*points: tuple[float, float], **options: object) -> Chart:
    options = {"x_label": "step"} | options
    chart = line_chart("Loss", [Series(name="training", points=points)], **options)  # type: ignore[arg-type]
    assert chart
    return chart


def tick_labels(chart: Chart, anchor: str = "end") -> list[float]:
    """Return the numbers at an axis: those of the vertical axis end at it."""
    texts = re.findall(rf'<text style="[^"]*text-anchor: {anchor};[^>]*>([^<]*)</text>', chart.picture)
    return [float(text.replace("\u202f", "")) for text in texts if text != "step"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (10, 3000), (-0.2, 0.17), (1e-7, 3e-7), (99, 101), (0, 1e9)]
)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    chart = draw((low, low), (high, high))
    margin = 0.06 * (high - low)
    for ticks, least, most in (
        (tick_labels(chart), min(low - margin, 0), high + margin),  # an axis may begin at 0
        (tick_labels(chart, "middle"), low, high),
    ):
        assert 2 <= len(ticks) <= 7
        assert all(least - 1e-12 <= tick <= most + 1e-12 for tick in ticks)
        step = ticks[1] - ticks[0]
        assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
            round(step / 10 ** math.floor(math.log10(step) + 1e-9))
        )


def test_a_wide_range_of_losses_has_a_logarithmic_axis() -> None:
    points = [(1.0, 100.0), (2.0, 1.0), (3.0, 0.01)]
    assert tick_labels(draw(*points, may_be_logarithmic=True)) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert tick_labels(draw((1, 1.0), (2, 90.0), may_be_logarithmic=True)) == [1, 2, 5, 10, 20, 50]
    first, second, third = line_heights(draw(*points, may_be_logarithmic=True))
    assert second - first == pytest.approx(third - second, abs=0.1)
    assert 0 in tick_labels(draw(*points))


def line_heights(chart: Chart, name: str = "line0") -> list[float]:
    path = re.search(rf'<g class="{name}"><path d="M ([^"]*)"', chart.picture)
    assert path
    return [float(point.split()[1]) for point in path.group(1).split(" L ")]


def test_a_line_falls_where_its_values_fall() -> None:
    chart = draw((0, 4.0), (1, 2.0), (2, 1.0))
    heights = line_heights(chart)
    assert heights == sorted(heights)  # SVG's y grows downwards
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[2] - heights[1]), abs=0.2)
    assert 'aria-label="Loss: training ends at 1"' in chart.picture


def test_points_that_are_not_finite_are_omitted_and_counted() -> None:
    chart = draw((0, 1.0), (1, math.nan), (2, math.inf), (2, -1e308), (3, 2.0))
    assert chart.notes == ["3 values are not finite"]
    assert "nan" not in chart.picture
    assert len(line_heights(chart)) == 2


def test_too_little_to_draw_is_none() -> None:
    assert line_chart("Loss", [], x_label="step") is None
    assert line_chart("Loss", [Series(name="a", points=[(0, 1.0)])], x_label="step") is None
    assert line_chart("Loss", [Series(name="a", points=[(0, 1.0), (0, 1.0)])], x_label="step") is not None


def test_points_of_short_series_are_dots_with_their_values() -> None:
    line = Series(name="training", points=[(0, 3.0), (5, 1.0)])
    chart = line_chart("Loss", [line, Series(name="held out", points=[(5, 2.0)])], x_label="step")
    assert chart
    assert chart.names == ["training", "held out"]
    picture = ElementTree.fromstring(chart.picture)
    values = [[title.text for title in picture.iterfind(f".//*[@class='dots{n}']//title")] for n in (0, 1)]
    assert values == [["0: 3", "5: 1"], ["5: 2"]]
    assert "held out ends at 2" in chart.picture
    assert "<title>" not in draw(*((x, x) for x in range(100))).picture


def test_more_series_than_colours_are_drawn() -> None:
    series = [Series(name=str(n), points=[(0, n), (1, n)]) for n in range(5)]
    chart = line_chart("Rates", series, x_label="step")
    assert chart
    assert len({line_heights(chart, f"line{n}")[0] for n in range(5)}) == 5


def test_reduction_and_moving_mean_keep_a_straight_line() -> None:
    points = [(float(x), 3.0 * x + 1) for x in range(1000)]
    reduced = reduce_points(points, 100)
    assert len(reduced) == 100
    assert all(y == pytest.approx(3 * x + 1) for x, y in reduced)
    middle = moving_mean(points)[50:-50]
    assert all(y == pytest.approx(3 * x + 1) for x, y in middle)


def test_noise_is_distinguished_from_a_schedule() -> None:
    rng = random.Random(0)
    assert not is_noisy([(x, math.cos(x / 100)) for x in range(300)])
    assert is_noisy([(x, rng.random()) for x in range(300)])


def test_a_mark_is_drawn_only_inside_the_axis() -> None:
    for place, is_drawn in ((15, True), (20, True), (5, False), (21, False)):
        assert (">here<" in draw((10, 1.0), (20, 2.0), mark=(place, "here")).picture) == is_drawn


def test_a_picture_is_the_same_each_time_and_refers_to_nothing() -> None:
    pictures = [draw((10, 1.0), (20, 2.0), mark=(15, "here")).picture for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert not re.search(r'\bid="|url\(|href|xmlns|<style|font-family', pictures[0])


def test_colours_are_those_of_the_style_sheet_and_follow_its_dark_mode() -> None:
    style = (Path(signllm.reporting.__file__).parent / "templates" / "style.css").read_text()
    for part in style.split("prefers-color-scheme: dark"):
        assert {f"--{name}" for name in COLOURS} <= set(re.findall(r"(--[\w-]+):", part))
    light = dict(re.findall(r"--([\w-]+): (#\w+)", style.split("prefers-color-scheme: dark")[0]))
    assert COLOURS.items() <= light.items()
    assert not re.search(r"#[0-9a-f]{6}", draw((10, 1.0), (20, 2.0), mark=(15, "here")).picture)


def test_any_figure_can_be_embedded() -> None:
    figure = Figure()
    figure.subplots().errorbar([1, 2], [1, 2], yerr=[1, 1], fmt="s", label="<b>")
    figure.axes[0].legend(frameon=False)
    picture = embed_figure(figure, '"a" & b')
    assert ElementTree.fromstring(picture).get("aria-label") == '"a" & b'
    assert "&lt;b&gt;" in picture
    assert "#000000" not in picture  # invisible in the dark
