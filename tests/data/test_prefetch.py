"""Tests of prefetching in threads: order, limited memory, errors, and stopping early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from signllm.data.loading.prefetch import prefetch


def _square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = (partial(_square, number) for number in range(30))
    assert list(prefetch(jobs, threads=3, waiting=4)) == [number * number for number in range(30)]


def test_few_jobs_start_early_and_stopping_early_leaves_no_thread() -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(1000):
            drawn.append(number)
            yield partial(int, number)

    before = threading.active_count()
    results = prefetch(jobs(), threads=2, waiting=3)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(drawn) <= 6
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before  # one of another test may end meanwhile


@pytest.mark.parametrize("where", ["job", "stream"])
def test_errors_are_raised_where_the_results_are_taken(where: str) -> None:
    def fail() -> int:
        raise ValueError("lost")

    def jobs() -> Iterator[Callable[[], int]]:
        yield partial(int, 7)
        if where == "stream":
            fail()
        yield fail

    results = prefetch(jobs(), threads=1, waiting=2)
    assert next(results) == 7
    with pytest.raises(ValueError, match="lost"):
        next(results)
