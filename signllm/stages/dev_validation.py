"""Validation on the ``dev`` split: losses and, if it selects the checkpoint, a score of translations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from signllm.data.loading.batch import Batch
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.sample_table import ShardSample
from signllm.distributed.collectives import reduce_sum
from signllm.distributed.preemption import stop_if_preempted
from signllm.errors import UsageError
from signllm.metrics.hypotheses import Hypothesis, gather_hypotheses
from signllm.metrics.scores import METRICS, choose_score_rules, compute_metric
from signllm.models.language_model.generation import GenerationConfig
from signllm.models.sign_llm import SignLLM
from signllm.stages.batches import DEV, StageContext, make_batch_agreement
from signllm.training.engine import TrainingConfig
from signllm.training.validation import Validate


def make_loss_validator(context: StageContext, data: DataConfig, training: TrainingConfig) -> Validate | None:
    """Return a function that returns a model's mean losses over ``dev``; None if there is no such split.

    All ranks call that function. Every batch is weighted by its number of real videos, and nothing is
    augmented. If a rank is preempted, it raises StoppedEarlyError on all ranks between two batches.
    """
    return _make_validator(context, data, training, exchanged=False, generation=None)


def make_translation_validator(
    context: StageContext,
    data: DataConfig,
    training: TrainingConfig,
    generation: GenerationConfig,
) -> Validate | None:
    """Return such a function for a model with a language model; it adds ``l_sim_shuffled`` and a score.

    ``l_sim_shuffled`` is the loss when each video is paired with another video's text. If
    ``training.keep_best`` names a score (``bleu4``), all videos are also translated, as ``evaluate`` does
    with ``generation`` but without sampling, and scored by the convention of their language.
    """
    plain = replace(generation, temperature=None, n_best=1) if training.keep_best in METRICS else None
    return _make_validator(context, data, training, exchanged=True, generation=plain)


def require_dev_split(
    context: StageContext, training: TrainingConfig, *, scores: Collection[str] = ()
) -> None:
    """Check that there is a ``dev`` split if settings need one, before anything is written.

    Args:
        context: the dataset.
        training: the settings.
        scores: names of validated values that exist only for translations of ``dev``.

    Raises:
        UsageError: a score selects the checkpoint or ends training, and there is no ``dev`` split.
    """
    if DEV in context.dataset.splits:
        return
    if training.patience is not None:
        what, option = f"patience {training.patience} counts validations", "patience"
    elif training.keep_best in scores:
        what, option = f"{training.keep_best} selects the best checkpoint", "keep-best"
    else:
        return
    raise UsageError(
        f"{what}, but there is no {DEV} split: {context.dataset.source}",
        where=f"--training.{option}",
        remedy=f"shard a {DEV} split, or give --training.{option} None",
    )


def _make_validator(
    context: StageContext,
    data: DataConfig,
    training: TrainingConfig,
    *,
    exchanged: bool,
    generation: GenerationConfig | None,
) -> Validate | None:
    ranks = context.ranks
    if DEV not in context.dataset.splits:
        return None
    split = context.dataset.split(DEV)
    others = other_texts(split.samples) if exchanged and len(split) > 1 else None
    loader = Loader(
        VideoSource(split, data, augment=False),
        batch_size=training.videos_per_forward,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        epochs=1,
        agree=make_batch_agreement(ranks),
    )

    def validate(model: nn.Module, step: int) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        videos, hypotheses = 0.0, []
        for batch in loader:
            stop_if_preempted(ranks.device)
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
                hypotheses += _translate_batch(model, batch, generation)
        values = {name: total / max(videos, 1.0) for name, total in totals.items()}
        if generation is not None and training.keep_best is not None:
            values[training.keep_best] = _score(training.keep_best, gather_hypotheses(hypotheses, ranks))
        return values

    return validate


def _translate_batch(model: nn.Module, batch: Batch, generation: GenerationConfig) -> list[Hypothesis]:
    """Return the hypotheses of a batch, without padding and unreadable videos."""
    assert isinstance(model, SignLLM)
    return [
        Hypothesis(
            place=int(batch.positions[row]),
            id=batch.ids[row],
            hypothesis=generated.text,
            reference=batch.texts[row],
            characters=[],
            words=[],
            language=batch.languages[row],
        )
        for row, generated in enumerate(model.generate(batch, generation))
        if batch.is_real[row]
    ]


def _score(name: str, hypotheses: Sequence[Hypothesis]) -> float:
    references = [hypothesis.reference for hypothesis in hypotheses]
    rules = choose_score_rules({hypothesis.language for hypothesis in hypotheses}, references)
    return compute_metric(name, [hypothesis.hypothesis for hypothesis in hypotheses], references, rules)


def other_texts(samples: Sequence[ShardSample]) -> dict[str, str]:
    """Return, by id, the text of another video of the same language, or its own if there is no other."""
    by_language: dict[str, list[ShardSample]] = {}
    for sample in samples:
        by_language.setdefault(sample.language, []).append(sample)
    return {
        own.id: other.text
        for group in by_language.values()
        for own, other in zip(group, [group[-1], *group], strict=False)
    }
