"""The state of jobs, from the record of their launch, Slurm or the process table, and their files.

A job whose files say that it has ended is not asked for again, so a call costs one question to Slurm for each
launch with unfinished jobs.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from signllm.cluster.job_logs import JobLogs, last_logged_step, last_memory, log_path, read_logs
from signllm.cluster.profile import Profile
from signllm.cluster.record import SUFFIX, JobRecord, LaunchRecord, read_records
from signllm.cluster.slurm_jobs import ENDED, SlurmState, slurm_states
from signllm.cluster.sweep import owned_folder
from signllm.errors import UsageError

RUNNING = "RUNNING"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of one job.

    Attributes:
        id: number of the job.
        name: name of the job.
        state: Slurm's state, also for local jobs; ``UNKNOWN`` if this machine cannot tell.
        note: why the job waits, or what is not known.
        attempts: number of attempts that have started.
        nodes: nodes on which it runs or ran.
        elapsed_s: duration of the present or last attempt in seconds.
        run: run folder.
        step: last step in the run's log.
        end: last step of the run.
        progress: last progress line of rank 0.
        error: first line of the last error of a failed job.
        log: file with rank 0's progress and errors; results are in the ``.out`` file next to it.
        command: the verb and its options.
        code: copy of the code that the job runs.
        submitted: time of the submission.
    """

    id: str
    name: str
    state: str
    note: str | None
    attempts: int
    nodes: str | None
    elapsed_s: int | None
    run: str | None
    step: int | None
    end: int | None
    progress: str | None
    error: str | None
    log: str
    command: tuple[str, ...]
    code: str | None
    submitted: str

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in ENDED


def job_statuses(
    logs: Path,
    selected: Sequence[str] = (),
    *,
    every: bool = False,
    runs: Collection[str | None] | None = None,
) -> list[JobStatus]:
    """Return the state of the jobs that were launched with these logs, oldest first.

    Args:
        logs: folder of the launches' logs.
        selected: numbers of jobs or arrays, or run folders; empty selects the last launch and all unfinished
            jobs.
        every: select all jobs.
        runs: absolute run folders to which the result is restricted.

    Raises:
        UsageError: there is no such job, or no record.
    """
    records = read_records(logs)
    jobs = [(record, job) for record in records for job in record.jobs if runs is None or job.run in runs]
    chosen = [(record, job) for record, job in jobs if _is_selected(job, selected)]
    for name in selected:
        if not any(_is_selected(job, [name]) for _, job in chosen):
            raise UsageError(
                f"no job of these logs has the number or the run folder {name!r}",
                where=logs.absolute(),
                remedy="`signllm launch status --every` lists all of them",
            )
    read = {job.id: read_logs(logs, job.id) for _, job in chosen}
    to_ask: dict[str | None, list[str]] = {}
    for record, job in chosen:
        if record.profile.executor == "slurm" and read[job.id].outcome not in ENDED:
            to_ask.setdefault(record.cluster, []).append(job.id)
    states: dict[str, SlurmState] | None = {}
    for cluster, ids in to_ask.items():
        known = slurm_states(ids, cluster)
        states = None if known is None else (states or {}) | known
    statuses = [_status(record, job, read[job.id], states, logs) for record, job in chosen]
    if selected or every:
        return statuses
    latest = {job.id for job in records[-1].jobs}
    return [status for status in statuses if status.id in latest or not status.has_ended]


def refuse_busy_run_folders(commands: Sequence[Sequence[str]], logs: Path, profile: Profile) -> None:
    """Refuse a job whose run folder another unfinished job of these logs uses.

    A profile with a dependency defines the order of its jobs itself and is accepted.

    Raises:
        UsageError: names the other job.
    """
    folders = {owned_folder(words) for words in commands} - {None}
    if not folders or "dependency" in profile.additional or not any(logs.glob(f"*{SUFFIX}")):
        return
    busy = [job for job in job_statuses(logs, every=True, runs=folders) if not job.has_ended]
    for job in busy:
        if job.state != "UNKNOWN" and owned_folder(job.command):
            raise UsageError(
                f"job {job.id} ({job.state}) already uses this run folder",
                where=job.run,
                remedy="wait for its end, cancel it, or let the new job wait for it: "
                f"--additional dependency=afterok:{job.id}",
            )


def _is_selected(job: JobRecord, selected: Sequence[str]) -> bool:
    names = {job.id, job.id.partition("_")[0], job.run}
    return not selected or any(name in names or os.path.abspath(name) == job.run for name in selected)


