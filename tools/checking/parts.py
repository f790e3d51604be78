"""A check as a list of commands, each with a time limit and a log; a failed one stops none after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 100
OK, SKIPPED = "ok", "skipped"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command of a check.

    Attributes:
        name: of the part and of the file of its figures.
        command: what is run.
        limit_s: it is stopped then.
        needs: modules without which it is skipped.
        by_default: whether it runs if no part is asked for.
    """

    name: str
    command: list[str]
    limit_s: float
    needs: tuple[str, ...] = ()
    by_default: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended: ``ok``, ``skipped: why``, ``failed (exit N)``, ``stopped at its limit of N s``."""

    name: str
    result: str
    seconds: float

    @property
    def is_failure(self) -> bool:
        """Whether the part ran and did not pass."""
        return self.result != OK and not self.result.startswith(SKIPPED)


def chosen(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """Return the parts of these names in their order, or without names those that run by default."""
    return [part for part in parts if (part.name in names if names else part.by_default)]


def run(part: Part, log: Path, folder: Path, environment: dict[str, str]) -> Outcome:
    """Run a part, append its output to ``log``, print the end of it; skip it where a module is missing."""
    head = f"== {part.name} (limit {part.limit_s:g} s)"
    print(f"\n{head}", flush=True)
    begin, stopped = time.monotonic(), False
    absent = missing(part.needs, environment)
    if absent:
        result = f"{SKIPPED}: {absent} (--help says how to carry wheels)"
        print(result, flush=True)
        return Outcome(name=part.name, result=result, seconds=round(time.monotonic() - begin, 1))
    with log.open("ab") as output:
        output.write(f"{head}\n".encode())
        output.flush()
        start = output.tell()
        process = subprocess.Popen(
            part.command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(part.limit_s - (time.monotonic() - begin))
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.monotonic() - begin
    written = log.read_bytes()[start:].decode(errors="replace")
    print("\n".join(written.splitlines()[-TAIL_LINES:]), flush=True)
    exited = f"failed (exit {process.returncode})" if process.returncode else OK
    stop = f"stopped at its limit of {part.limit_s:g} s: --limit-factor gives every part more time"
    result = stop if stopped else exited
    return Outcome(name=part.name, result=result, seconds=round(seconds, 1))


def missing(needs: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return which module a fresh process does not find, in its own words, or None.

    They are imported, because a package may be there and what it needs not. An import that fails otherwise
    is not answered here: the part is run and shows it.
    """
    if not needs:
        return None
    code = f"import importlib\nfor name in {tuple(needs)!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], env=dict(environment), capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return last[0].partition(": ")[2] if last and last[0].startswith("ModuleNotFoundError") else None
