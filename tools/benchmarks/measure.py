"""Time and error of a case's contenders, in turns: in each round every contender runs once.

Taking turns spreads a disturbance of the machine over all of them; the best run is the one least disturbed.
A contender that has used up its time budget is left out of further rounds.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks import memory
from benchmarks.clock import timed
from benchmarks.contender import Case, Contender, Row
from benchmarks.operators import warm_up


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: most timed runs of one contender.
        budget_s: after so much time it takes part in no further round.
        limit_s: longest run that looking for equal error may take.
        memory: whether memory is measured (on a CPU in a process of its own).
    """

    rounds: int = 15
    budget_s: float = 8.0
    limit_s: float = 30.0
    memory: bool = True


QUICK = Effort(rounds=3, budget_s=0.3, limit_s=0.4)
ON_GPU = Effort(rounds=20, budget_s=3.0, limit_s=10.0)


@dataclass
class _Entry:
    """A contender that is measured, and its results so far."""

    contender: Contender
    row: Row
    setting: float | None = None
    seconds: list[float] = field(default_factory=list)


def measure(
    case: Case, device: torch.device, seed: int, effort: Effort, chosen: Callable[[str], bool], quick: bool
) -> list[Row]:
    """Return a row for every chosen contender of the case."""
    contenders = [c for c in case.build(device, seed) if c.role == "ours" or chosen(c.name)]
    warm_up(case.operator, device, [contender.name for contender in contenders])
    entries = [_Entry(c, _row(case, c)) for c in contenders]
    here = [entry for entry in entries if not _absent(entry, device)]
    for entry in here:
        _guarded(entry, lambda entry=entry: _warm_up(entry, device, effort))
    running = [entry for entry in here if entry.row.status in ("ok", "limit")]
    for _ in range(effort.rounds):
        for entry in running:
            if sum(entry.seconds) < effort.budget_s:
                entry.seconds.append(timed(lambda entry=entry: entry.contender.run(entry.setting), device)[0])
    if effort.memory and device.type == "cpu":
        peaks = memory.in_a_process(case, [e.contender.name for e in running], seed, quick)
        for entry in running:
            entry.row.extra_bytes = peaks.get(entry.contender.name)
    for entry in running:
        entry.row.best_s, entry.row.median_s = min(entry.seconds), statistics.median(entry.seconds)
        entry.row.runs = len(entry.seconds)
    ours = entries[0].row.best_s
    for entry in running:
        entry.row.times_ours = entry.row.best_s / ours if ours and entry.row.best_s else None
    return [entry.row for entry in entries if chosen(entry.contender.name)]


def _row(case: Case, contender: Contender) -> Row:
    return Row(
        operator=case.operator,
        case=case.name,
        contender=contender.name,
        role=contender.role,
        error_is=case.error_is,
        note=contender.note,
    )


def _absent(entry: _Entry, device: torch.device) -> bool:
    reason = entry.contender.absence(device)
    if reason:
        entry.row.status = reason
    return bool(reason)


def _guarded(entry: _Entry, step: Callable[[], None]) -> None:
    """Run ``step``; a failure of a rival becomes the status of its row, and one of ours is raised."""
    try:
        step()
    except Exception as error:
        if entry.contender.role == "ours":
            raise
        entry.row.status = (
            f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        )


def _warm_up(entry: _Entry, device: torch.device, effort: Effort) -> None:
    """Find the setting, run once, take error and CUDA memory; a run above the budget is the measurement."""
    contender, row = entry.contender, entry.row
    if contender.tune is not None:
        tuned = contender.tune(effort.limit_s)
        entry.setting = tuned.setting
        row.note = ", ".join(filter(None, (row.note, tuned.note)))
        row.status, row.error = "ok" if tuned.reached else "limit", tuned.error
        if tuned.seconds > effort.budget_s:
            entry.seconds.append(tuned.seconds)
    if not entry.seconds:
        gc.collect()
        seconds, result = timed(lambda: contender.run(entry.setting), device)
        if seconds > effort.budget_s:
            entry.seconds.append(seconds)
        if contender.error is not None:
            row.error, row.detail = contender.error(result)
    if device.type == "cuda" and effort.memory:
        row.extra_bytes = memory.peak_on_gpu(contender, device)
    if row.error is not None and not math.isfinite(row.error):
        row.error, row.status = None, "failed: not a number"
