"""A pretrained VQ-Sign, and the characters it reads from a split: what follows stage 1 starts here.

Shards are dealt over the ranks, each encodes its own by itself and writes their characters to a file of their
own. So a rank never holds more than one shard's characters, a killed job goes on with the shards that are
missing, and because a shard is always encoded in the same batches the files are the same on any number of
ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from signllm.config import PretrainConfig
from signllm.data.augment import AugmentConfig
from signllm.data.batch import Batch
from signllm.data.characters import characters_file, characters_files, read_made_by
from signllm.data.index import Split
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.kernels import vq_assign
from signllm.models.vq_sign import VQSign, build_vq_sign
from signllm.progress import Bar, progress
from signllm.stages.agreement import together
from signllm.training.checkpoint import install_weights, load_weights
from signllm.training.engine import Ranks


def load_vq_sign(run: Path, config: PretrainConfig) -> VQSign:
    """Build VQ-Sign as a ``pretrain`` run configured it, with the weights of the run's last checkpoint."""
    encoder = dataclasses.replace(config.vq_sign.encoder, backbone_weights=None)
    vq_sign = build_vq_sign(dataclasses.replace(config.vq_sign, encoder=encoder))
    install_weights(vq_sign, load_weights(run, stage="pretrain"), where=run)
    return vq_sign.eval()


def missing_shards(run: Path, split: Split, made_by: Mapping[str, Any], shas: tuple[str, ...]) -> list[int]:
    """List the shards whose characters are not there, or were made otherwise; files of no shard are removed.

    Args:
        run: folder with the characters.
        split: whose shards.
        made_by: what decides the characters of every shard.
        shas: of each shard, so that one that was made anew is encoded anew.
    """
    wanted = {characters_file(run, split.name, shard): sha for shard, sha in enumerate(shas)}
    for path in characters_files(run, split.name):
        if path not in wanted:
            path.unlink(missing_ok=True)
    return [
        shard
        for shard, (path, sha) in enumerate(wanted.items())
        if read_made_by(path) != {**made_by, "shard": sha}
    ]


def encode_shards(
    vq_sign: VQSign,
    split: Split,
    shards: Sequence[int],
    write: Callable[[int, dict[str, np.ndarray]], None],
    *,
    data: DataConfig,
    ranks: Ranks,
    batch_size: int,
) -> None:
    """Encode some shards of a split without augmentation, and ``write`` each as soon as it is done.

    All ranks take part, one shard each at a time, and fail together. They meet after every round, so none
    waits for another longer than for one shard.

    Raises:
        UsageError: a shard cannot be read, or more of its videos than ``data.max_bad`` of the split.
    """
    videos = sum(split.shard_sizes[shard] for shard in shards)
    with progress(videos, "encoding videos", unit="videos", enabled=ranks.rank == 0) as bar:
        for first in range(0, len(shards), ranks.world):
            part = shards[first : first + ranks.world]
            with together(ranks):
                if ranks.rank < len(part):
                    mine = part[ranks.rank]
                    write(mine, encode_shard(vq_sign, split, mine, data, ranks, batch_size, bar))
            bar.advance(sum(split.shard_sizes[shard] for shard in part[1:]))


def encode_shard(
    vq_sign: VQSign, split: Split, shard: int, data: DataConfig, ranks: Ranks, batch_size: int, bar: Bar
) -> dict[str, np.ndarray]:
    """Return the characters of every readable video of one shard, in its order; this rank by itself."""
    samples = [dataclasses.replace(s, shard=0) for s in split.samples if s.shard == shard]
    own = dataclasses.replace(
        split, tars=(split.tars[shard],), shard_sizes=(len(samples),), samples=tuple(samples)
    )
    allowed = data.max_bad * len(split) / max(1, len(own))  # of the split, wherever they lie
    source = VideoSource(own, dataclasses.replace(data, augment=AugmentConfig(), max_bad=allowed))
    sequences: dict[str, np.ndarray] = {}
    if samples:
        for batch in Loader(source, batch_size=batch_size, shuffle=False, epochs=1):
            sequences.update(_encode(vq_sign, batch.to(ranks.device)))
            bar.advance(min(batch_size, len(samples) - int(batch.positions[0])))
    return sequences


@torch.no_grad()
def _encode(vq_sign: VQSign, batch: Batch) -> list[tuple[str, np.ndarray]]:
    """Id and characters of each real video of a batch; unlike ``VQSign.encode``, which counts over ranks."""
    assert batch.frames is not None
    z, counts = vq_sign.encoder(batch.frames, batch.frame_counts)
    parts = vq_assign(z, vq_sign.quantizer.codebook).cpu().split(counts.tolist())
    videos = zip(batch.ids, parts, batch.is_real.tolist(), strict=True)
    return [(id, part.numpy()) for id, part, is_real in videos if is_real]