def _status(
    record: LaunchRecord,
    job: JobRecord,
    files: JobLogs,
    states: dict[str, SlurmState] | None,
    logs: Path,
) -> JobStatus:
    slurm = (states or {}).get(job.id)
    if files.outcome in ENDED:
        state, note = files.outcome or "", None
    elif record.profile.executor == "local":
        state, note = _local_state(record, job)
    elif slurm:
        state, note = slurm.state, slurm.reason
    elif states is None:
        state, note = "UNKNOWN", "there is no Slurm here, and its files do not show whether it still runs"
    else:
        state, note = "GONE", "Slurm has forgotten it, and it left no report: cancelled or killed"
    step, end = _steps(job.run)
    failed = state in ENDED and state != "COMPLETED"
    error = files.error or (last_memory(logs, job.id) if state == "GONE" else None)
    return JobStatus(
        id=job.id,
        name=record.name,
        state=state,
        note=note,
        attempts=max(files.attempts, slurm.attempts or 0 if slurm else 0),
        nodes=slurm.nodes if slurm and slurm.nodes else files.host,
        elapsed_s=slurm.elapsed_s if slurm and slurm.elapsed_s is not None else _elapsed_s(files, state),
        run=job.run,
        step=step,
        end=end,
        progress=files.progress,
        error=error if failed else None,
        log=str(log_path(logs.absolute(), job.id, "err")),
        command=job.command,
        code=record.code,
        submitted=record.submitted,
    )


def _local_state(record: LaunchRecord, job: JobRecord) -> tuple[str, str | None]:
    """Return state and note of a job of the local executor, from the process table."""
    if record.host != socket.gethostname() or not Path("/proc/self/environ").exists():
        return "UNKNOWN", f"it was started without a scheduler on {record.host}, and can be seen only there"
    mark = f"SUBMITIT_LOCAL_JOB_ID={job.id}".encode()
    if b"submitit" in _bytes(Path("/proc", job.id, "cmdline")):  # otherwise the number was reused
        return RUNNING, None
    if any(mark in _bytes(path).split(b"\0") for path in Path("/proc").glob("[0-9]*/environ")):
        return RUNNING, "the process that launched it has ended"
    return "GONE", "it has no processes, and it left no report: interrupted or killed"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _elapsed_s(files: JobLogs, state: str) -> int | None:
    if files.started is None or (state in ENDED and files.ended is None):
        return None
    return max(0, int(((files.ended or datetime.now()) - files.started).total_seconds()))


def _steps(run: str | None) -> tuple[int | None, int | None]:
    """Return the last step in a run's log, and the last step that the run will take."""
    if run is None:
        return None, None
    logs = (Path(run, "log.jsonl"), Path(run, "frozen", "log.jsonl"))
    step = next((step for log in logs if (step := last_logged_step(log)) is not None), None)
    try:
        started = json.loads(Path(run, "startup.json").read_text(encoding="utf-8"))
        end = started["steps"]["end"]
    except (OSError, ValueError, KeyError, TypeError):
        end = None
    return step, end


def format_status(status: JobStatus) -> str:
    """Return the state of a job as lines of text."""
    facts = [status.state + (f" ({status.note})" if status.note else "")]
    if status.attempts > 1:
        facts.append(f"attempt {status.attempts}")
    if status.nodes:
        facts.append(status.nodes)
    if status.elapsed_s is not None:
        hours, rest = divmod(status.elapsed_s, 3600)
        facts.append(f"{hours}:{rest // 60:02}:{rest % 60:02}")
    if status.step is not None:
        facts.append(f"step {status.step}" + (f" of {status.end}" if status.end else ""))
    lines = [f"{status.id}  {status.name}  {', '.join(facts)}"]
    if status.run:
        lines.append(f"run      {status.run}")
    if status.progress and not status.has_ended:
        lines.append(f"last     {status.progress}")
    if status.error:
        lines.append(f"error    {status.error}")
    lines.append(f"log      {status.log}")
    return "\n    ".join(lines)


def changed_statuses(before: Sequence[JobStatus], now: Sequence[JobStatus]) -> Iterator[JobStatus]:
    """Yield the jobs whose state has changed; elapsed time alone is not a change."""
    earlier = {status.id: _comparable(status) for status in before}
    for status in now:
        if earlier.get(status.id) != _comparable(status):
            yield status


def _comparable(status: JobStatus) -> tuple[Any, ...]:
    return status.state, status.note, status.attempts, status.nodes, status.step, status.progress
