"""The run that stage 3 starts from: its encoder, words and recorded characters, and that they fit together.

Each belongs to one codebook, known by its fingerprint: an encoder that was trained further needs new words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from signllm.config import FinetuneConfig, PretrainConfig, load_config
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.characters import FOLDER, load_split_characters
from signllm.data.pipeline import DataConfig
from signllm.errors import UsageError
from signllm.models.vq_sign import fingerprinted_tensor
from signllm.stages import pretrain
from signllm.stages.batches import TRAIN
from signllm.training.checkpoint import load_weights


def with_encoder_of(init: Path, config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration with the encoder of run ``init`` in it, which needs no other weights file."""
    earlier = load_config(init, PretrainConfig)
    config = replace(config, data=replace(config.data, fps=config.data.fps or earlier.data.fps))
    _require_same_pictures(earlier.data, config.data)
    vq_sign = replace(earlier.vq_sign, encoder=replace(earlier.vq_sign.encoder, backbone_weights=None))
    return replace(config, sign_llm=replace(config.sign_llm, vq_sign=vq_sign))


def encoder_and_words(init: Path, words_folder: Path | None = None) -> tuple[dict[str, Tensor], WordCodebook]:
    """Return VQ-Sign's weights by name and the words of run ``init``, or those that lie in another folder.

    Raises:
        UsageError: a stage is missing, or the words were composed from another codebook.
    """
    words = WordCodebook.load(words_folder or init)
    weights = load_weights(init, stage=pretrain.STAGE)
    found = fingerprint(fingerprinted_tensor(weights, load_config(init, PretrainConfig).vq_sign))
    _require_same_codebook(found, words.codebook, (words_folder or init) / "words.json")
    return weights, words


def recorded_characters(init: Path, words: WordCodebook) -> Mapping[str, np.ndarray]:
    """Return the characters of every training video, as ``compose`` recorded them in run ``init``.

    Raises:
        UsageError: they are missing, or of another codebook than the words.
    """
    characters, codebook = load_split_characters(init, TRAIN)
    _require_same_codebook(codebook, words.codebook, init / FOLDER)
    return characters


def _require_same_pictures(earlier: DataConfig, now: DataConfig) -> None:
    """Refuse frames of another size or rate than the encoder was trained on, or with signers of another.

    Raises:
        UsageError: another ``size``, ``augment.shift`` or ``fps``.
    """
    for name, learnt, given in (
        ("size", earlier.size, now.size),
        ("augment.shift", earlier.augment.shift, now.augment.shift),
        ("fps", earlier.fps, now.fps),
    ):
        if learnt != given:
            raise UsageError(
                f"the encoder was trained on pictures of data.{name} {learnt}, not {given}",
                where=f"--data.{name}",
                remedy=f"--data.{name} {learnt}, or the recipe that the run was pretrained with",
            )


def _require_same_codebook(found: str, wanted: str, where: Path) -> None:
    if found != wanted:
        raise UsageError(
            f"codebook {found} does not fit: the words were composed from codebook {wanted}",
            where=where,
            remedy="run signllm compose on the --init run again; it was trained further since",
        )
