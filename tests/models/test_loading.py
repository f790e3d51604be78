"""ZeRO-3 loads a frozen language model without a whole copy on any rank (``pytest -s`` prints the MiB)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import loading

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_each_of_two_ranks_takes_its_half_and_a_weight_or_two(tmp_path: Path, llm: Path) -> None:
    whole = loading.save_bigger(tmp_path / "llm", layers=4) / loading.MIB
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # the allocator gives back what is freed: only then is it seen
    }
    command = [sys.executable, "-m", "tests.models.loading", str(tmp_path / "store"), str(llm)]
    ranks = [
        subprocess.Popen(
            [*command, str(tmp_path / "llm"), "zero3"],
            cwd=ROOT,
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    found = [json.loads(rank.communicate(timeout=300)[0].splitlines()[-1]) for rank in ranks]
    print(f"\nwhole model {whole:.1f} MiB", *found, sep="\n")
    for rank in found:
        assert rank["held"] == pytest.approx(whole / 2, rel=0.001)
        assert whole / 2 < rank["peak"] < 0.75 * whole
