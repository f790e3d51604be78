"""Samples → batches of one rank: each once per epoch, equally many on every rank, resumable after any step.

The steps are a pure sequence (:mod:`signllm.data.order`); workers only run ahead along it. The state is that
of the batches handed out, so prefetching is invisible in it. ``torch``'s DataLoader supplies processes,
shared memory and pinning.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from signllm.data.augment import AugmentConfig
from signllm.data.batch import Batch, collate
from signllm.data.order import OrderState, after_batch, batch_places, batch_starts, permutation
from signllm.data.source import CharacterSource, DataConfig, Source, VideoSource
from signllm.errors import UsageError

__all__ = ["AugmentConfig", "CharacterSource", "DataConfig", "Loader", "VideoSource"]

_PREFETCHED_BATCHES = 2
_log = logging.getLogger(__name__)


class Loader:
    """An iterable of one rank's batches.

    Args:
        source: :class:`VideoSource` or :class:`CharacterSource`.
        batch_size: videos per step over all ranks, divisible by ``world``.
        rank: this rank.
        world: number of ranks.
        seed: of the order and the augmentation.
        shuffle: False keeps the order of the shards, for evaluation.
        workers: processes that decode ahead; None takes ``source.config.workers``. The batches do not depend
            on it.
        epochs: passes in all, counted from the first even after resuming; None goes on for ever.

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
    ) -> None:
        if len(source) == 0:
            raise UsageError("the split holds no samples", remedy="check signllm shards info")
        if batch_size < 1 or batch_size % world:
            raise UsageError(
                f"batch_size = {batch_size} videos per step cannot be shared by {world} ranks",
                remedy=f"a multiple of {world}",
            )
        assert 0 <= rank < world
        self.source, self.batch_size, self.rank, self.world = source, batch_size, rank, world
        self.shuffle, self.epochs = shuffle, epochs
        self.workers = source.config.workers if workers is None else workers
        self._state = OrderState(seed=seed)
        self._bad: list[tuple[str, str]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return -(-len(self.source) // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Return the state behind the last batch handed out: ``seed``, ``epoch``, ``samples_consumed``."""
        return self._state.as_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken, under any number of ranks and workers.

        Raises:
            UsageError: a state of other data.
        """
        loaded = OrderState(**{name: int(state[name]) for name in ("seed", "epoch", "samples_consumed")})
        if loaded.samples_consumed > len(self.source):
            raise UsageError(
                f"the state stands at sample {loaded.samples_consumed}, these shards hold {len(self.source)}",
                remedy="resume with the shards the run began with",
            )
        self._state = loaded

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches from the present state on."""
        if not self.shuffle and self.epochs is not None and self._state.epoch >= self.epochs:
            self._state = OrderState(seed=self._state.seed)
        starts = batch_starts(self._state, len(self.source), self.batch_size, self.epochs)
        for start, batch in self._batches(starts):
            self._state = after_batch(start, len(self.source), self.batch_size)
            self._count_bad(batch)
            yield batch

    def _batches(self, starts: Iterable[OrderState]) -> Iterator[tuple[OrderState, Batch]]:
        from torch.cuda import is_available
        from torch.utils.data import DataLoader

        maker = _BatchMaker(self)
        if self.workers == 0:
            yield from map(maker.__getitem__, starts)
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

    def _count_bad(self, batch: Batch) -> None:
        if not batch.bad:
            return
        for name, reason in batch.bad:
            _log.warning("sample %s replaced by padding: %s", name, reason)
        self._bad.extend(batch.bad)
        check_unreadable(self._bad, self.source.config.max_bad * len(self.source))


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


class _BatchMaker:
    """State before a global batch → that state and one rank's batch; travels to the workers."""

    def __init__(self, loader: Loader) -> None:
        self.source, self.shuffle = loader.source, loader.shuffle
        self.batch_size, self.rank, self.world = loader.batch_size, loader.rank, loader.world

    def __getitem__(self, start: OrderState) -> tuple[OrderState, Batch]:
        order = self._order(start)
        places = batch_places(start.samples_consumed, self.batch_size, self.rank, self.world)
        real = places < len(order)
        # padding repeats samples of the same batch, from its beginning on
        held = np.where(real, places, start.samples_consumed + places % (len(order) - start.samples_consumed))
        items = [
            self.source.load(int(order[sample]), seed=start.seed, epoch=start.epoch, position=int(place))
            for sample, place in zip(held, places, strict=True)
        ]
        batch = collate(items, is_real=real.tolist(), positions=places, epoch=start.epoch, seed=start.seed)
        return start, batch

    def _order(self, start: OrderState) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.source))
        return _permutation(
            tuple(self.source.shard_sizes), start.seed, start.epoch, self.source.config.window
        )


@lru_cache(maxsize=2)
def _permutation(shard_sizes: tuple[int, ...], seed: int, epoch: int, window: int) -> np.ndarray:
    return permutation(shard_sizes, seed, epoch, window)


def _ignore_signals(worker: int) -> None:
    """Leave preemption and Ctrl-C to the training process; workers go when it goes."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
