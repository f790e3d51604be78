"""A rank's own error is reported to the others; an error of the network names the rank that failed first."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from signllm.distributed import failures
from signllm.distributed.failures import RankFailedError, fail_together
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.rank_memory import measure_memory


def test_an_error_of_this_rank_leaves_its_report_and_passes_through(tmp_path: Path) -> None:
    with pytest.raises(LookupError), fail_together(tmp_path, 3, "stage toy"):
        raise LookupError("no such clip")
    report = (tmp_path / "failures" / "rank-3.txt").read_text()
    assert report.startswith("rank-3 failed in stage toy")
    assert report.rstrip().endswith("LookupError: no such clip")


def _fail_as_rank_1(run: Path) -> None:
    """Leave the report of rank 1, then fail as a rank that was connected to it."""
    with pytest.raises(LookupError), fail_together(run, 1, "stage toy"):
        raise LookupError("no such clip")
    raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:49152")


def test_a_broken_connection_is_explained_by_the_report_of_the_other(tmp_path: Path) -> None:
    expected = r"rank-1 failed first .*:\n.*\nTraceback(.|\n)*LookupError: no such clip"
    with pytest.raises(RankFailedError, match=expected), fail_together(tmp_path, 0, "stage toy"):
        _fail_as_rank_1(tmp_path)


def test_without_a_report_the_wait_itself_is_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "WAIT_FOR_REPORT_S", 0.05)
    with pytest.raises(RankFailedError, match="never came"), fail_together(tmp_path, 0, "stage toy"):
        raise RuntimeError("Timed out waiting 60000ms for recv operation to complete (gloo)")


def test_a_rank_that_torchrun_asks_to_leave_names_the_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SIGTERM may end their work before they miss the one that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = tmp_path / "failures"
    folder.mkdir()
    memory = asdict(replace(measure_memory(1), pid=gone.pid, used_bytes=12_300_000_000))
    (folder / "rank-1.memory.json").write_text(json.dumps(memory))
    monkeypatch.setattr(failures, "_world_size", lambda: 2)
    monkeypatch.setattr(failures, "record_memory", lambda *_: None)
    with pytest.raises(StoppedEarlyError), fail_together(tmp_path, 0, "compose", hang_s=None):
        raise StoppedEarlyError("asked to stop")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with (
        pytest.raises(RankFailedError, match=r"rank 1 was killed.*12\.3 GB"),
        fail_together(tmp_path, 0, "compose", hang_s=None),
    ):
        raise StoppedEarlyError("asked to stop")


def test_an_old_report_is_gone_when_a_run_starts(tmp_path: Path) -> None:
    old = tmp_path / "failures" / "rank-0.txt"
    old.parent.mkdir()
    old.write_text("old")
    with fail_together(tmp_path, 0, "stage toy"):
        assert not old.exists()
