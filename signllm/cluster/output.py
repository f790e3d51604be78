"""What jobs of the local executor say, shown while they run: rank 0's lines, each on its own stream.

submitit's own lines and tracebacks stay in the log: how a job failed is told once, at its end.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from signllm.cluster.launch import wait
from signllm.errors import RunFailedError, UsageError

LOOK_EVERY_S = 0.2
_OF_A_TRACEBACK = re.compile(
    r"\s|$|Traceback |During handling |The above exception |[\w.]+(Error|Exit|Interrupt)\b"
)


class _Tail:
    """The lines that were added to a file since it was looked at last."""

    def __init__(self, path: Path, to: TextIO, label: str) -> None:
        self.path, self.to, self.label = path, to, label
        self._read, self._rest, self._in_traceback = 0, "", False
        self._message: list[str] = []

    def show(self, *, last: bool = False, failed: bool = False) -> None:
        """Write what is new; the last time also a line without an end.

        A message of ours at the end of a job that failed is left out: it is the error that is raised.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        *lines, self._rest = (self._rest + new.decode(errors="replace")).split("\n")
        if last and self._rest:
            lines.append(self._rest)
        for line in filter(self._belongs_to_the_verb, lines):
            if line.startswith("signllm: ") or (self._message and line.startswith("  ")):
                self._message.append(line)
                continue
            self._write_message()
            self.to.write(f"{self.label}{line}\n")
        if last and not failed:
            self._write_message()
        self.to.flush()

    def _write_message(self) -> None:
        self.to.writelines(f"{self.label}{line}\n" for line in self._message)
        self._message = []

    def _belongs_to_the_verb(self, line: str) -> bool:
        if line.startswith("Traceback "):
            self._in_traceback = True
        elif self._in_traceback:
            self._in_traceback = bool(_OF_A_TRACEBACK.match(line))
        return not self._in_traceback and not line.startswith("submitit ")


def run_here(starts: Sequence[Callable[[], Any]], *, at_once: int, what: str = "jobs") -> None:
    """Start jobs of the local executor, ``at_once`` at a time, show what they say, wait until all have ended.

    Args:
        starts: each submits one job and returns it.
        at_once: how many run side by side.
        what: the jobs' name in the message.

    Raises:
        UsageError: a job refused the user's input; the first failure of several.
        RunFailedError: a job failed otherwise; the others are run all the same.
    """
    waiting = list(enumerate(starts))
    running: list[tuple[Any, tuple[_Tail, _Tail]]] = []
    failed: list[UsageError | RunFailedError] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            number, start = waiting.pop(0)
            running.append((job := start(), _tails(job, f"{number}: " if len(starts) > 1 else "")))
        for job, tails in list(running):
            before = len(failed)
            if ended := job.done():
                running.remove((job, tails))
                try:
                    wait(job)
                except (UsageError, RunFailedError) as error:
                    failed.append(error)
            for tail in tails:
                tail.show(last=ended, failed=len(failed) > before)
        time.sleep(LOOK_EVERY_S)
    if failed and len(starts) == 1:
        raise failed[0]
    if failed:
        told = f"{len(failed)} of {len(starts)} {what} failed, finished ones are kept; the first: {failed[0]}"
        raise type(failed[0])(told)


def _tails(job: Any, label: str) -> tuple[_Tail, _Tail]:
    paths = job.task(0).paths
    return _Tail(paths.stderr, sys.stderr, label), _Tail(paths.stdout, sys.stdout, label)
