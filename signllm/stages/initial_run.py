"""The run that stage 3 starts from: its encoder, its words and its recorded characters.

All three belong to one codebook, which is identified by its fingerprint: an encoder that was trained further
needs new words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from signllm.config import FinetuneConfig, PretrainConfig, load_config
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.loading.characters import FOLDER, load_split_characters
from signllm.data.loading.pipeline import DataConfig
from signllm.errors import UsageError
from signllm.models.vq_sign.vq_sign import fingerprinted_tensor
from signllm.stages import pretrain
from signllm.stages.batches import TRAIN
from signllm.training.checkpoint import load_weights


def with_encoder_from(init: Path, config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the encoder of run ``init``; no other weights file is needed then."""
    pretrained = load_config(init, PretrainConfig)
    config = replace(config, data=replace(config.data, fps=config.data.fps or pretrained.data.fps))
    _require_same_frames(pretrained.data, config.data)
    vq_sign = replace(pretrained.vq_sign, encoder=replace(pretrained.vq_sign.encoder, backbone_weights=None))
    return replace(config, sign_llm=replace(config.sign_llm, vq_sign=vq_sign))


def load_encoder_and_words(
    init: Path, words_folder: Path | None = None
) -> tuple[dict[str, Tensor], WordCodebook]:
    """Return the weights of VQ-Sign by name, and the words of run ``init`` or of another folder.

    Raises:
        UsageError: a stage is missing, or the words were composed from another codebook.
    """
    words = WordCodebook.load(words_folder or init)
    weights = load_weights(init, stage=pretrain.STAGE)
    codebook = fingerprint(fingerprinted_tensor(weights, load_config(init, PretrainConfig).vq_sign))
    _require_same_codebook(codebook, words.codebook, (words_folder or init) / "words.json")
    return weights, words


def load_recorded_characters(init: Path, words: WordCodebook) -> Mapping[str, np.ndarray]:
    """Return the characters of every training video that ``compose`` recorded in run ``init``.

    Raises:
        UsageError: they are missing, or belong to another codebook than the words.
    """
    characters, codebook = load_split_characters(init, TRAIN)
    _require_same_codebook(codebook, words.codebook, init / FOLDER)
    return characters


def _require_same_frames(pretrained: DataConfig, now: DataConfig) -> None:
    """Refuse frames of another size, rate or signer augmentation than those the encoder was trained on.

    Raises:
        UsageError: ``size``, ``augment.shift`` or ``fps`` differs.
    """
    for name, trained, value in (
        ("size", pretrained.size, now.size),
        ("augment.shift", pretrained.augment.shift, now.augment.shift),
        ("fps", pretrained.fps, now.fps),
    ):
        if trained != value:
            raise UsageError(
                f"the encoder was trained on frames with data.{name} {trained}, not {value}",
                where=f"--data.{name}",
                remedy=f"--data.{name} {trained}, or the recipe that the run was pretrained with",
            )


def _require_same_codebook(codebook: str, expected: str, where: Path) -> None:
    if codebook != expected:
        raise UsageError(
            f"codebook {codebook} does not fit: the words were composed from codebook {expected}",
            where=where,
            remedy="run `signllm compose` on the --init run again, because it was trained further since",
        )
