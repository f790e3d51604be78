"""Samples → batches of one rank: each once per epoch, equally many on every rank, resumable after any step.

The steps are a pure sequence (:mod:`signllm.data.plan`); workers, or a thread of the training process, only
run ahead along it. The state is that of the batches handed out, so prefetching is invisible in it.
``torch``'s DataLoader supplies processes, shared memory and pinning.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from signllm.data.augment import AugmentConfig
from signllm.data.batch import Batch, collate
from signllm.data.order import OrderState
from signllm.data.packed_frames import Memory, PackedFrames
from signllm.data.plan import EpochPlan
from signllm.data.source import CharacterSource, DataConfig, Source, VideoSource
from signllm.errors import UsageError

__all__ = ["AugmentConfig", "CharacterSource", "DataConfig", "Loader", "VideoSource"]

_PREFETCHED_BATCHES = 2
Bad = tuple[tuple[str, str], ...]
"""(id, reason) of samples that could not be read."""
Collect = Callable[[Bad], Callable[[], Bad]]
"""Begins to tell all ranks the bad samples of this one; what it returns waits for those of all."""

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
        bad_of_all: collects the bad samples of a step over the ranks, all of which call it at every step and
            ask for the answer at the next, so that no rank waits for another's data. Then all stop at the
            same step if there are too many. None looks at this rank's.

    A training loader that has reached its end yields nothing more; one without shuffling begins anew, so that
    evaluating twice works.

    Raises:
        UsageError: no samples, or a batch size that the ranks cannot share.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        workers: int | None = None,
        epochs: int | None = None,
        bad_of_all: Collect | None = None,
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
        if batch_size < 1 or (batch_size % world and not self.plan.limited):
            raise UsageError(
                f"batch_size = {batch_size} videos per step cannot be shared by {world} ranks",
                remedy=f"a multiple of {world}",
            )
        self.source, self.batch_size, self.rank, self.world = source, batch_size, rank, world
        self.shuffle, self.epochs = shuffle, epochs
        self.workers = config.workers if workers is None else workers
        self._state = OrderState(seed=seed)
        self._bad_of_all = bad_of_all
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
        """Yield this rank's batches from the present state on."""
        if not self.shuffle and self.epochs is not None and self._state.epoch >= self.epochs:
            self._state = OrderState(seed=self._state.seed)
        starts = self.plan.starts(self._state, self.epochs)
        told: Callable[[], Bad] | None = None
        for start, batch in self._batches(starts):
            if told is not None:
                self._count_bad(told())
            self._state = self.plan.after(start)
            told = self._bad_of_all(batch.bad) if self._bad_of_all else partial(tuple, batch.bad)
            yield batch
        if told is not None:
            self._count_bad(told())

    def _batches(self, starts: Iterable[OrderState]) -> Iterator[tuple[OrderState, Batch]]:
        from torch.cuda import is_available
        from torch.utils.data import DataLoader

        maker = BatchMaker(self)
        if self.workers == 0:
            yield from _ahead(maker.__getitem__, starts)
            return
        yield from DataLoader(
            maker,  # type: ignore[arg-type]  # a map from states, not from numbers
            sampler=starts,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=_PREFETCHED_BATCHES,
            worker_init_fn=_ignore_signals,
            pin_memory=is_available(),
        )

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
            if self.rank == 0 or self._bad_of_all is None:
                _log.warning("sample %s replaced by padding: %s", name, reason)
        check_unreadable(list(self._bad.items()), self.source.config.max_bad * len(self.source))


def check_unreadable(unreadable: Sequence[tuple[str, str]], allowed: float) -> None:
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
        self.rank, self.world, self.memory = loader.rank, loader.world, Memory()

    def __getitem__(self, start: OrderState) -> tuple[OrderState, Batch]:
        part, counts = self.plan.part(start, rank=self.rank, world=self.world), self.source.frame_counts
        packed = PackedFrames(0 if counts is None else int(counts[part.samples].sum()), self.memory)
        items = [
            self.source.load(
                int(sample), seed=start.seed, epoch=start.epoch, position=int(place), packed=packed
            )
            for sample, place in zip(part.samples, part.places, strict=True)
        ]
        batch = collate(
            items,
            is_real=part.is_real.tolist(),
            positions=part.positions,
            epoch=start.epoch,
            seed=start.seed,
            packed=packed,
        )
        return start, batch


def _ahead(
    make: Callable[[OrderState], tuple[OrderState, Batch]], starts: Iterable[OrderState]
) -> Iterator[tuple[OrderState, Batch]]:
    """Make batches in a thread: FFmpeg, NumPy and torch let the training thread run meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting: deque[Future[tuple[OrderState, Batch]]] = deque()
        try:
            for start in starts:
                waiting.append(thread.submit(make, start))
                if len(waiting) > _PREFETCHED_BATCHES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


def _ignore_signals(worker: int) -> None:
    """Leave preemption and Ctrl-C to the training process; workers go when it goes."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
