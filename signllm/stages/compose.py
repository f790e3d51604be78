"""Stage 2: encode the training videos once, then compose their characters into words (CRA, design 2.2).

All ranks share the encoding, shard by shard, each shard's characters in a file of their own; rank 0 then
composes, which is deterministic, and all get its words or its error. What is whole and still fits is not made
again: a killed job goes on with the shards that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from signllm.config import ComposeConfig, PretrainConfig, load_config
from signllm.cra.composition import compose_words
from signllm.cra.curve import write_curve
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.characters import characters_file, load_packed, save_characters
from signllm.data.index import ShardIndex, Split
from signllm.errors import UsageError
from signllm.plain import to_plain
from signllm.stages.agreement import once
from signllm.stages.batches import TRAIN
from signllm.stages.encoding import encode_shards, load_vq_sign, missing_shards
from signllm.training.checkpoint import last_checkpoint
from signllm.training.engine import start_distributed

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
    split, shas = _open_train(shards)
    made_by = _made_by(run, config, fingerprint(vq_sign.quantizer.codebook))
    words_config = {
        "words": to_plain(config.words),
        **made_by,
        "shards": hashlib.sha256("".join(shas).encode()).hexdigest()[:16],
    }

    def prepare() -> tuple[list[int], WordCodebook | None]:
        missing = missing_shards(run, split, made_by, shas)
        words = None if missing else _known_words(run, words_config)
        if words is not None and not (run / "words.png").is_file():
            write_curve(run, words.curve)
        if words is None:  # characters of one encoding never stand beside the words of another
            (run / "words.json").unlink(missing_ok=True)
            (run / "words.png").unlink(missing_ok=True)
        return missing, words

    def write(shard: int, characters: dict[str, np.ndarray]) -> None:
        path = characters_file(run, split.name, shard)
        save_characters(path, characters, made_by["codebook"], {**made_by, "shard": shas[shard]})

    def make_words() -> WordCodebook:
        characters, counts = _characters(run, split, config)
        codes = vq_sign.config.quantizer.codes
        words = compose_words(
            characters, counts, codes=codes, codebook=made_by["codebook"], config=config.words
        )
        words = dataclasses.replace(words, config=words_config)
        words.save(run)
        write_curve(run, words.curve)
        return words

    missing, words = once(prepare, ranks)
    encode_shards(vq_sign, split, missing, write, data=config.data, ranks=ranks, batch_size=config.batch_size)
    words = words or once(make_words, ranks)
    log.info("%d words over %d characters", len(words.words), words.codes)
    return words


def _open_train(shards: Path) -> tuple[Split, tuple[str, ...]]:
    """Return the train split and the sha256 of each of its shards."""
    index = ShardIndex(shards)
    split = index.split(TRAIN)
    if len(split) == 0:
        raise UsageError(
            f"the split {TRAIN!r} holds no videos", where=shards, remedy="shard a dataset that has some"
        )
    return split, tuple(entry["sha256"] for entry in index.manifest["splits"][TRAIN]["shards"])


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


def _known_words(run: Path, words_config: dict[str, Any]) -> WordCodebook | None:
    """The words already there, if they were composed of the same characters with the same settings."""
    try:
        words = WordCodebook.load(run)
    except UsageError:
        return None
    return words if words.config == words_config else None


def _characters(run: Path, split: Split, config: ComposeConfig) -> tuple[np.ndarray, np.ndarray]:
    """All characters of the split, packed, and the counts of its videos."""
    paths = [characters_file(run, split.name, shard) for shard in range(len(split.tars))]
    characters, counts = load_packed(paths)
    unreadable, allowed = len(split) - len(counts), config.data.max_bad * len(split)
    if unreadable > allowed or len(counts) == 0:
        raise UsageError(
            f"{unreadable} of {len(split)} videos could not be read, allowed {allowed:g}",
            where=split.tars[0].parent,
            remedy="`signllm shards verify` names the damage; or allow more with data.max_bad",
        )
    return characters, counts
