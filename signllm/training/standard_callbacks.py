"""The callbacks that every stage has, as its configuration asks for them."""

from __future__ import annotations

from collections.abc import Collection

from signllm.training.callbacks import Callback
from signllm.training.engine import TrainingConfig
from signllm.training.tensorboard import TensorBoard
from signllm.training.validation import BestCheckpoint, Validate, Validator


def standard_callbacks(
    config: TrainingConfig, validate: Validate | None, *, scores: Collection[str] = ()
) -> list[Callback]:
    """Return the callbacks for TensorBoard, validation and the best checkpoint.

    Args:
        config: how the stage is trained.
        validate: returns validated values; None validates nothing.
        scores: names of validated values that are better when higher; others are better when lower.
    """
    callbacks: list[Callback] = [TensorBoard()] if config.tensorboard else []
    if validate is not None:
        callbacks.append(Validator(validate, every=config.validate_every))
    name = None if validate is None else config.keep_best
    return [*callbacks, BestCheckpoint(name, scores=scores)]
