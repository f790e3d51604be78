"""Stage 2: encode the training videos once, then compose their characters into words (CRA, design 2.2).

All ranks share the encoding and end with the same characters in the order of the shards; composing is
deterministic and takes seconds, so every rank does it and meets the same error, and rank 0 writes. What is
whole and still fits is not made again.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from signllm.config import ComposeConfig, PretrainConfig, load_config
from signllm.cra.composition import compose_words
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.characters import load_characters, save_characters
from signllm.data.index import Split
from signllm.errors import UsageError
from signllm.plain import to_plain
from signllm.stages.batches import TRAIN, open_split
from signllm.stages.encoding import encode_split, load_vq_sign
from signllm.training.checkpoint import last_checkpoint
from signllm.training.engine import Ranks, start_distributed

CHARACTERS_FILE = f"characters.{TRAIN}.safetensors"
log = logging.getLogger(__name__)


def compose(run: Path, shards: Path, config: ComposeConfig) -> WordCodebook:
    """Write the characters of the train split and the words made of them into a pretrained run (all ranks).

    Args:
        run: folder of a ``pretrain`` run; its last checkpoint encodes.
        shards: folder of the shards; their ``train`` split is read.
        config: data and words; augmentation is left out.

    Raises:
        UsageError: no such run, checkpoint or split, or characters that cannot be composed.
    """
    ranks = start_distributed()
    pretrained = load_config(run, PretrainConfig)
    _check_size(pretrained, config)
    vq_sign = load_vq_sign(run, pretrained).to(ranks.device)
    codebook = fingerprint(vq_sign.quantizer.codebook)
    split, made_by = open_split(shards), _made_by(run, config, codebook)
    characters = _known_characters(run, made_by, split)
    words = _known_words(run, config, made_by) if characters else None
    if characters is None:
        characters = encode_split(vq_sign, split, config.data, ranks, batch_size=config.batch_size)
    if words is None:
        words = compose_words(
            np.concatenate(list(characters.values())),
            np.array([len(sequence) for sequence in characters.values()]),
            codes=vq_sign.config.quantizer.codes,
            codebook=codebook,
            config=config.words,
        )
        words = dataclasses.replace(words, config={"words": to_plain(config.words), **made_by})
        _barrier(ranks)  # no rank still looks at what was there before
        if ranks.rank == 0:
            _write(run, characters, words)
        _barrier(ranks)
    log.info("%d words over %d characters", len(words.words), words.codes)
    return words


def _check_size(pretrained: PretrainConfig, config: ComposeConfig) -> None:
    if config.data.size != pretrained.data.size:
        raise UsageError(
            f"the encoder was trained on pictures of {pretrained.data.size} pixels, not {config.data.size}",
            where="--data.size",
            remedy=f"--data.size {pretrained.data.size}, or the recipe that the run was pretrained with",
        )


def _made_by(run: Path, config: ComposeConfig, codebook: str) -> dict[str, Any]:
    """What decides the characters of a video."""
    checkpoint = last_checkpoint(run)
    return {
        "codebook": codebook,
        "checkpoint": checkpoint.name if checkpoint else None,
        "size": config.data.size,
        "max_frames": config.data.max_frames,
    }


def _known_characters(run: Path, made_by: dict[str, Any], split: Split) -> dict[str, np.ndarray] | None:
    """The characters already there, if the same encoder read the same videos in the same way."""
    try:
        characters, _ = load_characters(run / CHARACTERS_FILE)
        recorded = WordCodebook.load(run).config
    except UsageError:
        return None
    is_same = all(recorded.get(key) == value for key, value in made_by.items())
    return characters if is_same and characters.keys() == {sample.id for sample in split.samples} else None


def _known_words(run: Path, config: ComposeConfig, made_by: dict[str, Any]) -> WordCodebook | None:
    """The words already there, if they were composed with the same settings."""
    words = WordCodebook.load(run)
    return words if words.config == {"words": to_plain(config.words), **made_by} else None


def _write(run: Path, characters: dict[str, np.ndarray], words: WordCodebook) -> None:
    """Words go first and come last: characters of one encoding never stand beside the words of another."""
    (run / "words.json").unlink(missing_ok=True)
    save_characters(run / CHARACTERS_FILE, characters, words.codebook)
    words.save(run)


def _barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        torch.distributed.barrier()
