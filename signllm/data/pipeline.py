"""Samples → batches of one rank: each once per epoch, equally many on every rank, resumable after any step.

The steps are a pure sequence (:mod:`signllm.data.plan`); workers, or a thread of the training process, only
run ahead along it. The state is that of the batches handed out, so prefetching is invisible in it.
``torch``'s DataLoader supplies processes, shared memory and pinning.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass

from signllm.data.augment import AugmentConfig
from signllm.data.batch import Batch, collate
from signllm.data.order import OrderState
from signllm.data.packed_frames import ArrayPool, PackedFrames
from signllm.data.plan import EpochPlan
from signllm.data.sample_source import CharacterSource, DataConfig, SampleSource, VideoSource
from signllm.data.shared_waits import SharedWaits
from signllm.errors import UsageError
from signllm.storage import DataLostError, StorageError, storage_wait_policy

__all__ = ["AugmentConfig", "CharacterSource", "DataConfig", "Loader", "VideoSource"]

_PREFETCHED_BATCHES = 2
POLL_S = 1.0
"""Seconds after which a rank that still lacks its batch tells the others so."""
Bad = tuple[tuple[str, str], ...]
"""(id, reason) of samples that could not be read."""
Arrival = tuple[OrderState, "Batch | StorageError"] | None
"""A batch and the state before it, or why it cannot be read; None where it is not there yet."""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a rank, or all ranks together, can say of the next batch.

    Attributes:
        ready: it is there; of all ranks: on each.
        waits: some read of it waits for storage.
        failure: why it cannot be read, for the first rank that cannot.
        bad: its damaged samples.
    """

    ready: bool
    waits: bool = False
    failure: str | None = None
    bad: Bad = ()


Agree = Callable[[Readiness], Readiness]
"""Returns what is true of all ranks from what is true of this one (all ranks)."""

_log = logging.getLogger(__name__)


class Loader:
    """An iterable of one rank's batches.

    Args:
        source: :class:`VideoSource` or :class:`CharacterSource`.
        batch_size: videos per step over all ranks, divisible by ``world``; with a limit of frames
            (``source.config.max_frames_per_batch``) the most, and any number.
        rank: this rank.
        world: number of ranks.
        seed: of the order and the augmentation.
        shuffle: False keeps the order of the shards, for evaluation.
        workers: processes that decode ahead; None takes ``source.config.workers``. The batches do not depend
            on it.
        epochs: passes in all, counted from the first even after resuming; None goes on for ever.
        agree: exchanges between the ranks who has its next batch, and who cannot read it. Then either all
            ranks take a batch or none does, and all stop at the same step if storage stays away or too many
            samples are damaged. None looks at this rank alone.

    A training loader that has reached its end yields nothing more; one without shuffling begins anew, so that
    evaluating twice works.

    Raises:
        UsageError: no samples, or a batch size that the ranks cannot share.
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
            raise UsageError("the split holds no samples", remedy="check signllm shards info")
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
                remedy=f"a multiple of {world}",
            )
        self.source, self.batch_size, self.rank, self.world = source, batch_size, rank, world
        self.shuffle, self.epochs = shuffle, epochs
        self.workers = config.workers if workers is None else workers
        self._state = OrderState(seed=seed)
        self._agree = agree
        self._bad: dict[str, str] = {}

    def batches_until(self, epoch: int) -> int:
        """Return the batches from here to the beginning of ``epoch``, the same on every rank.

        -1 if that lies behind.
        """
        return self.plan.batches_until(self._state, epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the state behind the last batch handed out: ``seed``, ``epoch``, ``samples_consumed``."""
        return self._state.as_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken, under any number of ranks and workers.

        Raises:
            UsageError: a state of other data.
        """
        loaded = OrderState(**{name: int(state[name]) for name in ("seed", "epoch", "samples_consumed")})
        if loaded.samples_consumed > self.plan.samples:
            raise UsageError(
                f"the state stands at sample {loaded.samples_consumed}, "
                f"these shards hold {self.plan.samples}",
                remedy="resume with the shards the run began with",
            )
        self._state = loaded

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches from the present state on.

        Raises:
            DataLostError: the storage of some rank stayed away; the state is that before the lost batch.
        """
        if not self.shuffle and self.epochs is not None and self._state.epoch >= self.epochs:
            self._state = OrderState(seed=self._state.seed)
        starts, maker = self.plan.starts(self._state, self.epochs), BatchMaker(self)
        with closing(self._arrivals(starts, maker)) as arrivals:
            for arrival in arrivals:
                while not (agreed := self._agreed(arrival, maker.waits)).ready and arrival is not None:
                    continue
                if arrival is None:
                    continue
                start, batch = arrival
                assert isinstance(batch, Batch)
                self._count_bad(agreed.bad)
                self._state = self.plan.after(start)
                yield batch

    def _agreed(self, arrival: Arrival, waits: SharedWaits) -> Readiness:
        """Return what is true of all ranks.

        Raises:
            DataLostError: some rank cannot read its batch; raised by all.
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

    def _arrivals(self, starts: Iterable[OrderState], maker: BatchMaker) -> Generator[Arrival]:
        """Yield batch after batch, and None every ``POLL_S`` seconds while the next is not there."""
        from torch.cuda import is_available
        from torch.utils.data import DataLoader

        try:
            if self.workers == 0:
                yield from _prefetch_in_thread(maker.__getitem__, starts, maker.waits)
                return
            batches = iter(
                DataLoader(
                    maker,  # type: ignore[arg-type]  # a map from states, not from numbers
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
                    if "DataLoader timed out" not in str(error):  # it goes on where it was
                        raise
                    yield None
        finally:
            maker.waits.end()

    def _count_bad(self, bad: Bad) -> None:
        """Log and count the bad samples of a step, each once however often it is met.

        Raises:
            UsageError: more than ``data.max_bad`` of all; on every rank alike.
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
    """Refuse more unreadable videos than are allowed.

    Args:
        unreadable: id and reason of each.
        allowed: how many; a share of all may be no whole number.

    Raises:
        UsageError: there are more; it names the last.
    """
    if len(unreadable) > allowed:
        name, reason = unreadable[-1]
        raise UsageError(
            f"{len(unreadable)} samples could not be read, allowed {allowed:g} (data.max_bad of all)",
            where=f"{name}: {reason}",
            remedy="signllm shards verify names the damage; or allow more with data.max_bad",
        )


class BatchMaker:
    """State before a global batch → that state and one rank's batch; travels to the workers."""

    def __init__(self, loader: Loader) -> None:
        self.source, self.plan = loader.source, loader.plan
        self.rank, self.world, self.memory = loader.rank, loader.world, ArrayPool()
        self.waits = SharedWaits()

    def __getitem__(self, start: OrderState) -> tuple[OrderState, Batch | StorageError]:
        """Return a batch, or why it cannot be read: a worker's error would lose its own words on the way."""
        with storage_wait_policy(self.source.config.storage_timeout_s, self.waits.report):
            try:
                return start, self._batch(start)
            except StorageError as error:
                return start, error

    def _batch(self, start: OrderState) -> Batch:
        part, counts = self.plan.part(start, rank=self.rank, world=self.world), self.source.frame_counts
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
    """Make batches in a thread: FFmpeg, NumPy and torch let the training thread run meanwhile."""

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
            waits.end()  # the thread is waited for
            thread.shutdown(cancel_futures=True)


def _ignore_signals(worker: int) -> None:
    """Leave preemption and Ctrl-C to the training process; workers go when it goes."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
