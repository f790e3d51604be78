"""A hang on two ranks ends both, with a message that says which rank is where."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest

from signllm.distributed import watchdog as module
from signllm.distributed.watchdog import (
    Watchdog,
    current_watchdog,
    describe_stack,
    diagnose_hang,
    record_progress,
)
from tests.training.test_loop import launch, order

HANG_S = 6.0


def message_of(run: Path, kind: str, rank: int = 1) -> str:
    """Hang in step 3 of the toy and return what two ranks print."""
    done = launch([order(run, "zero2", trouble=(kind, 2, rank), hang_s=HANG_S, timeout_s=120.0)], ranks=2)
    assert all(done.codes)
    return done.stderr


def test_a_rank_whose_batch_never_comes_is_named(tmp_path: Path) -> None:
    message = message_of(tmp_path, "starve")
    assert re.search(r"rank 1 is in reading a batch, step 3 \(.*run_toy.py:\d+: time.sleep\(1\)\)", message)
    assert re.search(r"rank 0 waits for others in all_reduce of the forward pass, step 3 \(.*toy.py", message)
    stack = (tmp_path / "failures" / "rank-1.stack.txt").read_text()
    assert "in one_step" in stack
    assert "run_toy.py" in stack


def test_a_rank_that_is_frozen_is_named_by_the_other(tmp_path: Path) -> None:
    message = message_of(tmp_path, "freeze", rank=0)
    assert "rank 0 does not answer: stopped, dead, or stuck outside of Python" in message
    assert "rank 1 waits for others in all_reduce" in message


def test_ranks_that_wait_in_different_collectives_are_named_separately(tmp_path: Path) -> None:
    message = message_of(tmp_path, "extra")
    assert "each waits for another" in message
    assert "rank 0 waits for others in all_reduce" in message
    assert "rank 1 waits for others in broadcast" in message


def test_ranks_at_the_same_line_are_reported_together() -> None:
    waiting = {
        "place": "the forward pass",
        "collective": "all_reduce",
        "waits": True,
        "at": "x.py:1: y",
        "step": 7,
    }
    answers = {
        0: waiting,
        2: waiting,
        3: waiting | {"waits": False, "collective": None, "step": 0, "place": None},
    }
    assert diagnose_hang(answers, 6, doing="stage toy", limit_s=60.0).splitlines() == [
        "stage toy hangs: no rank has made progress for 60 s",
        "  ranks 1, 4, 5 do not answer: stopped, dead, or stuck outside of Python",
        "  rank 3 is in stage toy (x.py:1: y)",
        "  ranks 0, 2 wait for others in all_reduce of the forward pass, step 7 (x.py:1: y)",
    ]


def test_a_rank_that_goes_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    dog = Watchdog(tmp_path, rank=0, world=2, doing="stage toy", limit_s=0.2)
    dog.step = 1
    record_progress()
    dog.start()
    assert current_watchdog() is dog
    for step in range(30):
        record_progress(step)
        threading.Event().wait(0.02)
    assert (dog.progress_count, dog.step) == (30, 29)
    dog.end()
    assert current_watchdog() is None
    assert not ended
    assert not list(tmp_path.iterdir())


def test_the_stack_tells_the_place() -> None:
    place = describe_stack(sys._getframe())
    assert place["place"] is None
    assert not place["waits"]
    assert "test_watchdog.py" in place["at"]
