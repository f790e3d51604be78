"""A rank that dies ends its job, and what is told first is why; on a real Slurm, and on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.cluster.launch import launch, wait
from signllm.errors import RunFailedError
from tests.cluster.slurm import Slurm
from tests.cluster.test_preemption import HERE, ON_SLURM
from tests.cluster.training import die_on_rank


def log(logs: Path, job: str, rank: int) -> str:
    return (logs / f"{job}_{rank}_log.err").read_text()


@pytest.mark.parametrize("kind", ["kill", "raise"])
def test_a_death_on_slurm_ends_the_job(kind: str, slurm: Slurm, tmp_path: Path) -> None:
    """Both nodes are given back; the first rank's log says who died, and of what."""
    logs = tmp_path / "logs"
    job = launch(ON_SLURM, [str(tmp_path / "run"), kind], run=die_on_rank, logs=logs)
    assert slurm.wait()[job.job_id] == "FAILED", slurm
    first = log(logs, job.job_id, 0)
    if kind == "kill":
        assert "task 1: Killed" in first
        assert "no word from 1" in first
    else:
        message = first.partition("signllm: rank-1 failed first")[2]
        assert "LookupError: video 17 is broken" in message, first
        assert "Traceback" not in first.partition("signllm: rank-1 failed first")[0]
        assert log(logs, job.job_id, 1).rstrip().endswith("LookupError: video 17 is broken")


@pytest.mark.parametrize(
    ("kind", "told"), [("kill", "no word from 1"), ("raise", "LookupError: video 17 is broken")]
)
def test_a_death_here_ends_the_job(kind: str, told: str, tmp_path: Path) -> None:
    job = launch(HERE, [str(tmp_path / "run"), kind], run=die_on_rank, logs=tmp_path / "logs")
    with pytest.raises(RunFailedError, match=told):
        wait(job)
    assert "Traceback" not in log(tmp_path / "logs", job.job_id, 0).partition("signllm: ")[0]
