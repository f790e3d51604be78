"""The two phases of stage 3: on recorded characters with a frozen encoder, then jointly on video."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from signllm.config import FinetuneConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.pipeline import CharacterSource, VideoSource
from signllm.data.loading.sample_source import SampleSource
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.metrics.scores import METRICS
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.stages.alarms import AlarmMonitor
from signllm.stages.batches import TRAIN, StageContext, training_batches
from signllm.stages.dev_validation import make_translation_validator
from signllm.stages.initial_run import load_recorded_characters
from signllm.stages.parameter_groups import parameter_groups
from signllm.stages.sample_logger import SampleLogger
from signllm.training.callbacks import AlarmLogger, ExtraFiles, Outcome
from signllm.training.checkpoint import install_weights
from signllm.training.engine import TrainingConfig, deepspeed_settings, import_deepspeed
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from signllm.training.training_log import read_log
from signllm.validation import to_plain

FROZEN = "frozen"
"""Folder of the first phase inside the run folder."""


def training_phases(config: FinetuneConfig) -> tuple[TrainingConfig | None, TrainingConfig | None]:
    """Return the training settings of the frozen and the joint phase; None for a phase that is left out.

    ``training.epochs`` counts the epochs of both, ``training.steps`` limits each.
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
    init: Path,
    context: StageContext,
) -> Outcome:
    """Train what follows the characters (word vectors, projector, adapters) with a frozen encoder.

    Validation is the same as in the joint phase, on the videos of ``dev``, for which no characters are
    recorded.
    """
    model = _build_model(config, words, training, context.ranks)
    install_weights(model.vq_sign, encoder, where=init)
    model.vq_sign.requires_grad_(False)
    model.vq_sign.saved_when_frozen = True
    source = CharacterSource(context.dataset.split(TRAIN), load_recorded_characters(init, words))
    return _train(model, source, config, training, context, AlarmMonitor())


def train_jointly(
    config: FinetuneConfig,
    training: TrainingConfig,
    words: WordCodebook,
    start: Callable[[SignLLM], None] | None,
    context: StageContext,
) -> Outcome:
    """Train everything on video; ``start`` installs the first weights, None if the phase has a checkpoint."""
    gc.collect()  # frees the hooks and, under ZeRO-3, the partitions of the frozen phase's engine
    model = _build_model(config, words, training, context.ranks)
    if start is not None:
        start(model)
    source = VideoSource(context.dataset.split(TRAIN), config.data)
    return _train(model, source, config, training, context, AlarmMonitor(read_log(context.run / FROZEN)))


def _train(
    model: SignLLM,
    source: SampleSource,
    config: FinetuneConfig,
    training: TrainingConfig,
    context: StageContext,
    alarms: AlarmMonitor,
) -> Outcome:
    validate = make_translation_validator(context, config.data, training, config.generation)
    scores = {name: kind.higher_is_better for name, kind in METRICS.items()}
    callbacks = [
        *standard_callbacks(training, validate, scores=scores, settings=to_plain(config)),
        AlarmLogger(alarms),
        ExtraFiles(model.words.save),
    ]
    if training.tensorboard:
        callbacks.append(SampleLogger(context, config.data, training.show, config.generation))
    return fit(
        model,
        training_batches(source, training, context.ranks),
        config=training,
        context=context,
        parameter_groups=parameter_groups(model, training, config),
        callbacks=callbacks,
    )


def _build_model(
    config: FinetuneConfig, words: WordCodebook, trained_by: TrainingConfig, ranks: Ranks
) -> SignLLM:
    import_deepspeed()  # joins the process group before zero.Init reads the number of ranks
    torch.manual_seed(config.training.seed)
    settings = deepspeed_settings(trained_by, world=ranks.world)
    return build_sign_llm(config.sign_llm, words, deepspeed=settings)
