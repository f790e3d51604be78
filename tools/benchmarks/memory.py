"""Peak extra memory of a call on a CPU: the resident set's high-water mark less what was there before.

Measured in a process of its own, one per case, in which malloc gives every block above 64 KB back at once
(MALLOC_MMAP_THRESHOLD_), so that nothing hides in memory kept from an earlier call. The result counts, the
inputs do not, nor what a first small run imports or sets up for good.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.contender import Case, Contender

PROCESS = Path("/proc/self")


def in_a_process(case: Case, names: list[str], seed: int, quick: bool) -> dict[str, int]:
    """Return each contender's peak extra bytes; empty without /proc, or where the process fails."""
    if not (PROCESS / "clear_refs").exists():
        return {}
    request = {"operator": case.operator, "case": case.name, "names": names, "seed": seed, "quick": quick}
    request["threads"] = torch.get_num_threads()
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-P", "-m", "benchmarks.memory", json.dumps(request)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"memory of {case.operator} {case.name} not measured:\n{done.stderr[-2000:]}", file=sys.stderr)
        return {}
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def peak_of(contender: Contender) -> int:
    """Run a contender once and return by how many bytes the process grew at most."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")  # the high-water mark starts anew from what is resident now
    before = _resident("VmRSS")
    contender.run(contender.brief)
    return max(0, _resident("VmHWM") - before)


def peak_on_gpu(contender: Contender, device: torch.device) -> int:
    """Run a contender once and return by how many bytes what torch had allocated grew at most."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    contender.run(contender.brief)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident(entry: str) -> int:
    match = re.search(rf"^{entry}:\s*(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def main(text: str) -> None:
    """Measure the memory that the parent process requested, and print it as one line of JSON."""
    from benchmarks.operators import cases, warm_up

    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    device = torch.device("cpu")
    (case,) = [c for c in cases(request["operator"], device, request["quick"]) if c.name == request["case"]]
    warm_up(case.operator, device, request["names"])
    contenders = case.build(device, request["seed"])
    print(json.dumps({c.name: peak_of(c) for c in contenders if c.name in request["names"]}))


if __name__ == "__main__":
    main(sys.argv[1])
