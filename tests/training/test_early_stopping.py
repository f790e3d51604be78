"""Early stopping: at the same step on any number of ranks, and whether or not the run was interrupted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from signllm.errors import UsageError
from signllm.training.checkpoint import TrainingState, last_checkpoint, read_state
from signllm.training.engine import TrainingConfig
from signllm.training.training_log import read_log
from signllm.training.validation import BestCheckpoint, EarlyStopping
from tests import warm
from tests.training.toy import advance, toy_training

VALIDATED = [9.0, 5.0, 9.0, 4.0, 9.0, 4.5, 9.0, 4.0, 9.0, 6.0, 9.0, 6.0, 9.0, 3.0, 9.0, 3.0]
"""Losses of dev after each step. The best of the even steps is that of step 4, until step 14."""
BEST, STOP, PATIENCE = 4, 8, 2
FLOAT_NOISE = 2e-6
"""Ranks add the same fp32 numbers in another order."""


def order(run: Path, *, trouble: tuple[str, int, int] | None = None, **config: Any) -> dict[str, Any]:
    settings = {
        "deepspeed": "zero2",
        "steps": len(VALIDATED),
        "validate_every": 2,
        "save_every": 3,
        "keep": 1,
        "patience": PATIENCE,
        **config,
    }
    made: dict[str, Any] = {"run": str(run), "config": settings, "validated": VALIDATED}
    return made | ({"trouble": dict(zip(("kind", "at", "rank"), trouble, strict=True))} if trouble else {})


def launch(orders: list[dict[str, Any]], *, ranks: int) -> warm.Ended:
    words = ("tests.training.run_toy", json.dumps(orders))
    return warm.run(*words) if ranks == 1 else warm.run_ranks(*words, ranks=ranks)


def ended(run: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((run / f"rank-{rank}.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one and on two ranks; on two, one is preempted in the step that stops, and one is killed."""
    root = tmp_path_factory.mktemp("runs")
    interrupted = [
        order(root / "two"),
        order(root / "preempted", trouble=("usr2", STOP - 1, 1)),
        order(root / "killed", trouble=("kill", STOP - 1, 1)),
    ]
    assert launch(interrupted, ranks=2).codes[1] == -signal.SIGKILL
    assert ended(root / "preempted")["preempted"]
    done = launch([order(root / name) for name in ("one", "preempted", "killed")], ranks=1)
    assert not any(done.codes), done.stderr
    return root


@pytest.mark.parametrize("name", ["one", "two", "preempted", "killed"])
def test_it_stops_when_the_best_is_as_many_validations_old_as_patience_says(runs: Path, name: str) -> None:
    result, log = ended(runs / name), read_log(runs / name)
    assert (result["step"], result["preempted"]) == (STOP, False)
    assert "loss did not improve in 2 validations" in result["stop_reason"]
    assert f"step-{BEST:08d}" in result["stop_reason"]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, STOP + 1))
    assert [line["step"] for line in log if "validate/loss" in line] == [2, 4, 6, 8]
    assert log[-1]["stopped_early"] == result["stop_reason"]
    assert len([line for line in log if "stopped_early" in line]) == 1
    checkpoint = last_checkpoint(runs / name)
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert (state.step, state.validations_without_improvement) == (STOP, PATIENCE)
    assert state.best is not None
    assert state.best["checkpoint"] == f"step-{BEST:08d}"


def test_all_ranks_stop_at_the_same_step(runs: Path) -> None:
    assert ended(runs / "two", 1)["step"] == STOP


def test_interrupted_runs_learn_what_the_others_learn(runs: Path) -> None:
    expected = [line["loss"] for line in read_log(runs / "one") if "loss" in line]
    for name in ("two", "preempted", "killed"):
        losses = [line["loss"] for line in read_log(runs / name) if "loss" in line]
        assert losses == pytest.approx(expected, abs=FLOAT_NOISE)


def test_the_same_command_leaves_a_stopped_run_and_more_patience_continues_it(runs: Path) -> None:
    run = runs / "one"
    before = (run / "log.jsonl").read_text()
    launch([order(run)], ranks=1)
    assert (ended(run)["step"], (run / "log.jsonl").read_text()) == (STOP, before)
    launch([order(run, patience=4)], ranks=1)
    assert ended(run)["step"] == 12
    launch([order(run, patience=5)], ranks=1)
    assert (ended(run)["step"], ended(run)["stop_reason"]) == (len(VALIDATED), None)


def test_a_score_improves_when_it_is_higher(tmp_path: Path) -> None:
    best = BestCheckpoint("bleu4", scores={"bleu4": True})
    stopping = EarlyStopping(best, patience=2)
    training = toy_training(tmp_path, [best, stopping])
    for step, score in enumerate((1.0, 3.0, 2.0, 3.0), start=1):
        assert stopping.stop_reason is None
        advance(training, step)
        training.report_validation({"bleu4": score})
    assert stopping.stop_reason is not None


def test_validations_of_another_value_are_not_counted() -> None:
    best = BestCheckpoint("bleu4", scores={"bleu4": True})
    stopping = EarlyStopping(best, patience=1)
    other = {"checkpoint": "step-00000002", "name": "loss", "value": 1.0}
    stopping.on_resume(TrainingState(stage="toy", step=4, best=other, validations_without_improvement=3))
    assert stopping.stop_reason is None


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"patience.* 0|0.*patience"):
        TrainingConfig(steps=1, patience=0)
    with pytest.raises(UsageError, match="keep_best is None"):
        TrainingConfig(steps=1, patience=1, keep_best=None)
