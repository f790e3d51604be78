"""Build a pretrained VQ-Sign, and encode a split into characters with it.

Shards are dealt out to the ranks. If there are fewer shards than ranks, the batches of a shard are dealt out
to several ranks. The characters of each shard go into a file of their own, so that a rank never holds more
than one shard's characters and a killed job continues with the missing shards. A shard is always encoded in
the same batches, so its file is the same for any number of ranks.
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
from signllm.data.loading.batch import Batch
from signllm.data.loading.characters import characters_path, list_characters_files, read_provenance
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource, check_unreadable_count
from signllm.data.shards.index import Split
from signllm.data.shards.sample_table import SampleTable
from signllm.distributed.agreement import fail_on_all_ranks
from signllm.distributed.ranks import Ranks
from signllm.models.vq_sign.vq_sign import VQSign, VQSignConfig, build_vq_sign
from signllm.progress import Bar, progress
from signllm.training.checkpoint import install_weights, load_weights


@dataclass(frozen=True)
class ShardCharacters:
    """Characters (N,) of videos of one shard by id, and the reasons why other videos could not be read."""

    characters: dict[str, np.ndarray]
    unreadable: dict[str, str]


def load_vq_sign(run: Path, config: PretrainConfig) -> VQSign:
    """Build VQ-Sign as a ``pretrain`` run configured it, with the weights of the run's last checkpoint."""
    return build_trained_vq_sign(config.vq_sign, load_weights(run, stage="pretrain"), where=run)


def build_trained_vq_sign(
    settings: VQSignConfig, weights: Mapping[str, Tensor], *, where: Path, prefix: str = ""
) -> VQSign:
    """Build VQ-Sign in evaluation mode, with weights that a run saved under names with a prefix."""
    encoder = dataclasses.replace(settings.encoder, backbone_weights=None)
    vq_sign = build_vq_sign(dataclasses.replace(settings, encoder=encoder))
    install_weights(vq_sign, weights, where=where, prefix=prefix)
    return vq_sign.eval()


def missing_shards(run: Path, split: Split, made_by: Mapping[str, Any], shas: tuple[str, ...]) -> list[int]:
    """Return the shards whose characters are missing or outdated; remove files that belong to no shard.

    Args:
        run: folder with the characters.
        split: the split whose shards are checked.
        made_by: everything that decides the characters of every shard.
        shas: checksum of each shard, so that a shard that was written again is encoded again.
    """
    expected = {characters_path(run, split.name, shard): sha for shard, sha in enumerate(shas)}
    for path in list_characters_files(run, split.name):
        if path not in expected:
            path.unlink(missing_ok=True)
    return [
        shard
        for shard, (path, sha) in enumerate(expected.items())
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
    """Encode shards of a split without augmentation, and ``write`` each as soon as it is done.

    All ranks take round and fail together. As many shards as there are ranks are encoded at a time; of fewer
    shards, several ranks share one, batch by batch, and the lowest of them writes it. The ranks meet after
    every round, so no rank waits longer than one shard takes.

    Args:
        vq_sign: the encoder, in evaluation mode on this rank's device.
        split: the split.
        shards: numbers of the shards to encode.
        write: receives the number of a shard and its characters by id.
        data: how videos are read.
        ranks: the ranks.
        batch_size: videos per batch.

    Raises:
        UsageError: a shard cannot be read, or more of its videos are unreadable than ``data.max_bad`` allows.
    """
    videos = sum(split.shard_sizes[shard] for shard in shards)
    with progress(videos, "encoding videos", unit="videos", enabled=ranks.rank == 0) as bar:
        for first in range(0, len(shards), ranks.world):
            round = shards[first : first + ranks.world]
            place = ranks.rank % len(round)
            group = range(place, ranks.world, len(round))
            with fail_on_all_ranks(ranks):
                own = encode_batches(vq_sign, split, round[place], group, data, ranks, batch_size, bar)
            collected = _gather_on_lowest_rank(own, group, ranks)
            with fail_on_all_ranks(ranks):
                if ranks.rank == group[0]:
                    write(round[place], _readable(collected, split, round[place], data))
            bar.advance(sum(split.shard_sizes[shard] for shard in round[1:]))


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
    """Encode this rank's batches of a shard, which are dealt out in turn within its group of ranks."""
    all_samples = split.select_shard(shard)
    member, remaining = group.index(ranks.rank), len(all_samples)
    samples = [s for at, s in enumerate(all_samples.samples) if at // batch_size % len(group) == member]
    own = dataclasses.replace(all_samples, shard_sizes=(len(samples),), samples=SampleTable(samples))
    # the number of unreadable videos is checked for the complete shard, not for a rank's part of it
    plain = dataclasses.replace(data, max_bad=1.0, cache_gb=0.0, max_frames_per_batch=None)
    source = VideoSource(own, plain, augment=False)
    encoded = ShardCharacters({}, {})
    for batch in Loader(source, batch_size=batch_size, shuffle=False, epochs=1) if samples else ():
        encoded.characters.update(_encode(vq_sign, batch.to(ranks.device)))
        encoded.unreadable.update(batch.bad)
        done = min(batch_size * len(group), remaining)
        remaining -= done
        bar.advance(done)
    bar.advance(remaining)
    return encoded


def _gather_on_lowest_rank(own: ShardCharacters, group: range, ranks: Ranks) -> ShardCharacters:
    """Return on the lowest rank of a group what all its ranks encoded, on others what they encoded."""
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
    """Return the characters of a complete shard in its order, if enough of its videos could be read."""
    order = list(split.select_shard(shard).samples.ids)
    unreadable = [(id, encoded.unreadable[id]) for id in order if id in encoded.unreadable]
    check_unreadable_count(unreadable, data.max_bad * len(split))
    return {id: encoded.characters[id] for id in order if id in encoded.characters}


@torch.no_grad()
def _encode(vq_sign: VQSign, batch: Batch) -> list[tuple[str, np.ndarray]]:
    """Return id and characters of each real video, without the code counts of ``VQSign.encode``."""
    assert batch.frames is not None
    z, counts = vq_sign.encoder(batch.frames, batch.frame_counts)
    parts = vq_sign.quantizer.recorded(z).cpu().split(counts.tolist())
    videos = zip(batch.ids, parts, batch.is_real.tolist(), strict=True)
    return [(id, part.numpy()) for id, part, is_real in videos if is_real]
