"""Translation and scoring of a split with a fine-tuned run: ``hypotheses.S.jsonl``, ``scores.S.json``.

S is the name of the split, or ``SPLIT@DATA`` if the data is not the data that the run was trained on.

The split is cut into batches before the batches are distributed over the ranks. A video therefore always has
the same neighbours in its batch, and its translation is identical to the last bit on 1, 2 or 3 ranks. Every
video counts once. Each rank holds the complete language model, without DeepSpeed, or the language model is
partitioned by ZeRO-3 and all ranks work in step. The model generates freely and never sees the reference.
Select models on dev, and translate test once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from signllm.config import FinetuneConfig, datasets_of, load_config
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import Mixture, make_absolute, open_mixture
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.index import Split
from signllm.distributed.failures import fail_together
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import stop_if_preempted
from signllm.distributed.ranks import Ranks, start_distributed
from signllm.errors import UsageError
from signllm.inference.partial_translations import PartialTranslations
from signllm.inference.rank_share import RankShare
from signllm.inference.tensorboard_scores import write_scores_to_tensorboard
from signllm.metrics.breakdown import Sentence, compute_breakdowns
from signllm.metrics.hypotheses import (
    Hypothesis,
    exchange_translations,
    gather_hypotheses,
    write_hypotheses_and_scores,
)
from signllm.metrics.scores import (
    Case,
    FinalPeriod,
    ScoreConfig,
    build_tokenizer,
    choose_score_rules,
    get_convention,
    normalize_texts,
    score,
)
from signllm.metrics.significance import RESAMPLES
from signllm.models.sign_llm import GenerationConfig, SignLLM
from signllm.progress import progress
from signllm.stages.alarms import alarms_of_scores
from signllm.stages.batches import make_batch_agreement
from signllm.stages.frame_rate import warn_if_no_frame_rate
from signllm.stages.trained_model import load_sign_llm
from signllm.storage import DataLostError
from signllm.training.checkpoint import COMPLETE, best_checkpoint, complete_checkpoint, read_state
from signllm.validation import NonNegativeInt, PositiveInt, validated

if TYPE_CHECKING:
    from signllm.data.loading.batch import Batch

log = logging.getLogger(__name__)
TRAINING = "train"
KEEP_EVERY = 16
"""Number of batches of a rank after which the translations so far are written to a file."""


@validated
class EvaluateConfig:
    """How a split is translated and scored.

    Attributes:
        batch_size: number of videos that a rank translates at a time; with bf16 weights, translations may
            depend on it.
        beams: number of beams of the search; None uses the setting of the run.
        convention: convention of the scores; None uses ``csl-daily`` for Chinese texts, else
            ``phoenix2014t``.
        final_period: what is done with the final period of a sentence before scoring.
        case: whether the convention decides about lower case, or both sides are lowered, or kept.
        bootstrap: number of resamples for the 95 % confidence intervals; 0 computes none.
        shuffled: also score every translation against the reference of another video, which shows what the
            language model achieves without the video.
        workers: number of processes that decode videos in the background; None uses the setting of the run.
        deepspeed: ``zero3`` partitions the language model over the ranks, for one that does not fit on a
            single device; None keeps the complete model on each rank, which is faster.
        checkpoint: which checkpoint of the run is used: the last one, or the one with the best validation
            value.
    """

    batch_size: PositiveInt = 8
    beams: PositiveInt | None = None
    convention: str | None = None
    final_period: FinalPeriod = "keep"
    case: Case = "convention"
    bootstrap: NonNegativeInt = RESAMPLES
    shuffled: bool = False
    workers: NonNegativeInt | None = None
    deepspeed: str | None = None
    checkpoint: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if self.convention is not None:
            get_convention(self.convention)


def evaluate(
    run: Path, shards: Path | str, split: str, config: EvaluateConfig | None = None
) -> dict[str, Any]:
    """Translate and score a split, and write the results into the run folder (collective).

    Rank 0 writes the files; all ranks return the scores.

    Args:
        run: folder of a fine-tuned run.
        shards: folder or address of shards, or a mixture of them, with the training data or any other data.
        split: name of the split.
        config: settings; by default ``EvaluateConfig()``.

    Returns:
        The contents of ``scores.S.json`` (S: :func:`make_label`): scores with their intervals,
        ``breakdowns``, and how they were computed; with ``shuffled`` also those of
        ``scores.S.shuffled.json`` under that key.

    Raises:
        UsageError: This is not a fine-tuned run, it has no checkpoint, there is no such split, or videos
            cannot be read.
    """
    config = config or EvaluateConfig()
    trained = load_config(run, FinetuneConfig)
    warn_if_no_frame_rate(trained.data)
    dataset = open_mixture(shards)
    videos = dataset.split(split)
    split = videos.name  # the standard name: dev if val was asked for
    ranks = start_distributed()
    checkpoint = best_checkpoint(run) if config.checkpoint == "best" else complete_checkpoint(run)
    model = load_sign_llm(run, checkpoint, zero_file=config.deepspeed)
    if config.deepspeed is None:
        model = model.to(ranks.device)
    generation = trained.generation
    if config.beams is not None:
        generation = dataclasses.replace(generation, beams=config.beams)
    begin = time.perf_counter()
    search = dataclasses.asdict(generation) | {"batch_size": config.batch_size}
    made_with = {
        "checkpoint": [checkpoint.name, json.loads((checkpoint / COMPLETE).read_text())],
        "datasets": [dataclasses.asdict(record) for record in dataset.records(split)],
        "generation": search,
        "deepspeed": config.deepspeed,
    }
    label = make_label(run, dataset, split)
    partial = PartialTranslations(run, label, made_with)
    with fail_together(run, ranks.rank, f"evaluate {split}"):
        hypotheses = translate_split(model, videos, trained.data, generation, config, ranks, partial)
    details = {
        "split": split,
        "checkpoint": checkpoint.name,
        "shards": make_absolute(shards),
        "generation": search,
        "seconds": round(time.perf_counter() - begin, 1),
        **measure_word_coverage(model.words, [hypothesis.characters for hypothesis in hypotheses]),
    }
    rules = _choose_rules(hypotheses, config)
    groups = compute_breakdowns(
        _sentences(hypotheses, videos, rules), rules, _count_training_words(dataset, rules)
    )
    scores = _score_pairings(label, hypotheses, config, rules)
    scores = {name: values | details | {"split": name} for name, values in scores.items()}
    scores[label]["breakdowns"] = groups
    alarms = alarms_of_scores(scores[label], scores.get(f"{label}.shuffled"))
    if ranks.rank == 0:
        for name, pairs in _pairings(label, hypotheses, config):
            write_hypotheses_and_scores(run, name, pairs, scores[name])
        if trained.training.tensorboard:
            write_scores_to_tensorboard(run, read_state(checkpoint).step, scores, hypotheses, alarms)
        partial.remove()
        for alarm in alarms:
            log.warning("%s", alarm)
    control = scores.get(f"{label}.shuffled")
    return scores[label] | ({"shuffled": control} if control else {})


def make_label(run: Path, dataset: Mixture, split: str) -> str:
    """Return the name of a split in the files of a run: ``SPLIT``, or ``SPLIT@DATA`` for other data.

    Datasets are identified by their ``train`` split; data without a ``train`` split counts as other data.
    For a run that recorded no training data, the label is the name of the split.
    """
    own = {record.sha256 for record in datasets_of(run)}
    records = dataset.records(TRAINING)
    if not own or {record.sha256 for record in records} == own:
        return split
    records = records or dataset.records(split)
    names = [re.sub(r"[^\w-]+", "-", record.name) for record in records]
    return f"{split}@{'+'.join(names)}"


def measure_word_coverage(words: WordCodebook, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return ``covered`` as training logs it: the share of characters in words of two or more characters.

    It decreases if the encoder is trained further while the words stay the same. If the word codebook has no
    composed words, the value would be meaningless and the result is empty.
    """
    if not words.words:
        return {}
    characters = torch.tensor(
        [character for sequence in sequences for character in sequence], dtype=torch.int64
    )
    segmentation = words.segment(characters, torch.tensor([len(sequence) for sequence in sequences]))
    return {"covered": float(words.in_composed_words(segmentation).double().mean())}


