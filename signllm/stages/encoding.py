"""A pretrained VQ-Sign, and the characters it reads from a split: what follows stage 1 starts here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from signllm.config import PretrainConfig
from signllm.data.augment import AugmentConfig
from signllm.data.batch import Batch
from signllm.data.index import Split
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.errors import UsageError
from signllm.models.gather import gather_counts, gather_packed
from signllm.models.vq_sign import VQSign, build_vq_sign
from signllm.progress import progress
from signllm.training.checkpoint import install_weights, load_weights
from signllm.training.engine import Ranks


def load_vq_sign(run: Path, config: PretrainConfig) -> VQSign:
    """Build VQ-Sign as a ``pretrain`` run configured it, with the weights of the run's last checkpoint."""
    encoder = dataclasses.replace(config.vq_sign.encoder, backbone_weights=None)
    vq_sign = build_vq_sign(dataclasses.replace(config.vq_sign, encoder=encoder))
    install_weights(vq_sign, load_weights(run, stage="pretrain"), where=run)
    return vq_sign.eval()


def encode_split(
    vq_sign: VQSign, split: Split, data: DataConfig, ranks: Ranks, *, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the characters of every readable video of a split, in its order, without augmentation.

    All ranks take part, and all get all of them. ``batch_size`` is over all ranks, rounded up to a multiple.
    """
    loader = Loader(
        VideoSource(split, dataclasses.replace(data, augment=AugmentConfig())),
        batch_size=-(-batch_size // ranks.world) * ranks.world,
        rank=ranks.rank,
        world=ranks.world,
        shuffle=False,
        epochs=1,
    )
    sequences: dict[str, np.ndarray] = {}
    with progress(len(split), "encoding videos", unit="videos", enabled=ranks.rank == 0) as bar:
        for batch in loader:
            read = _encode(vq_sign, batch.to(ranks.device))
            sequences.update((split.samples[place].id, characters) for place, characters in read)
            bar.advance(len(read))
    if not sequences:
        raise UsageError(
            "no video of the split could be read", remedy="`signllm shards verify` names the damage"
        )
    return sequences


def _encode(vq_sign: VQSign, batch: Batch) -> list[tuple[int, np.ndarray]]:
    """Place in the split and characters of each real video of the global batch (all ranks)."""
    assert batch.frames is not None
    index, counts = vq_sign.encode(batch.frames, batch.frame_counts)
    parts = gather_packed(index, counts).cpu().split(gather_counts(counts).tolist())
    places = gather_counts(batch.positions).tolist()
    is_real = gather_counts(batch.is_real.long()).tolist()
    return [(place, part.numpy()) for place, part, real in zip(places, parts, is_real, strict=True) if real]
