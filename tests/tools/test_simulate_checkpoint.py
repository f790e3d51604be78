"""Checkpoints of simulated ranks: what the tool prints, and that it notices a wrong share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import Tensor

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(CHECKOUT / "tools"), *sys.path])


def test_each_layout_gives_back_every_bit_and_a_parameter_takes_12_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import rank_checkpoints

    assert not rank_checkpoints.audit(tmp_path, 200_000, 24, [12, 8, 1])
    output = capsys.readouterr().out
    assert output.count("equal to the last bit") == 3
    assert "200,000 parameters" in output
    assert ", 12.0" in output
    assert "all came back" in output


def test_a_rank_with_the_share_of_another_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import rank_checkpoints

    def wrong(value: Tensor, rank: int, ranks: int) -> Tensor:
        return rank_checkpoints_share(value, ranks - 1 - rank, ranks)

    rank_checkpoints_share = rank_checkpoints.partition_of
    monkeypatch.setattr(rank_checkpoints, "partition_of", wrong)
    assert rank_checkpoints.audit(tmp_path, 20_000, 24, [4])
    assert "tensors differ" in capsys.readouterr().out
