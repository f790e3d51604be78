"""Epochs of the data in optimizer steps: where a run ends, and where each of its epochs does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from signllm.training.engine import TrainingConfig


class Batches(Protocol):
    """This rank's batches, with a state that counts the batches that were given out."""

    def batches_until(self, epoch: int) -> int:
        """Return the number of batches from the current state to the beginning of ``epoch``.

        It is equal on all ranks, and -1 if the epoch has already begun.
        """

    def __iter__(self) -> Iterator[Any]:
        """Yield batches from the current state on, epoch after epoch."""

    def state_dict(self) -> dict[str, int]:
        """Return the position in the data: seed, epoch and number of samples consumed."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position that :meth:`state_dict` returned."""


def last_step(config: TrainingConfig, batches: Batches, step: int) -> int:
    """Return the last optimizer step of a run, which ends after its epochs or its steps, whichever is first.

    Args:
        config: number of epochs and of steps.
        batches: batches whose state is that after ``step``. The remaining steps are counted from there,
            because epochs may have different numbers of batches and past epochs may have been run with
            another batch size.
        step: number of optimizer steps so far.
    """
    limits = [] if config.steps is None else [config.steps]
    if config.epochs is not None:
        limits.append(step + max(0, batches.batches_until(config.epochs)) // config.accumulation)
    return min(limits)


class EpochEnds:
    """Finds the last step of each epoch; a step that reaches into the next epoch belongs to that one.

    Args:
        batches: batches that the steps take.
        accumulation: number of batches per step.
    """

    def __init__(self, batches: Batches, accumulation: int) -> None:
        self.batches, self.accumulation = batches, accumulation
        self.epoch, self.end = -1, -1

    def ends_at(self, step: int, epoch: int) -> bool:
        """Return whether an epoch ends with ``step``, whose last batch belonged to ``epoch``."""
        if epoch != self.epoch:  # once per epoch: counting may take as long as planning the epoch
            remaining = self.batches.batches_until(epoch + 1)
            self.epoch, self.end = epoch, step + remaining // self.accumulation
        return step == self.end
