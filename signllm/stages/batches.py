"""Shards to batches: what the stages share between data and ``fit()``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from signllm.data.index import Split
from signllm.data.mixture import open_mixture
from signllm.data.pipeline import Agree, Loader, Readiness
from signllm.data.sample_source import SampleSource
from signllm.training.engine import Ranks, TrainingConfig
from signllm.training.preemption import asked_to_leave, stopped_early
from signllm.training.watchdog import beat

TRAIN, DEV = "train", "dev"


def open_split(shards: Path | str, name: str = TRAIN) -> Split:
    """Open a split of shards or of a mixture; the error of a missing one names those that exist."""
    return open_mixture(shards).split(name)


def training_batches(source: SampleSource, training: TrainingConfig, ranks: Ranks) -> Loader:
    """Return this rank's endless, shuffled batches for ``fit()``."""
    return Loader(
        source,
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        seed=training.seed,
        agree=agreement(ranks),
    )


def agreement(ranks: Ranks) -> Agree:
    """Return a function by which the ranks take a batch together or, where one lacks it, none does.

    One small reduction per batch; texts travel only if there are any. A rank whose batch is late takes part
    every second, so that the others are never long inside one reduction: a wait for storage is no hang, and
    a job that is asked to leave during it leaves at once, with the state before the batch.
    """

    def agree(own: Readiness) -> Readiness:
        with asked_to_leave() as flag:
            asked = flag.requested
        facts: list[int] = [not own.ready, own.waits, own.failure is not None, len(own.bad), asked]
        if ranks.world > 1:
            summed = torch.tensor(facts, dtype=torch.int64, device=ranks.device)
            dist.all_reduce(summed)
            facts = summed.tolist()
        missing, waiting, failed, bad, asking = facts
        if waiting:
            beat()
        if missing and asking:
            raise stopped_early()
        of_ranks: list[Any] = [(own.failure, own.bad)]
        if ranks.world > 1 and (failed or bad):
            of_ranks = [None] * ranks.world
            dist.all_gather_object(of_ranks, (own.failure, own.bad))
        return Readiness(
            ready=not missing,
            waits=bool(waiting),
            failure=next((failure for failure, _ in of_ranks if failure is not None), None),
            bad=tuple(sample for _, samples in of_ranks for sample in samples) if not missing else (),
        )

    return agree
