"""What the ranks of a real run exchange for ZeRO, and hold, is what the plan says: to the last byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import warm

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from benchmarks import traffic  # noqa: E402

KEPT = traffic.Case(deepspeed="zero3", changes=traffic.CUT)
LET_GO = traffic.Case(deepspeed="zero3", changes=traffic.LET_GO)
CASES = (
    traffic.Case(deepspeed="zero0", accumulation=2),
    traffic.Case(deepspeed="zero1", accumulation=2),
    traffic.Case(deepspeed="zero1", precision="bf16"),
    traffic.Case(deepspeed="zero2", accumulation=2),
    traffic.Case(deepspeed="zero2", precision="bf16"),
    KEPT,
    traffic.Case(deepspeed="zero3", changes=traffic.CUT, precision="bf16", accumulation=2),
    LET_GO,
    traffic.Case(deepspeed="zero3", changes=traffic.LET_GO, recompute=True),
)


@pytest.mark.timeout(900)
def test_counts_equal_predictions_and_memory_equals_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys, "executable", warm.python())
    counted = traffic.count(CASES, ranks=2)
    for case, measured in zip(CASES, counted, strict=True):
        planned = [row for row in measured.rows if row.predicted is not None]
        assert planned, case.name
        for row in planned:
            assert row.counted == row.predicted, (case.name, row)
        own = {row.kind: row.counted for row in measured.rows if row.predicted is None}
        assert own.keys() == {"all-gather, own", "all-reduce, own"}
        assert measured.model_states == measured.planned, case.name
    gathered = {
        case.name: row.counted
        for case, measured in zip(CASES, counted, strict=True)
        for row in measured.rows
        if row.kind == "all-gather"
    }
    assert gathered[LET_GO.name] > gathered[KEPT.name], "a block that was let go is gathered again"


def test_a_count_that_differs_is_marked() -> None:
    row = traffic.Row(kind="all-gather", operations=2, counted=100, predicted=90)
    lines = traffic.table(CASES[0], 2, [row])
    assert lines[2].endswith("90  differs")
    assert lines[-1].split()[-2:] == ["50", "45"]
