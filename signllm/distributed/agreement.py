"""Errors and results that all ranks share: an error on one rank is raised on all, with its message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import preemption_flag, stopped_early_error
from signllm.distributed.ranks import Ranks
from signllm.errors import RunFailedError, UsageError

T = TypeVar("T")
STOPPED = (None, "stopped", None)


@contextmanager
def fail_on_all_ranks(ranks: Ranks) -> Iterator[None]:
    """Wait for all ranks at the end of the block; raise on all if one failed in it (all ranks).

    The block must not contain collectives, because a preempted rank leaves it at any point.

    Raises:
        StoppedEarlyError: a rank was preempted, and none failed.
        UsageError: a rank raised one; every rank raises the first.
        RunFailedError: another rank failed for another reason.
    """
    local_error: Exception | None = None
    try:
        with preemption_flag() as flag, flag.interruptible():
            yield
    except Exception as error:
        local_error = error
    failures = gather_objects(None if local_error is None else _describe_failure(local_error), ranks)
    if local_error is not None and not isinstance(local_error, StoppedEarlyError):
        raise local_error
    for rank, failure in enumerate(failures):
        if failure == STOPPED:
            continue
        if failure is not None and failure[0] is not None:
            raise UsageError(failure[0], where=failure[1] or None, remedy=failure[2])
        if failure is not None:
            raise RunFailedError(f"rank {rank} failed: {failure[1]}")
    if local_error is not None or STOPPED in failures:
        raise stopped_early_error()


def run_on_rank_zero(work: Callable[[], T], ranks: Ranks) -> T:
    """Run ``work`` on rank 0 and return its result on all ranks (all ranks).

    Raises:
        UsageError, RunFailedError: as in :func:`fail_on_all_ranks`.
    """
    result: list[Any] = [None]
    with fail_on_all_ranks(ranks):
        if ranks.rank == 0:
            result[0] = work()
    if ranks.world > 1:
        dist.broadcast_object_list(result, src=0)
    return result[0]


def gather_objects(own: T, ranks: Ranks) -> list[T]:
    """Return the objects of all ranks, in the order of the ranks (all ranks)."""
    gathered: list[Any] = [own] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(gathered, own)
    return gathered


def _describe_failure(error: Exception) -> tuple[str | None, str, str | None]:
    if isinstance(error, StoppedEarlyError):
        return STOPPED
    if isinstance(error, UsageError):
        return error.what, "" if error.where is None else str(error.where), error.remedy
    return None, f"{type(error).__name__}: {error}", None
