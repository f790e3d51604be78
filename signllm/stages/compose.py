"""Stage 2: encode the training videos once, then compose their characters into words (CRA, design 2.2).

All ranks share the encoding, batch by batch, and end with the same characters in the order of the shards;
composing is deterministic and takes seconds, so every rank does it and meets the same error, and rank 0
writes. What is whole and still fits is not made again.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from signllm.config import ComposeConfig, PretrainConfig, load_config
from signllm.cra.composition import compose_words
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.augment import AugmentConfig
from signllm.data.characters import load_characters, save_characters
from signllm.data.index import ShardIndex
from signllm.data.pipeline import Loader, VideoSource
from signllm.errors import UsageError
from signllm.models.gather import gather_counts, gather_packed
from signllm.models.vq_sign import VQSign, build_vq_sign
from signllm.plain import to_plain
from signllm.progress import progress
from signllm.training.checkpoint import install_weights, last_checkpoint, load_weights
from signllm.training.engine import Ranks, start_distributed

if TYPE_CHECKING:
    from signllm.data.index import Split

CHARACTERS_FILE = "characters.train.safetensors"
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
    made_by = _made_by(run, config, codebook)
    split = ShardIndex(shards).split("train")
    known = _known(run, made_by, split)
    characters = known or encode_split(vq_sign, split, config, ranks)
    words = _known_words(run, config, made_by) if known else None
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


def load_vq_sign(run: Path, config: PretrainConfig) -> VQSign:
    """Build VQ-Sign as a ``pretrain`` run configured it, with the weights of the run's last checkpoint."""
    vq_sign = build_vq_sign(config.vq_sign)
    install_weights(vq_sign, load_weights(run, stage="pretrain"), where=run)
    return vq_sign.eval()


def encode_split(vq_sign: VQSign, split: Split, config: ComposeConfig, ranks: Ranks) -> dict[str, np.ndarray]:
    """Return the characters of every readable video of a split, in its order (all ranks, all get all)."""
    data = dataclasses.replace(config.data, augment=AugmentConfig())
    loader = Loader(
        VideoSource(split, data),
        batch_size=-(-config.batch_size // ranks.world) * ranks.world,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        epochs=1,
    )
    sequences: dict[str, np.ndarray] = {}
    with progress(len(split), "encoding videos", unit="videos", enabled=ranks.rank == 0) as bar:
        for batch in loader:
            batch = batch.to(ranks.device)
            assert batch.frames is not None
            index, counts = vq_sign.encode(batch.frames, batch.frame_counts)
            all_index, all_counts = gather_packed(index, counts).cpu(), gather_counts(counts).cpu()
            places = gather_counts(batch.positions).tolist()
            is_real = gather_counts(batch.is_real.long()).tolist()
            parts = all_index.split(all_counts.tolist())
            for place, part, real in zip(places, parts, is_real, strict=True):
                if real:
                    sequences[split.samples[place].id] = part.numpy()
            bar.advance(sum(is_real))
    if not sequences:
        raise UsageError(
            "no video of the split could be read", remedy="signllm shards verify names the damage"
        )
    return sequences


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


def _barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        torch.distributed.barrier()


def _known(run: Path, made_by: dict[str, Any], split: Split) -> dict[str, np.ndarray] | None:
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
