"""``signllm launch status``: how jobs are doing, once or until all have ended."""

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path

from signllm.command import Job, Verb, positional, prepare_job
from signllm.errors import UsageError
from signllm.plain import to_plain

EXAMPLE = "signllm launch status runs/pretrain --follow"
SUMMARY = "how jobs are doing that `signllm launch` submitted: by number, by run folder, or the latest"


def status_verb(arguments: list[str]) -> Job:
    """Check the arguments after ``launch status`` and return what runs."""
    from signllm.cluster.record import DEFAULT_LOGS

    def status(
        wanted: positional(tuple[str, ...], "[JOB|RUN ...]") = (),
        /,
        *,
        logs: Path = DEFAULT_LOGS,
        every: bool = False,
        follow: bool = False,
        look_every_s: float = 10.0,
        json: bool = False,
    ) -> None:
        """Status.

        Args:
            wanted: numbers of jobs or arrays, or run folders.
            logs: what the launch was given as --logs.
            every: all jobs of these logs, also those of earlier launches that have ended.
            follow: tell what changes until all have ended.
            look_every_s: seconds between two looks.
            json: print JSON; with --follow one line for each change.
        """
        if follow:
            _follow(logs, wanted, every=every, look_every_s=look_every_s, json=json)
            return
        from signllm.cluster.status import format_status, job_statuses

        found = job_statuses(logs, wanted, every=every)
        if json:
            print(json_format.dumps(to_plain(found), indent=2))
        else:
            print("\n".join(map(format_status, found)))

    if "--" in arguments:
        raise UsageError(
            "`launch status` takes no verb",
            where="--",
            remedy=f"for example: {EXAMPLE}; a profile cannot be called status",
        )
    return prepare_job(status, arguments, verb="launch status", about=STATUS)


def _follow(logs: Path, wanted: Sequence[str], *, every: bool, look_every_s: float, json: bool) -> None:
    """Tell how the jobs are, then what changes about them, until all have ended."""
    from signllm.cluster.status import JobStatus, changed_statuses, format_status, job_statuses

    before: list[JobStatus] = []
    try:
        while True:
            now = job_statuses(logs, wanted, every=every)
            for status in changed_statuses(before, now):
                print(json_format.dumps(to_plain(status)) if json else format_status(status), flush=True)
            if all(status.has_ended for status in now):
                return
            wanted = wanted or [status.id for status in now]
            before = now
            time.sleep(look_every_s)
    except KeyboardInterrupt:
        return  # the jobs go on


STATUS = Verb(SUMMARY, EXAMPLE, status_verb)
