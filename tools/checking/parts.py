"""A check as a list of commands, each with a time limit and a log; a failed one stops none after it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 100


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command of a check."""

    name: str
    command: list[str]
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended; ``result`` is ``ok``, ``failed (exit N)`` or ``stopped after N s``."""

    name: str
    result: str
    seconds: float


def run(part: Part, log: Path, folder: Path, environment: dict[str, str]) -> Outcome:
    """Run a part, keep its output in ``log``, print the end of it."""
    print(f"\n== {part.name} (limit {part.limit_s:.0f} s)", flush=True)
    begin, stopped = time.monotonic(), False
    with log.open("wb") as output:
        process = subprocess.Popen(
            part.command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - begin
    print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]), flush=True)
    exited = f"failed (exit {process.returncode})" if process.returncode else "ok"
    result = f"stopped after {part.limit_s:.0f} s" if stopped else exited
    return Outcome(name=part.name, result=result, seconds=round(seconds, 1))
