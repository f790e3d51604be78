"""The callbacks that every stage has, as its configuration asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from signllm.training.callbacks import Callback
from signllm.training.engine import TrainingConfig
from signllm.training.tensorboard import TensorBoard
from signllm.training.trackers import TRACKERS, Tracker
from signllm.training.validation import BestCheckpoint, EarlyStopping, Validate, Validator


def standard_callbacks(
    config: TrainingConfig,
    validate: Validate | None,
    *,
    scores: Mapping[str, bool] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Callback]:
    """Return the callbacks for TensorBoard, validation, the best checkpoint, early stopping and trackers.

    Args:
        config: how the stage is trained.
        validate: returns validated values; None validates nothing.
        scores: names of validated values that are not losses, and whether a higher one is better.
        settings: all settings of the stage as plain values, for trackers.
    """
    callbacks: list[Callback] = [TensorBoard()] if config.tensorboard else []
    callbacks += [Tracker(name, TRACKERS[name][1](), settings or {}) for name in config.trackers]
    if validate is not None:
        callbacks.append(Validator(validate, every=config.validate_every))
    best = BestCheckpoint(None if validate is None else config.keep_best, scores=scores)
    callbacks.append(best)
    if config.patience is not None:
        callbacks.append(EarlyStopping(best, patience=config.patience))
    return callbacks
