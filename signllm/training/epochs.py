"""Epochs of the data in optimizer steps: where a run ends, and where each of its epochs does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from signllm.training.engine import TrainingConfig


class Batches(Protocol):
    """What the loop reads: this rank's batches, with a state that counts the batches it has given out."""

    def batches_until(self, epoch: int) -> int:
        """Return the batches from where the state stands to the beginning of ``epoch``, equal on all ranks.

        -1 if that lies behind.
        """

    def __iter__(self) -> Iterator[Any]:
        """Give out batches, epoch after epoch, from where the state stands."""

    def state_dict(self) -> dict[str, int]:
        """Return the place in the data: seed, epoch, samples consumed."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a place."""


def last_step(config: TrainingConfig, batches: Batches, step: int) -> int:
    """Return the optimizer step that a run ends with: epochs or steps, whichever ends first.

    Args:
        config: says both.
        batches: their state stands where ``step`` left it. What is yet to come is counted from there, because
            epochs need not have equally many batches, and those behind may have been cut otherwise.
        step: optimizer steps so far.
    """
    limits = [] if config.steps is None else [config.steps]
    if config.epochs is not None:
        limits.append(step + max(0, batches.batches_until(config.epochs)) // config.accumulation)
    return min(limits)


class EpochEnds:
    """Knows the last step of each epoch; an epoch that is no whole number of steps ends with the step before.

    Args:
        batches: that the steps take.
        accumulation: how many of them a step takes.
    """

    def __init__(self, batches: Batches, accumulation: int) -> None:
        self.batches, self.accumulation = batches, accumulation
        self.epoch, self.end = -1, -1

    def at(self, step: int, epoch: int) -> bool:
        """Say whether an epoch ends with ``step``, the last of whose batches was of ``epoch``."""
        if epoch != self.epoch:  # counted once for each: it may take as long as to plan the epoch
            left = self.batches.batches_until(epoch + 1)
            self.epoch, self.end = epoch, step + left // self.accumulation
        return step == self.end
