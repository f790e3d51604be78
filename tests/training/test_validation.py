"""Validation: when it is due, what is the best, and that what a preemption leaves out is made up for."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.distributed.preemption import PreemptionFlag
from signllm.errors import UsageError
from signllm.training.callbacks import Callback, Training
from signllm.training.checkpoint import TrainingState
from signllm.training.training_log import read_log
from signllm.training.validation import BestCheckpoint, Validator
from tests.training.toy import advance, toy_training

END = 7


class ValidatedSteps(Callback):
    """Notes the steps that are validated, and whether the model is then in evaluation mode."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation(self, training: Training, values: dict[str, float]) -> None:
        assert not training.model.training
        self.steps.append(training.step)


def validated(
    run: Path,
    values: dict[int, float],
    name: str | None = "loss",
    *,
    every: int | None = 2,
    per_epoch: int = 3,
) -> tuple[list[int], list[int], BestCheckpoint]:
    """Return the steps of a run that are validated, those that are the best so far, and the best."""
    shown, best = ValidatedSteps(), BestCheckpoint(name, scores={"bleu4": True, "wer": False})
    validator = Validator(lambda model, step: {name or "loss": values[step]}, every=every)
    training = toy_training(run, [validator, best, shown], end=END, per_epoch=3)
    improved = []
    for step in range(1, END + 1):
        training.checkpoint_requested = False
        advance(training, step)
        validator.on_step(training, {"loss": 1.0})
        if training.checkpoint_requested:
            improved.append(step)
    assert training.model.training
    return shown.steps, improved, best


def test_it_is_due_every_so_many_steps_and_at_the_end_and_the_lowest_is_the_best(tmp_path: Path) -> None:
    steps, improved, best = validated(tmp_path, {2: 3.0, 4: 1.0, 6: float("nan"), 7: 2.0})
    assert (steps, improved) == ([2, 4, 6, 7], [2, 4])
    assert best.best == {"checkpoint": "step-00000004", "name": "loss", "value": 1.0}
    assert [line["validate/loss"] for line in read_log(tmp_path)][:2] == [3.0, 1.0]


def test_without_a_number_of_steps_it_is_due_when_an_epoch_ends(tmp_path: Path) -> None:
    values = {3: 1.0, 6: 2.0, 7: 3.0}
    for every, due in ((None, [3, 6, 7]), (0, [7])):
        assert validated(tmp_path / str(every), values, every=every)[0] == due


def test_of_scores_the_highest_is_the_best_and_one_value_is_not_measured_by_another(tmp_path: Path) -> None:
    _, improved, best = validated(tmp_path, {2: 3.0, 4: 7.0, 6: 7.0, 7: 5.0}, "bleu4")
    assert improved == [2, 4]
    assert best.best == {"checkpoint": "step-00000004", "name": "bleu4", "value": 7.0}
    training = toy_training(tmp_path, [])
    best.on_resume(TrainingState(stage="toy", step=1, best={"checkpoint": "x", "name": "loss", "value": 0.1}))
    best.on_validation(training, {"bleu4": 0.5})
    assert best.improved


def test_what_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    for name in ("loss", "bleu4"):
        values = {2: float("nan"), 4: 5.0, 6: float("nan"), 7: float("nan")}
        assert validated(tmp_path / name, values, name)[1] == [4]


def test_of_error_rates_the_lowest_is_the_best(tmp_path: Path) -> None:
    assert validated(tmp_path, {2: 53.1, 4: 54.4, 6: 51.0, 7: 51.0}, "wer")[1] == [2, 6]


def test_a_name_that_is_neither_a_loss_nor_a_score_is_refused_at_the_first_step(tmp_path: Path) -> None:
    training = toy_training(tmp_path, [])
    for known in ("loss", "bleu4", None):
        BestCheckpoint(known, scores={"bleu4": True}).on_step(training, {"loss": 1.0})
    with pytest.raises(UsageError, match="'blue4'"):
        BestCheckpoint("blue4", scores={"bleu4": True}).on_step(training, {"loss": 1.0})


def test_without_a_name_there_is_no_best_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    assert validated(tmp_path, {2: 3.0, 4: 1.0, 6: 1.0, 7: 2.0}, None)[1] == []
    with pytest.raises(UsageError, match="bleu"):
        BestCheckpoint("bleu").on_validation(toy_training(tmp_path, []), {"loss": 1.0})


def test_what_was_left_out_is_made_up_for_at_the_same_step(tmp_path: Path) -> None:
    interrupted, shown = Validator(lambda model, step: {"loss": 3.0}, every=2), ValidatedSteps()
    training = toy_training(tmp_path, [interrupted, shown], end=END)
    advance(training, 2)
    with PreemptionFlag() as flag:
        flag.request()
        interrupted.on_step(training, {"loss": 1.0})
    assert training.has_work_left
    assert interrupted.checkpoint_state() == {"validation_left": True}
    assert shown.steps == []
    later = Validator(lambda model, step: {"loss": 3.0}, every=2)
    later.on_resume(TrainingState(stage="toy", step=2, validation_left=True))
    resumed = toy_training(tmp_path, [later, shown], end=END)
    advance(resumed, 2)
    assert resumed.has_work_left
    later.finish_step(resumed)
    assert shown.steps == [2]
    assert not resumed.has_work_left
