"""The part of a split that each rank translates: complete batches, distributed in turn.

The split is cut into batches before they are distributed. A video therefore has the same neighbours in its
batch, and thus the same padding and rounding, for any number of ranks. Every rank gets equally many batches,
because the model's statistics are sums over all ranks: a rank that is one batch short repeats the first
video, which is dropped when the results are gathered.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from signllm.data.loading.sample_source import DataConfig, SampleSource
from signllm.data.weighted_dataset import WeightedDataset

if TYPE_CHECKING:
    import numpy as np

    from signllm.data.loading.batch import LoadedSample
    from signllm.data.video.packed_frames import PackedFrames


class RankShare:
    """The samples of one rank: a sample source in evaluation order, for a loader that knows only one rank.

    Args:
        source: source of all samples.
        batch_size: number of samples in a batch.
        rank: this rank.
        world: number of ranks.
        done: indices of samples that have been translated already.
    """

    def __init__(
        self, source: SampleSource, *, batch_size: int, rank: int, world: int, done: Collection[int] = ()
    ) -> None:
        self.source = source
        self.places = distribute_batches(
            len(source), batch_size=batch_size, rank=rank, world=world, done=done
        )
        self.datasets: tuple[WeightedDataset, ...] = (WeightedDataset(shard_sizes=(len(self.places),)),)
        self.frame_counts: np.ndarray | None = None  # without counts, the loader keeps the given order
        self.config: DataConfig = source.config

    def __len__(self) -> int:
        """Return the number of samples of this rank."""
        return len(self.places)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Return one sample of this rank."""
        return self.source.load(self.places[index], seed=seed, epoch=epoch, position=position, packed=packed)

    def place(self, position: int) -> int:
        """Return the index in the complete source of a position in the order of this rank."""
        return self.places[position]


def distribute_batches(
    count: int, *, batch_size: int, rank: int, world: int, done: Collection[int] = ()
) -> list[int]:
    """Return the sample indices of a rank: those of batches rank, rank + world, ... of ``count`` samples.

    A batch whose samples are all ``done`` is left out. Any other batch is distributed completely, so that its
    samples keep their neighbours.
    """
    known = frozenset(done)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    left = [batch for batch in batches if not known.issuperset(batch)]
    left += [range(1)] * (-len(left) % world)
    return [place for batch in left[rank::world] for place in batch]
