"""ZeRO-3 loads a frozen language model into a rank's share and at most a shard more: tools/check_loading."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SMALL = ("--layers", "4", "--width", "512", "--vocabulary", "4000", "--shard-mb", "5")


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    paths = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tools")))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_two_ranks_load_their_halves_within_a_share_and_a_shard() -> None:
    done = tool(str(CHECKOUT / "tools" / "check_loading"), *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if re.match(r"[01] ", line)]
    ((_, share, shard, resident, peak, _), _) = lines
    assert float(resident) == float(share)
    assert float(share) < float(peak) < float(share) + float(shard)
    assert float(shard) < float(share) / 2, "the bound tells a whole model from a share"


def test_a_rank_that_takes_too_much_or_has_other_weights_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "tools")
    from checking.loading import troubles

    good = {"rank": 0, "resident": 50e6, "peak": 59e6, "wrong": []}
    changes = ({}, {"peak": 61e6}, {"resident": 100e6}, {"wrong": ["lm_head.weight"]})
    assert [list(troubles([good | change], share=50e6, shard=10e6)) for change in changes] == [
        [],
        ["rank 0: peak 61.0 MB is above 60.0"],
        ["rank 0: has 100.0 MB, not its share"],
        ["rank 0: 1 weights are not the file's: ['lm_head.weight']"],
    ]
