"""Words are composed again during stage 3 (``recompose_every``), so that they follow drifting characters.

A recomposition turns a checkpoint into another one of the same step, from which training continues: the
checkpoint's encoder reads the train split again, CRA composes words with the same settings, and what was
learnt about a word is kept if its spelling still exists. Step, schedule, position in the data and everything
else stay. It depends neither on the number of ranks nor on the ZeRO stage, and a job that is killed at any
point repeats it with the characters that are already on disk.

It is not in the paper. It never happens at the end of training, where nothing would learn the new words.
Every recomposition reads all training videos once without gradient, and loads the language model again.
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
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.plain import from_plain
from signllm.stages.train_characters import open_train_characters
from signllm.stages.trained_model import STAGE, load_encoder
from signllm.training.checkpoint import (
    checkpoint_revision,
    load_moments,
    load_weights,
    read_state,
    save_checkpoint,
)
from signllm.training.engine import TrainingConfig
from signllm.training.epochs import Batches, last_step
from signllm.training.training_log import TrainingLog, read_log

OFFSETS = "word_vectors.words"
RECOMPOSED_AT = "recomposed_at"
"""Key in the record of the words: the step of stage 3 at which they were composed."""


def recomposition_steps(every: int, training: TrainingConfig, batches: Batches, step: int) -> Iterator[int]:
    """Yield the steps from ``step`` on after which words are composed again, one every ``every`` epochs.

    The last step is left out, and ``every`` 0 yields none. If accumulation makes an epoch no whole number of
    steps, the step before its end is taken.

    Args:
        every: number of epochs between two recompositions.
        training: number of epochs and steps.
        batches: batches whose state is that after ``step``.
        step: number of optimizer steps so far.
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
    """Return whether these words were composed at this step."""
    return words.config.get(RECOMPOSED_AT) == step


def words_settings(words: WordCodebook) -> WordsConfig:
    """Return the settings with which words were composed, for composing them again.

    Raises:
        UsageError: the words record no settings, or those of another version.
    """
    where = "words.json of --init"
    if "words" not in words.config:
        raise UsageError(
            "the words do not record how they were composed, so --recompose-every cannot repeat it",
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
    """Compose words again at a checkpoint, write a checkpoint with them, and return them (all ranks).

    Args:
        checkpoint: the last checkpoint of ``run``.
        before: its words.
        config: configuration of the run.
        training: configuration of the joint phase.
        run: the run folder, which gets the characters, the checkpoint and the words.
        shards: folder or address of the shards.
        ranks: the ranks.

    Raises:
        UsageError: the characters cannot be composed, for example because the codebook collapsed.
    """
    compose = ComposeConfig(words=words_settings(before), data=replace(config.data, cache_gb=0.0))
    vq_sign = load_encoder(config, checkpoint).to(ranks.device)
    train = open_train_characters(run, shards, vq_sign, checkpoint, compose)
    train.encode(run_on_rank_zero(train.missing, ranks), ranks)

    def rewrite() -> WordCodebook:
        state = read_state(checkpoint, stage=STAGE)
        characters, counts = train.packed()
        try:
            after = train.compose(characters, counts)
        except UsageError as error:
            raise UsageError(
                f"words cannot be composed again at step {state.step}: {error.what}",
                where=checkpoint,
                remedy="keep the present words by --recompose-every 0, or begin another --run with a "
                "lower --training.learning-rate",
            ) from error
        after = replace(after, config={**after.config, RECOMPOSED_AT: state.step})
        _log(run, state.step, _change(before, after, characters, counts), training)
        weights, moments = load_weights(checkpoint), load_moments(checkpoint)
        save_checkpoint(
            run,
            state,
            move_word_rows(weights, before, after),
            move_word_rows(moments, before, after),
            keep=training.keep,
            extra_files=after.save,
            revision=checkpoint_revision(checkpoint) + 1,
        )
        after.save(run)
        return after

    return run_on_rank_zero(rewrite, ranks)


def move_word_rows(
    tensors: Mapping[str, Tensor], before: WordCodebook, after: WordCodebook
) -> dict[str, Tensor]:
    """Return weights or moments with the rows of word offsets moved to the new numbers of the words.

    A new word starts at 0, as every word did, so its vector is that of its characters. All other tensors
    stay, also the offsets of characters and of s₀.
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
    """Return statistics of a recomposition: number of words, share kept, coverage before and after it."""
    kept = len(set(before.words) & set(after.words))
    return {
        "composed_words": len(after.words),
        "kept_words": kept / len(before.words) if before.words else 1.0,
        "covered/old_words": covered_share(before, characters, counts),
        "covered/new_words": covered_share(after, characters, counts),
    }


def covered_share(words: WordCodebook, characters: np.ndarray, counts: np.ndarray) -> float:
    """Return the share of packed characters (sum N,) that are part of words of two or more characters."""
    segmentation = words.segment(torch.from_numpy(characters), torch.from_numpy(counts))
    return float(words.in_composed_words(segmentation).double().mean())


def _log(run: Path, step: int, values: Mapping[str, float], training: TrainingConfig) -> None:
    """Write the values once, even if the recomposition is repeated after a kill (rank 0)."""
    with TrainingLog(run, STAGE, resumed_step=step, tensorboard=training.tensorboard) as log:
        if not any(values.keys() <= line.keys() for line in read_log(run) if line.get("step") == step):
            log.write(step, values)
