"""When one rank fails, all ranks fail, soon, and all say which one and why.

A rank that raises leaves the others inside a collective. Its exit closes their connections, or their
timeout ends, and all they would report is the network. So the failing rank leaves its traceback in
``run/failures/``, where the others look before they report theirs. Where no rank fails and none goes on, the
watchdog (:mod:`signllm.training.watchdog`) says so.
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
from signllm.errors import RunFailedError, UsageError
from signllm.training.local_ranks import OUR_FAULT, StoppedEarlyError, collected_by_torchrun, message_of
from signllm.training.rank_memory import (
    RankMemory,
    describe_deaths,
    describe_memory_error,
    memory_folder,
    read_memory,
    record_memory,
)
from signllm.training.watchdog import START_UP_S, Watchdog, watchdog

WAIT_FOR_REPORT_S = 3.0
NETWORK_WORDS = ("gloo", "nccl", "connection", "timed out", "socket")


class RankFailedError(RunFailedError):
    """Another rank failed first; the message says which one, where its traceback is, and its last line."""


class NotFiniteError(RunFailedError, ArithmeticError):
    """The loss is not a number; raised by all ranks in the same step."""


def require_finite(
    metrics: Mapping[str, float], shares: Mapping[str, Tensor], *, step: int, rank: int, where: str
) -> None:
    """Raise if the summed loss or the gradient of a step is not finite; that step is never saved (all ranks).

    Args:
        metrics: ``loss`` and the others, summed over ranks, and ``grad_norm``.
        shares: this rank's shares of the losses.
        step: which one it is.
        rank: this one.
        where: stage, run and last checkpoint, for the message.

    Raises:
        NotFiniteError: on all ranks, for ``metrics`` are the same on all.
    """
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not {"loss", "grad_norm"} & set(wrong):
        return
    here = [name for name, share in shares.items() if not bool(torch.isfinite(share))]
    of_loss = "loss" in wrong
    raise NotFiniteError(
        f"the {'loss' if of_loss else 'gradient'} of step {step} is not a number"
        + (f": {wrong}; on rank {rank}: {here or 'nothing wrong'}\n" if of_loss else "\n")
        + f"  where:  {where}\n"
        "  remedy: lower --training.learning-rate or raise --training.warmup-steps"
    )


@contextmanager
def failing_together(
    run: Path, rank: int, doing: str, *, hang_s: float | None = START_UP_S
) -> Iterator[None]:
    """Report an exception of this rank to the others, or theirs here; watch that the ranks go on.

    Args:
        run: the run folder.
        rank: this one.
        doing: stage or verb, for the messages.
        hang_s: seconds without a step, or a batch of a validation, after which all ranks end; None does not
            watch for that.

    Raises:
        RankFailedError: this rank only saw the network fail because another rank had failed, or waited too
        long.
    """
    mine = run / "failures" / f"rank-{rank}.txt"
    for old in (mine, mine.with_suffix(".network.txt"), mine.with_suffix(".stack.txt")):
        old.unlink(missing_ok=True)
    if _world() > 1:
        record_memory(mine.parent, rank)
    started = time.time()
    with _watched(run, rank, doing, hang_s):
        try:
            yield
        except Exception as error:
            if isinstance(error, StoppedEarlyError) and collected_by_torchrun():
                # torchrun asks the ranks to leave when one of them has died, and does not say why.
                if died := _dead_ranks(mine, range(_world()), certain=True):
                    raise RankFailedError(describe_deaths(died, where=doing)) from None
            if isinstance(error, NotFiniteError | RankFailedError | StoppedEarlyError):
                raise
            if not _is_network(error):
                _report(mine, doing, error)
                raise
            raise RankFailedError(_of_others(mine, rank, doing, error, started)) from error


@contextmanager
def _watched(run: Path, rank: int, doing: str, hang_s: float | None) -> Iterator[None]:
    """Run a watchdog during the block, if it is to be watched, there are several ranks, and none runs yet."""
    world = _world()
    if world == 1 or hang_s is None or watchdog() is not None:
        yield
        return
    dog = Watchdog(run, rank=rank, world=world, doing=doing, limit_s=hang_s)
    dog.start()
    try:
        yield
    finally:
        if dog.tells:  # then it ends the process, with a better message than the network's
            dog.join(timeout=5 * dog.every_s)
        dog.end()


def _world() -> int:
    """Count the ranks: those of the process group, or those that are to meet in it."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _report(file: Path, doing: str, error: Exception) -> None:
    """Leave a message that says all, or else the traceback."""
    message, _ = message_of(error)
    text = "".join(traceback.format_exception(error)) if message.startswith(OUR_FAULT) else f"{message}\n"
    if not file.parent.parent.is_dir():  # a run that could not begin leaves nothing
        return
    # A full disk may be the very failure: its message must come out.
    with contextlib.suppress(OSError, UsageError):
        atomic_write(file, f"{file.name.partition('.')[0]} failed in {doing}\n{text}")


def _is_network(error: Exception) -> bool:
    if describe_memory_error(error) is not None:
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in NETWORK_WORDS)


def _of_others(mine: Path, rank: int, doing: str, error: Exception, started: float) -> str:
    """Say who failed, of the others: the first report among theirs, or who died without one."""
    _report(mine.with_suffix(".network.txt"), doing, error)
    first = _report_of_others(mine, started)
    if first is not None:
        report = first.read_text(encoding="utf-8")
        return f"{first.stem} failed first ({first}), and rank {rank} stops:\n{report}"
    unheard = [r for r in range(_world()) if not (mine.parent / f"rank-{r}.network.txt").exists()]
    if died := _dead_ranks(mine, unheard):
        return describe_deaths(died, where=f"{doing}, where rank {rank} waited for it")
    silent_ranks = f"no word from {', '.join(map(str, unheard))}; " if unheard else ""
    return (
        f"rank {rank} waited in {doing} for a rank that died without a word (killed? out of memory?),"
        f" or never came: {silent_ranks}{error}"
    )


def _dead_ranks(mine: Path, ranks: Iterable[int], *, certain: bool = False) -> dict[int, RankMemory]:
    """Return those of the ranks that left their memory and are gone, or may be.

    Args:
        mine: the report of this rank.
        ranks: those to look at.
        certain: leave out the ranks of other machines, of which this one cannot see whether they are gone.
    """
    left = {rank: read_memory(memory_folder(mine.parent), rank) for rank in ranks}
    gone = (True,) if certain else (True, None)
    return {rank: memory for rank, memory in left.items() if memory and memory.has_died() in gone}


def _report_of_others(mine: Path, started: float) -> Path | None:
    """Wait a moment for the report of a rank that failed since ``started``."""
    give_up = time.monotonic() + WAIT_FOR_REPORT_S
    while True:
        others = [
            p
            for p in mine.parent.glob("rank-*.txt")
            if p != mine and p.name.count(".") == 1 and p.stat().st_mtime >= started - 60.0
        ]
        if others:
            return min(others, key=lambda p: p.stat().st_mtime)
        if time.monotonic() > give_up:
            return None
        time.sleep(0.1)
