"""Gradient of the plan by implicit differentiation: no iteration is kept or run again.

At the solution P = exp(φ + γ − C/ε) with, for every row that binds, Σ_j P_ij = m_i: a_i (exact; slack at its
bound ± s) or a_i·exp(−εφ_i/ρ) (soft). Differentiating gives one symmetric linear system in (dφ, dγ),

    [diag(D)  P ] [dφ]   [A da + Σ_j P dC/ε]        D = m, or m(1 + ε/ρ) for a soft side,
    [Pᵀ  diag(D')] [dγ] = [A db + Σ_i P dC/ε],       A = 1, or m/a for a soft side,

without the rows and columns whose box is idle (dφ = 0). A gradient with respect to P is carried back by one
solve with it, on the smaller side (Schur complement): O(min(R, C)²) memory, whatever the iterations were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Side, Slack, Soft

RIDGE = 1e-12
"""Added to the diagonal, as a share of it: φ + c, γ − c is the same plan where both sides are exact."""

WORKSPACE_BYTES = 64 * 1024 * 1024
"""Problems are taken so many at a time that their float64 matrices fit into this (one at least)."""


def carry_back(
    grad_plan: Tensor,
    plan: Tensor,
    row_potential: Tensor,
    column_potential: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: Tensor,
    row: Side,
    column: Side,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in cost (B, R, C), row mass (B, R) and column mass (B, C) of ⟨grad_plan, plan⟩.

    Args:
        grad_plan: (B, R, C).
        plan, row_potential, column_potential: the solution, (B, R, C), (B, R), (B, C).
        row_mass, column_mass, epsilon: the problem, (B, R), (B, C), (B,) float64.
        row, column: how each side binds.
    """
    grads = torch.empty_like(plan), torch.zeros_like(row_mass), torch.zeros_like(column_mass)
    B, R, C = plan.shape
    step = max(1, WORKSPACE_BYTES // max(1, 8 * (3 * R * C + 2 * min(R, C) ** 2)))
    for begin in range(0, B, step):
        some = slice(begin, begin + step)
        epsilon_b1 = epsilon[some, None]
        plan_bRC, weighted_bRC = plan[some].double(), grad_plan[some].double() * plan[some]
        sides = (
            _Linear(row, plan_bRC.sum(dim=2), row_mass[some], row_potential[some], epsilon_b1),
            _Linear(column, plan_bRC.sum(dim=1), column_mass[some], column_potential[some], epsilon_b1),
        )
        lambda_bR, mu_bC = _solve(plan_bRC, sides, weighted_bRC.sum(dim=2), weighted_bRC.sum(dim=1))
        grads[0][some] = (plan_bRC * (lambda_bR[:, :, None] + mu_bC[:, None]) - weighted_bRC) / epsilon_b1[
            :, :, None
        ]
        grads[1][some], grads[2][some] = lambda_bR * sides[0].share, mu_bC * sides[1].share
    return grads


class _Linear:
    """One side near the solution: which entries bind, the diagonal D, and the share A of the mass."""

    def __init__(
        self, side: Side, marginal: Tensor, mass: Tensor, potential: Tensor, epsilon_b1: Tensor
    ) -> None:
        self.binds = marginal > 0
        self.share = self.binds.double()
        self.diagonal = torch.where(self.binds, marginal, 1.0)
        if isinstance(side, Slack):
            idle = 1e3 * torch.finfo(potential.dtype).eps * epsilon_b1  # a potential of 0, up to rounding
            self.binds = self.binds & (potential.abs() > idle)
            self.share = self.binds.double()
        elif isinstance(side, Soft):
            self.share = torch.where(self.binds, marginal / mass, 0.0)
            self.diagonal = self.diagonal * (1 + epsilon_b1 / side.rho)


def _solve(
    plan: Tensor, sides: tuple[_Linear, _Linear], right_R: Tensor, right_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (λ, μ), 0 where a side does not bind; the larger side is eliminated."""
    rows, columns = sides
    if plan.shape[1] < plan.shape[2]:
        mu, lam = _solve(plan.mT, (columns, rows), right_C, right_R)
        return lam, mu
    coupling = plan * rows.binds[:, :, None] * columns.binds[:, None]
    right_R, right_C = right_R * rows.binds, right_C * columns.binds
    scaled = coupling / rows.diagonal[:, :, None]
    schur = torch.bmm(scaled.mT, coupling).neg_()
    schur.diagonal(dim1=1, dim2=2).add_(columns.diagonal * (1 + RIDGE))
    rest = right_C - torch.bmm(right_R[:, None], scaled)[:, 0]
    mu, _ = torch.linalg.solve_ex(schur, rest)
    return (right_R - torch.bmm(mu[:, None], coupling.mT)[:, 0]) / rows.diagonal, mu
