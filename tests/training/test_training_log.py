"""The log of a run that died reads, after its resume, as if it had not."""

from __future__ import annotations

from pathlib import Path

from signllm.training.training_log import TrainingLog, read_log


def test_lines_after_the_resumed_step_and_half_lines_are_dropped(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, "pretrain") as log:
        log.write(9, {"loss": 0.5})
    with TrainingLog(tmp_path, "finetune") as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "finetune", "st')
    with TrainingLog(tmp_path, "finetune", resumed_step=2) as log:
        log.write(3, {"loss": 33.0})
    entries = [(entry["stage"], entry["step"], entry["loss"]) for entry in read_log(tmp_path)]
    assert entries == [
        ("pretrain", 9, 0.5),
        ("finetune", 1, 1.0),
        ("finetune", 2, 2.0),
        ("finetune", 3, 33.0),
    ]


def test_a_validation_that_no_checkpoint_knows_is_dropped_it_will_be_made_again(tmp_path: Path) -> None:
    """A job that resumed to make up for a validation was killed before it had saved that it had."""
    with TrainingLog(tmp_path, "toy") as log:
        for step in (2, 4):
            log.write(step, {"loss": 1.0})
            log.write(step, {"validate/loss": 2.0})
            log.write(step, {"alarm": "about the validation"})
    with TrainingLog(tmp_path, "toy", resumed_step=4, validation_left=True):
        pass
    entries = [(entry["step"], "loss" in entry) for entry in read_log(tmp_path)]
    assert entries == [(2, True), (2, False), (2, False), (4, True)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "run", "toy", enabled=False) as log:
        log.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert read_log(tmp_path / "run") == []
