"""Stage 3: align sign words with a frozen language model that writes the sentence.

It has two phases, each with an engine of its own. In the first, ``frozen_epochs`` epochs train on the
characters that ``compose`` recorded, with the encoder frozen, so that only the videos of ``dev`` are decoded
(in ``run/frozen``). In the second, everything is trained jointly on video. Encoder and words come from the
run ``init``, which is not needed afterwards. The paper trains jointly from the start: frozen_epochs 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from signllm.config import FinetuneConfig, open_run
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import Mixture
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.ranks import start_distributed
from signllm.metrics.scores import METRICS
from signllm.models.sign_llm import SignLLM
from signllm.stages.batches import TRAIN, StageContext
from signllm.stages.dev_validation import require_dev_split
from signllm.stages.initial_run import load_encoder_and_words, with_encoder_from
from signllm.stages.language_model_settings import resolve_language_model
from signllm.stages.phases import FROZEN, train_frozen, train_jointly, training_phases
from signllm.stages.trained_model import STAGE, load_words
from signllm.training.callbacks import Outcome
from signllm.training.checkpoint import install_weights, last_checkpoint, load_weights
from signllm.training.trackers import require_packages


def finetune(
    config: FinetuneConfig, run: Path, init: Path, dataset: Mixture, *, words_folder: Path | None = None
) -> Outcome:
    """Train SignLLM on the ``train`` split into ``run``, from the encoder and words of ``init``.

    Args:
        config: settings of the stage.
        run: the run folder.
        init: the run folder of stages 1 and 2.
        dataset: the dataset.
        words_folder: folder with other words of the same encoder (``compose --out``); None takes those of
            ``init``.

    Raises:
        UsageError: ``init`` lacks a stage, its words belong to another codebook, the language model is
            missing, or the settings contradict the run.
    """
    ranks = start_distributed(timeout_s=config.training.timeout_s)
    require_packages(config.training.trackers, ranks)
    context = StageContext(run=run, stage=STAGE, ranks=ranks, dataset=dataset)
    require_dev_split(context, config.training, scores=METRICS)
    config = with_language_of(dataset, with_encoder_from(init, config))
    encoder, words = load_encoder_and_words(init, words_folder)
    config = with_resolved_language_model(config, context)
    open_run(run, config, dataset.records(TRAIN))
    frozen, joint = training_phases(config)

    def save_current_words() -> tuple[bool, WordCodebook]:
        last = last_checkpoint(run)
        checkpoint = last or last_checkpoint(run / FROZEN)
        current = words if checkpoint is None else load_words(checkpoint, run)
        current.save(run)
        return last is not None, current

    joint_has_begun, words = run_on_rank_zero(save_current_words, ranks)
    if frozen is not None and (joint is None or not joint_has_begun):
        phase = context if joint is None else replace(context, run=run / FROZEN)
        outcome = train_frozen(config, frozen, words, encoder, init, phase)
        if joint is None or outcome.preempted:
            return outcome
    assert joint is not None

    def start(model: SignLLM) -> None:
        if frozen is None:
            install_weights(model.vq_sign, encoder, where=init)
        else:
            install_weights(model, load_weights(run / FROZEN, stage=STAGE), where=run / FROZEN)

    return train_jointly(config, joint, words, None if joint_has_begun else start, context)


def with_resolved_language_model(config: FinetuneConfig, context: StageContext) -> FinetuneConfig:
    """Return the configuration with everything recorded in it that decides a prompt (all ranks).

    Raises:
        UsageError: as in :func:`~signllm.stages.language_model_settings.resolve_language_model`.
    """
    train, ranks = context.dataset.split(TRAIN), context.ranks
    model = run_on_rank_zero(
        lambda: resolve_language_model(config, context.run, train, world=ranks.world), ranks
    )  # on one rank only, because the date in a prompt could differ between ranks
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def with_language_of(dataset: Mixture, config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the most common language of the training texts, unless it names one."""
    if config.generation.language is not None:
        return config
    languages = dataset.split(TRAIN).samples.languages()
    generation = replace(config.generation, language=languages.most_common(1)[0][0] if languages else "")
    return replace(config, generation=generation)
