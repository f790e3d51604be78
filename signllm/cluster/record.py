"""What was submitted, kept beside the logs: ``LOGS/ID_launch.json``, one file for a job or an array.

It says which command lines, from which profile, with which copy of the code, and when: enough for
``signllm launch status`` to know what a job is, and for a reader who finds the folder a year later.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.cluster.profile import Profile
from signllm.cluster.snapshot import Snapshot
from signllm.cluster.sweep import option_value, owned_folder
from signllm.errors import UsageError
from signllm.plain import from_plain, to_plain

SUFFIX = "_launch.json"
DEFAULT_LOGS = Path("runs/jobs")


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job: its number, its command line, the run folder that it works in."""

    id: str
    command: tuple[str, ...]
    run: str | None


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """One submission.

    Attributes:
        name: the job's name.
        submitted: when, UTC, ISO 8601.
        host: where ``signllm launch`` ran.
        folder: the working directory of the job.
        profile: what was asked for.
        code: the copy of the code that the job runs; None: the installed package.
        commit: of the checkout that was copied, None outside of git.
        changed: whether the checkout had uncommitted changes.
        jobs: one, or those of an array.
        cluster: the cluster that took them, where sbatch named one.
    """

    name: str
    submitted: str
    host: str
    folder: str
    profile: Profile
    code: str | None
    commit: str | None
    changed: bool
    jobs: tuple[JobRecord, ...]
    cluster: str | None = None


def write_record(
    logs: Path,
    profile: Profile,
    name: str,
    commands: Sequence[Sequence[str]],
    ids: Sequence[str],
    code: Snapshot | None,
    *,
    cluster: str | None = None,
) -> LaunchRecord:
    """Write what was submitted and return it.

    Raises:
        UsageError: the disk is full.
    """
    record = LaunchRecord(
        name=name,
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        folder=os.getcwd(),
        profile=profile,
        code=None if code is None else str(code.folder),
        commit=None if code is None else code.commit,
        changed=code is not None and code.changed,
        jobs=tuple(
            JobRecord(id=id, command=tuple(words), run=run_folder(words))
            for id, words in zip(ids, commands, strict=True)
        ),
        cluster=cluster,
    )
    first = ids[0].partition("_")[0]
    atomic_write(logs / f"{first}{SUFFIX}", json.dumps(to_plain(record), indent=2) + "\n")
    return record


def next_steps(ids: Sequence[str], logs: Path, profile: Profile) -> list[str]:
    """Return what a user may type next about the jobs or arrays of these numbers."""
    numbers = " ".join(dict.fromkeys(id.partition("_")[0] for id in ids))
    where = "" if logs == DEFAULT_LOGS else f" --logs {shlex.quote(str(logs))}"
    follow = f"signllm launch status {numbers} --follow{where}"
    there = f"--clusters {profile.additional['clusters']} " if profile.additional.get("clusters") else ""
    return [
        f"follow: {follow}",
        f"cancel: {f'scancel {there}{numbers}' if profile.executor == 'slurm' else 'Ctrl-C'}",
    ]


def run_folder(words: Sequence[str]) -> str | None:
    """Return the run folder that a command line works in, absolute; None without one."""
    told = option_value(words, "--run")
    return os.path.abspath(told) if told else owned_folder(words)


def read_records(logs: Path) -> list[LaunchRecord]:
    """Return what was launched with these logs, oldest first.

    Raises:
        UsageError: nothing was, or a record was edited into something else.
    """
    records = [_read(path) for path in logs.glob(f"*{SUFFIX}")]
    if not records:
        raise UsageError(
            "no job was launched with this folder for its logs",
            where=logs.absolute(),
            remedy="name the --logs of the launch; jobs are launched by `signllm launch PROFILE -- VERB ...`",
        )
    return sorted(records, key=lambda record: (record.submitted, record.jobs[0].id))


def _read(path: Path) -> LaunchRecord:
    try:
        read: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"this record is not JSON: {error}", where=path, remedy="remove it") from None
    record = from_plain(LaunchRecord, read, where=path)
    assert isinstance(record, LaunchRecord)
    return record
