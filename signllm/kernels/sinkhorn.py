"""Entropic optimal transport for a batch of masked problems (design 4.2; the paper's Eq. 5).

Each problem is min_P ⟨C, P⟩ + ε Σ P (log P − 1) + row(P·1 | a) + column(Pᵀ·1 | b), where a side is exact, a
box or a KL penalty. Sinkhorn's iteration is a proximal step per side (Chizat et al. 2018): with S the
marginal that the other side's potential alone would give, the new marginal is a; S clipped to the box; or
S^(1−p)·a^p, p = ρ/(ρ+ε).

Potentials are float64 and live in the log domain; the kernel exp((f + g − C)/ε) has the dtype of the cost
and is rebuilt only when they have drifted, so an iteration is two matrix-vector products and nothing over-
or underflows. Problems are solved one after another without their masked rows and columns: each stays in
cache and stops when it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DRIFT = 20.0
"""How far, in units of ε, potentials may move from those inside the kernel: exp(±20) suits float32."""

TINY = 1e-20
"""A product below this may have lost terms to underflow, and is computed again in the log domain."""


@dataclass(frozen=True)
class Exact:
    """The marginal equals the mass."""


@dataclass(frozen=True)
class Slack:
    """The marginal lies within ``slack`` of the mass, entry by entry: |marginal − mass| ≤ slack."""

    slack: float


@dataclass(frozen=True)
class Soft:
    """The marginal may leave the mass for a price: ρ·KL(marginal | mass)."""

    rho: float


Side = Exact | Slack | Soft


@dataclass(frozen=True)
class SinkhornResult:
    """What a solve found, and per problem how well.

    Attributes:
        plan: (B, R, C), 0 where masked or forbidden.
        row_potential: (B, R) f, in units of cost; 0 where masked. plan = exp((f + g − C)/ε).
        column_potential: (B, C) g, likewise.
        iterations: (B,) int64, at most ``max_iterations``.
        error: (B,) float64, Σ|row marginal − what the row side asks for| as a share of the problem's mass.
            Above the tolerance: not converged, or impossible (exact masses that do not add up, mass that no
            finite cost lets go).
    """

    plan: Tensor
    row_potential: Tensor
    column_potential: Tensor
    iterations: Tensor
    error: Tensor


def sinkhorn(
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    *,
    epsilon: float | Tensor,
    row: Side = Exact(),
    column: Side = Exact(),
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> SinkhornResult:
    """Solve B entropic transport problems; without gradient.

    The entropy is relative to the uniform plan; for KL(P | a⊗b) subtract ε·log(a⊗b) from the cost. The last
    half step is the columns', so theirs is the side that is met to rounding; ``error`` measures the rows.

    Args:
        cost: (B, R, C); +inf forbids a pair. An expanded tensor may share one cost between problems.
        row_mass: (B, R) non-negative; 0 masks the row out.
        column_mass: (B, C) likewise.
        epsilon: strength of the entropy in units of cost, one for all or (B,).
        row, column: how each side binds.
        max_iterations: limit per problem.
        tolerance: the ``error`` at which a problem stops.

    Raises:
        ValueError: wrong shapes, NaN or −inf costs, negative or infinite masses, parameters that are not
            positive.
    """
    _check(cost, row_mass, column_mass, row, column)
    epsilons = torch.as_tensor(epsilon, dtype=torch.float64).expand(len(cost)).tolist()
    if not all(0 < value < float("inf") for value in epsilons) or max_iterations < 1:
        raise ValueError(
            f"epsilon must be positive and finite, max_iterations at least 1; got {epsilon}, {max_iterations}"
        )
    plan = torch.zeros(cost.shape, dtype=cost.dtype, device=cost.device)
    f, g = torch.zeros_like(row_mass, dtype=torch.float64), torch.zeros_like(column_mass, dtype=torch.float64)
    iterations, error = torch.zeros(len(cost), dtype=torch.int64), torch.zeros(len(cost), dtype=torch.float64)
    with torch.no_grad():
        for b, epsilon_b in enumerate(epsilons):
            problem = _Problem(cost[b], row_mass[b], column_mass[b], epsilon_b, row, column)
            iterations[b], error[b] = problem.solve(max_iterations, tolerance)
            if not problem.is_empty:
                place = (problem.rows[:, None], problem.columns)
                plan[b][place] = problem.log_plan().exp_().to(cost.dtype)
                f[b, problem.rows] = problem.row.now * epsilon_b
                g[b, problem.columns] = problem.column.now * epsilon_b
    device, dtype = cost.device, cost.dtype
    return SinkhornResult(plan, f.to(dtype), g.to(dtype), iterations.to(device), error.to(device))


class _Potential:
    """One side: its potential in units of ε, the part of it inside the kernel, and its marginal's rule."""

    def __init__(self, side: Side, mass: Tensor, epsilon: float) -> None:
        self.wanted = _marginal(side, mass, epsilon)
        self.now = self.inside = torch.zeros_like(mass)

    def factor(self) -> Tensor:
        """Exp of what the kernel does not hold; cut off where ``has_drifted`` makes the product void."""
        return (self.now - self.inside).clamp(-2 * DRIFT, 2 * DRIFT).exp()

    def has_drifted(self) -> bool:
        return bool((self.now - self.inside).abs().max() > DRIFT)


