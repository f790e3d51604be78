"""The samples of every batch of every epoch, as a pure function of the seed and the configuration.

The order of an epoch is computed in three steps, none of which depends on ranks, workers or the batch size:

1. Each dataset is permuted (:mod:`signllm.data.loading.order`).
2. Several datasets are mixed by weight. A dataset of n samples and weight w contributes round(n w) samples to
   every epoch. They are consecutive samples of an endless sequence of passes over the dataset, so that at any
   time the numbers of uses of two samples differ by at most one; with weight 1 each is used exactly once per
   epoch. The mixture is even: every section of an epoch contains the datasets in proportion.
3. With a limit of frames, samples of similar length become neighbours. Pools of 256 samples are sorted by
   length (with a random change of up to a tenth, so that the groups vary). Then a binary tree over each pool
   swaps its halves at random at every level, so that every aligned section of 2, 4, ... 128 positions
   contains samples of similar length. The disadvantage is that the batches of half a pool have similar
   lengths.

Batches are consecutive sections of the order: ``batch_size`` samples, or fewer if their frames would exceed
the limit. The end of a batch depends only on its start. The three integers of
:class:`~signllm.data.loading.order.OrderState` therefore are the complete state, and a run with another batch
size or limit continues with the next sample. Only the window, the weights, and whether there is a limit
change the order. Rank r of w takes positions r, r + w, ... of a batch, which are neighbours and therefore of
similar length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from signllm.data.loading.order import OrderState, hash_integers, permute_samples
from signllm.data.weighted_dataset import WeightedDataset

_DATASET_STREAM, _MIX_STREAM, _JITTER_STREAM, _SWAP_STREAM = 3, 4, 5, 6
_POOL_LEVELS = 8
_JITTER = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPart:
    """The part of a batch that one rank processes.

    Args:
        samples: numbers of the samples, int64 (B,).
        places: positions in the epoch, int64 (B,); those of padding lie after the batch.
        is_real: bool (B,); False marks padding.
        positions: positions as :class:`~signllm.data.loading.batch.Batch` defines them, int64 (B,).
    """

    samples: np.ndarray
    places: np.ndarray
    is_real: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """The batches of every epoch.

    Args:
        datasets: datasets to mix by weight; their samples are numbered dataset by dataset.
        batch_size: largest number of samples of a batch over all ranks.
        window: number of shards whose samples are shuffled together.
        shuffle: False uses every sample once in the order of the shards and ignores the weights.
        frame_counts: largest number of frames of each sample, int (n,), or None.
        max_frames: largest number of frames of a batch over all ranks; None is no limit. A sample with more
            frames is a batch of its own.
    """

    datasets: tuple[WeightedDataset, ...]
    batch_size: int
    window: int = 16
    shuffle: bool = True
    frame_counts: np.ndarray | None = None
    max_frames: int | None = None
    _cached_epochs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = field(
        default_factory=dict, init=False, repr=False
    )
    _counts: dict[OrderState, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_frame_limited(self) -> bool:
        """Whether a limit of frames applies to batches."""
        return self.max_frames is not None and self.frame_counts is not None

    @property
    def samples(self) -> int:
        """Number of samples of an epoch, the same for all epochs."""
        return sum(dataset.share if self.shuffle else dataset.samples for dataset in self.datasets)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the sample numbers of an epoch, int64 (samples,)."""
        return self._plan_epoch(seed, epoch)[0]

    def find_batch_end(self, state: OrderState) -> int:
        """Return the position in the epoch after the batch that begins at ``state``."""
        start = state.samples_consumed
        end = min(start + self.batch_size, self.samples)
        frames_before = self._plan_epoch(state.seed, state.epoch)[1]
        if frames_before is None or self.max_frames is None:
            return end
        room = frames_before[start] + self.max_frames
        return min(end, max(start + 1, int(np.searchsorted(frames_before, room, side="right")) - 1))

    def rank_part(self, state: OrderState, *, rank: int, world: int) -> BatchPart:
        """Return the part of rank ``rank`` of ``world`` in the batch that begins at ``state``."""
        first, end = state.samples_consumed, self.find_batch_end(state)
        size = -(-(end - first) // world) * world if self.is_frame_limited else self.batch_size
        places = np.arange(first + rank, first + size, world, dtype=np.int64)
        is_real = places < end
        # Padding repeats samples of the same batch from its start.
        used = np.where(is_real, places, first + (places - end) % (end - first))
        return BatchPart(
            samples=self.order(state.seed, state.epoch)[used],
            places=places,
            is_real=is_real,
            # The amount of padding may depend on the number of ranks; random numbers of the positions may
            # not.
            positions=np.where(is_real, places, 0) if self.is_frame_limited else places,
        )

    def state_after(self, state: OrderState) -> OrderState:
        """Return the state after the batch that begins at ``state``."""
        end = self.find_batch_end(state)
        if end == self.samples:
            return OrderState(seed=state.seed, epoch=state.epoch + 1)
        return OrderState(seed=state.seed, epoch=state.epoch, samples_consumed=end)

    def batch_starts(self, state: OrderState, epochs: int | None) -> Iterator[OrderState]:
        """Yield the state before each batch, from ``state`` to the end of the last epoch.

        Args:
            state: state before the first batch; the end of an epoch counts as the start of the next one.
            epochs: total number of epochs; None yields states without end.
        """
        if state.samples_consumed >= self.samples:
            state = OrderState(seed=state.seed, epoch=state.epoch + 1)
        while epochs is None or state.epoch < epochs:
            yield state
            state = self.state_after(state)

    def batches_until(self, state: OrderState, epoch: int) -> int:
        """Return the number of batches from ``state`` to the start of ``epoch``; -1 if that has passed.

        With a limit of frames the number differs between epochs, because batches contain other videos. Then
        each epoch is planned once, which takes about a microsecond per sample.
        """
        if state.samples_consumed >= self.samples:
            state = OrderState(seed=state.seed, epoch=state.epoch + 1)
        if state.epoch >= epoch:
            return 0 if (state.epoch, state.samples_consumed) == (epoch, 0) else -1
        later = range(state.epoch + 1, epoch)
        if self.max_frames is None or self.frame_counts is None:
            per_epoch = -(-self.samples // self.batch_size)
            return -(-(self.samples - state.samples_consumed) // self.batch_size) + len(later) * per_epoch
        return self._count_batches(state) + sum(
            self._count_batches(OrderState(seed=state.seed, epoch=number)) for number in later
        )

    def _count_batches(self, state: OrderState) -> int:
        """Return the number of batches from a state to the end of its epoch, by planning all of them."""
        if state not in self._counts:
            self._counts[state] = sum(1 for _ in self.batch_starts(state, state.epoch + 1))
        return self._counts[state]

    def _plan_epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the order of an epoch and, with a limit of frames, the cumulative frames, (samples + 1,)."""
        if (seed, epoch) not in self._cached_epochs:
            while len(self._cached_epochs) > 1:
                del self._cached_epochs[next(iter(self._cached_epochs))]
            order, frames_before = self._compute_order(seed, epoch), None
            if self.is_frame_limited and self.frame_counts is not None:
                frames_before = np.concatenate([[0], np.cumsum(self.frame_counts[order])])
            self._cached_epochs[seed, epoch] = order, frames_before
        return self._cached_epochs[seed, epoch]

    def _compute_order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the sample numbers of an epoch in their order, int64 (samples,)."""
        if not self.shuffle:
            return np.arange(self.samples)
        order = mix_datasets(self.datasets, seed, epoch, self.window)
        if self.is_frame_limited and self.frame_counts is not None:
            order = order[group_similar_lengths(self.frame_counts[order], seed, epoch)]
        return order


def mix_datasets(datasets: Sequence[WeightedDataset], seed: int, epoch: int, window: int) -> np.ndarray:
    """Return the sample numbers of one epoch of several datasets in an even random mixture, int64 (n,)."""
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


def _take_share(dataset: WeightedDataset, seed: int, epoch: int, window: int) -> np.ndarray:
    """Return the numbers of a dataset's samples in one epoch, a section of its endless sequence of passes."""
    if not dataset.samples:
        return np.zeros(0, np.int64)
    begin, end = epoch * dataset.share, (epoch + 1) * dataset.share
    first, last = begin // dataset.samples, (end - 1) // dataset.samples
    passes = [permute_samples(dataset.shard_sizes, seed, number, window) for number in range(first, last + 1)]
    return np.concatenate(passes)[begin - first * dataset.samples : end - first * dataset.samples]


def group_similar_lengths(frame_counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of positions, int64 (n,), after which samples of similar length are neighbours.

    Args:
        frame_counts: number of frames of each sample in the present order, int (n,).
        seed: random seed of the order.
        epoch: number of the epoch, from 0.
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
