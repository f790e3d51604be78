"""Stage 2: encode the training videos once, then compose their characters into words (CRA).

All ranks share the encoding, with one file of characters per shard. Rank 0 then composes the words, and all
ranks get its words or its error.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from signllm.config import ComposeConfig, PretrainConfig, load_config
from signllm.cra.curve import write_curve
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.mixture import Mixture
from signllm.distributed.agreement import run_on_rank_zero
from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.stages.encoding import load_vq_sign
from signllm.stages.train_characters import open_train_characters
from signllm.training.checkpoint import last_checkpoint

log = logging.getLogger(__name__)


def compose(run: Path, dataset: Mixture, config: ComposeConfig, *, out: Path | None = None) -> WordCodebook:
    """Write the characters of the train split, and the words composed from them, into a run (all ranks).

    Args:
        run: folder of a ``pretrain`` run, whose last checkpoint encodes the videos.
        dataset: the dataset, whose ``train`` split is read.
        config: settings of data and words. Nothing is augmented, and frames are cropped as in the run's
            evaluations.
        out: folder for the words, so that one run may have several word codebooks; None takes the run folder.

    Raises:
        UsageError: the run, its checkpoint or the split does not exist, or the characters cannot be composed.
    """
    ranks = start_distributed(timeout_s=max(1800.0, 2 * config.data.storage_timeout_s))
    pretrained = load_config(run, PretrainConfig)
    _require_same_frames(pretrained, config)
    data = replace(config.data, augment=pretrained.data.augment, fps=pretrained.data.fps)
    config = replace(config, data=data)
    folder = out or run
    vq_sign = load_vq_sign(run, pretrained).to(ranks.device)
    train = open_train_characters(run, dataset, vq_sign, last_checkpoint(run), config)

    def prepare() -> tuple[list[int], WordCodebook | None]:
        missing = train.missing()
        folder.mkdir(parents=True, exist_ok=True)
        words = None if missing else _load_finished_words(folder, train.words_config)
        if words is not None and not (folder / "words.png").is_file():
            write_curve(folder, words.curve)
        if words is None:  # a folder must not hold words that belong to other characters
            (folder / "words.json").unlink(missing_ok=True)
            (folder / "words.png").unlink(missing_ok=True)
        return missing, words

    def make_words() -> WordCodebook:
        words = train.compose(*train.packed())
        words.save(folder)
        write_curve(folder, words.curve)
        return words

    missing, words = run_on_rank_zero(prepare, ranks)
    train.encode(missing, ranks)
    words = words or run_on_rank_zero(make_words, ranks)
    log.info("%d words over %d characters", len(words.words), words.codes)
    return words


def _require_same_frames(pretrained: PretrainConfig, config: ComposeConfig) -> None:
    if config.data.size != pretrained.data.size:
        raise UsageError(
            f"the encoder was trained on frames of {pretrained.data.size} pixels, not {config.data.size}",
            where="--data.size",
            remedy=f"--data.size {pretrained.data.size}, or the recipe that the run was pretrained with",
        )
    if config.data.fps not in (None, pretrained.data.fps):
        raise UsageError(
            f"the encoder was trained at {pretrained.data.fps} frames per second, not {config.data.fps:g}",
            where="--data.fps",
            remedy="leave the option out, so that the rate of the pretrained run is used",
        )


def _load_finished_words(folder: Path, words_config: dict[str, Any]) -> WordCodebook | None:
    """Return the words in a folder if they were composed from the same characters with the same settings."""
    try:
        words = WordCodebook.load(folder)
    except UsageError:
        return None
    return words if words.config == words_config else None
