"""Ranks forked from a process that has torch and DeepSpeed loaded: a start costs a second, not ten.

The process that forks must have one thread only: ``OMP_NUM_THREADS=1``, and no training of its own before.
What costs most is that DeepSpeed's Muon, which nobody here uses, decorates a function with ``torch.compile``
when the first engine is made: that imports dynamo and inductor. :func:`preload` does it once, before a fork.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from signllm.distributed.local_ranks import end_with_parent

ENDS_WITHIN_S, GRACE_S = 200.0, 30.0
"""Until ranks count as hung; until those are ended that wait for one that died, as torchrun and srun do."""
log = logging.getLogger(__name__)


def preload() -> None:
    """Import what a rank needs to train; starts no thread."""
    import torch._dynamo  # noqa: F401


def on_forked_ranks(work: Callable[[int], object], ranks: int, report: Path) -> tuple[list[int], bool]:
    """Run ``work(rank)`` as ``ranks`` forked processes until they end.

    Args:
        work: what a rank does; its variables are set as torchrun sets them.
        ranks: how many.
        told: a folder for what each says, ``rank-R.txt``.

    Returns:
        The exit codes, and whether some hung. What hangs, or waits for a rank that died, is made to tell
        where each thread stands (SIGABRT), and ended: gloo meets no other rank while a group is being made,
        and waits for one that died until the group's timeout.
    """
    report.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: the lock that another one holds would stay locked in the fork"
    left = {}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _be_rank(work, rank, ranks, port, report / f"rank-{rank}.txt")
        left[child] = rank
    codes = [0] * ranks
    give_up = time.monotonic() + ENDS_WITHIN_S
    hung = ended_by_us = False
    while left:
        if not (hung or ended_by_us) and time.monotonic() > give_up:
            hung = not any(codes)
            ended_by_us = not hung
            for child in left:
                os.kill(child, signal.SIGABRT)
        for child in list(left):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[left.pop(child)] = code = os.waitstatus_to_exitcode(status)
                if code != 0:
                    give_up = min(give_up, time.monotonic() + GRACE_S)
        time.sleep(0.01)
    if hung:
        for rank in range(ranks):
            log.warning(
                "rank %d of a run that hung:\n%s", rank, (report / f"rank-{rank}.txt").read_text()[-6000:]
            )
    return codes, hung


def _be_rank(work: Callable[[int], object], rank: int, ranks: int, port: int, report: Path) -> None:
    """Do the work of one rank in a forked process, which ends here."""
    code = 1
    try:
        end_with_parent()
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.enable()
        work(rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
