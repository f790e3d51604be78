"""``python -m tests.stages.outage_on_ranks SHARDS FOLDER``: stage 1 while rank 1's storage is away.

One run after the other is trained into FOLDER: ``plain`` undisturbed; ``stale``, where each shard's first
read is ESTALE; ``away``, where all reads of rank 1 fail for 5.5 s; ``lost``, where they fail for ever;
``asked``, where they do too and rank 0 is asked to leave. What the last two left is then continued. Rank 0
prints a line of JSON for each.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from signllm import storage
from signllm.data.loading.mixture import open_mixture
from signllm.distributed.local_ranks import leave_process_group
from signllm.distributed.preemption import preemption_flag
from signllm.distributed.ranks import start_distributed
from signllm.errors import RunFailedError
from signllm.stages.pretrain import pretrain
from signllm.training.checkpoint import last_checkpoint
from tests.stages import path

READS_BEFORE = 6
STEPS = 9


class Outage:
    """Makes reads of tars fail.

    Args:
        kind: as the runs are called.
        rank: of this process.
    """

    def __init__(self, kind: str, rank: int) -> None:
        self.kind, self.rank = kind, rank
        self.reads, self.began_s, self.failures = 0, 0.0, 0
        self.seen: set[str] = set()

    def fails(self, name: str) -> bool:
        if self.kind == "stale":
            is_first = name not in self.seen
            self.seen.add(name)
            return is_first
        self.reads += 1
        if self.kind == "plain" or self.rank != 1 or self.reads <= READS_BEFORE:
            return False
        self.began_s = self.began_s or time.monotonic()
        return self.kind != "away" or time.monotonic() - self.began_s < 5.5

    def opening(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def open_or_fail(file: Path, *arguments: Any, **named: Any) -> Any:
            if file.suffix == ".tar" and self.fails(file.name):
                self.failures += 1
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(file))
            return opened(file, *arguments, **named)

        return open_or_fail


def train(kind: str, name: str, shards: Path, folder: Path, *, workers: int = 0) -> None:
    """Train a run under an outage, and print how it ended."""
    ranks = start_distributed(timeout_s=300)
    timeout_s = 1.0 if kind == "lost" else 600.0
    data = replace(path.DATA, workers=workers, cache_gb=0.0, storage_timeout_s=timeout_s)
    training = replace(path.TRAINING, steps=STEPS, hang_s=4.0 if kind == "away" else 900.0)
    quantizer = replace(path.PRETRAIN.vq_sign.quantizer, kmeans_start=False)  # which reads, too
    vq_sign = replace(path.PRETRAIN.vq_sign, quantizer=quantizer)
    config = replace(path.PRETRAIN, vq_sign=vq_sign, data=data, training=training)
    outage = Outage(kind, ranks.rank)
    if kind == "asked" and ranks.rank == 0:
        threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began_s = time.monotonic()
    ended: dict[str, Any] = {}
    with preemption_flag(), patch.object(Path, "open", outage.opening(Path.open)):
        try:
            outcome = pretrain(config, folder / name, open_mixture(shards))
            ended = {"step": outcome.step, "preempted": outcome.preempted}
        except RunFailedError as error:
            ended = {"error": type(error).__name__, "message": str(error)}
    checkpoint = last_checkpoint(folder / name)
    ended |= {"run": name, "kind": kind, "rank": ranks.rank, "failures": outage.failures}
    ended |= {"seconds": time.monotonic() - began_s, "checkpoint": checkpoint and checkpoint.name}
    print(json.dumps(ended), flush=True)


def main() -> None:
    """Train all the runs."""
    shards, folder = map(Path, sys.argv[1:])
    storage.FIRST_DELAY_S = 0.01
    for kind in ("plain", "stale", "away", "lost", "asked"):
        train(kind, kind, shards, folder)
    for name in ("lost", "asked"):
        train("plain", name, shards, folder, workers=1)
    leave_process_group()


if __name__ == "__main__":
    main()
