"""``launch status``: what it says of jobs that wait, run, fail, vanish; on Slurm, here, and without Slurm."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signllm import cli
from signllm.cluster.launch import launch, wait_for_job
from signllm.cluster.profile import Profile
from signllm.cluster.record import write_record
from signllm.cluster.slurm_jobs import _from_scontrol, slurm_states
from signllm.cluster.status import JobStatus, job_statuses, refuse_busy_run_folders
from signllm.errors import UsageError
from tests.cluster.slurm import Slurm, until

ON_SLURM = Profile(nodes=2, partition="low", environment={"OMP_NUM_THREADS": "1"})
HERE = replace(ON_SLURM, executor="local", nodes=1, tasks_per_node=2)
FORGETFUL = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
ARRAY = (
    "JobId=7 ArrayJobId=7 ArrayTaskId=1-2,4%2 JobName=a b JobState=PENDING Reason=JobArrayTaskLimit "
    "Restarts=0 RunTime=00:00:00 ReqNodeList=(null) NodeList=(null)"
)
REQUEUED = (
    "JobId=9 JobName=x JobState=PENDING Reason=BeginTime Restarts=1 RunTime=00:00:00 "
    "ReqNodeList=n7 ExcNodeList=(null) NodeList=(null)"
)
RUNNING = (
    "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=RUNNING Reason=None Restarts=2 RunTime=1-02:03:04 "
    "NodeList=n[0-1] BatchHost=n0"
)


def verb(*, until_there: Path | None, fails: bool = False) -> Any:
    """Return what stands for a verb: it leaves a run's files, fails as told, ends when a file is there."""

    def run(arguments: Sequence[str]) -> None:
        import sys
        import time
        from pathlib import Path

        folder = Path(arguments[-1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "startup.json").write_text('{"steps": {"end": 30}}')
        (folder / "log.jsonl").write_text(
            '{"stage": "pretrain", "step": 10}\n{"stage": "pretrain", "step": 2'
        )
        print("pretrain: 12/30 steps, 5 s, 8 s left, loss 1.5", file=sys.stderr, flush=True)
        if fails:
            raise KeyError("no such shard")
        while until_there is not None and not until_there.exists():
            time.sleep(0.05)

    return run


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["pretrain", "--run", str(tmp_path / "run")]


def only(logs: Path, *selected: str) -> JobStatus:
    [states] = job_statuses(logs, selected)
    return states


def test_what_scontrol_says_is_understood() -> None:
    states = _from_scontrol(ARRAY) | _from_scontrol(RUNNING) | _from_scontrol(REQUEUED)
    assert set(states) == {"7_0", "7_1", "7_2", "7_4", "9"}
    assert (states["7_1"].state, states["7_1"].reason, states["7_1"].attempts) == (
        "PENDING",
        "JobArrayTaskLimit",
        0,
    )
    assert (states["7_0"].nodes, states["7_0"].attempts, states["7_0"].reason) == ("n[0-1]", 3, None)
    assert states["7_0"].elapsed_s == ((24 + 2) * 60 + 3) * 60 + 4
    assert (states["9"].attempts, states["9"].nodes, states["9"].elapsed_s) == (1, None, None)
    assert _from_scontrol("No jobs in the system") == {}


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")


def test_what_slurm_forgot_its_accounts_may_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = "printf '12|CANCELLED by 0|00:01:40|n0\\n13_1|OUT_OF_MEMORY|2-00:00:00|n[0-3]\\n'"
    programs(tmp_path / "bin", monkeypatch, scontrol=FORGETFUL, sacct=accounts)
    states = slurm_states(["12", "13_0", "13_1"])
    assert states is not None
    assert {id: state.state for id, state in states.items()} == {"12": "CANCELLED", "13_1": "OUT_OF_MEMORY"}
    assert (states["12"].elapsed_s, states["13_1"].nodes) == (100, "n[0-3]")


def test_without_slurm_it_says_what_it_cannot_know(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    write_record(logs, ON_SLURM, "mine", [words], ["12"], None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_states(["12"]) is None
    status = only(logs)
    assert (status.state, status.attempts, status.step) == ("UNKNOWN", 0, None)
    assert "no Slurm" in str(status.note)
    (logs / "12_0_log.out").write_text(
        "submitit INFO (2026-11-23 05:00:00,1) - Starting with JobEnvironment(job_id=12, hostname=n3)\n"
        "submitit INFO (2026-11-23 05:10:00,1) - Requeued job 12 (1 remaining timeouts)\n"
        "submitit INFO (2026-11-23 06:00:00,1) - Starting with JobEnvironment(job_id=12, hostname=n4)\n"
        "submitit INFO (2026-11-23 06:00:09,1) - Exiting after successful completion\n"
    )
    status = only(logs, "12")
    assert (status.state, status.attempts, status.nodes, status.elapsed_s) == ("COMPLETED", 2, "n4", 9)


def test_a_job_that_nobody_remembers_is_gone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "logs", ON_SLURM, "mine", [words], ["12"], None)
    programs(tmp_path / "bin", monkeypatch, scontrol=FORGETFUL)
    status = only(tmp_path / "logs")
    assert (status.state, status.has_ended) == ("GONE", True)


def test_a_slurm_that_is_down_makes_no_job_gone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "logs", ON_SLURM, "mine", [words], ["12"], None)
    down = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
    programs(tmp_path / "bin", monkeypatch, scontrol=down)
    status = only(tmp_path / "logs")
    assert (status.state, status.has_ended) == ("UNKNOWN", False)
    assert "Unable to contact" in str(status.note)


def test_a_local_job_is_seen_running_and_ended(words: list[str], tmp_path: Path) -> None:
    logs, end = tmp_path / "logs", tmp_path / "end"
    job = launch(HERE, words, run=verb(until_there=end), logs=logs)
    until((tmp_path / "run" / "log.jsonl").exists, "the job")
    until(lambda: only(logs).progress is not None, "its progress")
    status = only(logs, str(tmp_path / "run"))
    assert (status.id, status.state, status.attempts) == (job.job_id, "RUNNING", 1)
    assert (status.step, status.end) == (10, 30)
    assert status.progress == "pretrain: 12/30 steps, 5 s, 8 s left, loss 1.5"
    end.touch()
    wait_for_job(job)
    assert only(logs).state == "COMPLETED"
    assert only(logs).error is None


def test_a_local_job_that_failed_tells_why_and_one_that_was_killed_is_gone(
    words: list[str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    job = launch(HERE, words, run=verb(until_there=None, fails=True), logs=logs)
    until(job.done, "the job")
    status = only(logs)
    assert (status.state, status.error) == ("FAILED", "KeyError: 'no such shard'")
    launch(HERE, words, run=verb(until_there=tmp_path / "never"), logs=tmp_path / "killed")
    until(lambda: only(tmp_path / "killed").progress is not None, "its progress")
    killed = only(tmp_path / "killed")
    os.kill(int(killed.id), signal.SIGKILL)
    assert only(tmp_path / "killed").state == "RUNNING", "its ranks are there"
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SUBMITIT_LOCAL_JOB_ID={killed.id}".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue
    until(lambda: only(tmp_path / "killed").state == "GONE", "the killed job", timeout_s=60)


def test_jobs_are_chosen_by_number_and_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path / "bin", monkeypatch, scontrol=FORGETFUL)
    monkeypatch.chdir(tmp_path)
    logs = Path("runs/jobs")
    with pytest.raises(UsageError, match="no job was launched"):
        job_statuses(logs)
    sweep = [["pretrain", "--run", f"runs/{n}"] for n in range(2)]
    write_record(logs, ON_SLURM, "old", [["pretrain", "--run=runs/x"]], ["3"], None)
    time.sleep(1.1)  # the time of a submission is written in seconds
    write_record(logs, ON_SLURM, "new", sweep, ["12_0", "12_1"], None)
    assert [status.id for status in job_statuses(logs)] == ["12_0", "12_1"]
    assert [status.id for status in job_statuses(logs, every=True)] == ["3", "12_0", "12_1"]
    assert [status.id for status in job_statuses(logs, ["12"])] == ["12_0", "12_1"]
    assert [status.id for status in job_statuses(logs, ["runs/1/", "3"])] == ["3", "12_1"]
    assert cli.main(["launch", "status", "runs/2"]) == 2
    assert "'runs/2'" in capsys.readouterr().err
    assert cli.main(["launch", "status", "--json", "--logs", "runs/jobs", "12_1"]) == 0
    [printed] = json.loads(capsys.readouterr().out)
    assert (printed["id"], printed["name"], printed["state"]) == ("12_1", "new", "GONE")
    assert printed["command"] == ["pretrain", "--run", "runs/1"]
    assert cli.main(["launch", "status", "--", "score"]) == 2


def test_a_run_folder_that_a_job_has_is_refused(words: list[str], tmp_path: Path) -> None:
    logs, end = tmp_path / "logs", tmp_path / "end"
    refuse_busy_run_folders([words], logs, HERE)
    job = launch(HERE, words, run=verb(until_there=end), logs=logs)
    with pytest.raises(UsageError, match=rf"job {job.job_id} \(RUNNING\) already uses this run folder"):
        refuse_busy_run_folders([["compose", *words[1:-1], f"{words[-1]}/"]], logs, HERE)
    refuse_busy_run_folders([[*words[:-1], f"{words[-1]}-2"], ["evaluate", *words[1:]]], logs, HERE)
    refuse_busy_run_folders([words], logs, replace(HERE, additional={"dependency": f"afterok:{job.job_id}"}))
    end.touch()
    wait_for_job(job)
    refuse_busy_run_folders([words], logs, HERE)


def test_slurm_jobs_are_followed_through_a_requeue_to_their_end(
    slurm: Slurm, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, end = tmp_path / "logs", tmp_path / "end"
    on_hold = replace(ON_SLURM, additional={"hold": ""})
    job = launch(on_hold, words, run=verb(until_there=end), logs=logs)
    status = only(logs)
    assert (status.state, status.note, status.attempts) == ("PENDING", "JobHeldUser", 0)
    slurm.command("scontrol", "release", job.job_id)
    until(lambda: only(logs).progress is not None, slurm)
    status = only(logs)
    assert (status.state, status.nodes, status.attempts) == ("RUNNING", "n[0-1]", 1)
    slurm.command("scontrol", "requeue", job.job_id)
    until(lambda: only(logs).attempts == 2 and only(logs).state == "RUNNING", slurm)
    end.touch()
    assert cli.main(["launch", "status", "--logs", str(logs), "--follow", "--look-every-s", "0.5"]) == 0
    *_, last = capsys.readouterr().out.split(f"{job.job_id}  signllm-pretrain-run  ")
    assert last.startswith("COMPLETED, attempt 2, ")
    assert "step 10 of 30" in last
    cancelled = launch(on_hold, words, run=verb(until_there=end), logs=logs)
    slurm.command("scancel", cancelled.job_id)
    assert only(logs, cancelled.job_id).state == "CANCELLED"
    assert slurm_states(["999999", job.job_id]).keys() == {job.job_id}  # type: ignore[union-attr]
