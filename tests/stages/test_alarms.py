"""Alarms: each failure raises its own, once; a healthy run raises none."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.stages.alarms import LINES_TO_FALL, WINDOW, AlarmMonitor, alarms_of_log, alarms_of_scores
from signllm.training.callbacks import AlarmLogger
from signllm.training.training_log import read_log
from tests.training.toy import toy_training

LINES = LINES_TO_FALL + WINDOW


def falling(start: float, end: float, count: int = LINES) -> list[float]:
    return [start + (end - start) * place / (count - 1) for place in range(count)]


HEALTHY = {
    "perplexity": falling(20.0, 140.0),
    "l_q": falling(0.05, 0.02),
    "l_mmd": falling(0.4, 0.05),
    "validate/l_sim": falling(3.0, 0.2),
    "validate/l_sim_shuffled": falling(3.3, 4.0),
}


def lines(**metrics: list[float]) -> list[dict]:
    columns = HEALTHY | metrics
    return [
        {"stage": "finetune", "step": 10 * place, **dict(zip(columns, values, strict=True))}
        for place, values in enumerate(zip(*columns.values(), strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("metric", "values", "name", "expected"),
    [
        ("perplexity", falling(100.0, 5.0), "codebook collapse", "it was 9"),
        ("perplexity", [1.2] * LINES, "codebook collapse", "1.2"),
        ("perplexity", [4.1, 4.0, *[2.1] * (LINES - 2)], "codebook collapse", "at best"),
        ("l_q", falling(0.01, 0.1), "quantisation error rising", "l_q is"),
        ("l_mmd", falling(0.4, 0.39), "MMD not falling", "began at 0.39"),
        ("validate/l_sim_shuffled", falling(3.0, 0.2), "the language model ignores the signs", "is 100%"),
    ],
)
def test_each_failure_is_reported_once(metric: str, values: list[float], name: str, expected: str) -> None:
    assert alarms_of_log(lines()) == []
    (alarm,) = alarms_of_log(lines(**{metric: values}))
    assert alarm.name == name
    assert expected in alarm.observation
    assert alarm.step is not None
    assert "; try " in str(alarm)


def test_one_odd_batch_raises_none() -> None:
    odd = [*HEALTHY["perplexity"][:-1], 1.0]
    assert alarms_of_log(lines(perplexity=odd, l_q=[*HEALTHY["l_q"][:-1], 0.1])) == []


@pytest.mark.parametrize("strange", [None, "x", True, float("nan"), []])
def test_lines_of_other_kinds_are_passed_over(strange: object) -> None:
    names = ("step", "perplexity", "l_q", "validate/l_sim", "validate/l_sim_shuffled")
    assert alarms_of_log([dict.fromkeys(names, strange)] * LINES) == []


def test_signs_that_no_longer_help_are_reported_after_three_validations() -> None:
    def validation(step: int, shuffled: float) -> dict[str, float]:
        return {"step": step, "validate/l_sim": 1.0, "validate/l_sim_shuffled": shuffled}

    early = [validation(1, 1.0), validation(2, 1.01)]
    assert alarms_of_log(early) == []
    assert alarms_of_log([*early, validation(3, 1.4)]) == []
    (alarm,) = alarms_of_log([*early, validation(3, 1.02), validation(4, 1.0)])
    assert alarm.step == 3
    assert alarms_of_log([validation(step, 0.0) for step in range(5)]) == []


def test_training_writes_them_down_and_a_resumed_one_does_not_repeat_them(tmp_path: Path) -> None:
    collapsing = lines(perplexity=falling(100.0, 5.0))
    half = len(collapsing) - 3
    for part, resumed in ((collapsing[:half], 0), (collapsing[half:], 10 * half)):
        logger = AlarmLogger(AlarmMonitor())
        training = toy_training(tmp_path, [logger], resumed_step=resumed)
        logger.on_start(training)
        for line in part:
            training.step = line["step"]
            training.log({"perplexity": line["perplexity"]})
    (alarm_line,) = [line for line in read_log(tmp_path) if "alarm" in line]
    assert alarm_line["alarm"].startswith("codebook collapse: perplexity of the codes is")


def test_a_language_model_that_ignores_the_signs() -> None:
    (alarm,) = alarms_of_scores({"bleu4": 12.0}, {"bleu4": 11.0})
    assert alarm.observation == "BLEU-4 is 12.0, with shuffled videos 11.0"
    assert alarms_of_scores({"bleu4": 74.0}, {"bleu4": 11.0}) == []
    assert alarms_of_scores({"bleu4": 74.0}, None) == []
    assert alarms_of_scores({"bleu4": "x"}, {"bleu4": 11.0}) == []
