"""``signllm launch status``: the state of jobs, once or until all have ended."""

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path

from signllm.command import Job, Verb, positional, prepare_job
from signllm.errors import UsageError

EXAMPLE = "signllm launch status runs/pretrain --follow"
SUMMARY = "show the state of jobs of `signllm launch`: by number, by run folder, or the latest"


def status_verb(arguments: list[str]) -> Job:
    """Parse the arguments after ``launch status`` and return the function to run."""
    from signllm.cluster.record import DEFAULT_LOGS

    def status(
        selected: positional(tuple[str, ...], "[JOB|RUN ...]") = (),
        /,
        *,
        logs: Path = DEFAULT_LOGS,
        every: bool = False,
        follow: bool = False,
        look_every_s: float = 10.0,
        json: bool = False,
    ) -> None:
        """Show the state of jobs.

        Args:
            selected: numbers of jobs or arrays, or run folders; by default the last launch and all unfinished
                jobs.
            logs: folder that the launch was given as --logs.
            every: show all jobs of these logs, also finished ones of earlier launches.
            follow: print changes until all jobs have ended.
            look_every_s: seconds between two checks with --follow.
            json: print the result as JSON; with --follow one line per change.
        """
        if follow:
            _follow(logs, selected, every=every, look_every_s=look_every_s, json=json)
            return
        from signllm.cluster.status import format_status, job_statuses
        from signllm.validation import to_plain

        statuses = job_statuses(logs, selected, every=every)
        if json:
            print(json_format.dumps(to_plain(statuses), indent=2))
        else:
            print("\n".join(map(format_status, statuses)))

    if "--" in arguments:
        raise UsageError(
            "`launch status` does not take a verb",
            where="--",
            remedy=f"for example: {EXAMPLE}; a profile cannot be called status",
        )
    return prepare_job(status, arguments, verb="launch status", about=STATUS)


def _follow(logs: Path, selected: Sequence[str], *, every: bool, look_every_s: float, json: bool) -> None:
    """Print the state of the jobs and then its changes, until all jobs have ended."""
    from signllm.cluster.status import JobStatus, changed_statuses, format_status, job_statuses
    from signllm.validation import to_plain

    before: list[JobStatus] = []
    try:
        while True:
            now = job_statuses(logs, selected, every=every)
            for status in changed_statuses(before, now):
                print(json_format.dumps(to_plain(status)) if json else format_status(status), flush=True)
            if all(status.has_ended for status in now):
                return
            selected = selected or [status.id for status in now]
            before = now
            time.sleep(look_every_s)
    except KeyboardInterrupt:
        return  # the jobs continue


STATUS = Verb(SUMMARY, EXAMPLE, status_verb)
