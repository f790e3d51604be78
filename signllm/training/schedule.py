"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state.

Linear warmup, then half a cosine or a constant. Neither warmup nor decay is stated in the paper; Adam on a
newly initialised codebook needs the warmup and gains from the decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from signllm.training.engine import TrainingConfig

Shape = Literal["cosine", "constant"]


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int = 0, shape: Shape = "cosine", final_factor: float = 0.0
) -> float:
    """Return the factor of the base learning rate in ``step`` (the first step is 0).

    Warmup rises linearly and reaches 1 in step ``warmup_steps``. The cosine falls from there and reaches
    ``final_factor`` one step after the last, so that the last step still learns. A negative step (of a group
    that starts later) gives 0.
    """
    if step < 0:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if shape == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rates(
    groups: Iterable[dict[str, Any]], config: TrainingConfig, *, step: int, end: int
) -> None:
    """Set the learning rate of each parameter group of an optimizer for the step after ``step``."""
    factor = learning_rate_factor(
        step,
        end,
        warmup_steps=config.warmup_steps,
        shape=config.schedule,
        final_factor=config.final_factor,
    )
    for group in groups:
        group["lr"] = group["base_lr"] * factor
