"""Findings about processor, memory, disk and Slurm, which do not need torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from signllm.distributed.local_ranks import usable_cores
from signllm.doctor.finding import Finding

GIB = 2**30
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Those of the processor's flags that decide the speed of a matrix product."""


def findings() -> list[Finding]:
    """Return findings about Python, processor, memory and disk."""
    return [_python(), _processor(), _memory(), _disk()]


def _python() -> Finding:
    description = f"{platform.python_version()} on {platform.platform()}"
    return Finding(
        group="machine", name="Python", description=description, facts={"version": platform.python_version()}
    )


def _processor() -> Finding:
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    extensions = [flag for flag in EXTENSIONS if flags and flag in flags[1].split()]
    name = model[1] if model else platform.processor() or platform.machine()
    description = f"{usable_cores()} cores of {name}; {', '.join(extensions) or 'extensions unknown'}"
    facts = {"cores": usable_cores(), "name": name, "extensions": extensions}
    return Finding(group="machine", name="processor", description=description, facts=facts)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    description = f"{total / GIB:.1f} GiB" + (
        f", {int(available[1]) * 1024 / GIB:.1f} free" if available else ""
    )
    return Finding(group="machine", name="memory", description=description, facts={"total_bytes": total})


def _disk() -> Finding:
    usage, here = shutil.disk_usage("."), Path.cwd()
    description = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} in {here}"
    return Finding(group="machine", name="disk", description=description, facts={"free_bytes": usage.free})


def cluster_findings() -> list[Finding]:
    """Return whether Slurm answers on this machine; only ``signllm launch`` needs it."""
    program = shutil.which("sinfo")
    if program is None:
        description = "no sinfo on the path: only `signllm launch` needs it"
        return [Finding(group="cluster", name="Slurm", state="absent", description=description)]
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=3)
    except (OSError, subprocess.TimeoutExpired) as error:
        description = f"{program} does not answer ({type(error).__name__})"
        return [Finding(group="cluster", name="Slurm", state="absent", description=description)]
    if done.returncode:
        description = f"{program} fails (exit {done.returncode}): {' '.join(done.stderr.split())[:120]}"
        return [Finding(group="cluster", name="Slurm", state="absent", description=description)]
    version = done.stdout.strip()
    return [
        Finding(
            group="cluster", name="Slurm", description=f"{version}, {program}", facts={"version": version}
        )
    ]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
