"""Callbacks: what each writes, in which order they are called, and that a resumed run repeats nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from signllm.training.callbacks import (
    AlarmLogger,
    Callback,
    ExtraFiles,
    Outcome,
    Training,
    ValidationSamples,
)
from signllm.training.checkpoint import TrainingState, last_checkpoint
from signllm.training.engine import TrainingConfig
from signllm.training.loop import fit
from signllm.training.tensorboard import TensorBoard
from signllm.training.training_log import read_log
from signllm.training.validation import Validator
from tests.training.toy import ToyLoader, advance, build, toy_context, toy_training


class Record(Callback):
    """Notes which of its methods are called, and at which step."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_resume(self, state: TrainingState) -> None:
        self.calls.append(f"resume {state.step}")

    def on_start(self, training: Training) -> None:
        self.calls.append(f"start {training.step}")

    def on_step(self, training: Training, losses: Mapping[str, float]) -> None:
        self.calls.append(f"step {training.step}")

    def on_log(self, training: Training, line: Mapping[str, Any]) -> None:
        self.calls.append("log validation" if "validate/loss" in line else "log")

    def on_validation(self, training: Training, values: Mapping[str, float]) -> None:
        self.calls.append(f"validation {values['loss']}")

    def on_checkpoint(self, folder: Path) -> None:
        (folder / "record.txt").write_text("a file of a callback")

    def on_end(self, training: Training, outcome: Outcome | None) -> None:
        self.calls.append("failed" if outcome is None else f"end {outcome.step}")


def test_the_order_of_the_calls_and_that_a_finished_run_is_not_started_again(tmp_path: Path) -> None:
    def train(steps: int) -> list[str]:
        config = TrainingConfig(steps=steps, batch_size=4, log_every=1, deepspeed="zero0")
        record = Record()
        validator = Validator(lambda model, step: {"loss": 0.5}, every=0)
        loader = ToyLoader(batch_size=4, rank=0, world=1)
        callbacks = [validator, record]
        assert (
            fit(build(), loader, config=config, context=toy_context(tmp_path), callbacks=callbacks).step
            == steps
        )
        return record.calls

    last = ["log", "log validation", "validation 0.5"]
    assert train(2) == ["start 0", "log", "step 1", *last, "step 2", "end 2"]
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert (checkpoint / "record.txt").is_file()
    assert train(2) == ["resume 2"]
    assert train(3) == ["resume 2", "start 2", *last, "step 3", "end 3"]


def test_callbacks_end_after_an_exception(tmp_path: Path) -> None:
    def fail(model: object, step: int) -> dict[str, float]:
        raise LookupError("no value")

    config, record = TrainingConfig(steps=1, batch_size=4, deepspeed="zero0"), Record()
    loader, validator = ToyLoader(batch_size=4, rank=0, world=1), Validator(fail, every=1)
    with pytest.raises(LookupError):
        fit(build(), loader, config=config, context=toy_context(tmp_path), callbacks=[record, validator])
    assert record.calls == ["start 0", "log", "step 1", "failed"]


def test_extra_files_are_written_into_a_checkpoint(tmp_path: Path) -> None:
    ExtraFiles(lambda folder: (folder / "words.json").write_text("{}")).on_checkpoint(tmp_path)
    assert (tmp_path / "words.json").is_file()


def test_numbers_and_samples_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard()
    training = toy_training(tmp_path, [board])
    board.on_start(training)
    for step, line in ((1, {"loss": 1.5, "note": "words"}), (2, {"loss": 0.5})):
        advance(training, step)
        training.log(line)
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    training.show_samples(ValidationSamples({"use": np.arange(3.0)}, {"video": picture}, {"table": "| a |"}))
    board.on_end(training, None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    assert tags["scalars"] == ["toy/loss"]
    assert [(e.step, e.value) for e in events.Scalars("toy/loss")] == [(1, 1.5), (2, 0.5)]
    assert (tags["images"], tags["histograms"]) == (["toy/video"], ["toy/use"])
    assert "toy/table/text_summary" in tags["tensors"]


def test_alarms_are_logged_once_also_by_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check raises an alarm at the third line, wherever a run was resumed."""
    monkeypatch.setattr(logging.getLogger("signllm"), "propagate", True)

    class ThirdLine:
        count = 0

        def __call__(self, line: Mapping[str, Any]) -> list[str]:
            self.count += "loss" in line
            return ["the third"] if self.count == 3 and "loss" in line else []

    for steps in ((1, 2), (3, 4), (5,)):
        logger, board = AlarmLogger(ThirdLine()), TensorBoard()
        training = toy_training(tmp_path, [board, logger], resumed_step=steps[0] - 1)
        for callback in training.callbacks:
            callback.on_start(training)
        for step in steps:
            advance(training, step)
            with caplog.at_level(logging.WARNING):
                training.log({"loss": 1.0})
        board.on_end(training, None)
    (alarm,) = [line for line in read_log(tmp_path) if "alarm" in line]
    assert (alarm["step"], alarm["alarm"]) == (3, "the third")
    assert caplog.text.count("the third") == 1
    assert b"the third" in b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
