"""Translate a split with a fine-tuned run and score it: ``hypotheses.S.jsonl``, ``scores.S.json``.

S is the split's name, and for other data than the run was trained on ``SPLIT@DATA``.

The split is cut into batches before it is dealt out to the ranks, so a video meets the same neighbours, and
gives the same translation to the last bit, on 1, 2 or 3 ranks; every video counts once. The language
model is whole on each rank, without DeepSpeed, or partitioned by ZeRO-3, with all ranks in step. Texts are
written freely, never with the reference as input; choose models on dev, translate test once.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from signllm.config import FinetuneConfig, datasets_of, load_config
from signllm.cra.word_codebook import WordCodebook
from signllm.data.index import Split
from signllm.data.mixture import make_absolute, open_mixture, read_dataset_records
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.errors import UsageError
from signllm.evaluation.board import show_scores
from signllm.evaluation.breakdown import Sentence, breakdowns
from signllm.evaluation.hypotheses import Hypothesis, gathered, shuffled, write_scored
from signllm.evaluation.scores import (
    SAMPLES,
    Case,
    FinalPeriod,
    ScoreConfig,
    convention_named,
    normalised,
    rules_for,
    score,
    tokenizer_of,
)
from signllm.evaluation.share import Share
from signllm.evaluation.unfinished import Unfinished
from signllm.models.sign_llm import GenerationConfig, SignLLM
from signllm.progress import progress
from signllm.stages.alarms import alarms_of_scores
from signllm.stages.batches import agreement
from signllm.stages.finetuned import load_sign_llm
from signllm.stages.frame_rate import warn_if_unknown
from signllm.storage import DataLostError
from signllm.training.checkpoint import COMPLETE, best_checkpoint, read_state, whole_checkpoint
from signllm.training.engine import Ranks, start_distributed
from signllm.training.failures import failing_together
from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.preemption import leave_together

if TYPE_CHECKING:
    from signllm.data.batch import Batch

log = logging.getLogger(__name__)
TRAINING = "train"
KEEP_EVERY = 16
"""Batches of a rank after which the translations so far are written down."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a split is translated and scored.

    Attributes:
        batch_size: videos that a rank translates at a time; with bf16 weights, translations may depend on it.
        beams: of the search; None takes the run's own setting.
        convention: of the scores; None takes ``csl-daily`` for Chinese texts, else ``phoenix2014t``.
        final_period: what happens to a sentence's last period before scoring.
        case: that of the convention, or both sides lowered, or kept.
        bootstrap: resamples of the 95 % intervals; 0 leaves them out.
        shuffled: also score every translation against another video's reference: what the language model
            reaches without looking at the video.
        workers: processes that decode ahead; None takes the run's own setting.
        deepspeed: ``zero3`` partitions the language model over the ranks, for one that fits on none of them;
            None: each rank holds all of it, which is faster.
        checkpoint: of the run: its last, or the one of its best validated value.
    """

    batch_size: int = 8
    beams: int | None = None
    convention: str | None = None
    final_period: FinalPeriod = "keep"
    case: Case = "convention"
    bootstrap: int = SAMPLES
    shuffled: bool = False
    workers: int | None = None
    deepspeed: str | None = None
    checkpoint: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(
                f"batch_size is {self.batch_size}", where="--batch-size", remedy="give 1 or more"
            )
        if self.convention is not None:
            convention_named(self.convention)


def evaluate(
    run: Path, shards: Path | str, split: str, config: EvaluateConfig | None = None
) -> dict[str, Any]:
    """Translate and score a split into the run folder (all ranks; rank 0 writes, all return the scores).

    Args:
        run: folder of a fine-tuned run.
        shards: folder or address of shards, or a mixture of them, each video once; of the training data or
            any other.
        split: which of its splits.
        config: by default ``EvaluateConfig()``.

    Returns:
        What ``scores.S.json`` holds (S: :func:`label_of`): scores with their intervals, ``breakdowns``, how
        they were made; with ``shuffled`` also those of ``scores.S.shuffled.json`` under that key.

    Raises:
        UsageError: not a fine-tuned run, no checkpoint, no such split, or videos that cannot be read.
    """
    config = config or EvaluateConfig()
    trained = load_config(run, FinetuneConfig)
    warn_if_unknown(trained.data)
    videos = open_mixture(shards).split(split)
    split = videos.name  # dev where val was asked for
    ranks = start_distributed()
    checkpoint = best_checkpoint(run) if config.checkpoint == "best" else whole_checkpoint(run)
    model = load_sign_llm(run, checkpoint, zero_file=config.deepspeed)
    if config.deepspeed is None:
        model = model.to(ranks.device)
    generation = trained.generation
    if config.beams is not None:
        generation = dataclasses.replace(generation, beams=config.beams)
    begun = time.perf_counter()
    search = dataclasses.asdict(generation) | {"batch_size": config.batch_size}
    made_with = {
        "checkpoint": [checkpoint.name, json.loads((checkpoint / COMPLETE).read_text())],
        "datasets": [dataclasses.asdict(record) for record in read_dataset_records(shards, split)],
        "generation": search,
        "deepspeed": config.deepspeed,
    }
    label = label_of(run, shards, split)
    unfinished = Unfinished(run, label, made_with)
    with failing_together(run, ranks.rank, f"evaluate {split}"):
        hypotheses = translate_split(model, videos, trained.data, generation, config, ranks, unfinished)
    about = {
        "split": split,
        "checkpoint": checkpoint.name,
        "shards": make_absolute(shards),
        "generation": search,
        "seconds": round(time.perf_counter() - begun, 1),
        **covered_by(model.words, [one.characters for one in hypotheses]),
    }
    rules = _rules(hypotheses, config)
    groups = breakdowns(_sentences(hypotheses, videos, rules), rules, _seen_in_training(shards, rules))
    scores = _scored(label, hypotheses, config, rules)
    scores = {name: found | about | {"split": name} for name, found in scores.items()}
    scores[label]["breakdowns"] = groups
    alarms = alarms_of_scores(scores[label], scores.get(f"{label}.shuffled"))
    if ranks.rank == 0:
        for name, pairs in _pairings(label, hypotheses, config):
            write_scored(run, name, pairs, scores[name])
        if trained.training.tensorboard:
            show_scores(run, read_state(checkpoint).step, scores, hypotheses, alarms)
        unfinished.remove()
        for alarm in alarms:
            log.warning("%s", alarm)
    control = scores.get(f"{label}.shuffled")
    return scores[label] | ({"shuffled": control} if control else {})


def label_of(run: Path, shards: Path | str, split: str) -> str:
    """Return what a split is called in the files of a run: ``SPLIT``, or ``SPLIT@DATA`` of other data.

    Data is known by its ``train`` split: where that is not beside the split, it is other data. A run that
    recorded none has the split's name.
    """
    own = {record.sha256 for record in datasets_of(run)}
    given = read_dataset_records(shards, TRAINING)
    if not own or {record.sha256 for record in given} == own:
        return split
    given = given or read_dataset_records(shards, split)
    names = [re.sub(r"[^\w-]+", "-", record.name) for record in given]
    return f"{split}@{'+'.join(names)}"


def covered_by(words: WordCodebook, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return ``covered`` as training logs it: the share of the characters in words of two and more.

    It falls when an encoder learns on and its words stay as they were. Where characters are all the words
    there are, it says nothing about them, and is left out.
    """
    if not words.words:
        return {}
    characters = torch.tensor([character for one in sequences for character in one], dtype=torch.int64)
    segmentation = words.segment(characters, torch.tensor([len(one) for one in sequences]))
    return {"covered": float(words.in_composed_words(segmentation).double().mean())}


