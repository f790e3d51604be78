"""What one rank does for all, and that all fail where one fails, with its message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from signllm.errors import RunFailedError, UsageError
from signllm.training.engine import Ranks
from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.preemption import asked_to_leave, stopped_early

T = TypeVar("T")
STOPPED = (None, "stopped", None)


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Wait for all ranks at the end of the block; raise on all if one failed in it (all ranks).

    Nothing collective belongs into the block: a rank that is asked to leave does so wherever it is.

    Raises:
        StoppedEarlyError: some rank was asked to leave, and none failed.
        UsageError: some rank raised one; every rank raises the first.
        RunFailedError: another rank failed otherwise.
    """
    mine: Exception | None = None
    try:
        with asked_to_leave() as flag, flag.at_once():
            yield
    except Exception as error:
        mine = error
    told: list[Any] = [None] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(told, None if mine is None else _told(mine))
    if mine is not None and not isinstance(mine, StoppedEarlyError):
        raise mine
    for rank, failure in enumerate(told):
        if failure == STOPPED:
            continue
        if failure is not None and failure[0] is not None:
            raise UsageError(failure[0], where=failure[1] or None, remedy=failure[2])
        if failure is not None:
            raise RunFailedError(f"rank {rank} failed: {failure[1]}")
    if mine is not None or STOPPED in told:
        raise stopped_early()


def once(work: Callable[[], T], ranks: Ranks) -> T:
    """Return on all ranks what ``work`` returned on rank 0, the only one to do it (all ranks).

    Raises:
        UsageError, RunFailedError: as :func:`together`.
    """
    done: list[Any] = [None]
    with together(ranks):
        if ranks.rank == 0:
            done[0] = work()
    if ranks.world > 1:
        dist.broadcast_object_list(done, src=0)
    return done[0]


def _told(error: Exception) -> tuple[str | None, str, str | None]:
    if isinstance(error, StoppedEarlyError):
        return STOPPED
    if isinstance(error, UsageError):
        return error.what, "" if error.where is None else str(error.where), error.remedy
    return None, f"{type(error).__name__}: {error}", None
