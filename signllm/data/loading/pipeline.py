"""The loader of one rank's batches: each sample once per epoch, resumable after every step.

The sequence of batches is a pure function (:mod:`signllm.data.loading.plan`); workers, or a thread of the
training process, only prepare its next elements. The state describes the batches that the loader has
returned, so it does not depend on prefetching. torch's DataLoader provides processes, shared memory and
pinned memory.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass

from signllm.data.loading.augment import AugmentConfig
from signllm.data.loading.batch import Batch, collate
from signllm.data.loading.order import OrderState
from signllm.data.loading.plan import EpochPlan
from signllm.data.loading.sample_source import CharacterSource, DataConfig, SampleSource, VideoSource
from signllm.data.shared_waits import SharedWaits
from signllm.data.video.packed_frames import ArrayPool, PackedFrames
from signllm.errors import UsageError
from signllm.storage import DataLostError, StorageError, storage_wait_policy

__all__ = ["AugmentConfig", "CharacterSource", "DataConfig", "Loader", "VideoSource"]

_PREFETCHED_BATCHES = 2
POLL_S = 1.0
"""Interval in seconds at which a rank that waits for its batch reports that to the other ranks."""
Bad = tuple[tuple[str, str], ...]
"""Id and reason of each sample that could not be read."""
Arrival = tuple[OrderState, "Batch | StorageError"] | None
"""A batch, or the error of reading it, with the state before it; None if it is not ready yet."""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """State of the next batch on one rank, or on all ranks together.

    Attributes:
        ready: whether the batch is ready, on all ranks.
        waits: whether some read of it waits for storage.
        failure: error of the first rank that cannot read the batch.
        bad: damaged samples of the batch.
    """

    ready: bool
    waits: bool = False
    failure: str | None = None
    bad: Bad = ()


Agree = Callable[[Readiness], Readiness]
"""Collective function that returns the state on all ranks from the state on this rank."""

_log = logging.getLogger(__name__)


class Loader:
    """An iterable over the batches of one rank.

    After its last epoch a shuffling loader yields nothing; a loader without shuffling starts again, so that
    it can be used for several evaluations.

    Args:
        source: :class:`VideoSource` or :class:`CharacterSource`.
        batch_size: number of videos per step over all ranks, divisible by ``world``. With a limit of frames
            (``source.config.max_frames_per_batch``) it is an upper limit and need not be divisible.
        rank: number of this rank.
        world: number of ranks.
        seed: random seed of the sample order and the augmentation.
        shuffle: False keeps the order of the shards, for evaluation.
        workers: number of processes that decode in the background; None uses ``source.config.workers``. The
            batches do not depend on it.
        epochs: total number of passes, including those before resuming; None repeats without end.
        agree: collective function that exchanges the state of the next batch between the ranks. Then either
            all ranks take a batch or none does, and all stop at the same step if storage stays unavailable or
            too many samples are damaged. None considers only this rank.

    Raises:
        UsageError: there are no samples, or the ranks cannot share the batch size equally.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        workers: int | None = None,
        epochs: int | None = None,
        agree: Agree | None = None,
    ) -> None:
        if len(source) == 0:
            raise UsageError("the split has no samples", remedy="check it with signllm shards info")
        assert 0 <= rank < world
        config = source.config
        self.plan = EpochPlan(
            datasets=source.datasets,
            batch_size=batch_size,
            window=config.window,
            shuffle=shuffle,
            frame_counts=source.frame_counts,
            max_frames=config.max_frames_per_batch,
        )
        if batch_size < 1 or (batch_size % world and not self.plan.is_frame_limited):
            raise UsageError(
                f"batch_size = {batch_size} videos per step cannot be shared by {world} ranks",
                remedy=f"give a multiple of {world}",
            )
        self.source, self.batch_size, self.rank, self.world = source, batch_size, rank, world
        self.shuffle, self.epochs = shuffle, epochs
        self.workers = config.workers if workers is None else workers
        self._state = OrderState(seed=seed)
        self._agree = agree
        self._bad: dict[str, str] = {}

    def batches_until(self, epoch: int) -> int:
        """Return the number of batches until ``epoch`` starts, -1 if it has started already.

        The number counts from the present state and is the same on every rank.
        """
        return self.plan.batches_until(self._state, epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the state after the last returned batch: ``seed``, ``epoch`` and ``samples_consumed``."""
        return self._state.as_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from ``state``, which may come from another number of ranks and workers.

        Raises:
            UsageError: the state belongs to other data.
        """
        loaded = OrderState(**{name: int(state[name]) for name in ("seed", "epoch", "samples_consumed")})
        if loaded.samples_consumed > self.plan.samples:
            raise UsageError(
                f"the state is at sample {loaded.samples_consumed}, but these shards have only "
                f"{self.plan.samples} samples",
                remedy="resume with the shards that the run started with",
            )
        self._state = loaded

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of this rank from the present state on.

        Raises:
            DataLostError: the storage of some rank stayed unavailable; the state is that before the lost
                batch.
        """
        if not self.shuffle and self.epochs is not None and self._state.epoch >= self.epochs:
            self._state = OrderState(seed=self._state.seed)
        starts, maker = self.plan.batch_starts(self._state, self.epochs), BatchMaker(self)
        with closing(self._iterate_arrivals(starts, maker)) as arrivals:
            for arrival in arrivals:
                while (
                    not (agreed := self._agree_with_ranks(arrival, maker.waits)).ready and arrival is not None
                ):
                    continue
                if arrival is None:
                    continue
                start, batch = arrival
                assert isinstance(batch, Batch)
                self._count_bad(agreed.bad)
                self._state = self.plan.state_after(start)
                yield batch

    def _agree_with_ranks(self, arrival: Arrival, waits: SharedWaits) -> Readiness:
        """Return the state of the next batch on all ranks.

        Raises:
            DataLostError: some rank cannot read its batch; all ranks raise it.
        """
        if arrival is None:
            own = Readiness(ready=False, waits=waits.is_waiting())
        elif isinstance(arrival[1], Batch):
            own = Readiness(ready=True, bad=arrival[1].bad)
        else:
            own = Readiness(ready=False, failure=str(arrival[1]))
        agreed = self._agree(own) if self._agree else own
        if agreed.failure is not None:
            raise DataLostError(agreed.failure)
        return agreed

    def _iterate_arrivals(self, starts: Iterable[OrderState], maker: BatchMaker) -> Generator[Arrival]:
        """Yield the batches, and None every ``POLL_S`` seconds while the next batch is not ready."""
        from torch.cuda import is_available
        from torch.utils.data import DataLoader

        try:
            if self.workers == 0:
                yield from _prefetch_in_thread(maker.__getitem__, starts, maker.waits)
                return
            batches = iter(
                DataLoader(
                    maker,  # type: ignore[arg-type]  # its keys are states, not numbers
                    sampler=starts,
                    batch_size=None,
                    num_workers=self.workers,
                    prefetch_factor=_PREFETCHED_BATCHES,
                    worker_init_fn=_ignore_signals,
                    pin_memory=is_available(),
                    timeout=POLL_S,
                )
            )
            while True:
                try:
                    yield next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader timed out" not in str(error):  # after a timeout the iterator can continue
                        raise
                    yield None
        finally:
            maker.waits.end()

    def _count_bad(self, bad: Bad) -> None:
        """Log and count the bad samples of a step; repeated ones count once.

        Raises:
            UsageError: the share of bad samples exceeds ``data.max_bad``; all ranks raise it.
        """
        new = [(name, reason) for name, reason in bad if name not in self._bad]
        if not new:
            return
        for name, reason in new:
            self._bad[name] = reason
            if self.rank == 0 or self._agree is None:
                _log.warning("sample %s replaced by padding: %s", name, reason)
        check_unreadable_count(list(self._bad.items()), self.source.config.max_bad * len(self.source))


def check_unreadable_count(unreadable: Sequence[tuple[str, str]], allowed: float) -> None:
    """Check that there are not more unreadable videos than allowed.

    Args:
        unreadable: id and reason of each unreadable video.
        allowed: largest number; it may be fractional, because it is a share of all videos.

    Raises:
        UsageError: there are more; the message names the last one.
    """
    if len(unreadable) > allowed:
        name, reason = unreadable[-1]
        raise UsageError(
            f"{len(unreadable)} samples could not be read, allowed {allowed:g} (data.max_bad of all)",
            where=f"{name}: {reason}",
            remedy="find the damage with signllm shards verify, or allow more with data.max_bad",
        )


class BatchMaker:
    """Makes the batches of one rank; it is copied to the worker processes.

    Indexing it with the state before a global batch returns that state and the rank's part of the batch.
    """

    def __init__(self, loader: Loader) -> None:
        self.source, self.plan = loader.source, loader.plan
        self.rank, self.world, self.memory = loader.rank, loader.world, ArrayPool()
        self.waits = SharedWaits()

    def __getitem__(self, start: OrderState) -> tuple[OrderState, Batch | StorageError]:
        """Return a state with its batch, or with the storage error of reading it.

        The error is returned because the DataLoader would replace the message of an error raised in a worker.
        """
        with storage_wait_policy(self.source.config.storage_timeout_s, self.waits.report):
            try:
                return start, self._batch(start)
            except StorageError as error:
                return start, error

    def _batch(self, start: OrderState) -> Batch:
        part, counts = self.plan.rank_part(start, rank=self.rank, world=self.world), self.source.frame_counts
        packed = PackedFrames(0 if counts is None else int(counts[part.samples].sum()), self.memory)
        items = [
            self.source.load(
                int(sample), seed=start.seed, epoch=start.epoch, position=int(place), packed=packed
            )
            for sample, place in zip(part.samples, part.places, strict=True)
        ]
        return collate(
            items,
            is_real=part.is_real.tolist(),
            positions=part.positions,
            epoch=start.epoch,
            seed=start.seed,
            packed=packed,
        )


def _prefetch_in_thread(
    make: Callable[[OrderState], Arrival], starts: Iterable[OrderState], waits: SharedWaits
) -> Iterator[Arrival]:
    """Yield batches that a thread makes in the background; FFmpeg, NumPy and torch release the GIL."""

    def results(left: int) -> Iterator[Arrival]:
        while len(waiting) > left:
            while not wait(list(waiting)[:1], timeout=POLL_S).done:
                yield None
            yield waiting.popleft().result()

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting: deque[Future[Arrival]] = deque()
        try:
            for start in starts:
                waiting.append(thread.submit(make, start))
                yield from results(left=_PREFETCHED_BATCHES)
            yield from results(left=0)
        finally:
            waits.end()  # otherwise leaving the block would wait for a read that waits for storage
            thread.shutdown(cancel_futures=True)


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker, because the training process handles them and ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
