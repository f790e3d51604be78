"""The constraints on the marginals of a transport problem, in the form of Sinkhorn's proximal step.

See Chizat et al. (2018). Let S be the marginal that results from the other side's potential alone. The new
marginal is the mass (:class:`Exact`), S clipped to a box around the mass (:class:`Slack`), or S^(1−p)·mass^p
with p = ρ/(ρ + ε) (:class:`Soft`, a KL penalty). The iterations and the gradient follow from this function.
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
    """The marginal may deviate from the mass at the price ρ·KL(marginal | mass)."""

    rho: float


Side = Exact | Slack | Soft

EXACT = Exact()
"""The default constraint of both sides."""

KINDS = (Exact, Slack, Soft)


def to_numbers(side: Side) -> tuple[int, float]:
    """Return a side as its index in ``KINDS`` and its parameter, for the schema of an operator."""
    parameter = side.slack if isinstance(side, Slack) else side.rho if isinstance(side, Soft) else 0.0
    return KINDS.index(type(side)), float(parameter)


def from_numbers(kind: int, parameter: float) -> Side:
    """Return the side with a kind and parameter of :func:`to_numbers`."""
    return (Exact(), Slack(parameter), Soft(parameter))[kind]


def log_marginal(side: Side, mass: Tensor, epsilon: Tensor, log_s: Tensor) -> Tensor:
    """Return the log of the new marginal of a side, given log S; −inf where an exact mass is 0."""
    if isinstance(side, Exact):
        return mass.log().expand_as(log_s)
    if isinstance(side, Slack):
        lowest, highest = (mass - side.slack).clamp(min=0).log(), (mass + side.slack).log()
        return torch.minimum(torch.maximum(log_s, lowest), highest)
    share = side.rho / (side.rho + epsilon)
    return share * mass.log() + (1 - share) * log_s


def least_marginal(side: Side, mass: Tensor) -> Tensor:
    """Return the smallest marginal that the side allows, entry by entry."""
    if isinstance(side, Exact):
        return mass
    return (mass - side.slack).clamp(min=0) if isinstance(side, Slack) else torch.zeros_like(mass)
