"""Charts: ticks are round, lines are at their values, and noise is distinguished from a schedule."""

from __future__ import annotations

import math
import random
import re

import pytest

from signllm.reporting.chart import (
    Axis,
    Series,
    is_noisy,
    line_chart,
    moving_mean,
    reduce_points,
    round_ticks,
)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (10, 3000), (-0.2, 0.17), (1e-7, 3e-7), (99, 101), (0, 1e9)]
)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step) + 1e-9))
    )


def test_axes_map_ends_to_ends() -> None:
    for logarithmic in (False, True):
        axis = Axis(low=0.01, high=100, start=300, stop=20, logarithmic=logarithmic)
        assert axis.position(0.01) == pytest.approx(300)
        assert axis.position(100) == pytest.approx(20)
    assert Axis(low=0.01, high=100, start=0, stop=4, logarithmic=True).position(1) == pytest.approx(2)
    assert Axis(low=0.01, high=100, start=0, stop=4, logarithmic=True).ticks() == pytest.approx(
        [0.01, 0.1, 1, 10, 100]
    )


def line_heights(chart: str) -> list[float]:
    path = re.search(r'<path d="M([^"]*)" class="line s0"', chart)
    assert path
    return [float(point.split()[1]) for point in path.group(1).split("L")]


def test_a_line_falls_where_its_values_fall() -> None:
    chart = line_chart(
        "Loss", [Series(name="training", points=[(0, 4.0), (1, 2.0), (2, 1.0)])], x_label="step"
    )
    heights = line_heights(str(chart))
    assert heights == sorted(heights)  # SVG's y grows downwards
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[2] - heights[1]), abs=0.2)
    assert 'aria-label="Loss: training ends at 1"' in str(chart)


def test_points_that_are_not_finite_are_omitted_and_counted() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    chart = str(line_chart("Loss", [Series(name="training", points=points)], x_label="step"))
    assert "2 values are not finite" in chart
    assert "nan" not in chart.replace("finite", "")
    assert len(line_heights(chart)) == 2


def test_too_little_to_draw_is_none() -> None:
    assert line_chart("Loss", [], x_label="step") is None
    assert line_chart("Loss", [Series(name="a", points=[(0, 1.0)])], x_label="step") is None
    assert line_chart("Loss", [Series(name="a", points=[(0, 1.0), (0, 1.0)])], x_label="step") is not None


def test_a_series_with_a_single_value_is_a_dot() -> None:
    line = Series(name="training", points=[(0, 3.0), (5, 1.0)])
    chart = str(line_chart("Loss", [line, Series(name="held out", points=[(5, 2.0)])], x_label="step"))
    assert len(re.findall(r'<circle[^>]*class="dot s1"', chart)) == 1
    assert "held out ends at 2" in chart


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
    series = [Series(name="training", points=[(10, 1.0), (20, 2.0)])]
    for place, is_drawn in ((15, True), (20, True), (5, False), (21, False)):
        chart = str(line_chart("Loss", series, x_label="step", mark=(place, "here")))
        assert (">here<" in chart) == is_drawn
