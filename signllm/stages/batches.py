"""Shards to batches, and losses on held-out videos: what the stages share between data and ``fit()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from signllm.data.index import Split
from signllm.data.mixture import open_mixture
from signllm.data.pipeline import Bad, Collect, DataConfig, Loader, VideoSource
from signllm.data.sample_table import ShardSample
from signllm.data.source import Source
from signllm.models.gather import reduce_sum
from signllm.training.engine import Ranks, TrainingConfig
from signllm.training.preemption import leave_together
from signllm.training.validation import Validate

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


def held_out_losses(
    shards: Path | str,
    data: DataConfig,
    training: TrainingConfig,
    ranks: Ranks,
    *,
    exchanged: bool = False,
) -> Validate | None:
    """Return a function for a model's mean losses over the ``dev`` split, or None if there is no such split.

    All ranks call it; every batch counts by its real videos. Between two batches it raises StoppedEarlyError
    on all ranks once one of them is asked to leave. ``exchanged``: each video also meets another's text.
    """
    index = open_mixture(shards)
    if DEV not in index.splits:
        return None
    split = index.split(DEV)
    source = VideoSource(split, data)
    others = other_texts(split.samples) if exchanged and len(split) > 1 else None
    loader = Loader(
        source,
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        epochs=1,
        bad_of_all=bad_of_all(ranks),
    )

    def validate(model: nn.Module, step: int) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        videos = 0.0
        for batch in loader:
            leave_together(ranks.device)
            if others is not None:
                batch = replace(batch, other_texts=[others[name] for name in batch.ids])
            shares: dict[str, Any] = model(batch.to(ranks.device))
            real = float(reduce_sum(batch.is_real.sum().float()))
            summed = reduce_sum(torch.stack([share.double() for share in shares.values()]))
            for name, value in zip(shares, summed.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value * real
            videos += real
        return {name: total / max(videos, 1.0) for name, total in totals.items()}

    return validate


def other_texts(samples: Sequence[ShardSample]) -> dict[str, str]:
    """Return id of each video → text of another of its language; one alone in it keeps its own."""
    by_language: dict[str, list[ShardSample]] = {}
    for sample in samples:
        by_language.setdefault(sample.language, []).append(sample)
    return {
        own.id: other.text
        for group in by_language.values()
        for own, other in zip(group, [group[-1], *group], strict=False)
    }
