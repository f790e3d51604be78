"""Stage 3: sign words are aligned with a frozen language model that writes the sentence (design 2.3).

Two phases, each with an engine of its own: ``frozen_epochs`` on the characters that ``compose`` recorded,
with the encoder at rest and no video decoded (into ``run/frozen``), then jointly on video. The encoder and
the words come from the run ``init``; what ``run`` holds afterwards needs ``init`` no more. The paper trains
jointly from the start: frozen_epochs 0.
"""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from signllm.config import FinetuneConfig, load_config, open_run
from signllm.cra.word_codebook import WordCodebook
from signllm.data.pipeline import CharacterSource, VideoSource
from signllm.errors import UsageError
from signllm.models.sign_llm import SignLLM, build_sign_llm
from signllm.stages.batches import held_out_losses, open_split, training_batches
from signllm.stages.composed import encoder_and_words, recorded_characters, with_encoder_of
from signllm.stages.parameter_groups import parameter_groups
from signllm.training.checkpoint import install_weights, load_weights
from signllm.training.engine import (
    Ranks,
    TrainingConfig,
    deepspeed_settings,
    import_deepspeed,
    start_distributed,
)
from signllm.training.loop import Outcome, fit

STAGE = "finetune"
FROZEN = "frozen"


def finetune(config: FinetuneConfig, run: Path, init: Path, shards: Path) -> Outcome:
    """Train SignLLM on the ``train`` split of ``shards`` into ``run``, from encoder and words of ``init``.

    Raises:
        UsageError: ``init`` lacks a stage or its words belong to another codebook, no language model, other
            settings.
    """
    ranks = start_distributed(timeout_s=config.training.timeout_s)
    config = with_language_of(shards, with_encoder_of(init, config))
    encoder, words = encoder_and_words(init)
    open_run(run, config)
    if ranks.rank == 0:
        words.save(run)
    dist.barrier()

    frozen, joint = phases(config)
    model = _build(config, words, ranks, trained_by=frozen or joint)
    install_weights(model.vq_sign, encoder, where=init)
    if frozen is not None:
        outcome = _train_frozen(model, config, run if joint is None else run / FROZEN, init, shards, ranks)
        if joint is None or outcome.preempted:
            return outcome
        del model
        gc.collect()  # its engine's hooks and, under ZeRO-3, its partitions go before the next one is built
        model = _build(config, words, ranks, trained_by=joint)
        install_weights(model, load_weights(run / FROZEN, stage=STAGE), where=run / FROZEN)
    assert joint is not None
    return fit(
        model,
        training_batches(VideoSource(open_split(shards), config.data), joint, ranks),
        config=joint,
        run=run,
        stage=STAGE,
        parameter_groups=parameter_groups(model, joint, config),
        validate=held_out_losses(shards, config.data, joint, ranks),
    )


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


def with_language_of(shards: Path, config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the commonest language of the training texts, unless it names one."""
    if config.generation.language is not None:
        return config
    languages = Counter(sample.language for sample in open_split(shards).samples)
    generation = replace(config.generation, language=languages.most_common(1)[0][0] if languages else "")
    return replace(config, generation=generation)


def load_sign_llm(run: Path) -> SignLLM:
    """Return the SignLLM of a fine-tuning run as its last checkpoint left it, in evaluation mode, on the CPU.

    Raises:
        UsageError: not a run of stage 3, no whole checkpoint, no language model, weights that do not fit.
    """
    config = load_config(run, FinetuneConfig)
    model = build_sign_llm(config.sign_llm, WordCodebook.load(run))
    install_weights(model, load_weights(run, stage=STAGE), where=run)
    return model.eval()


def _build(
    config: FinetuneConfig, words: WordCodebook, ranks: Ranks, *, trained_by: TrainingConfig | None
) -> SignLLM:
    assert trained_by is not None
    import_deepspeed()  # joined to the ranks before zero.Init asks how many there are
    torch.manual_seed(config.training.seed)
    settings = deepspeed_settings(trained_by, world=ranks.world)
    return build_sign_llm(config.sign_llm, words, deepspeed=settings)


def _train_frozen(
    model: SignLLM, config: FinetuneConfig, run: Path, init: Path, shards: Path, ranks: Ranks
) -> Outcome:
    """Train what follows the characters: word vectors, projector (and adapters); the encoder rests."""
    model.vq_sign.requires_grad_(False)
    model.vq_sign.saved_when_frozen = True
    training, _ = phases(config)
    assert training is not None
    source = CharacterSource(open_split(shards), recorded_characters(init, model.words))
    return fit(
        model,
        training_batches(source, training, ranks),
        config=training,
        run=run,
        stage=STAGE,
        parameter_groups=parameter_groups(model, training, config),
    )
