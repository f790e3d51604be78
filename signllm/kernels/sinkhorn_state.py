"""The state of transport problems during the solution: progress of problems, scales and offsets of sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Exact, Side, Slack, Soft

COARSEST, STEP = 1 / 8, 1 / 4
"""ε scaling starts at most at this share of the largest cost and multiplies ε by this factor per step."""

At = slice | Tensor
"""Index of some problems of a group: a slice, or an (m,) int64 tensor."""

LINEAR = 0.3
"""Error, as a share of the mass, below which convergence is assumed to be linear."""

SLOW, STRONGEST = 0.3, 1.97
"""Contraction per iteration above which over-relaxation is used, and its limit, because 2 would diverge."""


@dataclass
class Progress:
    """The progress of one problem.

    Attributes:
        place: index of the problem in the result of its group.
        target: requested ε.
        epsilon: current ε.
        mass: total mass; errors are shares of it.
        relaxation: ω of over-relaxation; 1 means none.
        contraction: estimated factor by which an iteration without relaxation multiplies the error.
        error_before: error at the last review.
        reviewed: iteration of the last review.
        is_done: whether the result has been written.
    """

    place: int
    target: float
    epsilon: float
    mass: float
    relaxation: float = 1.0
    contraction: float = 0.0
    error_before: float = math.inf
    reviewed: int = 0
    is_done: bool = False

    def review(self, error: float, iteration: int) -> None:
        """Choose the relaxation from the rate of convergence (Young's theory of over-relaxation)."""
        ratio = error / self.error_before if 0 < self.error_before < math.inf else 1.0
        iterations, self.reviewed, self.error_before = iteration - self.reviewed, iteration, error
        if not ratio < 1.0 or error > LINEAR * self.mass:
            self.relaxation = 1.0  # convergence is not yet, or no longer, linear
            return
        rate, omega = max(ratio, 1e-30) ** (1 / iterations), self.relaxation
        if omega > 1 and rate < omega - 0.99:
            return  # this relaxation cannot converge faster
        estimate = ((rate + omega - 1) / omega) ** 2 / rate if omega > 1 else rate
        self.contraction = max(self.contraction, min(estimate, 1.0))
        if self.contraction > SLOW:
            self.relaxation = min(STRONGEST, 2 / (1 + math.sqrt(1 - self.contraction)))

    def refine(self, *, at_once: bool) -> None:
        """Lower ε by one step, or ``at_once`` to the requested one, and reset the estimates for the old ε."""
        self.epsilon = self.target if at_once else max(self.target, self.epsilon * STEP)
        self.relaxation, self.contraction, self.error_before = 1.0, 0.0, math.inf


class Scale:
    """One side of a group of problems: its scales u = exp(φ − F), and the rule that updates them from sums.

    Attributes:
        constraint: constraint of the marginals of the side.
        mass: (n, R) masses.
        scale: (n, R) scales u.
        offset: (n, R) float64 offsets F.
        factor, power: (n, R) and (n, 1) constants of the update, which depend on F and ε.
        lowest, highest: (n, R) bounds of the marginals for :class:`Slack`.
    """

    def __init__(self, constraint: Side, mass_nR: Tensor) -> None:
        self.constraint, self.mass, self.scale = constraint, mass_nR, mass_nR.clone()
        self.offset = torch.zeros_like(mass_nR, dtype=torch.float64)
        self.factor = torch.ones_like(mass_nR)
        self.power = torch.ones_like(mass_nR[:, :1])
        slack = constraint.slack if isinstance(constraint, Slack) else 0.0
        self.lowest = (mass_nR - slack).clamp_(min=0)
        self.highest = torch.where(mass_nR > 0, mass_nR + slack, 0.0)

    def retain(self, members: Tensor) -> None:
        """Remove all problems except ``members``."""
        for name in ("mass", "scale", "offset", "factor", "power", "lowest", "highest"):
            setattr(self, name, getattr(self, name).index_select(0, members))

    def target_scale(self, sums_nR: Tensor) -> Tensor:
        """Return the scales u that meet the constraint, given sums near 1; u is 0 where the mass is 0."""
        if isinstance(self.constraint, Exact):
            return self.mass / sums_nR
        if isinstance(self.constraint, Slack):
            return (sums_nR * self.factor).clamp_(self.lowest, self.highest).div_(sums_nR)
        return (self.mass / sums_nR).pow_(self.power).mul_(self.factor)

    def potential(self, members: At, scale_mR: Tensor) -> Tensor:
        """Return the float64 potential φ (m, R) of problems with scales u; −inf where the mass is 0."""
        tiny = tiny_for(scale_mR)
        phi_mR = self.offset[members] + scale_mR.double().clamp(tiny, 1 / tiny).log()
        if isinstance(self.constraint, Slack):  # u has underflowed: the slack is not exhausted, and φ is 0
            phi_mR = torch.where(scale_mR > 0, phi_mR, 0.0)
        return torch.where(self.mass[members] > 0, phi_mR, -math.inf)

    def absorb(self, members: At, offset_mR: Tensor, scale_mR: Tensor, epsilon_m1: Tensor) -> None:
        """Set F and u of problems whose kernels have been rebuilt."""
        offset_mR = torch.where(self.mass[members] > 0, offset_mR, 0.0)
        self.offset[members], self.scale[members] = offset_mR, scale_mR
        if isinstance(self.constraint, Slack):
            self.factor[members] = offset_mR.neg().exp().clamp(max=1 / tiny_for(scale_mR)).to(scale_mR.dtype)
        elif isinstance(self.constraint, Soft):
            share_m1 = self.constraint.rho / (self.constraint.rho + epsilon_m1)
            factor_mR = ((share_m1 - 1) * offset_mR).exp().clamp(max=1 / tiny_for(scale_mR))
            self.power[members], self.factor[members] = (x.to(scale_mR.dtype) for x in (share_m1, factor_mR))


def tiny_for(like: Tensor) -> float:
    """Return a positive number that is small enough to replace 0 and has a finite inverse."""
    return float(torch.finfo(like.dtype).tiny ** 0.75)
