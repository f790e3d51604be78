"""The characters of a split, as a run encodes its videos: the input of every inspection.

The characters that ``compose`` recorded are loaded. Those of any other split, and those of a fine-tuned run,
whose encoder has changed since, are computed by the run's own encoder. The language model is never loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from signllm.clip_geometry import count_clips
from signllm.config import FinetuneConfig, PretrainConfig, load_config, run_stage
from signllm.cra.word_codebook import WordCodebook, fingerprint
from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.pipeline import DataConfig, VideoSource
from signllm.data.shards.index import Split
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.models.vq_sign.vq_sign import VQSign
from signllm.stages import trained_model
from signllm.stages.batches import TRAIN
from signllm.stages.encoding import build_trained_vq_sign, encode_shards
from signllm.stages.initial_run import load_encoder_and_words, load_recorded_characters
from signllm.training.checkpoint import complete_checkpoint

BATCH = 8
"""Videos that are encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """The characters of the videos of a split.

    Attributes:
        stage: stage of the run, ``pretrain`` or ``finetune``.
        words: word codebook of the run.
        split: the videos.
        places: index in the split of each readable video, in the order of ``sequences``.
        sequences: characters (N,) of each readable video.
        max_frames: longer videos were subsampled to this many frames before they were encoded.
        fps: frame rate at which the videos were encoded; None if every stored frame was.
        is_recorded: whether the characters were recorded by ``compose``; otherwise they were computed now.
        codebook_moved: whether the character codebook has changed since the words were composed from it.
    """

    stage: str
    words: WordCodebook
    split: Split
    places: tuple[int, ...]
    sequences: tuple[np.ndarray, ...]
    max_frames: int
    fps: float | None = None
    is_recorded: bool
    codebook_moved: bool


def load_or_encode_split(run: Path, shards: Path | str, split: str = TRAIN) -> EncodedSplit:
    """Return the characters of a split: recorded ones if there are any, otherwise encoded now.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards, or the mixture that the run was composed from.
        split: name of the split; ``train`` of a composed run is loaded, not encoded again.

    Raises:
        UsageError: This is not such a run, it has no codes or words, its words belong to another codebook,
            there is no such split, or the shards hold other videos than those that were recorded.
    """
    stage, videos = run_stage(run), open_mixture(shards).split(split)
    _require_codebook(run, stage)
    if stage == trained_model.STAGE:
        config, checkpoint = load_config(run, FinetuneConfig), complete_checkpoint(run)
        words, data = trained_model.load_words(checkpoint, run), config.data
        encoder = trained_model.load_encoder(config, checkpoint)
    else:
        words, encoder, data = WordCodebook.load(run), None, load_config(run, PretrainConfig).data
        data = dataclasses.replace(data, max_frames=words.config.get("max_frames", data.max_frames))
    is_recorded = encoder is None and videos.name == TRAIN
    if is_recorded:
        characters = load_recorded_characters(run, words)
        _check_same_videos(characters, videos, shards, data)
    else:
        encoder = encoder or _load_pretrained_encoder(run)
        characters = _encode_split(encoder, videos, data)
    places = [place for place, sample in enumerate(videos.samples) if sample.id in characters]
    return EncodedSplit(
        stage=stage,
        words=words,
        split=videos,
        places=tuple(places),
        sequences=tuple(np.asarray(characters[videos.samples[place].id], np.int64) for place in places),
        max_frames=data.max_frames,
        fps=data.fps,
        is_recorded=is_recorded,
        codebook_moved=encoder is not None and fingerprint(encoder.quantizer.codebook) != words.codebook,
    )


def _require_codebook(run: Path, stage: str) -> None:
    """Raise a ``UsageError`` if the run was trained without vector quantization."""
    if stage == trained_model.STAGE:
        vq_sign = load_config(run, FinetuneConfig).sign_llm.vq_sign
    else:
        vq_sign = load_config(run, PretrainConfig).vq_sign
    if vq_sign is not None and vq_sign.quantizer.update == "none":
        raise UsageError(
            "this run was trained without a codebook, so it has no characters to inspect",
            where=run,
            remedy="give a run whose encoder has a codebook",
        )


def _load_pretrained_encoder(run: Path) -> VQSign:
    weights, _ = load_encoder_and_words(run)
    return build_trained_vq_sign(load_config(run, PretrainConfig).vq_sign, weights, where=run)


def _encode_split(vq_sign: VQSign, videos: Split, data: DataConfig) -> dict[str, np.ndarray]:
    """Return id → characters of every readable video, encoded in this process without augmentation."""
    ranks = Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sequences: dict[str, np.ndarray] = {}

    def keep(shard: int, characters: dict[str, np.ndarray]) -> None:
        sequences.update(characters)

    shards = range(len(videos.tars))
    encode_shards(vq_sign.to(ranks.device), videos, shards, keep, data=data, ranks=ranks, batch_size=BATCH)
    if not sequences:
        raise UsageError(
            "no video of the split could be read", remedy="`signllm shards verify` names the damage"
        )
    return sequences


def _check_same_videos(
    characters: Mapping[str, np.ndarray], videos: Split, shards: Path | str, data: DataConfig
) -> None:
    """Raise a ``UsageError`` if recorded characters do not fit the videos of the shards.

    The ids are not enough, because every demo has a video ``train-0000``. The lengths are compared too.
    """
    frames = VideoSource(videos, data, augment=False).frame_counts
    expected = dict(zip(videos.samples.ids, count_clips(torch.as_tensor(frames)).tolist(), strict=True))
    wrong = [name for name, sequence in characters.items() if expected.get(name) != len(sequence)]
    if wrong:
        count = expected.get(wrong[0])
        reason = (
            "is not there" if count is None else f"has {count} characters, not {len(characters[wrong[0]])}"
        )
        raise UsageError(
            f"these shards hold other videos than the run was composed from: {len(wrong)} of "
            f"{len(characters)} do not fit, first {wrong[0]}, which {reason}",
            where=f"{shards}, split {videos.name}",
            remedy="give the shards that `signllm compose --data` was given, or compose again on these",
        )
