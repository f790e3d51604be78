"""Unavailable storage while two ranks train: nothing is lost, no rank hangs, a rank that ends has saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from signllm.training.training_log import read_log
from tests import warm
from tests.stages import path
from tests.stages.outage_on_ranks import STEPS

Ending = dict[str, object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outage")


@pytest.fixture(scope="module")
def endings(folder: Path) -> dict[tuple[str, str], list[Ending]]:
    """How each run ended on both ranks, by its name and what happened to it."""
    shards = path.write_videos(folder)
    done = warm.run_ranks("tests.stages.outage_on_ranks", str(shards), str(folder), ranks=2)
    assert done.codes == [0, 0], done.stderr
    endings: dict[tuple[str, str], list[Ending]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            ending = json.loads(line)
            endings.setdefault((ending["run"], ending["kind"]), []).append(ending)
    return endings


def losses(run: Path) -> list[tuple[int, float]]:
    """The losses of all steps, and of the validation behind the last."""
    return [(entry["step"], entry.get("loss", entry.get("validate/loss"))) for entry in read_log(run)]


@pytest.mark.parametrize("kind", ["stale", "away"])
def test_losses_are_those_of_an_undisturbed_run(
    endings: dict[tuple[str, str], list[Ending]], folder: Path, kind: str
) -> None:
    """Rank 1 waits for longer than the watchdog's limit: a wait is no hang."""
    assert [ending["step"] for ending in endings[kind, kind]] == [STEPS, STEPS]
    assert sum(int(str(ending["failures"])) for ending in endings[kind, kind]) > 0
    assert len(losses(folder / "plain")) == STEPS + 1
    assert losses(folder / kind) == losses(folder / "plain")


def test_storage_that_stays_away_ends_both_ranks_with_a_checkpoint(
    endings: dict[tuple[str, str], list[Ending]],
) -> None:
    both = endings["lost", "lost"]
    assert [ending["error"] for ending in both] == ["DataLostError"] * 2
    assert both[0]["message"] == both[1]["message"]
    for fact in ("train-000000.tar", "Stale file handle", "checkpoint of step"):
        assert fact in str(both[0]["message"])
    assert both[0]["checkpoint"] == both[1]["checkpoint"] is not None


def test_a_job_that_is_asked_to_leave_does_not_wait_for_storage(
    endings: dict[tuple[str, str], list[Ending]],
) -> None:
    both = endings["asked", "asked"]
    assert [ending["preempted"] for ending in both] == [True, True]
    assert both[0]["step"] == both[1]["step"]
    assert 0 < int(str(both[0]["step"])) < STEPS
    assert both[0]["checkpoint"] == f"step-{both[0]['step']:08d}"


@pytest.mark.parametrize("name", ["lost", "asked"])
def test_what_was_saved_goes_on_as_if_nothing_had_happened(
    endings: dict[tuple[str, str], list[Ending]], folder: Path, name: str
) -> None:
    assert [ending["step"] for ending in endings[name, "plain"]] == [STEPS, STEPS]
    assert losses(folder / name) == losses(folder / "plain")
