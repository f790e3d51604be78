"""Failures of one rank are reported on all ranks, soon, and with their cause.

When one rank raises, the others wait inside a collective. They only see that its connections close or that a
time-out ends, so their own errors would blame the network. Therefore the failing rank writes its traceback
into ``run/failures/``, and the others look there before they report a network error. If no rank raises and
none makes progress, the watchdog reports it (:mod:`signllm.distributed.watchdog`).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from signllm.atomic_files import atomic_write
from signllm.distributed.local_ranks import (
    INTERNAL_ERROR,
    StoppedEarlyError,
    describe_error,
    started_by_torchrun,
)
from signllm.distributed.rank_memory import (
    RankMemory,
    describe_deaths,
    describe_memory_error,
    memory_folder,
    read_memory,
    record_memory,
)
from signllm.distributed.watchdog import STARTUP_LIMIT_S, Watchdog, current_watchdog
from signllm.errors import RunFailedError, UsageError

WAIT_FOR_REPORT_S = 3.0
"""Seconds to wait for the report of another rank after the network has failed."""
NETWORK_WORDS = ("gloo", "nccl", "connection", "timed out", "socket")
"""A RuntimeError with one of these words is taken for a failure of the network."""


class RankFailedError(RunFailedError):
    """Another rank failed first; the message names it and repeats its report."""


class NotFiniteError(RunFailedError, ArithmeticError):
    """The loss or the gradient is not finite; all ranks raise it in the same step."""


def require_finite(
    metrics: Mapping[str, float], shares: Mapping[str, Tensor], *, step: int, rank: int, where: str
) -> None:
    """Raise if the loss or the gradient norm of a step is not finite; such a step is never saved (all ranks).

    Args:
        metrics: the losses, summed over ranks, and ``grad_norm``.
        shares: this rank's shares of the losses.
        step: number of the step.
        rank: this rank.
        where: stage, run and last checkpoint, for the message.

    Raises:
        NotFiniteError: on all ranks, because ``metrics`` are equal on all ranks.
    """
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not {"loss", "grad_norm"} & set(wrong):
        return
    local = [name for name, share in shares.items() if not bool(torch.isfinite(share))]
    is_loss = "loss" in wrong
    raise NotFiniteError(
        f"the {'loss' if is_loss else 'gradient'} of step {step} is not a number"
        + (f": {wrong}; on rank {rank}: {local or 'nothing wrong'}\n" if is_loss else "\n")
        + f"  where:  {where}\n"
        "  remedy: lower --training.learning-rate or raise --training.warmup-steps"
    )


@contextmanager
def fail_together(
    run: Path, rank: int, doing: str, *, hang_s: float | None = STARTUP_LIMIT_S
) -> Iterator[None]:
    """Report an exception of this rank to the other ranks, and name theirs if only the network failed here.

    Args:
        run: the run folder.
        rank: this rank.
        doing: the stage or verb, for the messages.
        hang_s: seconds without a step or a validation batch after which the watchdog ends all ranks; None
            starts no watchdog.

    Raises:
        RankFailedError: the network failed on this rank because another rank had failed or did not come.
    """
    report = run / "failures" / f"rank-{rank}.txt"
    for old in (report, report.with_suffix(".network.txt"), report.with_suffix(".stack.txt")):
        old.unlink(missing_ok=True)
    if _world_size() > 1:
        record_memory(report.parent, rank)
    started = time.time()
    with _watched(run, rank, doing, hang_s):
        try:
            yield
        except Exception as error:
            if isinstance(error, StoppedEarlyError) and started_by_torchrun():
                # torchrun asks the ranks to leave when one of them has died, and does not say why.
                if died := _dead_ranks(report, range(_world_size()), certain=True):
                    raise RankFailedError(describe_deaths(died, where=doing)) from None
            if isinstance(error, NotFiniteError | RankFailedError | StoppedEarlyError):
                raise
            if not _is_network(error):
                _write_report(report, doing, error)
                raise
            raise RankFailedError(_describe_failure_of_others(report, rank, doing, error, started)) from error


@contextmanager
def _watched(run: Path, rank: int, doing: str, hang_s: float | None) -> Iterator[None]:
    """Run a watchdog during the block, unless there is only one rank or a watchdog runs already."""
    world = _world_size()
    if world == 1 or hang_s is None or current_watchdog() is not None:
        yield
        return
    dog = Watchdog(run, rank=rank, world=world, doing=doing, limit_s=hang_s)
    dog.start()
    try:
        yield
    finally:
        if dog.is_reporting:  # it will end the process with a better message than the network's
            dog.join(timeout=5 * dog.interval_s)
        dog.end()


def _world_size() -> int:
    """Return the number of ranks of the process group, or of the one that is yet to be joined."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _write_report(file: Path, doing: str, error: Exception) -> None:
    """Write the message of an error, or its traceback if it is an internal error."""
    message, _ = describe_error(error)
    is_internal = message.startswith(INTERNAL_ERROR)
    text = "".join(traceback.format_exception(error)) if is_internal else f"{message}\n"
    if not file.parent.parent.is_dir():  # a run that could not begin has no folder
        return
    # The failure may be a full disk, and then its message must still come out.
    with contextlib.suppress(OSError, UsageError):
        atomic_write(file, f"{file.name.partition('.')[0]} failed in {doing}\n{text}")


def _is_network(error: Exception) -> bool:
    if describe_memory_error(error) is not None:
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in NETWORK_WORDS)


def _describe_failure_of_others(report: Path, rank: int, doing: str, error: Exception, started: float) -> str:
    """Return a message with the first report of another rank, or about the ranks that died without one."""
    _write_report(report.with_suffix(".network.txt"), doing, error)
    first = _wait_for_report(report, started)
    if first is not None:
        text = first.read_text(encoding="utf-8")
        return f"{first.stem} failed first ({first}), and rank {rank} stops:\n{text}"
    silent = [r for r in range(_world_size()) if not (report.parent / f"rank-{r}.network.txt").exists()]
    if died := _dead_ranks(report, silent):
        return describe_deaths(died, where=f"{doing}, where rank {rank} waited for it")
    names = f"no report from rank {', '.join(map(str, silent))}; " if silent else ""
    return (
        f"rank {rank} waited in {doing} for a rank that died without a report (killed? out of memory?),"
        f" or never came: {names}{error}"
    )


def _dead_ranks(report: Path, ranks: Iterable[int], *, certain: bool = False) -> dict[int, RankMemory]:
    """Return the ranks that left a record of their memory and have died, or may have died.

    Args:
        report: the report of this rank, next to which the others' records are.
        ranks: the ranks to check.
        certain: leave out ranks on other machines, whose processes cannot be seen from here.
    """
    records = {rank: read_memory(memory_folder(report.parent), rank) for rank in ranks}
    accepted = (True,) if certain else (True, None)
    return {rank: memory for rank, memory in records.items() if memory and memory.has_died() in accepted}


def _wait_for_report(report: Path, started: float) -> Path | None:
    """Wait for the first report of another rank that failed since ``started``; None if none comes."""
    give_up = time.monotonic() + WAIT_FOR_REPORT_S
    while True:
        others = [
            p
            for p in report.parent.glob("rank-*.txt")
            if p != report and p.name.count(".") == 1 and p.stat().st_mtime >= started - 60.0
        ]
        if others:
            return min(others, key=lambda p: p.stat().st_mtime)
        if time.monotonic() > give_up:
            return None
        time.sleep(0.1)
