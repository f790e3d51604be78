"""Validation during training: when it is due, which checkpoint is the best, and what happens on preemption.

A preempted job stops a validation between two batches (all ranks) and saves at once. The checkpoint records
``validation_left``, and the job that resumes from it validates that step first. The log and the best value
are therefore those of a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.preemption import stop_if_preempted
from signllm.errors import UsageError
from signllm.storage import StorageError
from signllm.training.checkpoint import TrainingState, checkpoint_name
from signllm.training.training_log import TensorBoardSamples

if TYPE_CHECKING:
    from torch import nn

    from signllm.training.engine import TrainingConfig

Validate = Callable[["nn.Module", int], Mapping[str, float]]
"""Returns the validated values of a model at a step; all ranks call it."""
CollectSamples = Callable[["nn.Module", int], TensorBoardSamples]
"""Returns what TensorBoard shows of a model at a step; all ranks call it."""


class Validation:
    """Validates a run's steps and keeps track of the best one.

    Args:
        validate: returns validated values; None disables validation.
        collect_samples: called after each validation; None collects nothing.
        config: steps between two validations, and the value whose best checkpoint is kept.
        end: the last step of the run.
        scores: names of values that are better when higher; all others are better when lower.

    Attributes:
        samples: what ``collect_samples`` returned last.
        best: the best value so far: its ``name``, ``value`` and ``checkpoint``.
        pending: whether the step that was reached last still has to be validated.
    """

    def __init__(
        self,
        validate: Validate | None,
        collect_samples: CollectSamples | None,
        config: TrainingConfig,
        *,
        end: int,
        scores: Collection[str] = (),
    ) -> None:
        self.validate, self.collect_samples, self.end, self.scores = validate, collect_samples, end, scores
        self.every, self.keep_best = config.validate_every, config.keep_best
        self.samples = TensorBoardSamples({}, {}, {})
        self.best: dict[str, Any] | None = None
        self.pending = False

    def resume(self, state: TrainingState) -> None:
        """Continue from the state of a checkpoint."""
        self.best, self.pending = state.best, state.validation_left and self.validate is not None

    def validate_if_due(
        self, module: nn.Module, step: int, device: torch.device, *, epoch_ends: bool = False
    ) -> Mapping[str, float]:
        """Return rank 0's values of this step; nothing if none is due or a rank was preempted (all ranks)."""
        on_the_way = epoch_ends if self.every is None else self.every and step % self.every == 0
        is_due = self.pending or step == self.end or on_the_way
        if self.validate is None or not is_due:
            return {}
        self.pending = False
        module.eval()
        try:
            stop_if_preempted(device)
            with torch.no_grad():
                values = [dict(self.validate(module, step))]
                if self.collect_samples is not None:
                    self.samples = self.collect_samples(module, step)
        except StoppedEarlyError:
            self.pending = True
            return {}
        except StorageError:
            self.pending = True
            raise
        finally:
            module.train()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(values, src=0)  # all ranks decide from the same values
        return values[0]

    def check_keep_best(self, trained: Collection[str]) -> None:
        """Refuse a ``keep_best`` that names neither a loss nor a score, at the first step already.

        Raises:
            UsageError: as in :meth:`update_best`.
        """
        is_known = self.keep_best in trained or self.keep_best in self.scores
        if self.validate is not None and self.keep_best is not None and not is_known:
            raise self._not_validated()

    def _not_validated(self) -> UsageError:
        scores = f", a score ({', '.join(self.scores)})" if self.scores else ""
        return UsageError(
            f"keep_best names {self.keep_best!r}, which is not validated",
            where="--training.keep-best",
            remedy=f"give a loss that validations log{scores}, or None",
        )

    def update_best(self, values: Mapping[str, float], step: int, revision: int) -> bool:
        """Return whether these values are the best so far, so that this step's checkpoint must be kept.

        Raises:
            UsageError: ``keep_best`` names none of the values.
        """
        name = self.keep_best
        if name is None or not values:
            return False
        if name not in values:
            raise self._not_validated()
        if self.best is not None and self.best["name"] == name:
            sign = -1.0 if name in self.scores else 1.0
            if not sign * values[name] < sign * self.best["value"]:
                return False
        self.best = {
            "checkpoint": checkpoint_name(step, revision),
            "name": name,
            "value": float(values[name]),
        }
        return True
