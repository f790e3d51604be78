"""Words composed anew in the middle of stage 3 (``recompose_every``): as characters drift, words follow.

A recomposition turns a checkpoint into another one of the same step, from which training goes on: the
checkpoint's encoder reads the train split again, CRA composes with the settings of the words before, and what
was learnt about a word follows its spelling. Checkpoints know no ranks and no ZeRO stage, so neither does
this; step, schedule, place in the data and everything else stay. A job killed at any point does the same
again, with the characters that are already on disk.

Not in the paper, and not at the end of training: nothing would learn the new words any more. The trade: every
recomposition reads all training videos once without gradient, and loads the language model again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from signllm.config import ComposeConfig, FinetuneConfig
from signllm.cra.composition import WordsConfig
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.plain import from_plain
from signllm.stages.agreement import once
from signllm.stages.finetuned import STAGE, load_encoder
from signllm.stages.train_characters import train_characters
from signllm.training.checkpoint import load_moments, load_weights, read_state, revision_of, save
from signllm.training.engine import Ranks, TrainingConfig
from signllm.training.epochs import Batches, last_step
from signllm.training.metrics import TrainingLog, read_log

OFFSETS = "word_vectors.words"
AT = "recomposed_at"
"""In the record that words carry: the step of stage 3 at which they were composed."""


def recompositions(every: int, training: TrainingConfig, batches: Batches, step: int) -> Iterator[int]:
    """Yield the steps from ``step`` on behind which words are composed anew: each ``every`` epochs.

    Never at the end; ``every`` 0 gives none. Accumulation may make an epoch no whole number of steps: then
    the step before.

    Args:
        every: epochs.
        training: says where the end is.
        batches: their state stands where ``step`` left it.
        step: optimizer steps so far.
    """
    if every == 0:
        return
    end, yielded = last_step(training, batches, step), 0
    for epoch in itertools.count(every, every):
        left = batches.batches_until(epoch)
        due = step + left // training.accumulation
        if due >= end:
            return
        if left >= 0 and due > yielded:
            yield (yielded := due)


def is_recomposed(words: WordCodebook, step: int) -> bool:
    """Whether these words were composed at this step."""
    return words.config.get(AT) == step


def words_settings(words: WordCodebook) -> WordsConfig:
    """Return the settings that words were composed with, for composing them again.

    Raises:
        UsageError: they carry none, or those of another version.
    """
    where = "words.json of --init"
    if "words" not in words.config:
        raise UsageError(
            "the words do not say how they were composed, so --recompose-every cannot do it again",
            where=where,
            remedy="run signllm compose on the --init run again",
        )
    settings = from_plain(WordsConfig, words.config["words"], where=where, name="config.words")
    assert isinstance(settings, WordsConfig)
    return settings


def recompose(
    checkpoint: Path,
    before: WordCodebook,
    *,
    config: FinetuneConfig,
    training: TrainingConfig,
    run: Path,
    shards: Path | str,
    ranks: Ranks,
) -> WordCodebook:
    """Compose words anew at a checkpoint, write the checkpoint that has them, and return them (all ranks).

    Args:
        checkpoint: the last of ``run``.
        before: its words.
        config: of the run; its ``data`` say how the videos are read.
        training: how the joint phase is trained.
        run: gets the characters, the checkpoint and the words.
        shards: folder of the shards.
        ranks: who takes part.

    Raises:
        UsageError: characters that cannot be composed, a codebook that collapsed among them.
    """
    compose = ComposeConfig(words=words_settings(before), data=replace(config.data, cache_gb=0.0))
    vq_sign = load_encoder(config, checkpoint).to(ranks.device)
    train = train_characters(run, shards, vq_sign, checkpoint, compose)
    train.encode(once(train.missing, ranks), ranks)

    def rewrite() -> WordCodebook:
        state = read_state(checkpoint, stage=STAGE)
        characters, counts = train.packed()
        try:
            after = train.compose(characters, counts)
        except UsageError as error:
            raise UsageError(
                f"words cannot be composed anew at step {state.step}: {error.what}",
                where=checkpoint,
                remedy="go on with the words there are by --recompose-every 0, or begin another --run with a "
                "lower --training.learning-rate",
            ) from error
        after = replace(after, config={**after.config, AT: state.step})
        _log(run, state.step, _change(before, after, characters, counts), training)
        weights, moments = load_weights(checkpoint), load_moments(checkpoint)
        save(
            run,
            state,
            carried_over(weights, before, after),
            carried_over(moments, before, after),
            keep=training.keep,
            beside=after.save,
            revision=revision_of(checkpoint) + 1,
        )
        after.save(run)
        return after

    return once(rewrite, ranks)


def carried_over(
    tensors: Mapping[str, Tensor], before: WordCodebook, after: WordCodebook
) -> dict[str, Tensor]:
    """Return weights or moments by name for other words: each word's row follows its spelling.

    A word that was not there before starts at 0, as every word did, so its vector is that of its characters.
    All other tensors stay, those of characters and of s₀ too.
    """
    assert before.codes == after.codes
    known = {word: row for row, word in enumerate(before.words, start=1)}
    pairs = [(row, known[word]) for row, word in enumerate(after.words, start=1) if word in known]
    new, old = torch.tensor([(0, 0), *pairs], dtype=torch.int64).T

    def follow(rows: Tensor) -> Tensor:
        followed = rows.new_zeros(1 + len(after.words), rows.shape[1])
        followed[new] = rows[old]
        return followed

    return {name: follow(t) if name.endswith(OFFSETS) else t for name, t in tensors.items()}


def _change(
    before: WordCodebook, after: WordCodebook, characters: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
    """Return what a recomposition changed: words now, the share of the old ones kept, what each covers."""
    kept = len(set(before.words) & set(after.words))
    return {
        "composed_words": len(after.words),
        "kept_words": kept / len(before.words) if before.words else 1.0,
        "covered/old_words": covered(before, characters, counts),
        "covered/new_words": covered(after, characters, counts),
    }


def covered(words: WordCodebook, characters: np.ndarray, counts: np.ndarray) -> float:
    """Return the share of packed characters (sum N,) that lie in words of two and more."""
    found = words.segment(torch.from_numpy(characters), torch.from_numpy(counts))
    return float(words.in_composed_words(found).double().mean())


def _log(run: Path, step: int, values: Mapping[str, float], training: TrainingConfig) -> None:
    """Write the values once, also when a kill makes the recomposition start again (rank 0)."""
    with TrainingLog(run, STAGE, resumed_step=step, tensorboard=training.tensorboard) as log:
        if not any(values.keys() <= line.keys() for line in read_log(run) if line.get("step") == step):
            log.write(step, values)
