"""The setting with which a solver reaches a given error; it is determined before the solver is timed.

A solver with a number of iterations gets close to the smallest number that suffices: doubled until it does,
then log-linear interpolation between the last two, as the error falls geometrically. A solver with a
stopping threshold gets close to the largest that suffices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import timed
from benchmarks.contender import Tuned

FIRST_ITERATIONS = 10
MOST_ITERATIONS = 1_000_000


def by_iterations(
    run: Callable[[float], Any],
    error_of: Callable[[Any], float],
    target: float,
    limit_s: float,
    device: torch.device,
) -> Tuned:
    """Return after how many iterations the error is at most ``target``, or how many the limit allows."""

    def attempt(iterations: int) -> Tuned:
        seconds, result = timed(lambda: run(iterations), device)
        error = error_of(result)
        return Tuned(
            setting=iterations,
            note=f"{iterations} iterations",
            reached=error <= target,
            seconds=seconds,
            error=error,
        )

    before, now = None, attempt(FIRST_ITERATIONS)
    while not now.reached:
        is_spent = 2 * now.seconds > limit_s or 2 * now.setting > MOST_ITERATIONS
        if is_spent or not math.isfinite(now.error):
            return now
        before, now = now, attempt(int(2 * now.setting))
    for _ in range(2):
        between = _interpolated(before, now, target)
        if between is None:
            break
        tried = attempt(between)
        before, now = (before, tried) if tried.reached else (tried, now)
    return now


def _interpolated(low: Tuned | None, high: Tuned, target: float) -> int | None:
    """Return where the error between two runs should pass the target; None where it is not worth a run."""
    if low is None or not low.error > high.error > 0:
        return None
    share = math.log(low.error / target) / math.log(low.error / high.error)
    between = math.ceil((low.setting + (high.setting - low.setting) * share) * 1.01)
    return between if low.setting < between < 0.98 * high.setting else None


def by_threshold(
    run: Callable[[float], Any], error_of: Callable[[Any], float], target: float, device: torch.device
) -> Tuned:
    """Return the stopping threshold at which the error is at most ``target`` and not far below."""
    threshold, best = target / 4, None
    for _ in range(5):
        seconds, result = timed(lambda threshold=threshold: run(threshold), device)
        error = error_of(result)
        tried = Tuned(
            setting=threshold,
            note=f"stopThr {threshold:.1e}",
            reached=error <= target,
            seconds=seconds,
            error=error,
        )
        if best is None or (tried.reached, -tried.seconds) > (best.reached, -best.seconds):
            best = tried
        if not 0 < error < math.inf or error > 1e3 * target or target / 2 < error <= target:
            break  # void, hopeless, or near enough
        threshold *= min(max(0.8 * target / error, 0.05), 20.0)
    assert best is not None
    return best
