"""Validation: when it is due, what is the best, and that what a preemption leaves out is made up for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from signllm.distributed.preemption import PreemptionFlag
from signllm.errors import UsageError
from signllm.training.checkpoint import TrainingState
from signllm.training.engine import TrainingConfig
from signllm.training.validation import Validation

CPU = torch.device("cpu")


def validation(values: dict[int, float], name: str = "loss", **settings) -> Validation:
    config = TrainingConfig(steps=7, **({"validate_every": 2, "keep_best": name} | settings))
    return Validation(lambda model, step: {name: values[step]}, None, config, end=7, scores=("bleu4",))


def test_it_is_due_every_so_many_steps_and_at_the_end_and_the_lowest_is_the_best() -> None:
    values = {2: 3.0, 4: 1.0, 6: float("nan"), 7: 2.0}
    each, module = validation(values), nn.Linear(1, 1)
    steps = range(1, 8)
    improved = [step for step in steps if each.update_best(each.validate_if_due(module, step, CPU), step, 0)]
    assert improved == [2, 4]
    assert each.best == {"checkpoint": "step-00000004", "name": "loss", "value": 1.0}
    assert module.training


def test_without_a_number_of_steps_it_is_due_when_an_epoch_ends() -> None:
    values = {3: 1.0, 6: 2.0, 7: 3.0}
    for every, due in ((None, [3, 6, 7]), (0, [7])):
        each, module = validation(values, validate_every=every), nn.Linear(1, 1)
        assert [n for n in range(1, 8) if each.validate_if_due(module, n, CPU, epoch_ends=n % 3 == 0)] == due


def test_of_scores_the_highest_is_the_best_and_one_value_is_not_measured_by_another() -> None:
    values = {2: 3.0, 4: 7.0, 6: 7.0, 7: 5.0}
    each, module = validation(values, "bleu4"), nn.Linear(1, 1)
    each.best = {"checkpoint": "step-00000001", "name": "loss", "value": 9.0}
    steps = range(1, 8)
    improved = [step for step in steps if each.update_best(each.validate_if_due(module, step, CPU), step, 0)]
    assert improved == [2, 4]
    assert each.best == {"checkpoint": "step-00000004", "name": "bleu4", "value": 7.0}


def test_a_name_that_is_neither_a_loss_nor_a_score_is_refused_at_the_first_step() -> None:
    for known in ("loss", "bleu4", None):
        validation({}, keep_best=known).check_keep_best({"loss": 1.0})
    with pytest.raises(UsageError, match="'blue4'"):
        validation({}, keep_best="blue4").check_keep_best({"loss": 1.0})
    never = Validation(None, None, TrainingConfig(steps=7, keep_best="blue4"), end=7)
    never.check_keep_best({"loss": 1.0})


def test_without_a_name_there_is_no_best_and_a_wrong_one_is_refused() -> None:
    assert not validation({}, keep_best=None).update_best({"loss": 1.0}, 2, 0)
    with pytest.raises(UsageError, match="bleu"):
        validation({}, keep_best="bleu").update_best({"loss": 1.0}, 2, 0)


def test_what_was_left_out_is_made_up_for_at_the_same_step() -> None:
    module, asked = nn.Linear(1, 1), validation({2: 3.0})
    with PreemptionFlag() as flag:
        flag.request()
        assert asked.validate_if_due(module, 2, CPU) == {}
    assert asked.pending
    later = validation({2: 3.0})
    later.resume(TrainingState(stage="toy", step=2, validation_left=True))
    assert later.validate_if_due(module, 2, CPU) == {"loss": 3.0}
    assert not later.pending
