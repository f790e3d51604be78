"""Shards to batches: what the stages share between data and ``fit()``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from signllm.data.index import Split
from signllm.data.mixture import open_mixture
from signllm.data.pipeline import Bad, Collect, Loader
from signllm.data.source import Source
from signllm.training.engine import Ranks, TrainingConfig

TRAIN, DEV = "train", "dev"


def open_split(shards: Path | str, name: str = TRAIN) -> Split:
    """Open a split of shards or of a mixture; the error of a missing one names those that exist."""
    return open_mixture(shards).split(name)


def training_batches(source: Source, training: TrainingConfig, ranks: Ranks) -> Loader:
    """Return this rank's endless, shuffled batches for ``fit()``."""
    return Loader(
        source,
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        seed=training.seed,
        bad_of_all=bad_of_all(ranks),
    )


def bad_of_all(ranks: Ranks) -> Collect | None:
    """Return a function that collects the bad samples of a step over the ranks; None for one rank.

    One small reduction per step, under way while the step is computed; names travel only if there are any.
    """
    if ranks.world == 1:
        return None

    def collect(own: Bad) -> Callable[[], Bad]:
        count = torch.tensor(len(own), device=ranks.device)
        counting = dist.all_reduce(count, async_op=True)

        def told() -> Bad:
            counting.wait()
            if not count.item():
                return ()
            of_ranks: list[Any] = [None] * ranks.world
            dist.all_gather_object(of_ranks, own)
            return tuple(bad for of_rank in of_ranks for bad in of_rank)

        return told

    return collect
