"""The sample order, a pure function of seed and epoch, and the three integers that describe a position in it.

Shards are permuted, then samples are shuffled inside windows of several shards, so that consecutive reads are
close on disk. Global position p of a batch belongs to rank p mod world. The order depends neither on ranks
nor on workers nor on prefetching, so a run can resume in the middle of an epoch with another number of them.
A random order results from sorting splitmix64 hashes, which are the same in every version of every library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from signllm.errors import UsageError

_SHARD_STREAM, _SAMPLE_STREAM = 0, 1


@dataclass(frozen=True, kw_only=True)
class OrderState:
    """Position in the training data: everything that resuming needs.

    Args:
        seed: random seed of the sample order.
        epoch: number of completed passes over the data.
        samples_consumed: number of samples of this epoch, over all ranks, that finished steps have used.
    """

    seed: int
    epoch: int = 0
    samples_consumed: int = 0

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a negative number, which no run writes."""
        if min(self.epoch, self.samples_consumed) < 0:
            raise UsageError(f"{self} is not a position in the data", remedy="resume from another checkpoint")

    def as_dict(self) -> dict[str, int]:
        """Return the three integers by name."""
        return asdict(self)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Return pseudorandom uint64 hashes of uint64 values (Steele, Lea, Flood 2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_integers(*keys: int, count: int) -> np.ndarray:
    """Return ``count`` pseudorandom uint64 numbers that are a pure function of the integer ``keys``."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = splitmix64(state ^ splitmix64(np.array([key & 0xFFFFFFFFFFFFFFFF], np.uint64)))
    return splitmix64(state + np.arange(count, dtype=np.uint64))


def permute_samples(shard_sizes: Sequence[int], seed: int, epoch: int, window: int) -> np.ndarray:
    """Return the sample order of one epoch: every sample number exactly once, int64 (n,).

    Args:
        shard_sizes: number of samples of each shard; samples are numbered shard by shard.
        seed: random seed of the order.
        epoch: number of the epoch, from 0.
        window: number of shards whose samples are shuffled together.
    """
    sizes = np.asarray(shard_sizes, np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shards = np.argsort(hash_integers(seed, epoch, _SHARD_STREAM, count=len(sizes)), kind="stable")
    keys = hash_integers(seed, epoch, _SAMPLE_STREAM, count=int(starts[-1]))
    parts = []
    for first in range(0, len(shards), window):
        samples = np.concatenate(
            [np.arange(starts[shard], starts[shard + 1]) for shard in shards[first : first + window]]
        )
        parts.append(samples[np.argsort(keys[samples], kind="stable")])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
