"""One rank alone: without a launcher's variables, started twice, or by a parent that was alone itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import subprocess, sys
from signllm.distributed.ranks import start_distributed
from signllm.distributed.local_ranks import leave_process_group
for _ in range(2):
    ranks = start_distributed()
    assert (ranks.rank, ranks.world) == (0, 1)
    leave_process_group()
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
print("alone")
"""


def test_a_rank_alone_starts_twice_and_so_does_its_child() -> None:
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, PROGRAM],
        env=environment | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["alone", "alone"]
