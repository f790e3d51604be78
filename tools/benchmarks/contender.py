"""Cases of the benchmark: random data, and the implementations that solve it: ours, rivals and the bound.

All contenders of a case get the same tensors. Some need a setting before they are comparable (the number of
iterations of a solver). These have ``tune``, which runs once before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Role = Literal["ours", "rival", "bound"]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The setting of a contender with which it is as exact as the others.

    Attributes:
        setting: handed to ``run``.
        note: the setting in words, for the table.
        reached: False where the time limit came first: its time is then a lower bound, its error is larger.
        seconds: of the last run with this setting.
        error: of that run.
    """

    setting: float
    note: str
    reached: bool
    seconds: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An implementation that solves a case.

    Attributes:
        name: its row in the table.
        role: ``bound`` does the unavoidable part only, so it has no error.
        run: the measured call; takes the tuned setting, or None.
        error: of what ``run`` returned, against the truth in float64, with details for the JSON.
        package: what must be importable; None: nothing but torch.
        tune: finds the setting; takes the time in seconds that one run may last.
        brief: a setting that needs as much memory and little time.
        note: what the row should say.
        cpu_only: it has no CUDA code.
    """

    name: str
    role: Role
    run: Callable[[float | None], Any]
    error: Callable[[Any], tuple[float, dict[str, float]]] | None = None
    package: str | None = None
    tune: Callable[[float], Tuned] | None = None
    brief: float | None = None
    note: str = ""
    cpu_only: bool = False

    def absence(self, device: torch.device) -> str:
        """Return why it cannot run on this device; empty if it can."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return "not installed"
        return "has no CUDA code" if self.cpu_only and device.type == "cuda" else ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem size of one operator.

    Attributes:
        operator: ``vq_assign``, ``sinkhorn`` or ``mmd``.
        name: sizes and kind, unique within the operator.
        error_is: what the column "error" contains.
        build: draws the data on a device from a seed, and returns the contenders, ours first.
    """

    operator: str
    name: str
    error_is: str
    build: Callable[[torch.device, int], list[Contender]]


@dataclass(kw_only=True)
class Row:
    """The measurement of one contender in one case; seconds are None if it was not run."""

    operator: str
    case: str
    contender: str
    role: Role
    status: str = "ok"
    best_s: float | None = None
    median_s: float | None = None
    runs: int = 0
    times_ours: float | None = None
    extra_bytes: int | None = None
    error: float | None = None
    error_is: str = ""
    note: str = ""
    detail: dict[str, float] = field(default_factory=dict)
