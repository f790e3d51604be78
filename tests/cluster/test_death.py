"""A rank that dies ends its job, and the first message states why, on Slurm and on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from signllm.cluster.job_logs import NEXT_ATTEMPT, job_memory_folder, read_logs
from signllm.cluster.launch import launch, wait_for_job
from signllm.cluster.status import job_statuses
from signllm.distributed.rank_memory import RankMemory
from signllm.errors import RunFailedError
from tests.cluster.slurm import Slurm
from tests.cluster.test_preemption import HERE, ON_SLURM
from tests.cluster.training import die_on_rank

pytestmark = pytest.mark.usefixtures("forked_ranks")


def log(logs: Path, job: str, rank: int) -> str:
    return (logs / f"{job}_{rank}_log.err").read_text()


@pytest.mark.parametrize(("kind", "rank"), [("kill", 0), ("raise", 1)])
def test_a_death_on_slurm_ends_the_job(kind: str, rank: int, slurm: Slurm, tmp_path: Path) -> None:
    """Both nodes are given back; a log says who died, and of what, and so does the status."""
    logs = tmp_path / "logs"
    job = launch(ON_SLURM, [str(tmp_path / "run"), kind, str(rank)], run=die_on_rank, logs=logs)
    assert slurm.wait()[job.job_id] == "FAILED", slurm
    first = log(logs, job.job_id, 0)
    [status] = job_statuses(logs)
    if kind == "kill":
        assert "task 0: Killed" in first
        expect_killed(log(logs, job.job_id, 1), "most likely by signal 9")
        assert status.state == "FAILED"
        expect_killed(str(status.error), "(signal 9)")
    else:
        assert "LookupError: video 17 is broken" in str(status.error)
        message = first.partition("signllm: rank-1 failed first")[2]
        assert "LookupError: video 17 is broken" in message, first
        assert "Traceback" not in first.partition("signllm: rank-1 failed first")[0]
        assert log(logs, job.job_id, 1).rstrip().endswith("LookupError: video 17 is broken")


def expect_killed(text: str, how: str) -> None:
    """Check that a text says that rank 0 was killed, its memory, and nothing of what followed from it."""
    assert f"rank 0 was killed ({how.strip('()')}), probably for lack of memory: it used about 0." in text, (
        text
    )
    assert " GB" in text
    assert "closed by peer" not in text
    assert "internal error of signllm" not in text


@pytest.mark.parametrize(("kind", "rank"), [("kill", 0), ("raise", 1)])
def test_a_death_here_ends_the_job(kind: str, rank: int, tmp_path: Path) -> None:
    job = launch(HERE, [str(tmp_path / "run"), kind, str(rank)], run=die_on_rank, logs=tmp_path / "logs")
    with pytest.raises(RunFailedError) as failed:
        wait_for_job(job)
    if kind == "kill":
        expect_killed(str(failed.value), "most likely by signal 9")
        assert "remedy" in str(failed.value)
    else:
        assert "LookupError: video 17 is broken" in str(failed.value)
    assert "Traceback" not in log(tmp_path / "logs", job.job_id, 0).partition("signllm: ")[0]


def test_a_job_of_which_nothing_is_left_names_its_memory(tmp_path: Path) -> None:
    """One rank that is killed leaves nobody who could say so."""

    def run(arguments: list[str]) -> None:
        import os
        import time

        time.sleep(1.0)
        os.kill(os.getpid(), 9)

    alone = replace(HERE, tasks_per_node=1)
    job = launch(alone, ["score"], run=run, logs=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(RunFailedError) as failed:
        wait_for_job(job)
    expect_killed(str(failed.value), "most likely by signal 9")
    [status] = job_statuses(tmp_path)
    assert status.state == "GONE"
    assert "rank 0 ended without a report: it used about 0." in str(status.error)


ENDS = """\
slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.
srun: error: n1: task 1: Out Of Memory
srun: Terminating StepId=12.0
slurmstepd: error: *** STEP 12.0 ON n0 CANCELLED AT 2026-11-30T12:00:00 ***
srun: error: n0: task 0: Killed
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENDS, "rank 1 was killed (signal 9), probably for lack of memory: it used about 12.3 GB"),
        ("srun: error: n[0-1]: tasks 0-1: Killed\n", "rank 0 was killed (signal 9), probably for lack"),
        (
            "srun: error: n1: task 1: Segmentation fault (core dumped)\n",
            "rank 1 crashed (signal 11, SIGSEGV)",
        ),
        ("srun: error: n1: task 1: Bus error\n", "rank 1 crashed (signal 7, SIGBUS)"),
        (ENDS.replace("Out Of Memory", "Exited with exit code 1"), None),
        (ENDS[ENDS.index("slurmstepd: error: ***") :], None),
        (
            f"{ENDS}{NEXT_ATTEMPT}\nsrun: error: n0: task 0: Aborted\n",
            "rank 0 crashed (signal 6, SIGABRT)",
        ),
    ],
)
def test_the_status_names_the_rank_that_srun_says_was_killed(
    text: str, expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "12_0_log.err").write_text(text)
    memory = RankMemory(
        rank=1, host="n1", pid=1, used_bytes=12_300_000_000, machine_bytes=16_000_000_000, free_bytes=0
    )
    job_memory_folder(tmp_path, "12").mkdir()
    (job_memory_folder(tmp_path, "12") / "rank-1.memory.json").write_text(json.dumps(asdict(memory)))
    error = read_logs(tmp_path, "12").error
    assert error is not None
    assert expected in error if expected else "was killed" not in error
