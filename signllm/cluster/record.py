"""The record of a submission, stored with the logs: ``LOGS/ID_launch.json``, one file per job or array.

It contains the command lines, the profile, the copy of the code and the time. ``signllm launch status`` reads
it, and so can a person who finds the folder a year later.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.cluster.profile import Profile
from signllm.cluster.snapshot import Snapshot
from signllm.cluster.sweep import option_value, owned_folder
from signllm.errors import UsageError
from signllm.validation import from_plain, to_plain, validated

SUFFIX = "_launch.json"
DEFAULT_LOGS = Path("runs/jobs")


@validated
class JobRecord:
    """One job: its number, its command line and its run folder."""

    id: str
    command: tuple[str, ...]
    run: str | None


@validated
class LaunchRecord:
    """One submission.

    Attributes:
        name: name of the job.
        submitted: time of the submission, UTC, ISO 8601.
        host: host on which ``signllm launch`` ran.
        folder: working directory of the job.
        profile: requested resources.
        code: copy of the code that the job runs; None for the installed package.
        commit: commit of the checkout that was copied; None outside of git.
        changed: whether the checkout had uncommitted changes.
        jobs: the job, or those of an array.
        cluster: cluster that accepted the jobs, if sbatch named one.
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
    """Write the record of a submission and return it.

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
    """Return commands with which the user can follow or cancel these jobs or arrays."""
    numbers = " ".join(dict.fromkeys(id.partition("_")[0] for id in ids))
    where = "" if logs == DEFAULT_LOGS else f" --logs {shlex.quote(str(logs))}"
    follow = f"signllm launch status {numbers} --follow{where}"
    there = f"--clusters {profile.additional['clusters']} " if profile.additional.get("clusters") else ""
    return [
        f"follow: {follow}",
        f"cancel: {f'scancel {there}{numbers}' if profile.executor == 'slurm' else 'Ctrl-C'}",
    ]


def run_folder(words: Sequence[str]) -> str | None:
    """Return the absolute run folder of a command line; None if it has none."""
    value = option_value(words, "--run")
    return os.path.abspath(value) if value else owned_folder(words)


def read_records(logs: Path) -> list[LaunchRecord]:
    """Return the records of all submissions with this folder of logs, oldest first.

    Raises:
        UsageError: there is none, or a record is damaged.
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
    return from_plain(LaunchRecord, read, where=path)