def translate_split(
    model: SignLLM,
    split: Split,
    data: DataConfig,
    generation: GenerationConfig,
    config: EvaluateConfig,
    ranks: Ranks,
    unfinished: Unfinished,
) -> list[Hypothesis]:
    """Translate every video of a split once (all ranks); all ranks return all, in the split's order.

    Translations are kept in ``unfinished`` every ``KEEP_EVERY`` batches and when the ranks are asked to
    leave; those kept there before, by any number of ranks, are not made again.

    Raises:
        UsageError: videos cannot be read; raised by all ranks, after all others were tried.
        StoppedEarlyError: asked to leave between two batches.
        DataLostError: the storage of the videos stayed away.
    """
    # An unreadable video is reported below, by all ranks alike: no rank may leave while others wait for it.
    data = dataclasses.replace(data, max_bad=math.inf)
    found = gathered(unfinished.read() if ranks.rank == 0 else [], ranks)
    share = Share(
        VideoSource(split, data, augment=False),
        batch_size=config.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        done=[one.place for one in found],
    )
    if len(share):
        loader = Loader(
            share,
            batch_size=config.batch_size,
            shuffle=False,
            epochs=1,
            workers=config.workers,
            agree=agreement(ranks),
        )
        batches = loader.batches_until(1)
        with progress(batches, f"translating {split.name}", unit="batches", enabled=ranks.rank == 0) as bar:
            try:
                for number, batch in enumerate(loader, 1):
                    found += _translated(model, batch.to(ranks.device), share, generation)
                    bar.advance()
                    leave_together(ranks.device)
                    if number % KEEP_EVERY == 0:
                        found = _kept(found, unfinished, ranks)
            except (StoppedEarlyError, DataLostError):  # of all ranks alike
                found = _kept(found, unfinished, ranks)
                raise
    everything = gathered(found, ranks)
    unreadable = [one for one in everything if one.problem]
    if unreadable:
        first = unreadable[0]
        raise UsageError(
            f"{len(unreadable)} of {len(everything)} videos cannot be read",
            where=f"{split.tars[split.samples[first.place].shard]}: {first.id}: {first.problem}",
            remedy="`signllm shards verify` names the damage; shard these videos again",
        )
    return everything


