"""Stage 3: sign words are aligned with a frozen language model that writes the sentence (design 2.3).

Two phases, each with an engine of its own: ``frozen_epochs`` on the characters that ``compose`` recorded,
with the encoder at rest and only the videos of ``dev`` decoded (into ``run/frozen``), then jointly on video,
where words may be composed anew every few epochs (:mod:`signllm.stages.recompose`). The encoder and the words
come from the run ``init``; what ``run`` holds afterwards needs ``init`` no more. The paper trains jointly
from the start, on words that stay: frozen_epochs 0, recompose_every 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from signllm.config import FinetuneConfig, open_run
from signllm.cra.word_codebook import WordCodebook
from signllm.data.mixture import read_dataset_records
from signllm.errors import UsageError
from signllm.models.sign_llm import SignLLM
from signllm.stages.agreement import once
from signllm.stages.batches import TRAIN, open_split
from signllm.stages.composed import encoder_and_words, with_encoder_of
from signllm.stages.finetuned import STAGE, words_of
from signllm.stages.language_model_start import settled_language_model
from signllm.stages.phases import FROZEN, phases, train_frozen, train_jointly
from signllm.stages.recompose import words_settings
from signllm.training.checkpoint import install_weights, last_checkpoint, load_weights
from signllm.training.engine import Ranks, start_distributed
from signllm.training.loop import Outcome


def finetune(
    config: FinetuneConfig, run: Path, init: Path, shards: Path | str, *, words_folder: Path | None = None
) -> Outcome:
    """Train SignLLM on the ``train`` split of ``shards`` into ``run``, from encoder and words of ``init``.

    ``words_folder`` holds other words of the same encoder (``compose --out``).

    Raises:
        UsageError: ``init`` lacks a stage or its words belong to another codebook, no language model, other
            settings, words that cannot be composed anew.
    """
    ranks = start_distributed(timeout_s=config.training.timeout_s)
    config = with_language_of(shards, with_encoder_of(init, config))
    encoder, words = encoder_and_words(init, words_folder)
    if config.recompose_every:
        _require_recomposable(config, words)  # refused now, not epochs later
    config = with_settled_language_model(config, run, shards, ranks)
    open_run(run, config, read_dataset_records(shards, TRAIN))
    frozen, joint = phases(config)

    def begun() -> tuple[bool, WordCodebook]:
        last = last_checkpoint(run)
        checkpoint = last or last_checkpoint(run / FROZEN)
        current = words if checkpoint is None else words_of(checkpoint, run)
        current.save(run)
        return last is not None, current

    joint_has_begun, words = once(begun, ranks)
    if frozen is not None and (joint is None or not joint_has_begun):
        phase_run = run if joint is None else run / FROZEN
        outcome = train_frozen(config, frozen, words, encoder, phase_run, init, shards, ranks)
        if joint is None or outcome.preempted:
            return outcome
    assert joint is not None

    def start(model: SignLLM) -> None:
        if frozen is None:
            install_weights(model.vq_sign, encoder, where=init)
        else:
            install_weights(model, load_weights(run / FROZEN, stage=STAGE), where=run / FROZEN)

    return train_jointly(config, joint, words, start, run, shards, ranks)


def _require_recomposable(config: FinetuneConfig, words: WordCodebook) -> None:
    words_settings(words)
    if config.sign_llm.vq_sign is not None and config.sign_llm.vq_sign.quantizer.update == "none":
        raise UsageError(
            "an encoder without codes has no characters to compose anew",
            where="--recompose-every",
            remedy="give 0",
        )


def with_settled_language_model(
    config: FinetuneConfig, run: Path, shards: Path | str, ranks: Ranks
) -> FinetuneConfig:
    """Return the configuration with all that decides a prompt recorded in it (all ranks).

    Raises:
        UsageError: as :func:`~signllm.stages.language_model_start.settled_language_model`.
    """
    model = once(
        lambda: settled_language_model(config, run, open_split(shards), world=ranks.world), ranks
    )  # by one rank: the others may see another day
    return replace(config, sign_llm=replace(config.sign_llm, language_model=model))


def with_language_of(shards: Path | str, config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the commonest language of the training texts, unless it names one."""
    if config.generation.language is not None:
        return config
    languages = open_split(shards).samples.languages()
    generation = replace(config.generation, language=languages.most_common(1)[0][0] if languages else "")
    return replace(config, generation=generation)
