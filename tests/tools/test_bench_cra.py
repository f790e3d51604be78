"""The benchmark of CRA runs on small corpora and has a row with time and memory for every step."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests import warm

CHECKOUT = Path(__file__).parents[2]
STEPS = [
    "load",
    "mean run length",
    "collapse repeats",
    "candidates",
    "occurrences",
    "transport",
    "description lengths",
    "frequencies",
]
SEGMENTATIONS = ["segment: viterbi", "segment: longest", "segment: bpe"]


def test_every_step_has_time_and_memory(tmp_path: Path) -> None:
    command = [warm.python(), str(CHECKOUT / "tools" / "bench_cra"), "--characters", "300", "600"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "cra.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "cra.json").read_text())["rows"]
    steps, growth = done.stdout.split("\n\n")
    assert len(steps.splitlines()) == 1 + len(rows)
    assert [line.split()[0] for line in growth.splitlines()] == ["characters", "300", "600"]
    for size in (300, 600):
        steps = {row["step"]: row for row in rows if row["characters"] == size}
        assert list(steps) == [*STEPS, "composed", *SEGMENTATIONS]
        assert all(row["seconds"] > 0 and row["peak_bytes"] >= 0 for row in steps.values())
        assert sum(steps[step]["seconds"] for step in STEPS) <= steps["composed"]["seconds"]
