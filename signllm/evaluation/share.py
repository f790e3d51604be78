"""Which videos of a split a rank translates: whole batches, dealt out in turn.

Cutting first and dealing second keeps the neighbours of a video, and so the padding and rounding it meets,
the same for any number of ranks. Every rank gets equally many batches (a rank short of one repeats the first
video, to be dropped when results are collected), because the model's statistics are sums over all ranks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from signllm.data.plan import Dataset
from signllm.data.sample_source import DataConfig, SampleSource

if TYPE_CHECKING:
    import numpy as np

    from signllm.data.batch import LoadedSample
    from signllm.data.packed_frames import PackedFrames


class Share:
    """A rank's part of a source, itself a source in evaluation order for a loader with one rank.

    Args:
        source: all videos.
        batch_size: videos in a batch.
        rank: this rank.
        world: number of ranks.
        done: places of videos that need no translation any more.
    """

    def __init__(
        self, source: SampleSource, *, batch_size: int, rank: int, world: int, done: Collection[int] = ()
    ) -> None:
        self.source = source
        self.places = dealt(len(source), batch_size=batch_size, rank=rank, world=world, done=done)
        self.datasets: tuple[Dataset, ...] = (Dataset(shard_sizes=(len(self.places),)),)
        self.frame_counts: np.ndarray | None = None  # the batches are those that were dealt
        self.config: DataConfig = source.config

    def __len__(self) -> int:
        """Return the number of videos of this rank."""
        return len(self.places)

    def load(
        self, index: int, *, seed: int, epoch: int, position: int, packed: PackedFrames | None = None
    ) -> LoadedSample:
        """Return one video of this rank."""
        return self.source.load(self.places[index], seed=seed, epoch=epoch, position=position, packed=packed)

    def place(self, position: int) -> int:
        """Return the place in the whole source of a position in this rank's order."""
        return self.places[position]


def dealt(count: int, *, batch_size: int, rank: int, world: int, done: Collection[int] = ()) -> list[int]:
    """Return the places of a rank's videos: batches rank, rank + world, ... of ``count`` videos in order.

    A batch of which every place is ``done`` is left out; any other is dealt whole, with the neighbours that
    it would always have.
    """
    known = frozenset(done)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    left = [batch for batch in batches if not known.issuperset(batch)]
    left += [range(1)] * (-len(left) % world)
    return [place for batch in left[rank::world] for place in batch]
