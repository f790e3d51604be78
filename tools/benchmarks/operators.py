"""The operators that are compared, and the cases of each."""

from __future__ import annotations

import torch

from benchmarks import mmd, sinkhorn, vq_assign
from benchmarks.contender import Case, Contender

OPERATORS = {"vq_assign": vq_assign.cases, "sinkhorn": sinkhorn.cases, "mmd": mmd.cases}


def cases(operator: str, device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of one operator: those of the device, or small ones for a test."""
    return OPERATORS[operator](device, quick)


def warm_up(operator: str, device: torch.device, names: list[str]) -> None:
    """Run the named contenders once on small shapes: imports and compilation are nobody's time and memory."""
    for case in cases(operator, device, True):
        for contender in case.build(device, 0):
            if contender.name in names and not contender.absence(device):
                _run_or_leave(contender)


def _run_or_leave(contender: Contender) -> None:
    try:
        contender.run(contender.brief)
    except Exception:  # the measured run meets it again, and says so in its row
        if contender.role == "ours":
            raise