def _kept(found: list[Hypothesis], unfinished: Unfinished, ranks: Ranks) -> list[Hypothesis]:
    """Write what all ranks have translated so far and return it (all ranks)."""
    everything = gathered(found, ranks)
    if ranks.rank == 0:
        unfinished.write(everything)
    return everything


def _translated(model: SignLLM, batch: Batch, share: Share, generation: GenerationConfig) -> list[Hypothesis]:
    """Translate a batch; what only fills it up is left out, unreadable videos are kept with the reason."""
    problems = dict(batch.bad)
    found = []
    for place, written in enumerate(model.generate(batch, generation)):
        name = batch.ids[place]
        position = int(batch.positions[place])
        if position < len(share):
            found.append(
                Hypothesis(
                    place=share.place(position),
                    id=name,
                    hypothesis=written.text,
                    reference=batch.texts[place],
                    characters=written.characters,
                    words=written.words,
                    problem=problems.get(name, ""),
                    language=batch.languages[place],
                )
            )
    return found


def _rules(hypotheses: Sequence[Hypothesis], config: EvaluateConfig) -> ScoreConfig:
    """Return how these texts are scored: by their language, unless something else is asked for."""
    return rules_for(
        {one.language for one in hypotheses},
        [one.reference for one in hypotheses],
        convention=config.convention,
        final_period=config.final_period,
        case=config.case,
    )


def _scored(
    split: str, hypotheses: list[Hypothesis], config: EvaluateConfig, rules: ScoreConfig
) -> dict[str, dict[str, Any]]:
    """Score translations, and their deranged pairing if asked, each under its name."""
    return {
        name: score(
            [one.hypothesis for one in pairs],
            [one.reference for one in pairs],
            rules,
            bootstrap=config.bootstrap,
        )
        for name, pairs in _pairings(split, hypotheses, config)
    }


def _sentences(hypotheses: Sequence[Hypothesis], videos: Split, rules: ScoreConfig) -> list[Sentence]:
    """Return the translations with what they are grouped by."""
    texts = normalised([one.hypothesis for one in hypotheses], [one.reference for one in hypotheses], rules)
    return [
        Sentence(
            hypothesis=written,
            reference=said,
            characters=len(one.characters),
            words=len(one.words),
            signer=videos.samples[one.place].signer,
        )
        for one, written, said in zip(hypotheses, *texts, strict=True)
    ]


def _seen_in_training(shards: Path | str, rules: ScoreConfig) -> Counter[str] | None:
    """Count the words of the training texts beside a split; None if there are none."""
    data = open_mixture(shards)
    if TRAINING not in data.splits:
        return None
    texts = [sample.text for sample in data.split(TRAINING).samples]
    tokens = tokenizer_of(rules)
    return Counter(word for text in normalised(texts, texts, rules)[0] for word in tokens(text))


def _pairings(
    split: str, hypotheses: list[Hypothesis], config: EvaluateConfig
) -> list[tuple[str, list[Hypothesis]]]:
    """Return what is scored under which name."""
    pairings = [(split, hypotheses)]
    if config.shuffled:
        pairings.append((f"{split}.shuffled", shuffled(hypotheses)))
    return pairings
