"""Packages that a machine lacks and cannot fetch: installed from carried wheels, beside its own Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_S = 20.0


def installed(wheels: Path, target: Path) -> str:
    """Install every wheel of a folder into ``target``; return what to say of it.

    Nothing is looked up on a network and nothing else is installed, so what the wheels need must be among
    them or on the machine. A failure is told, not raised: parts that need no wheel go on.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        return f"none in {wheels}"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    command += ["--target", str(target), *map(str, found)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"not installed: pip took more than {LIMIT_S:.0f} s"
    if done.returncode:
        return (
            f"not installed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'pip failed'}"
        )
    return ", ".join("-".join(wheel.name.split("-")[:2]) for wheel in found)
