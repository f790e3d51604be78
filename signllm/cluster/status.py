"""How jobs are doing: the record of their launch, the word of Slurm or of the process table, their files.

Nothing is asked of a job that has ended by its own account, so a look costs one question to Slurm for each
launch that still goes on.
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
    """One job.

    Attributes:
        id: its number.
        name: its name.
        state: Slurm's word, for local jobs too; ``UNKNOWN`` where nobody here can tell.
        note: why it waits, or what cannot be known.
        attempts: how often it has started.
        nodes: where it runs or ran.
        elapsed_s: of the present or last attempt.
        run: its run folder.
        step: the last step in the run's log.
        end: the step that the run ends with.
        progress: the last progress line of rank 0.
        error: the last error's first line, of a job that failed.
        log: rank 0's progress and errors; results are in the ``.out`` beside it.
        command: the verb and its options.
        code: the copy of the code that it runs.
        submitted: when.
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
        """Whether nothing more will come of it."""
        return self.state in ENDED


def job_statuses(
    logs: Path, wanted: Sequence[str] = (), *, every: bool = False, runs: Collection[str | None] | None = None
) -> list[JobStatus]:
    """Return how the jobs are that were launched with these logs, oldest first.

    Args:
        logs: the folder of the launches' logs.
        wanted: numbers of jobs or arrays, or run folders; none: those of the last launch and all that go on.
        every: all of them.
        runs: only those of these run folders, absolute.

    Raises:
        UsageError: there is no such job, or no record.
    """
    records = read_records(logs)
    jobs = [(record, job) for record in records for job in record.jobs if runs is None or job.run in runs]
    chosen = [(record, job) for record, job in jobs if _is_wanted(job, wanted)]
    for name in wanted:
        if not any(_is_wanted(job, [name]) for _, job in chosen):
            raise UsageError(
                f"no job of these logs has the number or the run folder {name!r}",
                where=logs.absolute(),
                remedy="`signllm launch status --every` lists all of them",
            )
    read = {job.id: read_logs(logs, job.id) for _, job in chosen}
    asked: dict[str | None, list[str]] = {}
    for record, job in chosen:
        if record.profile.executor == "slurm" and read[job.id].outcome not in ENDED:
            asked.setdefault(record.cluster, []).append(job.id)
    states: dict[str, SlurmState] | None = {}
    for cluster, ids in asked.items():
        answer = slurm_states(ids, cluster)
        states = None if answer is None else (states or {}) | answer
    found = [_status(record, job, read[job.id], states, logs) for record, job in chosen]
    if wanted or every:
        return found
    latest = {job.id for job in records[-1].jobs}
    return [status for status in found if status.id in latest or not status.has_ended]


def refuse_busy_run_folders(commands: Sequence[Sequence[str]], logs: Path, profile: Profile) -> None:
    """Refuse a job whose run folder another one of these logs is writing, or waits to write.

    A profile that names a dependency says itself in which order its jobs come.

    Raises:
        UsageError: names that job.
    """
    folders = {owned_folder(words) for words in commands} - {None}
    if not folders or "dependency" in profile.additional or not any(logs.glob(f"*{SUFFIX}")):
        return
    busy = [job for job in job_statuses(logs, every=True, runs=folders) if not job.has_ended]
    for job in busy:
        if job.state != "UNKNOWN" and owned_folder(job.command):
            raise UsageError(
                f"job {job.id} ({job.state}) has this run folder",
                where=job.run,
                remedy="wait for its end, cancel it, or make this one wait: "
                f"--additional dependency=afterok:{job.id}",
            )


def _is_wanted(job: JobRecord, wanted: Sequence[str]) -> bool:
    names = {job.id, job.id.partition("_")[0], job.run}
    return not wanted or any(name in names or os.path.abspath(name) == job.run for name in wanted)


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
        state, note = "UNKNOWN", "no Slurm here: its files do not say whether it still runs"
    else:
        state, note = "GONE", "Slurm has forgotten it, and it left no word: cancelled or killed"
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
    """Look for the processes of a job of the local executor."""
    if record.host != socket.gethostname() or not Path("/proc/self/environ").exists():
        return "UNKNOWN", f"it ran on {record.host}, without a scheduler: only there one can see"
    mark = f"SUBMITIT_LOCAL_JOB_ID={job.id}".encode()
    if b"submitit" in _bytes(Path("/proc", job.id, "cmdline")):  # else the number is another process's by now
        return RUNNING, None
    if any(mark in _bytes(path).split(b"\0") for path in Path("/proc").glob("[0-9]*/environ")):
        return RUNNING, "whatever launched it has ended"
    return "GONE", "no process of it is left, and it left no word: interrupted or killed"


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
    """Return the last step in a run's log, and the step that it ends with."""
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
    """Return a job as the lines that a reader sees."""
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
    """Yield the jobs about which there is something new to tell; time that goes by is nothing new."""
    known = {status.id: _news(status) for status in before}
    for status in now:
        if known.get(status.id) != _news(status):
            yield status


def _news(status: JobStatus) -> tuple[Any, ...]:
    return status.state, status.note, status.attempts, status.nodes, status.step, status.progress
