"""Saving in the background: what is kept, a disk that fills up in the writer, a process that dies in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from signllm.training.checkpoint import best_checkpoint, read_state
from signllm.training.training_log import read_log
from tests import warm
from tests.training.saving import SAVE_EVERY, STEPS, TROUBLE_AT


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    done = warm.run("tests.training.saving", str(folder))
    assert done.codes == [0], done.stderr[-4000:]
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def result_of_rank(run: Path, rank: int) -> dict:
    return json.loads((run / f"rank-{rank}.json").read_text())


def test_the_last_and_the_best_are_kept_and_the_best_is_saved_when_it_comes(runs: Path) -> None:
    """Step 4 is not one that is saved anyway; later validations are worse."""
    assert result_of_rank(runs / "best", 0) == {"step": 9}
    assert names(runs / "best") == ["step-00000004", "step-00000009"]
    best = best_checkpoint(runs / "best")
    assert (best.name, read_state(best).best) == (
        "step-00000004",
        {"checkpoint": "step-00000004", "name": "loss", "value": 1.0},
    )


def test_a_disk_that_fills_up_in_the_writer_ends_all_ranks_at_one_step_soon(runs: Path) -> None:
    first, second = result_of_rank(runs / "full", 0), result_of_rank(runs / "full", 1)
    assert first["error"] == "UsageError"
    assert f"no checkpoint of step {TROUBLE_AT} was written" in first["message"]
    assert second["error"] == "RankFailedError"
    assert f"could not write the checkpoint of step {TROUBLE_AT}" in second["message"]
    assert names(runs / "full") == [f"step-{TROUBLE_AT - SAVE_EVERY:08d}"]
    reached = max(line["step"] for line in read_log(runs / "full"))
    assert TROUBLE_AT <= reached <= TROUBLE_AT + SAVE_EVERY < STEPS


def test_a_process_that_dies_in_the_writer_leaves_nothing_that_counts(runs: Path) -> None:
    complete, half = f"step-{TROUBLE_AT - SAVE_EVERY:08d}", f".step-{TROUBLE_AT:08d}.partial"
    assert json.loads((runs / "killed.json").read_text()) == {"last": complete, "left": [half, complete]}
    assert not (runs / "killed" / "rank-0.json").exists()
    assert result_of_rank(runs / "again", 0) == {"step": 9}
    assert names(runs / "again") == ["step-00000009"]
    assert [line["step"] for line in read_log(runs / "again")] == list(range(1, 10))
