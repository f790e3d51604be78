"""The callbacks that every stage has, as its configuration asks for them."""

from __future__ import annotations

from collections.abc import Collection

from signllm.errors import UsageError
from signllm.training.callbacks import Callback
from signllm.training.engine import TrainingConfig
from signllm.training.tensorboard import TensorBoard
from signllm.training.validation import BestCheckpoint, EarlyStopping, Validate, Validator


def standard_callbacks(
    config: TrainingConfig, validate: Validate | None, *, scores: Collection[str] = ()
) -> list[Callback]:
    """Return the callbacks for TensorBoard, validation, the best checkpoint and early stopping.

    Args:
        config: how the stage is trained.
        validate: returns validated values; None validates nothing.
        scores: names of validated values that are better when higher; others are better when lower.

    Raises:
        UsageError: early stopping is switched on, and nothing is validated.
    """
    callbacks: list[Callback] = [TensorBoard()] if config.tensorboard else []
    if validate is not None:
        callbacks.append(Validator(validate, every=config.validate_every))
    best = BestCheckpoint(None if validate is None else config.keep_best, scores=scores)
    callbacks.append(best)
    if config.patience is not None:
        if validate is None:
            raise UsageError(
                f"patience {config.patience} counts validations, but there is no dev split",
                where="--training.patience",
                remedy="shard a dev split, or leave the option out",
            )
        callbacks.append(EarlyStopping(best, patience=config.patience))
    return callbacks
