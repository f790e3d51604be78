"""A pretrained VQ-Sign, and the characters it reads from a split: what follows stage 1 starts here.

Shards are dealt over the ranks, and where there are fewer of them than ranks, the batches of a shard over
several ranks; its characters become a file of their own. So a rank never holds more than one shard's
characters, a killed job goes on with the shards that are missing, and because a shard is always encoded in
the same batches the files are the same on any number of ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from signllm.config import PretrainConfig
from signllm.data.batch import Batch
from signllm.data.characters import characters_path, list_characters_files, read_provenance
from signllm.data.index import Split
from signllm.data.pipeline import DataConfig, Loader, VideoSource, check_unreadable_count
from signllm.data.sample_table import SampleTable
from signllm.models.vq_sign import VQSign, VQSignConfig, build_vq_sign
from signllm.progress import Bar, progress
from signllm.stages.agreement import together
from signllm.training.checkpoint import install_weights, load_weights
from signllm.training.engine import Ranks


@dataclass(frozen=True)
class ShardCharacters:
    """Characters (N,) of videos of one shard by id, and why others of it could not be read."""

    characters: dict[str, np.ndarray]
    unreadable: dict[str, str]


def load_vq_sign(run: Path, config: PretrainConfig) -> VQSign:
    """Build VQ-Sign as a ``pretrain`` run configured it, with the weights of the run's last checkpoint."""
    return vq_sign_of(config.vq_sign, load_weights(run, stage="pretrain"), where=run)


def vq_sign_of(
    settings: VQSignConfig, weights: Mapping[str, Tensor], *, where: Path, prefix: str = ""
) -> VQSign:
    """Build VQ-Sign with weights that a run ``where`` saved, whose names begin with ``prefix``."""
    encoder = dataclasses.replace(settings.encoder, backbone_weights=None)
    vq_sign = build_vq_sign(dataclasses.replace(settings, encoder=encoder))
    install_weights(vq_sign, weights, where=where, prefix=prefix)
    return vq_sign.eval()


def missing_shards(run: Path, split: Split, made_by: Mapping[str, Any], shas: tuple[str, ...]) -> list[int]:
    """List the shards whose characters are not there, or were made otherwise; files of no shard are removed.

    Args:
        run: folder with the characters.
        split: whose shards.
        made_by: what decides the characters of every shard.
        shas: of each shard, so that one that was made anew is encoded anew.
    """
    wanted = {characters_path(run, split.name, shard): sha for shard, sha in enumerate(shas)}
    for path in list_characters_files(run, split.name):
        if path not in wanted:
            path.unlink(missing_ok=True)
    return [
        shard
        for shard, (path, sha) in enumerate(wanted.items())
        if read_provenance(path) != {**made_by, "shard": sha}
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

    All ranks take part and fail together. As many shards at a time as there are ranks; of fewer, several
    ranks share one, batch by batch, and the lowest of them writes it. They meet after every round, so none
    waits for another longer than for one shard.

    Raises:
        UsageError: a shard cannot be read, or more of its videos than ``data.max_bad`` of the split.
    """
    videos = sum(split.shard_sizes[shard] for shard in shards)
    with progress(videos, "encoding videos", unit="videos", enabled=ranks.rank == 0) as bar:
        for first in range(0, len(shards), ranks.world):
            part = shards[first : first + ranks.world]
            place = ranks.rank % len(part)
            group = range(place, ranks.world, len(part))
            with together(ranks):
                own = encode_batches(vq_sign, split, part[place], group, data, ranks, batch_size, bar)
            whole = _collected(own, group, ranks)
            with together(ranks):
                if ranks.rank == group[0]:
                    write(part[place], _readable(whole, split, part[place], data))
            bar.advance(sum(split.shard_sizes[shard] for shard in part[1:]))


def encode_batches(
    vq_sign: VQSign,
    split: Split,
    shard: int,
    group: range,
    data: DataConfig,
    ranks: Ranks,
    batch_size: int,
    bar: Bar,
) -> ShardCharacters:
    """Encode this rank's batches of a shard: of all of them, those dealt to it in turn within its group."""
    whole = split.select_shard(shard)
    member, left = group.index(ranks.rank), len(whole)
    samples = [s for at, s in enumerate(whole.samples) if at // batch_size % len(group) == member]
    own = dataclasses.replace(whole, shard_sizes=(len(samples),), samples=SampleTable(samples))
    # whether too many are unreadable is asked when the shard is whole, not of a rank's part of it
    plain = dataclasses.replace(data, max_bad=1.0, cache_gb=0.0, max_frames_per_batch=None)
    source = VideoSource(own, plain, augment=False)
    encoded = ShardCharacters({}, {})
    for batch in Loader(source, batch_size=batch_size, shuffle=False, epochs=1) if samples else ():
        encoded.characters.update(_encode(vq_sign, batch.to(ranks.device)))
        encoded.unreadable.update(batch.bad)
        done = min(batch_size * len(group), left)
        left -= done
        bar.advance(done)
    bar.advance(left)
    return encoded


def _collected(own: ShardCharacters, group: range, ranks: Ranks) -> ShardCharacters:
    """Return on the lowest rank of a group what all its ranks encoded; on the others what they did."""
    if ranks.rank != group[0]:
        dist.send_object_list([own], dst=group[0])
        return own
    for other in group[1:]:
        received: list[Any] = [None]
        dist.recv_object_list(received, src=other)
        own.characters.update(received[0].characters)
        own.unreadable.update(received[0].unreadable)
    return own


def _readable(encoded: ShardCharacters, split: Split, shard: int, data: DataConfig) -> dict[str, np.ndarray]:
    """Return the characters of a whole shard, in its order, if enough of it could be read."""
    order = list(split.select_shard(shard).samples.ids)
    unreadable = [(id, encoded.unreadable[id]) for id in order if id in encoded.unreadable]
    check_unreadable_count(unreadable, data.max_bad * len(split))
    return {id: encoded.characters[id] for id in order if id in encoded.characters}


@torch.no_grad()
def _encode(vq_sign: VQSign, batch: Batch) -> list[tuple[str, np.ndarray]]:
    """Id and characters of each real video of a batch; unlike ``VQSign.encode``, which counts over ranks."""
    assert batch.frames is not None
    z, counts = vq_sign.encoder(batch.frames, batch.frame_counts)
    parts = vq_sign.quantizer.recorded(z).cpu().split(counts.tolist())
    videos = zip(batch.ids, parts, batch.is_real.tolist(), strict=True)
    return [(id, part.numpy()) for id, part, is_real in videos if is_real]