def translate_split(
    model: SignLLM,
    split: Split,
    data: DataConfig,
    generation: GenerationConfig,
    config: EvaluateConfig,
    ranks: Ranks,
    partial: PartialTranslations,
) -> list[Hypothesis]:
    """Translate every video of a split once (collective); every rank returns all translations in order.

    The translations so far are written to ``partial`` every ``KEEP_EVERY`` batches and when the job is asked
    to stop. Those that are there already, written by any number of ranks, are not computed again.

    Raises:
        UsageError: Videos cannot be read; raised on all ranks after all other videos have been translated.
        StoppedEarlyError: The job was asked to stop between two batches.
        DataLostError: The storage of the videos did not come back in time.
    """
    # Unreadable videos are reported at the end, by all ranks alike: if one rank raised an error at once, the
    # others would wait for it forever.
    data = dataclasses.replace(data, max_bad=math.inf)
    translated = gather_hypotheses(partial.read() if ranks.rank == 0 else [], ranks)
    share = RankShare(
        VideoSource(split, data, augment=False),
        batch_size=config.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        done=[hypothesis.place for hypothesis in translated],
    )
    if len(share):
        loader = Loader(
            share,
            batch_size=config.batch_size,
            shuffle=False,
            epochs=1,
            workers=config.workers,
            agree=make_batch_agreement(ranks),
        )
        batches = loader.batches_until(1)
        with progress(batches, f"translating {split.name}", unit="batches", enabled=ranks.rank == 0) as bar:
            try:
                for number, batch in enumerate(loader, 1):
                    translated += _translate_batch(model, batch.to(ranks.device), share, generation)
                    bar.advance()
                    stop_if_preempted(ranks.device)
                    if number % KEEP_EVERY == 0:
                        translated = _keep(translated, partial, ranks)
            except (StoppedEarlyError, DataLostError):  # raised on all ranks together
                translated = _keep(translated, partial, ranks)
                raise
    hypotheses = gather_hypotheses(translated, ranks)
    unreadable = [hypothesis for hypothesis in hypotheses if hypothesis.problem]
    if unreadable:
        first = unreadable[0]
        raise UsageError(
            f"{len(unreadable)} of {len(hypotheses)} videos cannot be read",
            where=f"{split.tars[split.samples[first.place].shard]}: {first.id}: {first.problem}",
            remedy="`signllm shards verify` names the damage; shard these videos again",
        )
    return hypotheses


