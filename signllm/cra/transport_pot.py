"""The same transport problems, one after the other, by POT (Python Optimal Transport): a cross-check.

Exact rows with soft columns are ``ot.unbalanced.sinkhorn_unbalanced`` with an infinite price for the rows,
exact sides ``ot.bregman.sinkhorn_log``. POT knows no box around a marginal, so a slack above 0 is refused by
``TransportConfig``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from signllm.cra.transport import TransportConfig

Floats = NDArray[np.float64]
FAR = 1e3
"""Cost in place of a forbidden pair's, above the others: e^(−FAR/ε) is 0, and POT knows no infinity."""


def solve_with_pot(
    cost_KV: Floats, supply_K: Floats, demand_BV: Floats, config: TransportConfig
) -> tuple[Floats, list[int], list[float]]:
    """Solve one problem per row of ``demand_BV``; a word without demand takes no part.

    Returns:
        (B, V) what each word receives, the solver's iterations, and the share of the mass that is not where
        an exact side wants it.
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
        if config.formulation == "paper":  # where POT ends with the rows, so that theirs tells nothing
            error += np.abs(plan.sum(axis=0) - demand_V[taken]).sum()
        errors.append(float(error / supply_K.sum()))
    return received_BV, iterations, errors


def _solve(cost_KV: Floats, a: Floats, b: Floats, config: TransportConfig) -> tuple[Floats, int]:
    import ot

    # An exact row may be shifted by a constant: its cheapest pair at 0 keeps e^(−cost/ε) from vanishing.
    least = cost_KV.min(axis=1, keepdims=True)
    cost = np.where(np.isfinite(cost_KV), cost_KV - least, FAR)
    limits = {"numItermax": config.max_iterations, "stopThr": config.tolerance, "log": True}
    with (
        warnings.catch_warnings()
    ):  # that reg_type "entropy" ignores c; what did not converge tells its error
        warnings.simplefilter("ignore")
        if config.formulation == "paper":
            plan, log = ot.bregman.sinkhorn_log(a, b, cost, config.epsilon, **limits)
            return plan, int(log["niter"]) + 1
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a, b, cost, config.epsilon, (float("inf"), config.rho), reg_type="entropy", **limits
        )
        return plan, len(log["err"])
