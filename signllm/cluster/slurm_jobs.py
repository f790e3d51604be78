"""What Slurm knows about jobs: ``scontrol`` for recent ones, ``sacct`` for older ones.

Many sites keep no accounting; then Slurm does not know old jobs.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from signllm.errors import UsageError

ENDED = frozenset(
    "COMPLETED FAILED CANCELLED TIMEOUT OUT_OF_MEMORY NODE_FAIL DEADLINE BOOT_FAIL REVOKED "
    "PREEMPTED GONE".split()
)
"""States of a job that has ended. A preempted job that is requeued is ``PENDING``.

``GONE`` is ours: the job was killed without a report, and Slurm has forgotten it. So is ``UNKNOWN``: this
machine cannot tell.
"""
FORGOTTEN = "Invalid job id"
"""Message of ``scontrol`` about a job that it does not know, or that ended some minutes ago."""
_ARRAY_TASKS = re.compile(r"max_array_tasks=(\d+)")
_FIELDS = ("JobId", "ArrayJobId", "ArrayTaskId", "JobState", "Reason", "Restarts", "RunTime", "NodeList")


@dataclass(frozen=True, kw_only=True)
class SubmissionLimits:
    """Limits of a site; None if it does not state one.

    Attributes:
        array_size: jobs of one array.
        jobs: jobs that Slurm remembers in total, waiting, running or just ended (MaxJobCount).
        submitted: jobs that this user may have waiting or running (MaxSubmitJobs of all associations).
    """

    array_size: int | None = None
    jobs: int | None = None
    submitted: int | None = None

    def refuse_more(self, jobs: int) -> None:
        """Refuse a sweep that the site cannot accept, no matter how it is divided into arrays.

        Raises:
            UsageError: names the limit.
        """
        for name, limit in (("MaxJobCount", self.jobs), ("MaxSubmitJobs", self.submitted)):
            if limit is not None and jobs > limit:
                raise UsageError(
                    f"the sweep has {jobs} jobs, but this site accepts no more than {limit} ({name})",
                    where="--array",
                    remedy=f"give --array fewer values at a time, {limit} jobs at most",
                )


def submission_limits() -> SubmissionLimits:
    """Return the limits of this site as Slurm reports them; a site that does not answer has none."""
    if shutil.which("scontrol") is None:
        return SubmissionLimits()
    printed, _ = _output("scontrol", "show", "config")
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", printed, flags=re.MULTILINE))
    sizes = [settings.get("MaxArraySize", ""), *_ARRAY_TASKS.findall(settings.get("SchedulerParameters", ""))]
    known = [int(size) for size in sizes if size.isdecimal()]
    count = settings.get("MaxJobCount", "")
    return SubmissionLimits(
        array_size=min(known, default=None),
        jobs=int(count) if count.isdecimal() else None,
        submitted=_submitted_limit(),
    )


def _submitted_limit() -> int | None:
    """Return how many jobs this user may have submitted; None without accounting or without a limit."""
    if shutil.which("sacctmgr") is None:
        return None
    printed, trouble = _output(
        "sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}",
        "format=MaxSubmitJobs",
    )  # fmt: skip
    limits = printed.split("\n")[:-1]
    return None if trouble or not limits or not all(map(str.isdecimal, limits)) else max(map(int, limits))


@dataclass(frozen=True, kw_only=True)
class SlurmState:
    """One job as Slurm sees it.

    Attributes:
        state: Slurm's state, such as ``RUNNING``.
        reason: why the job waits, or how it ended; None if Slurm gives no reason.
        attempts: number of attempts that have started; None if Slurm does not report it.
        nodes: Slurm's list of nodes, ``n[0-1]``; None before the job has nodes.
        elapsed_s: duration of the present or last attempt in seconds.
    """

    state: str
    reason: str | None = None
    attempts: int | None = None
    nodes: str | None = None
    elapsed_s: int | None = None


def slurm_states(ids: Iterable[str], cluster: str | None = None) -> dict[str, SlurmState] | None:
    """Return the states of the jobs that Slurm knows, by number; None if there is no Slurm.

    Args:
        ids: numbers of jobs, ``12`` or ``12_0``.
        cluster: cluster of the jobs, if a site has several; None takes that of this machine.
    """
    options = [] if cluster is None else ["--clusters", cluster]
    if shutil.which("scontrol") is None:
        return None
    requested = set(ids)
    states: dict[str, SlurmState] = {}
    for number in sorted({id.partition("_")[0] for id in requested}):
        output, trouble = _output("scontrol", *options, "show", "job", "--oneliner", number)
        for line in output.splitlines():
            states |= _from_scontrol(line)
        if trouble and FORGOTTEN not in trouble:
            unknown = SlurmState(state="UNKNOWN", reason=f"Slurm does not answer: {trouble}")
            states |= {id: unknown for id in requested if id.partition("_")[0] == number}
    if older := sorted({id.partition("_")[0] for id in requested - states.keys()}):
        columns = "--format=JobID,State,Elapsed,NodeList"
        output, _ = _output(
            "sacct", *options, "--noheader", "--parsable2", "--allocations", columns, "-j", ",".join(older)
        )
        for line in output.splitlines():
            id, state, elapsed, nodes = line.split("|")[:4]
            states.setdefault(id, _state(state, elapsed=elapsed, nodes=nodes))
    return {id: state for id, state in states.items() if id in requested}


def _from_scontrol(line: str) -> dict[str, SlurmState]:
    """Parse one line of ``scontrol show job``: a job, or the jobs of an array that wait together."""
    fields = {name: match[1] for name in _FIELDS if (match := re.search(rf"(?:^| ){name}=(\S*)", line))}
    if "JobState" not in fields:
        return {}
    restarts, state = int(fields.get("Restarts") or 0), fields["JobState"]
    elapsed = _seconds(fields.get("RunTime", ""))
    started = state not in ("PENDING", "CANCELLED") or bool(elapsed)
    parsed = _state(
        state,
        elapsed=fields.get("RunTime", ""),
        nodes=fields.get("NodeList", ""),
        reason=fields.get("Reason"),
        attempts=restarts + started,
    )
    if "ArrayTaskId" not in fields:
        return {fields["JobId"]: parsed}
    return {f"{fields['ArrayJobId']}_{task}": parsed for task in list_numbers(fields["ArrayTaskId"])}


def _state(
    state: str, *, elapsed: str, nodes: str, reason: str | None = None, attempts: int | None = None
) -> SlurmState:
    return SlurmState(
        state=state.split()[0].rstrip("+"),  # "CANCELLED by 0"
        reason=None if reason in (None, "None", "(null)", "") else reason,
        attempts=attempts,
        nodes=None if nodes in ("(null)", "None assigned", "") else nodes,
        elapsed_s=_seconds(elapsed) or None,
    )


def list_numbers(text: str) -> list[int]:
    """Return the task numbers in a list such as ``0-2,5%1``."""
    tasks: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            tasks += range(int(first), int(last.partition(":")[0] or first) + 1)
    return tasks


def _seconds(text: str) -> int | None:
    """Return the seconds of a duration ``[D-]HH:MM:SS``; None if the text has another format."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _output(*command: str) -> tuple[str, str]:
    """Return the output of a Slurm command, and the last line of its error output if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.stdout, complaint[-1] if done.returncode else ""
