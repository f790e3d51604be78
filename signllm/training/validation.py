"""Validation within training: when it is due, which checkpoint is the best, and what a preemption leaves out.

A job that is asked to leave breaks validation off between two batches (all ranks) and saves at once; the
checkpoint says ``validation_left``, and the job that resumes there validates that step first. So the log and
the best score are those of a run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from signllm.errors import UsageError
from signllm.storage import StorageError
from signllm.training.checkpoint import TrainingState, name_of
from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.metrics import Shown
from signllm.training.preemption import leave_together

if TYPE_CHECKING:
    from torch import nn

    from signllm.training.engine import TrainingConfig

Validate = Callable[["nn.Module", int], Mapping[str, float]]
Look = Callable[["nn.Module", int], Shown]


class Validation:
    """Validates a run's steps and knows the best.

    Args:
        validate: of the caller, given the model and the step; all ranks call it. None: never.
        look: likewise, behind each validation: what TensorBoard shows of the model as it is then.
        config: steps between two validations, and the value whose best checkpoint is kept.
        end: the last step.
        scores: values of which the highest is the best; of the others it is the lowest.

    Attributes:
        shown: what the last validation's look found.
        best: the best value so far: its ``name``, ``value`` and ``checkpoint``.
        left: the step last reached is still to be validated.
    """

    def __init__(
        self,
        validate: Validate | None,
        look: Look | None,
        config: TrainingConfig,
        *,
        end: int,
        scores: Collection[str] = (),
    ) -> None:
        self.validate, self.look, self.end, self.scores = validate, look, end, scores
        self.every, self.keep_best = config.validate_every, config.keep_best
        self.shown = Shown({}, {}, {})
        self.best: dict[str, Any] | None = None
        self.left = False

    def resume(self, state: TrainingState) -> None:
        """Go on from what a checkpoint says."""
        self.best, self.left = state.best, state.validation_left and self.validate is not None

    def run(
        self, module: nn.Module, step: int, device: torch.device, *, epoch_ends: bool = False
    ) -> Mapping[str, float]:
        """Return rank 0's values of this step if it is due and none is asked to leave (all ranks)."""
        on_the_way = epoch_ends if self.every is None else self.every and step % self.every == 0
        due = self.left or step == self.end or on_the_way
        if self.validate is None or not due:
            return {}
        self.left = False
        module.eval()
        try:
            leave_together(device)
            with torch.no_grad():
                values = [dict(self.validate(module, step))]
                if self.look is not None:
                    self.shown = self.look(module, step)
        except StoppedEarlyError:
            self.left = True
            return {}
        except StorageError:
            self.left = True
            raise
        finally:
            module.train()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(values, src=0)  # what follows is decided from them: alike on all ranks
        return values[0]

    def expect(self, trained: Collection[str]) -> None:
        """Refuse a ``keep_best`` that is no score and no loss: at the first step, not epochs later.

        Raises:
            UsageError: as :meth:`improves`.
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

    def improves(self, values: Mapping[str, float], step: int, revision: int) -> bool:
        """Say whether these values are the best so far; then the checkpoint of this step is to be kept.

        Raises:
            UsageError: ``keep_best`` is none of the values.
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
        self.best = {"checkpoint": name_of(step, revision), "name": name, "value": float(values[name])}
        return True