def _keep(translated: list[Hypothesis], partial: PartialTranslations, ranks: Ranks) -> list[Hypothesis]:
    """Write what all ranks have translated so far to ``partial``, and return it (collective)."""
    hypotheses = gather_hypotheses(translated, ranks)
    if ranks.rank == 0:
        partial.write(hypotheses)
    return hypotheses


def _translate_batch(
    model: SignLLM, batch: Batch, share: RankShare, generation: GenerationConfig
) -> list[Hypothesis]:
    """Translate a batch, without the samples that only pad it; unreadable videos are kept with the reason."""
    problems = dict(batch.bad)
    hypotheses = []
    for place, generated in enumerate(model.generate(batch, generation)):
        name = batch.ids[place]
        position = int(batch.positions[place])
        if position < len(share):
            hypotheses.append(
                Hypothesis(
                    place=share.place(position),
                    id=name,
                    hypothesis=generated.text,
                    reference=batch.texts[place],
                    characters=generated.characters,
                    words=generated.words,
                    problem=problems.get(name, ""),
                    language=batch.languages[place],
                )
            )
    return hypotheses


def _choose_rules(hypotheses: Sequence[Hypothesis], config: EvaluateConfig) -> ScoreConfig:
    """Return the rules for scoring these texts: by their language, unless the configuration names others."""
    return choose_score_rules(
        {hypothesis.language for hypothesis in hypotheses},
        [hypothesis.reference for hypothesis in hypotheses],
        convention=config.convention,
        final_period=config.final_period,
        case=config.case,
    )


def _score_pairings(
    split: str, hypotheses: list[Hypothesis], config: EvaluateConfig, rules: ScoreConfig
) -> dict[str, dict[str, Any]]:
    """Return the scores of the translations, and of the shuffled ones if configured, each by its name."""
    return {
        name: score(
            [pair.hypothesis for pair in pairs],
            [pair.reference for pair in pairs],
            rules,
            bootstrap=config.bootstrap,
        )
        for name, pairs in _pairings(split, hypotheses, config)
    }


def _sentences(hypotheses: Sequence[Hypothesis], videos: Split, rules: ScoreConfig) -> list[Sentence]:
    """Return the translations with the properties by which the breakdowns group them."""
    texts = normalize_texts(
        [hypothesis.hypothesis for hypothesis in hypotheses],
        [hypothesis.reference for hypothesis in hypotheses],
        rules,
    )
    return [
        Sentence(
            hypothesis=text,
            reference=reference,
            characters=len(hypothesis.characters),
            words=len(hypothesis.words),
            signer=videos.samples[hypothesis.place].signer,
        )
        for hypothesis, text, reference in zip(hypotheses, *texts, strict=True)
    ]


def _count_training_words(dataset: Mixture, rules: ScoreConfig) -> Counter[str] | None:
    """Return word → its count in the training texts of the same data; None if there is no train split."""
    if TRAINING not in dataset.splits:
        return None
    texts = [sample.text for sample in dataset.split(TRAINING).samples]
    tokens = build_tokenizer(rules)
    return Counter(word for text in normalize_texts(texts, texts, rules)[0] for word in tokens(text))


def _pairings(
    split: str, hypotheses: list[Hypothesis], config: EvaluateConfig
) -> list[tuple[str, list[Hypothesis]]]:
    """Return the names of the scores, and the hypotheses that are scored under each."""
    pairings = [(split, hypotheses)]
    if config.shuffled:
        pairings.append((f"{split}.shuffled", exchange_translations(hypotheses)))
    return pairings
