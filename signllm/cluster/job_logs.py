"""What a job's files say of it: attempts, host, times, how it ended, its last progress and error.

submitit writes a line into a rank's log when an attempt starts, is queued again and ends, with or without a
scheduler. A rank that is killed leaves no last line: then only Slurm, or the process table, knows.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from signllm.cluster.slurm_jobs import list_numbers
from signllm.training.rank_memory import describe_deaths, read_memory

TAIL_BYTES = 65_536
NEXT_ATTEMPT = "the next attempt of this job begins"
"""What the first rank writes into its log where the job was queued again."""
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
_SIGNALS["Out Of Memory"] = signal.SIGKILL
"""How srun names the signal that ended a task."""
_OUTCOMES = {
    "Exiting after successful completion": "COMPLETED",
    "Submitted job triggered an exception": "FAILED",
    "Requeued job": "REQUEUED",
}


@dataclass(frozen=True, kw_only=True)
class JobLogs:
    """What the files of a job say.

    Attributes:
        attempts: how often it has started; 0: not yet.
        host: where rank 0 ran last.
        started: when its last attempt began, in that host's time.
        ended: when its last attempt said its last word.
        outcome: ``COMPLETED``, ``FAILED`` or ``REQUEUED``; None where the last attempt did not say.
        progress: the last progress line of rank 0.
        error: the first line of the last error of the rank that failed, or what Slurm wrote there.
    """

    attempts: int = 0
    host: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    outcome: str | None = None
    progress: str | None = None
    error: str | None = None


def read_logs(logs: Path, job: str) -> JobLogs:
    """Read the logs of a job, its number as submitit writes it: ``12`` or ``12_0``."""
    attempts, host, started, ended, outcome = 0, None, None, None, None
    told = _text(log_path(logs, job, "out"))
    for line in told.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        moment, words = datetime.fromisoformat(found[1]), found[2]
        if words.startswith("Starting with "):
            name = _HOST.search(words)
            attempts, host, started = attempts + 1, name and name[1], moment
            ended = outcome = None
        for mark, end in _OUTCOMES.items():
            if words.startswith(mark):
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
    """Return where the ranks of a job leave their memory (:mod:`signllm.training.rank_memory`)."""
    return logs / f"{job}_memory"


def last_memory(logs: Path, job: str) -> str | None:
    """Return the memory of the first of a job's ranks that ended without a word; None where none did."""
    for rank in range(len(list(logs.glob(f"{job}_*_log.err")))):
        if memory := read_memory(job_memory_folder(logs, job), rank):
            return f"rank {rank} ended without a word: {memory.describe()}"
    return None


def _describe_killed_ranks(logs: Path, job: str) -> str | None:
    """Return which ranks a signal ended first, as srun says it, and their memory; None where none did.

    Of the ranks of a job that is cancelled or preempted srun says the same, after it has said so.
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
    """Return the log of a job's first rank: ``out`` holds results, ``err`` progress and errors."""
    return logs / f"{job}_0_log.{kind}"


def last_logged_step(log: Path) -> int | None:
    """Return the step of the last whole line of a run's ``log.jsonl``, None where there is none."""
    for line in reversed(_text(log, TAIL_BYTES).splitlines()):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        return int(step)
    return None


def _last_outcome(path: Path) -> str | None:
    """Return how a rank's last attempt ended, None if it did not say."""
    outcome = None
    for line in _text(path, TAIL_BYTES).splitlines():
        found = _LINE.match(line)
        if found and found[2].startswith("Starting with "):
            outcome = None
        for mark, end in _OUTCOMES.items():
            if found and found[2].startswith(mark):
                outcome = end
    return outcome


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    for line in reversed(text.splitlines()):
        found = pattern.match(line)
        if found:
            return next((group for group in found.groups() if group), found[0])
    return None


def _text(path: Path, last_bytes: int | None = None) -> str:
    """Return a file's text, or the lines in its last bytes; "" where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - last_bytes) if last_bytes else 0)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
