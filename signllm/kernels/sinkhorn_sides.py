"""How a side of a transport problem binds, as the proximal step of Sinkhorn's iteration (Chizat et al. 2018).

With S the marginal that the other side's potential alone would give, the new marginal is the mass (exact); S
clipped to a box; or S^(1−p)·mass^p with p = ρ/(ρ + ε) (KL penalty). Everything else, also the gradient,
follows from that one function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

EXACT = Exact()
"""The default of both sides."""

KINDS = (Exact, Slack, Soft)


def to_numbers(side: Side) -> tuple[int, float]:
    """Return a side as (its place in ``KINDS``, its parameter): what an operator's schema can hold."""
    parameter = side.slack if isinstance(side, Slack) else side.rho if isinstance(side, Soft) else 0.0
    return KINDS.index(type(side)), float(parameter)


def from_numbers(kind: int, parameter: float) -> Side:
    """Return the side that ``to_numbers`` wrote."""
    return (Exact(), Slack(parameter), Soft(parameter))[kind]


def log_marginal(side: Side, mass: Tensor, epsilon: Tensor, log_s: Tensor) -> Tensor:
    """Return the log of the marginal that the side asks for, from log S; −inf where an exact mass is 0."""
    if isinstance(side, Exact):
        return mass.log().expand_as(log_s)
    if isinstance(side, Slack):
        lowest, highest = (mass - side.slack).clamp(min=0).log(), (mass + side.slack).log()
        return torch.minimum(torch.maximum(log_s, lowest), highest)
    share = side.rho / (side.rho + epsilon)
    return share * mass.log() + (1 - share) * log_s


def least_marginal(side: Side, mass: Tensor) -> Tensor:
    """Return the least marginal that the side accepts, entry by entry."""
    if isinstance(side, Exact):
        return mass
    return (mass - side.slack).clamp(min=0) if isinstance(side, Slack) else torch.zeros_like(mass)
