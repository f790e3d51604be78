"""The benchmark of translation runs, and its parts add up to what they are parts of."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import warm

CHECKOUT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [warm.python(), str(CHECKOUT / "tools" / "bench_translate"), *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def test_the_parts_add_up(tmp_path: Path) -> None:
    options = ("--size", "tiny", "--device", "cpu", "--videos", "3", "--frames", "29", "--tokens", "4")
    done = bench(*options, "--rounds", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "found.json").read_text())
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert all(record["shares"][part] > 0 for part in ("waiting", "encoder", "words", "prompt", "tokens"))
    assert f"{record['best_per_s']:.2f} best" in done.stdout
    assert record["videos"] == 3


def test_videos_that_are_not_there_are_refused() -> None:
    done = bench("nowhere", "nothing.mp4", "--device", "cpu")
    assert done.returncode == 1
    assert "bench_translate: " in done.stderr
    assert "Traceback" not in done.stderr
