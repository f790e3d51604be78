"""Gradient of the transport plan by implicit differentiation, without storing or repeating iterations.

At the solution, P = exp(φ + γ − C/ε). For every row whose constraint is active, Σ_j P_ij = m_i with m_i = a_i
(exact), a_i ± s (slack at a bound), or a_i·exp(−εφ_i/ρ) (soft); likewise for the columns. Differentiating
these equations gives one symmetric linear system in (dφ, dγ):

    [diag(D)  P ] [dφ]   [A da + Σ_j P dC/ε]        D = m, or m(1 + ε/ρ) for a soft side,
    [Pᵀ  diag(D')] [dγ] = [A db + Σ_i P dC/ε],       A = 1, or m/a for a soft side.

Rows and columns within their slack are left out (dφ = 0). The gradient of a function of P follows from one
solution of this system. Eliminating the larger side (Schur complement) takes O(min(R, C)²) memory, whatever
the number of iterations was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Side, Slack, Soft

RIDGE = 1e-12
"""Share of the diagonal that is added to it. With two exact sides, φ + c and γ − c give the same plan for all
c: the system is singular."""

WORKSPACE_BYTES = 64 * 1024 * 1024
"""Bytes of float64 matrices; at least one problem, and as many as fit, are solved at a time."""


def plan_gradients(
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
    """Return the gradients of ⟨grad_plan, plan⟩ in cost (B, R, C), row mass (B, R) and column mass (B, C).

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
        chunk = slice(begin, begin + step)
        epsilon_b1 = epsilon[chunk, None]
        plan_bRC, weighted_bRC = plan[chunk].double(), grad_plan[chunk].double() * plan[chunk]
        sides = (
            _Linear(row, plan_bRC.sum(dim=2), row_mass[chunk], row_potential[chunk], epsilon_b1),
            _Linear(column, plan_bRC.sum(dim=1), column_mass[chunk], column_potential[chunk], epsilon_b1),
        )
        lambda_bR, mu_bC = _solve(plan_bRC, sides, weighted_bRC.sum(dim=2), weighted_bRC.sum(dim=1))
        grads[0][chunk] = (plan_bRC * (lambda_bR[:, :, None] + mu_bC[:, None]) - weighted_bRC) / epsilon_b1[
            :, :, None
        ]
        grads[1][chunk], grads[2][chunk] = lambda_bR * sides[0].share, mu_bC * sides[1].share
    return grads


class _Linear:
    """One side, linearized at the solution.

    Attributes:
        binds: whether the constraint of each entry is active.
        diagonal: D of the linear system.
        share: A of the linear system, the derivative of the marginal in the mass.
    """

    def __init__(
        self, side: Side, marginal: Tensor, mass: Tensor, potential: Tensor, epsilon_b1: Tensor
    ) -> None:
        self.binds = marginal > 0
        self.share = self.binds.double()
        self.diagonal = torch.where(self.binds, marginal, 1.0)
        if isinstance(side, Slack):
            threshold = (
                1e3 * torch.finfo(potential.dtype).eps * epsilon_b1
            )  # below it, a potential is 0 up to rounding
            self.binds = self.binds & (potential.abs() > threshold)
            self.share = self.binds.double()
        elif isinstance(side, Soft):
            self.share = torch.where(self.binds, marginal / mass, 0.0)
            self.diagonal = self.diagonal * (1 + epsilon_b1 / side.rho)


def _solve(
    plan: Tensor, sides: tuple[_Linear, _Linear], right_R: Tensor, right_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve the linear system for (λ, μ), 0 where a side does not bind, eliminating the larger side."""
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
