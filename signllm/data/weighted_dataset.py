"""One of the datasets that an epoch is mixed from, and its weight."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightedDataset:
    """One of the datasets that an epoch is mixed from.

    Args:
        shard_sizes: number of samples of each shard.
        weight: average number of times that an epoch uses each sample.
    """

    shard_sizes: tuple[int, ...]
    weight: float = 1.0

    @property
    def samples(self) -> int:
        """Number of samples of the dataset."""
        return sum(self.shard_sizes)

    @property
    def share(self) -> int:
        """Number of samples that the dataset contributes to an epoch."""
        return max(1, round(self.samples * self.weight)) if self.samples else 0
