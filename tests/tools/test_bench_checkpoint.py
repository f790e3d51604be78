"""The evidence about checkpoints: the tool runs, and 12 bytes are saved for each trained parameter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests import warm

CHECKOUT = Path(__file__).parents[2]


def test_saving_is_measured_three_ways_and_only_what_is_trained_is_saved() -> None:
    command = [str(CHECKOUT / "tools" / "bench_checkpoint"), "--only", "saving", "--ranks", "1"]
    command += ["--parameters", "1e6", "--steps", "6", "--every", "2"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([warm.python(), *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row[:18].strip(): row[18:].split() for row in done.stdout.splitlines()[1:4]}
    assert [row[0] for row in rows.values()] == ["0", "2", "2"], done.stdout
    assert list(rows) == ["never", "in the background", "waiting"]
    match = re.search(r"has ([\d,]+) bytes: ([\d.]+) for each", done.stdout)
    assert match is not None
    assert 12.0 <= float(match[2]) < 12.01
