"""Validation during training, and what follows from it: the best checkpoint, and early stopping.

A preempted job stops a validation between two batches (all ranks) and saves at once. The checkpoint records
``validation_left``, and the job that resumes from it validates that step first. The log and the best value
are therefore those of a run that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import stop_if_preempted
from signllm.errors import UsageError
from signllm.training.callbacks import Callback, Training

if TYPE_CHECKING:
    from torch import nn

    from signllm.training.checkpoint import TrainingState

STOPPED_EARLY = "stopped_early"
"""Key of the line of ``log.jsonl`` with the reason why training ended before its last step."""
Validate = Callable[["nn.Module", int], Mapping[str, float]]
"""Returns the validated values of a model at a step; all ranks call it."""


class Validator(Callback):
    """Validates a run's steps, the last one in any case.

    Args:
        validate: returns validated values of the model, which is in evaluation mode (all ranks).
        every: steps between two validations; None validates when an epoch ends, 0 only at the last step.
    """

    def __init__(self, validate: Validate, *, every: int | None) -> None:
        self.validate, self.every = validate, every

    def on_resume(self, state: TrainingState) -> None:
        """Continue from the state of a checkpoint."""
        self.has_work_left = state.validation_left

    def checkpoint_state(self) -> Mapping[str, Any]:
        """Return whether the step still has to be validated."""
        return {"validation_left": self.has_work_left}

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        """Validate this step if it is due."""
        is_on_the_way = training.is_epoch_end() if self.every is None else self._is_multiple(training.step)
        if is_on_the_way or training.step == training.end:
            self.finish_step(training)

    def _is_multiple(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0  # type: ignore[operator]

    def finish_step(self, training: Training) -> None:
        """Validate this step and report rank 0's values, unless a rank is preempted (all ranks)."""
        self.has_work_left = True
        with _evaluation_mode(training.model):
            try:
                stop_if_preempted(training.context.ranks.device)
                values = [dict(self.validate(training.model, training.step))]
            except StoppedEarlyError:
                return
            self.has_work_left = False
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.broadcast_object_list(values, src=0)  # all ranks decide from the same values
            if values[0]:
                training.report_validation(values[0])


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


class BestCheckpoint(Callback):
    """Keeps the checkpoint with the best validated value besides the latest ones.

    Args:
        name: the value: a loss, or one of ``scores``; None keeps no further checkpoint.
        scores: names of values that are not losses, and whether a higher one is better; a loss is better when
            it is lower.

    Attributes:
        best: the best value so far: its ``name``, ``value`` and ``checkpoint``.
        improved: whether the last validation gave the best value so far.
    """

    def __init__(self, name: str | None, *, scores: Mapping[str, bool] | None = None) -> None:
        self.name, self.scores = name, scores or {}
        self.best: dict[str, Any] | None = None
        self.improved = False

    def on_resume(self, state: TrainingState) -> None:
        """Continue from the state of a checkpoint."""
        self.best = state.best

    def checkpoint_state(self) -> Mapping[str, Any]:
        """Return the best value so far."""
        return {"best": self.best}

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        """Refuse, at the first step already, a name that is neither a loss nor a score.

        Raises:
            UsageError: as in :meth:`on_validation`.
        """
        if self.name is not None and self.name not in losses and self.name not in self.scores:
            raise self._not_validated()

    def on_validation(self, training: Training, values: Mapping[str, float]) -> None:
        """Request a checkpoint of this step if its value is the best so far.

        Raises:
            UsageError: the name is none of the values.
        """
        if self.name is None:
            return
        if self.name not in values:
            raise self._not_validated()
        value = float(values[self.name])
        self.improved = self._is_better(value)
        if self.improved:
            self.best = {"checkpoint": training.checkpoint_name, "name": self.name, "value": value}
            training.request_checkpoint()

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):  # as the best value it could never be improved on
            return False
        if self.best is None or self.best["name"] != self.name:
            return True
        sign = -1.0 if self.scores.get(str(self.name)) else 1.0
        return sign * value < sign * float(self.best["value"])

    def _not_validated(self) -> UsageError:
        scores = f", a score ({', '.join(self.scores)})" if self.scores else ""
        return UsageError(
            f"keep_best names {self.name!r}, which is not validated",
            where="--training.keep-best",
            remedy=f"give a loss that validations log{scores}, or None",
        )


class EarlyStopping(Callback):
    """Ends training when the value that selects the best checkpoint no longer improves.

    The validations without improvement are counted in the checkpoint, so a resumed run stops at the same step
    as an uninterrupted one, and a run that has stopped is not continued by the same command.

    Args:
        best: decides whether a validation is an improvement; it must come first in the list of callbacks.
        patience: number of validations in a row without improvement after which training ends.
    """

    def __init__(self, best: BestCheckpoint, *, patience: int) -> None:
        self.best, self.patience = best, patience
        self.without_improvement = 0

    def on_resume(self, state: TrainingState) -> None:
        """Continue from the state of a checkpoint."""
        if state.best is not None and state.best["name"] == self.best.name:
            self._count(state.validations_without_improvement)

    def checkpoint_state(self) -> Mapping[str, Any]:
        """Return the number of validations since the best one."""
        return {"validations_without_improvement": self.without_improvement}

    def on_validation(self, training: Training, values: Mapping[str, float]) -> None:
        """Count a validation without improvement; log the reason if training ends before its last step."""
        self._count(0 if self.best.improved else self.without_improvement + 1)
        if self.stop_reason is not None and training.step < training.end:
            training.log({STOPPED_EARLY: self.stop_reason})

    def _count(self, without_improvement: int) -> None:
        self.without_improvement = without_improvement
        best = self.best.best
        if best is not None and without_improvement >= self.patience:
            self.stop_reason = (
                f"{best['name']} did not improve in {without_improvement} validations; "
                f"the best is {best['value']:g} ({best['checkpoint']}); "
                "a larger --training.patience continues"
            )
