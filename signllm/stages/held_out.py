"""What is validated: losses on the videos of ``dev`` and, where that selects, the score of translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from signllm.data.batch import Batch
from signllm.data.mixture import open_mixture
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.data.sample_table import ShardSample
from signllm.errors import UsageError
from signllm.evaluation.hypotheses import Hypothesis, gather_hypotheses
from signllm.evaluation.scores import METRICS, choose_score_rules, compute_metric
from signllm.models.collectives import reduce_sum
from signllm.models.generation import GenerationConfig
from signllm.models.sign_llm import SignLLM
from signllm.stages.batches import DEV, agreement
from signllm.training.engine import Ranks, TrainingConfig
from signllm.training.preemption import leave_together
from signllm.training.validation import Validate


def held_out_losses(
    shards: Path | str, data: DataConfig, training: TrainingConfig, ranks: Ranks
) -> Validate | None:
    """Return a function for a model's mean losses over the ``dev`` split, or None if there is no such split.

    All ranks call it; every batch counts by its real videos, without augmentation. Between two batches it
    raises StoppedEarlyError on all ranks once one of them is asked to leave.
    """
    return _validate(shards, data, training, ranks, exchanged=False, generation=None)


def held_out_translations(
    shards: Path | str,
    data: DataConfig,
    training: TrainingConfig,
    ranks: Ranks,
    generation: GenerationConfig,
) -> Validate | None:
    """Return the same of a model with a language model: its ``l_sim_shuffled`` also, and perhaps a score.

    Each video also meets another's text. Where ``training.keep_best`` names a score (``bleu4``), all videos
    are also translated, as ``evaluate`` does with ``generation`` but without sampling, and scored by the
    convention of their language.

    Raises:
        UsageError: a score is to select, and there is no ``dev`` split.
    """
    scored = training.keep_best in METRICS
    plain = replace(generation, temperature=None, n_best=1) if scored else None
    validate = _validate(shards, data, training, ranks, exchanged=True, generation=plain)
    if scored and validate is None:
        raise UsageError(
            f"{training.keep_best} is to select a checkpoint, and there are no videos of {DEV}",
            where=shards,
            remedy=f"shard a {DEV} split, or give --training.keep-best None",
        )
    return validate


def _validate(
    shards: Path | str,
    data: DataConfig,
    training: TrainingConfig,
    ranks: Ranks,
    *,
    exchanged: bool,
    generation: GenerationConfig | None,
) -> Validate | None:
    index = open_mixture(shards)
    if DEV not in index.splits:
        return None
    split = index.split(DEV)
    others = other_texts(split.samples) if exchanged and len(split) > 1 else None
    loader = Loader(
        VideoSource(split, data, augment=False),
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        epochs=1,
        agree=agreement(ranks),
    )

    def validate(model: nn.Module, step: int) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        videos, written = 0.0, []
        for batch in loader:
            leave_together(ranks.device)
            if others is not None:
                batch = replace(batch, other_texts=[others[name] for name in batch.ids])
            batch = batch.to(ranks.device)
            shares: dict[str, Any] = model(batch)
            real = float(reduce_sum(batch.is_real.sum().float()))
            summed = reduce_sum(torch.stack([share.double() for share in shares.values()]))
            for name, value in zip(shares, summed.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value * real
            videos += real
            if generation is not None:
                written += _written(model, batch, generation)
        values = {name: total / max(videos, 1.0) for name, total in totals.items()}
        if generation is not None and training.keep_best is not None:
            values[training.keep_best] = _score(training.keep_best, gather_hypotheses(written, ranks))
        return values

    return validate


def _written(model: nn.Module, batch: Batch, generation: GenerationConfig) -> list[Hypothesis]:
    """Translate a batch; what only fills it up, or could not be read, is left out."""
    assert isinstance(model, SignLLM)
    return [
        Hypothesis(
            place=int(batch.positions[row]),
            id=batch.ids[row],
            hypothesis=one.text,
            reference=batch.texts[row],
            characters=[],
            words=[],
            language=batch.languages[row],
        )
        for row, one in enumerate(model.generate(batch, generation))
        if batch.is_real[row]
    ]


def _score(name: str, written: Sequence[Hypothesis]) -> float:
    references = [one.reference for one in written]
    rules = choose_score_rules({one.language for one in written}, references)
    return compute_metric(name, [one.hypothesis for one in written], references, rules)


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
