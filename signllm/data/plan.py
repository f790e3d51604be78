"""Which samples make up which batch of which epoch: a pure function of the seed and of the configuration.

The order of an epoch is made in three steps, none of which knows of ranks, workers or batch size:

1. each dataset is permuted (:mod:`signllm.data.order`);
2. several datasets are mixed by weight. A dataset of n samples and weight w gives round(n w) samples to every
   epoch, cut one behind the other from its endless sequence of passes, so that all its samples are used
   equally often, up to one, at any time; weight 1 is each exactly once per epoch. The mixture is even: any
   stretch of an epoch holds the datasets in proportion;
3. with a limit of frames, samples are put beside others of like length. Pools of 256 samples are sorted by
   length (a random tenth more or less, so that not always the same meet), then a binary tree over each pool
   swaps its halves at random, at every level: any aligned stretch of 2, 4, ... 128 places holds neighbours in
   length. The price: the batches of half a pool follow one another with like lengths.

Batches are cut from the order one behind the other: ``batch_size`` samples, fewer where their frames would
exceed the limit. A cut depends on the place alone where it begins, so the three integers of
:class:`~signllm.data.order.OrderState` stay the whole state, and even another batch size or limit goes on
with the very next sample; only the window, the weights, and whether there is a limit change the order.
Rank r of w takes places r, r + w, ... of a batch: neighbours, hence of like length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from signllm.data.order import OrderState, hash_integers, permute_samples

_DATASET_STREAM, _MIX_STREAM, _JITTER_STREAM, _SWAP_STREAM = 3, 4, 5, 6
_POOL_LEVELS = 8
_JITTER = 0.1


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One of the datasets that an epoch is mixed of.

    Args:
        shard_sizes: samples in each of its shards.
        weight: how often an epoch uses each of its samples, on average.
    """

    shard_sizes: tuple[int, ...]
    weight: float = 1.0

    @property
    def samples(self) -> int:
        """Samples that it holds."""
        return sum(self.shard_sizes)

    @property
    def share(self) -> int:
        """Samples that it gives to an epoch."""
        return max(1, round(self.samples * self.weight)) if self.samples else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPart:
    """One rank's part of a batch.

    Args:
        samples: int64 (B,), numbers of the samples.
        places: int64 (B,), places in the epoch; those of padding lie behind the batch.
        is_real: bool (B,); False marks padding.
        positions: int64 (B,), as :class:`~signllm.data.batch.Batch` has them.
    """

    samples: np.ndarray
    places: np.ndarray
    is_real: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """The batches of every epoch.

    Args:
        datasets: mixed by weight; their samples are numbered one dataset behind the other.
        batch_size: most samples of a batch, over all ranks.
        window: shards whose samples are shuffled together.
        shuffle: False takes every sample once in the order of the shards, whatever the weights.
        frame_counts: int (n,), most frames of each sample, or None.
        max_frames: most frames of a batch over all ranks; None is no limit. A longer sample goes alone.
    """

    datasets: tuple[Dataset, ...]
    batch_size: int
    window: int = 16
    shuffle: bool = True
    frame_counts: np.ndarray | None = None
    max_frames: int | None = None
    _kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = field(
        default_factory=dict, init=False, repr=False
    )
    _counts: dict[OrderState, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_frame_limited(self) -> bool:
        """Whether batches are cut by frames too."""
        return self.max_frames is not None and self.frame_counts is not None

    @property
    def samples(self) -> int:
        """Samples of one epoch, the same for all epochs."""
        return sum(dataset.share if self.shuffle else dataset.samples for dataset in self.datasets)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the sample numbers of an epoch, int64 (samples,)."""
        return self._epoch(seed, epoch)[0]

    def find_batch_end(self, state: OrderState) -> int:
        """Return the place behind the batch that begins at ``state``."""
        start = state.samples_consumed
        end = min(start + self.batch_size, self.samples)
        frames_before = self._epoch(state.seed, state.epoch)[1]
        if frames_before is None or self.max_frames is None:
            return end
        room = frames_before[start] + self.max_frames
        return min(end, max(start + 1, int(np.searchsorted(frames_before, room, side="right")) - 1))

    def part(self, state: OrderState, *, rank: int, world: int) -> BatchPart:
        """Return what rank ``rank`` of ``world`` takes of the batch that begins at ``state``."""
        first, end = state.samples_consumed, self.find_batch_end(state)
        size = -(-(end - first) // world) * world if self.is_frame_limited else self.batch_size
        places = np.arange(first + rank, first + size, world, dtype=np.int64)
        is_real = places < end
        # padding repeats samples of the same batch, from its beginning on
        held = np.where(is_real, places, first + (places - end) % (end - first))
        return BatchPart(
            samples=self.order(state.seed, state.epoch)[held],
            places=places,
            is_real=is_real,
            # how much padding there is may depend on the ranks; what is drawn from the positions may not
            positions=np.where(is_real, places, 0) if self.is_frame_limited else places,
        )

    def after(self, state: OrderState) -> OrderState:
        """Return the state behind the batch that begins at ``state``."""
        end = self.find_batch_end(state)
        if end == self.samples:
            return OrderState(seed=state.seed, epoch=state.epoch + 1)
        return OrderState(seed=state.seed, epoch=state.epoch, samples_consumed=end)

    def starts(self, state: OrderState, epochs: int | None) -> Iterator[OrderState]:
        """Yield the state before each batch from ``state`` on, for ever if ``epochs`` is None.

        A state at the end of an epoch is the beginning of the next.
        """
        if state.samples_consumed >= self.samples:
            state = OrderState(seed=state.seed, epoch=state.epoch + 1)
        while epochs is None or state.epoch < epochs:
            yield state
            state = self.after(state)

    def batches_until(self, state: OrderState, epoch: int) -> int:
        """Return the number of batches from ``state`` to the beginning of ``epoch``; -1 if that lies behind.

        Where batches are cut by frames epochs differ by a few, because other videos meet: each is planned
        once, which takes about a microsecond for every sample.
        """
        if state.samples_consumed >= self.samples:
            state = OrderState(seed=state.seed, epoch=state.epoch + 1)
        if state.epoch >= epoch:
            return 0 if (state.epoch, state.samples_consumed) == (epoch, 0) else -1
        later = range(state.epoch + 1, epoch)
        if self.max_frames is None or self.frame_counts is None:
            whole = -(-self.samples // self.batch_size)
            return -(-(self.samples - state.samples_consumed) // self.batch_size) + len(later) * whole
        return self._counted(state) + sum(
            self._counted(OrderState(seed=state.seed, epoch=number)) for number in later
        )

    def _counted(self, state: OrderState) -> int:
        """Return the number of batches from a state to the end of its epoch, cutting them."""
        if state not in self._counts:
            self._counts[state] = sum(1 for _ in self.starts(state, state.epoch + 1))
        return self._counts[state]

    def _epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the order, and the frames before each of its places, (samples + 1,), where they limit."""
        if (seed, epoch) not in self._kept:
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            order, frames_before = self._order(seed, epoch), None
            if self.is_frame_limited and self.frame_counts is not None:
                frames_before = np.concatenate([[0], np.cumsum(self.frame_counts[order])])
            self._kept[seed, epoch] = order, frames_before
        return self._kept[seed, epoch]

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.samples)
        order = mix_datasets(self.datasets, seed, epoch, self.window)
        if self.is_frame_limited and self.frame_counts is not None:
            order = order[group_similar_lengths(self.frame_counts[order], seed, epoch)]
        return order


