"""Run jobs of the local executor and show the output of their first rank, each line on its own stream.

submitit's own lines and tracebacks stay in the log; a failure is reported once, at the end.

Such jobs have no scheduler, so this process also has to stop them. submitit alone would kill the ranks a
second after Ctrl-C, and would leave them running after a SIGTERM to this process. Here both let the ranks
save and stop.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import psutil

from signllm.cluster.launch import wait_for_job
from signllm.errors import RunFailedError, UsageError

POLL_INTERVAL_S = 0.2
_OF_A_TRACEBACK = re.compile(
    r"\s|$|Traceback |During handling |The above exception |[\w.]+(Error|Exit|Interrupt)\b"
)


class _Tail:
    """The lines that were added to a file since the last call."""

    def __init__(self, path: Path, to: TextIO, label: str) -> None:
        self.path, self.to, self.label = path, to, label
        self._read, self._rest, self._in_traceback = 0, "", False
        self._message: list[str] = []

    def show(self, *, last: bool = False, failed: bool = False) -> None:
        """Write new lines; the last time also a line without an end.

        A message of ours at the end of a failed job is left out, because it is the error that will be raised.
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
        for line in filter(self._is_output, lines):
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

    def _is_output(self, line: str) -> bool:
        if line.startswith("Traceback "):
            self._in_traceback = True
        elif self._in_traceback:
            self._in_traceback = bool(_OF_A_TRACEBACK.match(line))
        return not self._in_traceback and not line.startswith("submitit ")


class _RunningJob:
    """A running job and its output, with ``label`` before each line."""

    def __init__(self, job: Any, label: str) -> None:
        self.job = job
        paths = job.task(0).paths
        self._tails = _Tail(paths.stderr, sys.stderr, label), _Tail(paths.stdout, sys.stdout, label)
        self._leaving: list[psutil.Process] = []

    def show(self, *, last: bool = False, failed: bool = False) -> None:
        """Write new lines; see :meth:`_Tail.show`."""
        for tail in self._tails:
            tail.show(last=last, failed=failed)

    def has_ended(self) -> bool:
        """Return whether submitit and all ranks that were asked to stop have finished."""
        self._leaving = [rank for rank in self._leaving if _is_running(rank)]
        return bool(self.job.done()) and not self._leaving

    def ask_to_leave(self) -> None:
        """Send SIGTERM to the ranks, after killing the shell and the controller that would start new ones."""
        with suppress(psutil.NoSuchProcess):
            shell = psutil.Process(int(self.job.job_id))
            shell.suspend()
            for controller in shell.children():
                with suppress(psutil.NoSuchProcess):
                    controller.suspend()
                    self._leaving += controller.children()
                    controller.kill()
            shell.kill()
        for rank in self._leaving:
            with suppress(psutil.NoSuchProcess):
                rank.terminate()

    def end_at_once(self) -> None:
        """Kill the ranks and all processes that they have started."""
        self.ask_to_leave()
        for rank in self._leaving:
            with suppress(psutil.NoSuchProcess):
                for process in [*rank.children(recursive=True), rank]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def run_local_jobs(starts: Sequence[Callable[[], Any]], *, at_once: int, what: str = "jobs") -> None:
    """Run jobs of the local executor, ``at_once`` at a time, and show their output until all have ended.

    SIGTERM, SIGINT and SIGUSR2 let the ranks save and stop; a second SIGINT kills them.

    Args:
        starts: functions that submit one job each and return it.
        at_once: number of jobs that run at the same time.
        what: name of the jobs in the message.

    Raises:
        UsageError: a job refused the user's input; the first of several failures.
        StoppedEarlyError: this process was asked to stop; jobs that had not started were not started.
        RunFailedError: a job failed for another reason; the others were run nevertheless.
    """
    from signllm.distributed.preemption import preemption_flag, stopped_early_error

    waiting = list(enumerate(starts))
    running: list[_RunningJob] = []
    failed: list[UsageError | RunFailedError] = []
    leaving = False
    with preemption_flag() as flag:
        try:
            while waiting or running:
                while waiting and len(running) < at_once and not flag.requested:
                    number, start = waiting.pop(0)
                    running.append(_RunningJob(start(), f"{number}: " if len(starts) > 1 else ""))
                if flag.requested and not leaving:
                    leaving = True
                    waiting.clear()
                    for job in running:
                        job.ask_to_leave()
                failed += _show_and_remove_ended(running, ignore_failures=leaving)
                time.sleep(POLL_INTERVAL_S)
        finally:
            for job in running:
                job.end_at_once()
    if flag.requested:
        raise stopped_early_error()
    if failed and len(starts) == 1:
        raise failed[0]
    if failed:
        count = f"{len(failed)} of {len(starts)} {what} failed"
        raise type(failed[0])(f"{count}; finished ones are kept; the first error: {failed[0]}")


def _show_and_remove_ended(
    running: list[_RunningJob], *, ignore_failures: bool
) -> list[UsageError | RunFailedError]:
    """Show new output of running jobs and remove those that ended; return the errors of those that failed."""
    failed: list[UsageError | RunFailedError] = []
    for job in list(running):
        before = len(failed)
        if ended := job.has_ended():
            running.remove(job)
            try:
                if not ignore_failures:
                    wait_for_job(job.job)
            except (UsageError, RunFailedError) as error:
                failed.append(error)
        job.show(last=ended, failed=len(failed) > before)
    return failed