class _Problem:
    """One problem without the rows and columns that are masked or that no finite cost reaches; its state."""

    def __init__(
        self, cost_RC: Tensor, a_R: Tensor, b_C: Tensor, epsilon: float, row: Side, column: Side
    ) -> None:
        present_RC = cost_RC.isfinite() & (a_R > 0)[:, None] & (b_C > 0)
        self.rows, self.columns = present_RC.any(dim=1).nonzero()[:, 0], present_RC.any(dim=0).nonzero()[:, 0]
        a_R, b_C = a_R.double(), b_C.double()
        self.mass = max(float(a_R.sum()), float(b_C.sum()))
        stranded_R, stranded_C = a_R.index_fill(0, self.rows, 0), b_C.index_fill(0, self.columns, 0)
        self.unmet = float(_least(row, stranded_R).sum() + _least(column, stranded_C).sum())
        self.is_empty = len(self.rows) == 0
        self.cost_RC = cost_RC[self.rows[:, None], self.columns]
        self.epsilon = epsilon
        self.row = _Potential(row, a_R[self.rows], epsilon)
        self.column = _Potential(column, b_C[self.columns], epsilon)
        self.rebuild()

    def rebuild(self) -> None:
        """Take the present potentials into the kernel."""
        self.row.inside, self.column.inside = self.row.now, self.column.now
        self.kernel_RC = self.log_plan().exp_().to(self.cost_RC.dtype)

    def log_plan(self) -> Tensor:
        """(R, C) log P in float64."""
        return (self.cost_RC.double() / -self.epsilon).add_(self.row.now[:, None]).add_(self.column.now)

    def solve(self, max_iterations: int, tolerance: float) -> tuple[int, float]:
        """Iterate until the rows' error is within tolerance; return iterations and error."""
        if self.is_empty:
            return 0, (self.unmet / self.mass if self.mass > 0 else 0.0)
        self.half_step(self.row, self.column, dim=1)
        for iteration in range(1, max_iterations + 1):
            self.half_step(self.column, self.row, dim=0)
            before = self.row.now
            moved = self.half_step(self.row, self.column, dim=1)
            if moved <= tolerance * self.mass or iteration == max_iterations:
                break
        self.row.now = before  # the plan that the error was measured on: columns met, rows within the error
        return iteration, (moved + self.unmet) / self.mass

    def half_step(self, mine: _Potential, other: _Potential, dim: int) -> float:
        """Let one side have the marginal it asks for; return how far (L1) it was from that."""
        factor = other.factor().to(self.kernel_RC.dtype)
        sums = self.kernel_RC @ factor if dim == 1 else factor @ self.kernel_RC
        is_void = other.has_drifted() or not bool(sums.min() > TINY)
        log_s = self.log_plan().logsumexp(dim) - mine.now if is_void else sums.double().log() - mine.inside
        wanted = mine.wanted(log_s)
        moved = float((wanted.exp() - (log_s + mine.now).exp()).abs().sum())
        mine.now = wanted - log_s
        if is_void:
            self.rebuild()
        return moved


def _marginal(side: Side, mass: Tensor, epsilon: float) -> Callable[[Tensor], Tensor]:
    """The side's proximal step: from log S, the log of the marginal that it asks for."""
    log_mass = mass.log()
    if isinstance(side, Exact):
        return lambda log_s: log_mass
    if isinstance(side, Slack):
        lowest, highest = (mass - side.slack).clamp(min=0).log(), (mass + side.slack).log()
        return lambda log_s: torch.minimum(torch.maximum(log_s, lowest), highest)
    share = side.rho / (side.rho + epsilon)
    return lambda log_s: share * log_mass + (1 - share) * log_s


def _least(side: Side, mass: Tensor) -> Tensor:
    """The least marginal that the side accepts, entry by entry."""
    if isinstance(side, Exact):
        return mass
    return (mass - side.slack).clamp(min=0) if isinstance(side, Slack) else torch.zeros_like(mass)


def _check(cost: Tensor, row_mass: Tensor, column_mass: Tensor, row: Side, column: Side) -> None:
    if (
        cost.dim() != 3
        or row_mass.shape != cost.shape[:2]
        or column_mass.shape != (cost.shape[0], cost.shape[2])
    ):
        shapes = [tuple(t.shape) for t in (cost, row_mass, column_mass)]
        raise ValueError(f"cost must be (B, R, C), row_mass (B, R), column_mass (B, C); got {shapes}")
    if cost.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"cost must be float32 or float64; got {cost.dtype}")
    bad = (cost.isnan() | (cost == -torch.inf)).nonzero()
    if len(bad) > 0:
        raise ValueError(f"cost holds NaN or -inf, first at {tuple(bad[0].tolist())}; +inf forbids a pair")
    for name, mass in (("row_mass", row_mass), ("column_mass", column_mass)):
        bad = (~(mass >= 0) | mass.isinf()).nonzero()
        if len(bad) > 0:
            raise ValueError(
                f"{name} must be finite and non-negative; first broken at {tuple(bad[0].tolist())}"
            )
    for name, side in (("row", row), ("column", column)):
        value = side.slack if isinstance(side, Slack) else side.rho if isinstance(side, Soft) else 0.0
        if not 0 <= value < float("inf") or (isinstance(side, Soft) and value == 0):
            raise ValueError(f"{name}={side}: the parameter must be positive and finite (a slack may be 0)")
