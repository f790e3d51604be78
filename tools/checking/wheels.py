"""Packages that a machine without a network lacks, installed from a folder of wheels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_S = 20.0


def installed(wheels: Path, target: Path) -> str:
    """Install every wheel of a folder into ``target``; return a message about it.

    Nothing is downloaded and nothing else is installed, so what the wheels need must be among them or on the
    machine. A failure is returned as a message, not raised: parts that need no wheel still run.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        return f"none in {wheels}"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    command += ["--target", str(target), *map(str, files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"not installed: pip took more than {LIMIT_S:.0f} s"
    if done.returncode:
        return (
            f"not installed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'pip failed'}"
        )
    return ", ".join("-".join(wheel.name.split("-")[:2]) for wheel in files)
