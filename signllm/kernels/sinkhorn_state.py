"""The state of transport problems that are being solved: scale factors of a side, progress of a problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Exact, Side, Slack, Soft

COARSEST, STEP = 1 / 8, 1 / 4
"""ε comes down from at most this share of the largest cost, by this factor."""

At = slice | Tensor
"""Some problems of a group: a slice, or (m,) int64."""

LINEAR = 0.3
"""Share of the mass below which the error is taken to fall at a constant rate."""

SLOW, STRONGEST = 0.3, 1.97
"""Contraction per iteration above which over-relaxation pays; its limit, as 2 would not converge."""


@dataclass
class Progress:
    """How the iteration of one problem is going.

    Attributes:
        place: in the group's result.
        target: the ε asked for; ``epsilon`` is the present one.
        mass: what errors are a share of.
        relaxation: ω of over-relaxation, 1 without.
        contraction: estimate of what a plain iteration multiplies the error by.
        error_before: at the last review, which was in iteration ``reviewed``.
        is_done: its result is written.
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
        """Choose the relaxation from how fast the error fell: Young's theory of two-block relaxation."""
        fell = error / self.error_before if 0 < self.error_before < math.inf else 1.0
        passed, self.reviewed, self.error_before = iteration - self.reviewed, iteration, error
        if not fell < 1.0 or error > LINEAR * self.mass:
            self.relaxation = 1.0  # not yet, or no longer, at a constant rate
            return
        rate, omega = max(fell, 1e-30) ** (1 / passed), self.relaxation
        if omega > 1 and rate < omega - 0.99:
            return  # as fast as this relaxation can be
        seen = ((rate + omega - 1) / omega) ** 2 / rate if omega > 1 else rate
        self.contraction = max(self.contraction, min(seen, 1.0))
        if self.contraction > SLOW:
            self.relaxation = min(STRONGEST, 2 / (1 + math.sqrt(1 - self.contraction)))

    def refine(self, *, at_once: bool) -> None:
        """Come a step nearer to the ε asked for; what was seen of convergence was at another one."""
        self.epsilon = self.target if at_once else max(self.target, self.epsilon * STEP)
        self.relaxation, self.contraction, self.error_before = 1.0, 0.0, math.inf


class Scale:
    """One side of a group: scale factors u = exp(φ − F), and the rule that makes new ones from sums."""

    def __init__(self, side: Side, mass_nR: Tensor) -> None:
        self.side, self.mass, self.scale = side, mass_nR, mass_nR.clone()
        self.offset = torch.zeros_like(mass_nR, dtype=torch.float64)
        self.factor = torch.ones_like(mass_nR)
        self.power = torch.ones_like(mass_nR[:, :1])
        slack = side.slack if isinstance(side, Slack) else 0.0
        self.lowest = (mass_nR - slack).clamp_(min=0)
        self.highest = torch.where(mass_nR > 0, mass_nR + slack, 0.0)

    def keep(self, members: Tensor) -> None:
        """Let the other problems leave."""
        for name in ("mass", "scale", "offset", "factor", "power", "lowest", "highest"):
            setattr(self, name, getattr(self, name).index_select(0, members))

    def wanted(self, sums_nR: Tensor) -> Tensor:
        """Return the u that gives the marginals asked for; sums are near 1, and u is 0 where the mass is."""
        if isinstance(self.side, Exact):
            return self.mass / sums_nR
        if isinstance(self.side, Slack):
            return (sums_nR * self.factor).clamp_(self.lowest, self.highest).div_(sums_nR)
        return (self.mass / sums_nR).pow_(self.power).mul_(self.factor)

    def potential(self, members: At, scale_mR: Tensor) -> Tensor:
        """Return φ (m, R) of some problems, float64, with ``scale_mR`` as u; −inf where there is no mass."""
        tiny = tiny_for(scale_mR)
        phi_mR = self.offset[members] + scale_mR.double().clamp(tiny, 1 / tiny).log()
        if isinstance(self.side, Slack):  # below the reach of u the box is idle
            phi_mR = torch.where(scale_mR > 0, phi_mR, 0.0)
        return torch.where(self.mass[members] > 0, phi_mR, -math.inf)

    def absorb(self, members: At, offset_mR: Tensor, scale_mR: Tensor, epsilon_m1: Tensor) -> None:
        """Take F and u of problems whose kernels were made anew."""
        offset_mR = torch.where(self.mass[members] > 0, offset_mR, 0.0)
        self.offset[members], self.scale[members] = offset_mR, scale_mR
        if isinstance(self.side, Slack):
            self.factor[members] = offset_mR.neg().exp().clamp(max=1 / tiny_for(scale_mR)).to(scale_mR.dtype)
        elif isinstance(self.side, Soft):
            share_m1 = self.side.rho / (self.side.rho + epsilon_m1)
            factor_mR = ((share_m1 - 1) * offset_mR).exp().clamp(max=1 / tiny_for(scale_mR))
            self.power[members], self.factor[members] = (x.to(scale_mR.dtype) for x in (share_m1, factor_mR))


def tiny_for(like: Tensor) -> float:
    """Return a number that nothing is lost by when it stands for 0, and whose inverse is finite."""
    return float(torch.finfo(like.dtype).tiny ** 0.75)
