"""The transport problems of :mod:`signllm.cra.transport`, solved one by one with POT as a cross-check.

Exact rows with soft columns are ``ot.unbalanced.sinkhorn_unbalanced`` with an infinite price for the rows;
two exact sides are ``ot.bregman.sinkhorn_log``. POT (Python Optimal Transport) has no slack around a
marginal, so ``TransportConfig`` refuses a slack above 0.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from signllm.cra.transport import TransportConfig

Floats = NDArray[np.float64]
FORBIDDEN_COST = 1e3
"""Cost of a forbidden pair, since POT supports no infinite costs; e^(−FORBIDDEN_COST/ε) is 0."""


def solve_with_pot(
    cost_KV: Floats, supply_K: Floats, demand_BV: Floats, config: TransportConfig
) -> tuple[Floats, list[int], list[float]]:
    """Solve one problem per row of ``demand_BV``; words without demand are left out.

    Returns:
        the mass that each word receives, (B, V), the number of iterations per problem, and the share of the
        mass by which exact sides are violated, per problem.
    """
    received_BV = np.zeros_like(demand_BV)
    iterations, errors = [], []
    rows = supply_K > 0
    for b, demand_V in enumerate(demand_BV):
        taken = demand_V > 0
        plan, steps = _solve(cost_KV[np.ix_(rows, taken)], supply_K[rows], demand_V[taken], config)
        received_BV[b, taken] = plan.sum(axis=0)
        iterations.append(steps)
        error = np.abs(plan.sum(axis=1) - supply_K[rows]).sum()
        if config.formulation == "paper":  # POT ends with the rows, whose error is then 0
            error += np.abs(plan.sum(axis=0) - demand_V[taken]).sum()
        errors.append(float(error / supply_K.sum()))
    return received_BV, iterations, errors


def _solve(cost_KV: Floats, a: Floats, b: Floats, config: TransportConfig) -> tuple[Floats, int]:
    import ot

    # A constant may be subtracted from the costs of an exact row. With its cheapest pair at 0, e^(−cost/ε)
    # does not underflow.
    least = cost_KV.min(axis=1, keepdims=True)
    cost = np.where(np.isfinite(cost_KV), cost_KV - least, FORBIDDEN_COST)
    limits = {"numItermax": config.max_iterations, "stopThr": config.tolerance, "log": True}
    # POT warns that reg_type "entropy" ignores a parameter, and about problems that have not converged,
    # whose error is returned anyway.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.formulation == "paper":
            plan, log = ot.bregman.sinkhorn_log(a, b, cost, config.epsilon, **limits)
            return plan, int(log["niter"]) + 1
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a, b, cost, config.epsilon, (float("inf"), config.rho), reg_type="entropy", **limits
        )
        return plan, len(log["err"])