def mix_datasets(datasets: Sequence[Dataset], seed: int, epoch: int, window: int) -> np.ndarray:
    """Return the sample numbers of one epoch of several datasets, in an even and random mixture."""
    if len(datasets) == 1 and datasets[0].share == datasets[0].samples:
        return permute_samples(datasets[0].shard_sizes, seed, epoch, window)
    parts, keys, first = [], [], 0
    for number, dataset in enumerate(datasets):
        own_seed = int(hash_integers(seed, number, _DATASET_STREAM, count=1)[0])
        parts.append(first + _take_share(dataset, own_seed, epoch, window))
        jitter = hash_integers(own_seed, epoch, _MIX_STREAM, count=dataset.share) / 2**64
        keys.append((np.arange(dataset.share) + jitter) / max(1, dataset.share))
        first += dataset.samples
    return np.concatenate(parts)[np.argsort(np.concatenate(keys), kind="stable")]


def _take_share(dataset: Dataset, seed: int, epoch: int, window: int) -> np.ndarray:
    """Return a dataset's samples of one epoch, cut from its passes laid end to end."""
    if not dataset.samples:
        return np.zeros(0, np.int64)
    begin, end = epoch * dataset.share, (epoch + 1) * dataset.share
    first, last = begin // dataset.samples, (end - 1) // dataset.samples
    passes = [permute_samples(dataset.shard_sizes, seed, number, window) for number in range(first, last + 1)]
    return np.concatenate(passes)[begin - first * dataset.samples : end - first * dataset.samples]


def group_similar_lengths(frame_counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the places of an order, int64 (n,), rearranged so that samples of like length are neighbours.

    Args:
        frame_counts: int (n,), frames of the samples in their order so far.
        seed: of the run.
        epoch: from 0.
    """
    places = np.arange(len(frame_counts))
    jitter = 1 + _JITTER * (2 * (hash_integers(seed, epoch, _JITTER_STREAM, count=len(places)) / 2**64) - 1)
    by_length = np.lexsort((frame_counts * jitter, places >> _POOL_LEVELS))
    keys = places >> _POOL_LEVELS
    for level in reversed(range(_POOL_LEVELS)):
        node = places >> (level + 1)
        swapped = (
            hash_integers(seed, epoch, _SWAP_STREAM, level, count=int(node[-1]) + 1 if len(node) else 0) >> 63
        )
        keys = 2 * keys + (((places >> level) & 1) ^ swapped.astype(np.int64)[node])
    return by_length[np.argsort(keys, kind="stable")]
