"""What the log files of a job report: attempts, host, times, outcome, last progress line and last error.

submitit writes a line into a rank's log when an attempt starts, is requeued or ends, with or without a
scheduler. A rank that is killed writes no last line; then only Slurm or the process table knows its state.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from signllm.cluster.slurm_jobs import list_numbers
from signllm.distributed.rank_memory import describe_deaths, read_memory

TAIL_BYTES = 65_536
NEXT_ATTEMPT = "the next attempt of this job begins"
"""Line that rank 0 writes into its log when the job was requeued."""
_LINE = re.compile(r"submitit \w+ \((\S+ \S+?),\d+\) - (.*)")
_HOST = re.compile(r"hostname=([^,)]+)")
_PROGRESS = re.compile(r"^\S.*: \d+/\d+ \S+, .*")
_ERROR = re.compile(
    r"^(?:signllm: (?!asked to stop|internal error of signllm)(.*)"
    r"|(?:[\w.]+\.)?(\w+(?:Error|Exception|Interrupt|Exit)\b.*))"
)
_ERROR_OF_SLURM = re.compile(r"^(?:slurmstepd|srun): error: (.*)")
_END_OF_TASKS = re.compile(r"^srun: error: \S+: tasks? ([\d,-]+): (.*)")
_CANCELLED = re.compile(r"^(?:slurmstepd\S*|srun): error: \*\*\* .* CANCELLED AT ")
_SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}
"""Signals by the names that srun gives them when they end a task."""
_SIGNALS["Out Of Memory"] = signal.SIGKILL
"""How srun names the signal that ended a task."""
_OUTCOMES = {
    "Exiting after successful completion": "COMPLETED",
    "Submitted job triggered an exception": "FAILED",
    "Requeued job": "REQUEUED",
}


@dataclass(frozen=True, kw_only=True)
class JobLogs:
    """What the log files of a job report.

    Attributes:
        attempts: number of attempts that have started.
        host: host of rank 0 in the last attempt.
        started: start of the last attempt, in that host's time.
        ended: end of the last attempt, if it reported one.
        outcome: ``COMPLETED``, ``FAILED`` or ``REQUEUED``; None if the last attempt did not report one.
        progress: the last progress line of rank 0.
        error: first line of the last error of the rank that failed, or Slurm's message there.
    """

    attempts: int = 0
    host: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    outcome: str | None = None
    progress: str | None = None
    error: str | None = None


def read_logs(logs: Path, job: str) -> JobLogs:
    """Read the logs of a job.

    Args:
        logs: folder of the logs.
        job: the job's number as submitit writes it, ``12`` or ``12_0``.
    """
    attempts, host, started, ended, outcome = 0, None, None, None, None
    text = _text(log_path(logs, job, "out"))
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        moment, event = datetime.fromisoformat(match[1]), match[2]
        if event.startswith("Starting with "):
            name = _HOST.search(event)
            attempts, host, started = attempts + 1, name and name[1], moment
            ended = outcome = None
        for mark, end in _OUTCOMES.items():
            if event.startswith(mark):
                ended, outcome = moment, end
    others = () if outcome else sorted(logs.glob(f"{job}_*_log.out"))
    failing = next((path for path in others if _last_outcome(path) == "FAILED"), None)
    first = log_path(logs, job, "err")
    errors = _text(failing.with_suffix(".err") if failing else first, TAIL_BYTES)
    return JobLogs(
        attempts=attempts,
        host=host,
        started=started,
        ended=ended,
        outcome="FAILED" if failing else outcome,
        progress=_last(_PROGRESS, _text(first, TAIL_BYTES)),
        error=_describe_killed_ranks(logs, job) or _last(_ERROR, errors) or _last(_ERROR_OF_SLURM, errors),
    )


def job_memory_folder(logs: Path, job: str) -> Path:
    """Return the folder of a job's memory records (:mod:`signllm.distributed.rank_memory`)."""
    return logs / f"{job}_memory"


def last_memory(logs: Path, job: str) -> str | None:
    """Return the memory of the first rank of a job that ended without a report; None if there is none."""
    for rank in range(len(list(logs.glob(f"{job}_*_log.err")))):
        if memory := read_memory(job_memory_folder(logs, job), rank):
            return f"rank {rank} ended without a report: {memory.describe()}"
    return None


def _describe_killed_ranks(logs: Path, job: str) -> str | None:
    """Return which ranks a signal ended first, according to srun, and their memory; None if none was.

    If a job is cancelled or preempted, srun prints the same about its ranks, after a line that says so.
    """
    for line in _text(log_path(logs, job, "err"), TAIL_BYTES).rpartition(NEXT_ATTEMPT)[2].splitlines():
        end = _END_OF_TASKS.match(line)
        if end and (number := _SIGNALS.get(end[2].partition(" (core")[0])):
            folder = job_memory_folder(logs, job)
            ranks = {rank: read_memory(folder, rank) for rank in list_numbers(end[1])}
            return "; ".join(describe_deaths(ranks, number).splitlines()[: len(ranks)])
        if end or _CANCELLED.match(line):
            return None
    return None


def log_path(logs: Path, job: str, kind: str) -> Path:
    """Return the log of a job's first rank: ``out`` for results, ``err`` for progress and errors."""
    return logs / f"{job}_0_log.{kind}"


def last_logged_step(log: Path) -> int | None:
    """Return the step of the last complete line of a run's ``log.jsonl``; None if there is none."""
    for line in reversed(_text(log, TAIL_BYTES).splitlines()):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        return int(step)
    return None


def _last_outcome(path: Path) -> str | None:
    """Return how a rank's last attempt ended; None if it did not report it."""
    outcome = None
    for line in _text(path, TAIL_BYTES).splitlines():
        match = _LINE.match(line)
        if match and match[2].startswith("Starting with "):
            outcome = None
        for mark, end in _OUTCOMES.items():
            if match and match[2].startswith(mark):
                outcome = end
    return outcome


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    for line in reversed(text.splitlines()):
        match = pattern.match(line)
        if match:
            return next((group for group in match.groups() if group), match[0])
    return None


def _text(path: Path, last_bytes: int | None = None) -> str:
    """Return a file's text, or the lines in its last bytes; an empty string if there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - last_bytes) if last_bytes else 0)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
