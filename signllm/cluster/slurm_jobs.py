"""What Slurm says of jobs: ``scontrol`` of those it remembers, ``sacct`` of older ones.

Many sites keep no accounts; then an old job is one that Slurm does not know.
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
"""States after which nothing comes: a preempted job that is queued again is ``PENDING``.

``GONE`` is ours: killed without a word, and nobody remembers. So is ``UNKNOWN``: nobody here can tell.
"""
FORGOTTEN = "Invalid job id"
"""What ``scontrol`` says of a job that it never knew, or forgot some minutes after its end."""
_ARRAY_TASKS = re.compile(r"max_array_tasks=(\d+)")
_FIELDS = ("JobId", "ArrayJobId", "ArrayTaskId", "JobState", "Reason", "Restarts", "RunTime", "NodeList")


@dataclass(frozen=True, kw_only=True)
class SubmissionLimits:
    """How much a site takes at a time; None where it does not say.

    Attributes:
        array_size: jobs of one array.
        jobs: jobs that Slurm as a whole remembers, waiting, running or just ended (MaxJobCount).
        submitted: jobs that this user may have waiting or running (MaxSubmitJobs of all associations).
    """

    array_size: int | None = None
    jobs: int | None = None
    submitted: int | None = None

    def refuse_more(self, jobs: int) -> None:
        """Refuse a sweep that the site cannot take, however it is cut into arrays.

        Raises:
            UsageError: names the limit.
        """
        for name, limit in (("MaxJobCount", self.jobs), ("MaxSubmitJobs", self.submitted)):
            if limit is not None and jobs > limit:
                raise UsageError(
                    f"a sweep of {jobs} jobs, and this site takes no more than {limit} ({name})",
                    where="--array",
                    remedy=f"give --array fewer values at a time, {limit} jobs at most",
                )


def submission_limits() -> SubmissionLimits:
    """Ask Slurm for its limits; a site that does not answer has none."""
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
    """Return how many jobs this user may have submitted; None without accounts or a limit."""
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
        state: Slurm's word, ``RUNNING``.
        reason: why it waits, or how it ended; None where Slurm gives none.
        attempts: how often it has started; None where Slurm did not say.
        nodes: Slurm's list, ``n[0-1]``; None before it has some.
        elapsed_s: of the present or last attempt.
    """

    state: str
    reason: str | None = None
    attempts: int | None = None
    nodes: str | None = None
    elapsed_s: int | None = None


def slurm_states(ids: Iterable[str], cluster: str | None = None) -> dict[str, SlurmState] | None:
    """Return the states of those jobs that Slurm knows, by number; None where there is no Slurm.

    Args:
        ids: numbers of jobs, ``12`` or ``12_0``.
        cluster: the one that has them, where a site has several; None is that of this machine.
    """
    there = [] if cluster is None else ["--clusters", cluster]
    if shutil.which("scontrol") is None:
        return None
    wanted = set(ids)
    found: dict[str, SlurmState] = {}
    for number in sorted({id.partition("_")[0] for id in wanted}):
        output, trouble = _output("scontrol", *there, "show", "job", "--oneliner", number)
        for line in output.splitlines():
            found |= _from_scontrol(line)
        if trouble and FORGOTTEN not in trouble:
            unknown = SlurmState(state="UNKNOWN", reason=f"Slurm does not answer: {trouble}")
            found |= {id: unknown for id in wanted if id.partition("_")[0] == number}
    if older := sorted({id.partition("_")[0] for id in wanted - found.keys()}):
        columns = "--format=JobID,State,Elapsed,NodeList"
        output, _ = _output(
            "sacct", *there, "--noheader", "--parsable2", "--allocations", columns, "-j", ",".join(older)
        )
        for line in output.splitlines():
            id, state, elapsed, nodes = line.split("|")[:4]
            found.setdefault(id, _state(state, elapsed=elapsed, nodes=nodes))
    return {id: state for id, state in found.items() if id in wanted}


def _from_scontrol(line: str) -> dict[str, SlurmState]:
    """Read one line of ``scontrol show job``: a job, or the jobs of an array that wait as one."""
    fields = {name: found[1] for name in _FIELDS if (found := re.search(rf"(?:^| ){name}=(\S*)", line))}
    if "JobState" not in fields:
        return {}
    restarts, state = int(fields.get("Restarts") or 0), fields["JobState"]
    elapsed = _seconds(fields.get("RunTime", ""))
    started = state not in ("PENDING", "CANCELLED") or bool(elapsed)
    about = _state(
        state,
        elapsed=fields.get("RunTime", ""),
        nodes=fields.get("NodeList", ""),
        reason=fields.get("Reason"),
        attempts=restarts + started,
    )
    if "ArrayTaskId" not in fields:
        return {fields["JobId"]: about}
    return {f"{fields['ArrayJobId']}_{task}": about for task in list_numbers(fields["ArrayTaskId"])}


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
    """Return the numbers of tasks in ``0-2,5%1``."""
    tasks: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            tasks += range(int(first), int(last.partition(":")[0] or first) + 1)
    return tasks


def _seconds(told: str) -> int | None:
    """Read ``[D-]HH:MM:SS``."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", told)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _output(*command: str) -> tuple[str, str]:
    """Return what a command of Slurm prints, and the last line of its complaint if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.stdout, complaint[-1] if done.returncode else ""
