"""The memory that is planned is what is measured: one small case here, all of them by tools/check_plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_the_peak_of_a_real_step_is_within_a_tenth_of_the_plan(tmp_path: Path) -> None:
    record = tmp_path / "plan.json"
    options = [
        "--size",
        "tiny",
        "--ranks",
        "1",
        "--deepspeed",
        "zero3",
        "--no-checkpointing",
        "--json",
        str(record),
    ]
    script = str(CHECKOUT / "tools" / "check_plan")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = json.loads(record.read_text())
    assert case["case"] == "zero3, fp32, 1 rank"
    assert abs(case["predicted"] / case["measured"] - 1) <= 0.1
    assert "predicted" in done.stdout
