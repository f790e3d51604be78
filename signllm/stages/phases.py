"""The two phases of stage 3: on recorded characters with the encoder at rest, then jointly on video."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.pipeline import CharacterSource, VideoSource
from signllm.errors import UsageError
from signllm.evaluation.scores import METRICS
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.stages.agreement import once
from signllm.stages.alarms import Watch
from signllm.stages.batches import open_split, training_batches
from signllm.stages.composed import recorded_characters
from signllm.stages.finetuned import STAGE
from signllm.stages.held_out import held_out_translations
from signllm.stages.looks import Looking
from signllm.stages.parameter_groups import parameter_groups
from signllm.stages.recompose import is_recomposed, recompose, recompositions
from signllm.training.checkpoint import install_weights, last_checkpoint, read_state
from signllm.training.engine import Ranks, TrainingConfig, deepspeed_settings, import_deepspeed
from signllm.training.loop import Outcome, fit
from signllm.training.metrics import read_log

FROZEN = "frozen"
"""Folder of the first phase within the run."""


def phases(config: FinetuneConfig) -> tuple[TrainingConfig | None, TrainingConfig | None]:
    """Return how the frozen and the joint phase are trained; None for a phase that there is not.

    ``training.epochs`` counts both, ``training.steps`` bounds each.
    """
    training, frozen = config.training, None
    if config.frozen_epochs:
        rate = config.frozen_learning_rate or training.learning_rate
        frozen = replace(training, epochs=config.frozen_epochs, learning_rate=rate)
    if training.epochs is None:
        return frozen, training
    epochs = training.epochs - config.frozen_epochs
    if epochs < 0:
        raise UsageError(
            f"frozen_epochs is {config.frozen_epochs}, more than the {training.epochs} of training.epochs",
            remedy="training.epochs counts both phases",
        )
    return frozen, (replace(training, epochs=epochs) if epochs else None)


def train_frozen(
    config: FinetuneConfig,
    training: TrainingConfig,
    words: WordCodebook,
    encoder: Mapping[str, Tensor],
    run: Path,
    init: Path,
    shards: Path | str,
    ranks: Ranks,
) -> Outcome:
    """Train what follows the characters: word vectors, projector (and adapters); the encoder rests.

    Validated as the joint phase is, on the videos of ``dev``, of which no characters are recorded.
    """
    model = _build(config, words, training, ranks)
    install_weights(model.vq_sign, encoder, where=init)
    model.vq_sign.requires_grad_(False)
    model.vq_sign.saved_when_frozen = True
    source = CharacterSource(open_split(shards), recorded_characters(init, words))
    return fit(
        model,
        training_batches(source, training, ranks),
        config=training,
        run=run,
        stage=STAGE,
        parameter_groups=parameter_groups(model, training, config),
        validate=held_out_translations(shards, config.data, training, ranks, config.generation),
        scores=METRICS,
        watch=Watch(),
        look=Looking(shards, config.data, training.show, ranks, config.generation),
        beside=words.save,
    )


def train_jointly(
    config: FinetuneConfig,
    training: TrainingConfig,
    words: WordCodebook,
    start: Callable[[SignLLM], None],
    run: Path,
    shards: Path | str,
    ranks: Ranks,
) -> Outcome:
    """Train everything on video, each stretch between two recompositions with an engine of its own."""
    batches = training_batches(VideoSource(open_split(shards), config.data), training, ranks)
    validate = held_out_translations(shards, config.data, training, ranks, config.generation)
    while True:
        gc.collect()  # hooks and, under ZeRO-3, partitions of the engine before go first
        found = once(lambda: last_checkpoint(run), ranks)
        step = 0
        if found is not None:
            state = read_state(found, stage=STAGE)
            batches.load_state_dict(state.order)
            step = state.step
        due = recompositions(config.recompose_every, training, batches, step)
        until = next(due, None)
        is_due = found is not None and until == step
        if is_due:
            until = next(due, None)
        if is_due and not is_recomposed(words, step):
            words = recompose(
                found, words, config=config, training=training, run=run, shards=shards, ranks=ranks
            )
        model = _build(config, words, training, ranks)
        if found is None:
            start(model)
        outcome = fit(
            model,
            batches,
            config=training,
            run=run,
            stage=STAGE,
            parameter_groups=parameter_groups(model, training, config),
            validate=validate,
            scores=METRICS,
            watch=Watch(read_log(run / FROZEN)),
            look=Looking(shards, config.data, training.show, ranks, config.generation),
            beside=words.save,
            until=until,
        )
        if outcome.preempted or outcome.step != until:
            return outcome
        del model


def _build(config: FinetuneConfig, words: WordCodebook, trained_by: TrainingConfig, ranks: Ranks) -> SignLLM:
    import_deepspeed()  # joined to the ranks before zero.Init asks how many there are
    torch.manual_seed(config.training.seed)
    settings = deepspeed_settings(trained_by, world=ranks.world)
    return build_sign_llm(config.sign_llm, words, deepspeed=settings)
