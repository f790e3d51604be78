"""Mutations in child processes with limits: if a child dies or hangs, its mutation is reported."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).absolute().parents[1]
WALL_S, CPU_S, MEMORY_BYTES = 120.0, 20, 2 << 30
"""What one mutation may take. The first is for what waits for ever, generous because machines are busy; the
last is what a child may add to the memory that it has when it begins."""


def run_children(seed: int, numbers: Sequence[int], root: Path, children: int) -> list[dict[str, Any]]:
    """Run the mutations of these numbers and return a record of each: number, kind, outcome, messages."""
    shares = [list(numbers[child::children]) for child in range(children)]
    running = [_Child(seed, share, root, place) for place, share in enumerate(shares) if share]
    while any(child.tend() for child in running):
        time.sleep(0.05)
    return sorted((record for child in running for record in child.records), key=lambda r: r["number"])


class _Child:
    """A process that runs mutations one after the other, and is started again after one that ended it."""

    def __init__(self, seed: int, numbers: list[int], root: Path, place: int) -> None:
        self.seed, self.left, self.root = seed, numbers, root
        self.work = root / f"child{place}"
        self.lines, self.log = root / f"child{place}.jsonl", root / f"child{place}.log"
        self.records: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.lines.write_text("")
        self.count = 0
        order = json.dumps({"seed": self.seed, "numbers": self.left, "root": str(self.root)})
        path = os.pathsep.join(filter(None, (str(TOOLS.parent), str(TOOLS), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", "fuzzing.running", order, str(self.work), str(self.lines)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.work, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.heard = time.monotonic() + 60  # importing takes its time

    def tend(self) -> bool:
        """Read the report, end a child that hangs, start the next one; return whether work is left."""
        ended = self.process.poll()
        lines = self.lines.read_text().rpartition("\n")[0].splitlines()
        fresh = [json.loads(line) for line in lines]
        started = [line["number"] for line in fresh if "outcome" not in line]
        known = {record["number"] for record in self.records}
        done = [line for line in fresh if "outcome" in line and line["number"] not in known]
        if len(lines) != self.count:
            self.count, self.heard = len(lines), time.monotonic()
        self.records += done
        if ended is None and time.monotonic() - self.heard > WALL_S:
            self.process.kill()
            self.process.wait()
            return self._blame(started, f"stood still for {WALL_S:.0f} s")
        if ended is None:
            return True
        if ended == 0:
            return False
        return self._blame(started, f"the child ended with {ended}: {self.log.read_text()[-300:]}")

    def _blame(self, started: list[int], why: str) -> bool:
        known = {record["number"] for record in self.records}
        culprit = next((number for number in started if number not in known), None)
        if culprit is None:
            raise RuntimeError(f"a child ended before its first mutation: {why}")
        kind = _kind_of(self.seed, culprit)
        self.records.append({"number": culprit, "kind": kind, "outcome": "FAILED", "messages": [why]})
        self.left = [number for number in self.left if number not in known | {culprit}]
        if self.left:
            self._begin()
        return bool(self.left)


def _kind_of(seed: int, number: int) -> str:
    from fuzzing.mutations import KINDS

    names = list(KINDS)
    return names[number % len(names)]


def _one(seed: int, number: int, material: Path, case: Path) -> dict[str, Any]:
    from fuzzing.mutations import KINDS
    from fuzzing.probes import FAILED, outcome

    kind = _kind_of(seed, number)
    chance = random.Random(f"{seed}:{number}")
    case.mkdir()
    before = _outside(case)
    try:
        ended, messages = outcome(KINDS[kind](chance, material, case))
    except Exception:
        ended, messages = FAILED, [traceback.format_exc()[-1500:]]
    if _outside(case) != before:
        ended, messages = FAILED, ["wrote outside of its folder"]
    shutil.rmtree(case)
    return {"number": number, "kind": kind, "outcome": ended, "messages": messages}


def _outside(case: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file in the material and next to the folder of a case."""
    folders = [case.parent, *(path for path in (case.parent.parent / "material").rglob("*") if path.is_dir())]
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in folder.iterdir()
        if path != case
    }


def main() -> None:
    """Run as the child process: ``ORDER WORK LINES``."""
    order, work, lines = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    import torch

    import fuzzing.mutations

    assert fuzzing.mutations
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most_bytes = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with lines.open("a", buffering=1) as report:
        for number in order["numbers"]:
            report.write(json.dumps({"number": number}) + "\n")
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_S, hard))
            began_s = time.process_time()
            record = _one(order["seed"], number, Path(order["root"]) / "material", work / str(number))
            record["cpu_s"] = round(time.process_time() - began_s, 3)
            record["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            report.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
