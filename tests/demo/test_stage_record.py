"""The record of the demo's stages: each is done once, across processes, and only one of them speaks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from signllm.demo.stage_record import PURPOSES, StageRecord


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []
    StageRecord(tmp_path).run("pretrain", lambda: done.append("pretrain"))
    record = StageRecord(tmp_path)
    record.read()
    record.run("pretrain", lambda: done.append("pretrain"))
    record.run("compose", lambda: done.append("compose"))
    assert done == ["pretrain", "compose"]
    assert list(json.loads((tmp_path / "stages.json").read_text())) == done


def test_a_stage_that_fails_is_not_finished(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        StageRecord(tmp_path).run("pretrain", fail)
    assert not (tmp_path / "stages.json").exists()


def test_the_seconds_count_from_the_start_that_is_named(tmp_path: Path) -> None:
    record = StageRecord(tmp_path)
    record.run("pretrain", lambda: None, begun=time.time() - 100)
    assert record.seconds["pretrain"] >= 100


def test_a_stage_is_announced_with_its_purpose_by_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    StageRecord(tmp_path, speaks=False).run("compose", lambda: None)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "stages.json").exists()
    StageRecord(tmp_path).run("compose", lambda: None)
    assert PURPOSES["compose"] in capsys.readouterr().err
