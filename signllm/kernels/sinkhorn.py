"""Entropic optimal transport for a batch of masked problems (Eq. 5 of the paper).

Each problem is min_P ⟨C, P⟩ + ε Σ P (log P − 1) + row(P·1 | a) + column(Pᵀ·1 | b). A side is exact, a box or
a KL penalty (:mod:`signllm.kernels.sinkhorn_sides`), so that one operator solves balanced, box-relaxed and
(semi-)unbalanced transport. The solution is P = exp((f + g − C)/ε) with potentials f and g.
``sinkhorn_torch`` is the reference and the CPU implementation, ``sinkhorn_triton`` the implementation for
CUDA, and ``sinkhorn_gradient`` the gradient of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signllm.kernels import sinkhorn_torch
from signllm.kernels.implementation import choose
from signllm.kernels.sinkhorn_gradient import plan_gradients
from signllm.kernels.sinkhorn_sides import EXACT, Exact, Side, Slack, Soft, from_numbers, to_numbers


class NotConvergedError(RuntimeError):
    """Raised if a problem has not reached the tolerance and ``must_converge`` is set."""


@dataclass(frozen=True)
class SinkhornResult:
    """The solutions of a batch of problems.

    Attributes:
        plan: (B, R, C) transport plan exp((f + g − C)/ε), 0 where masked or forbidden; differentiable in cost
            and masses.
        row_potential: (B, R) potential f in units of cost, 0 where masked; without gradient, like all below.
        column_potential: (B, C) potential g, likewise.
        iterations: (B,) int64, number of iterations.
        error: (B,) float64, L1 distance of the row marginals to those that the row side requires, as a share
            of the problem's mass. If it exceeds the tolerance, the problem has not converged or has no
            solution (exact masses with unequal sums, or mass that only infinite costs could move).
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
    row: Side = EXACT,
    column: Side = EXACT,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    start: Tensor | None = None,
    must_converge: bool = False,
) -> SinkhornResult:
    """Solve B entropic transport problems, each until it has converged.

    The entropy is relative to the uniform plan; for KL(P | a⊗b), subtract ε·log(a⊗b) from the cost. The last
    half step is that of the columns, whose constraint is therefore met up to rounding; ``error`` measures the
    rows.

    Args:
        cost: (B, R, C) float32 or float64, or (1, R, C) or (R, C) for all problems; +inf forbids a pair.
        row_mass: (B, R) non-negative masses; 0 masks the row.
        column_mass: (B, C) non-negative masses; 0 masks the column.
        epsilon: strength of the entropy in units of cost, one number or (B,); it has no gradient.
        row, column: constraints of the row and column marginals.
        max_iterations: largest number of iterations per problem.
        tolerance: ``error`` at which a problem stops; with float32 it can hardly be below 1e-7.
        start: (B, C) initial column potential, for example of an earlier result; f follows from it.
        must_converge: whether to raise an error if a problem does not reach the tolerance.

    Raises:
        ValueError: shapes or dtypes are wrong, costs are NaN or −inf, masses are negative or infinite, or
            parameters are not positive.
        NotConvergedError: a problem has not reached the tolerance, and ``must_converge`` is set.
    """
    if cost.dim() == 2:
        cost = cost[None]
    _check(cost, row_mass, column_mass, start, row, column)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1; got {max_iterations}")
    batch = row_mass.shape[0]
    epsilon_B = torch.as_tensor(epsilon, dtype=torch.float64, device=cost.device).detach().expand(batch)
    plan, f, g, iterations, error = _sinkhorn(
        cost.expand(batch, -1, -1),
        row_mass.to(cost.dtype),
        column_mass.to(cost.dtype),
        epsilon_B,
        None if start is None else start.detach().to(cost.dtype),
        [*to_numbers(row), *to_numbers(column)],
        max_iterations,
        tolerance,
        must_converge,
    )
    return SinkhornResult(plan, f.detach(), g.detach(), iterations, error.detach())


def objective(
    result: SinkhornResult,
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    *,
    epsilon: float | Tensor,
    row: Side = EXACT,
    column: Side = EXACT,
) -> Tensor:
    """Return the minimum (B,) of each problem, differentiable in cost and masses by the envelope theorem.

    It is the dual value −ε ΣP + Σ_i min_m [row(m | a_i) + f_i·m] + the same sum over columns. Its error is of
    second order in the error of the potentials. Mass that only infinite costs could move does not count.

    Args:
        result: result of :func:`sinkhorn` for the same arguments.
        cost, row_mass, column_mass, epsilon, row, column: arguments of :func:`sinkhorn`.
    """
    plan = result.plan.detach()
    cost = torch.where(cost.isfinite(), cost, 0.0)
    moved = ((cost - cost.detach()) * plan).sum(dim=(1, 2))  # 0 in value, the plan in gradient
    value = moved - torch.as_tensor(epsilon, dtype=plan.dtype, device=plan.device) * plan.sum(dim=(1, 2))
    for side, mass, potential in (
        (row, row_mass, result.row_potential),
        (column, column_mass, result.column_potential),
    ):
        value = value + _side_value(side, mass, potential).sum(dim=1)
    return value


def _side_value(side: Side, mass: Tensor, potential: Tensor) -> Tensor:
    """Return min_m [side(m | mass) + potential·m], entry by entry."""
    if isinstance(side, Exact):
        return mass * potential
    if isinstance(side, Soft):
        return -side.rho * mass * torch.expm1(-potential / side.rho)
    return potential * torch.where(potential > 0, (mass - side.slack).clamp(min=0), mass + side.slack)


@torch.library.custom_op("signllm::sinkhorn", mutates_args=())
def _sinkhorn(
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: Tensor,
    start: Tensor | None,
    sides: list[float],
    max_iterations: int,
    tolerance: float,
    must_converge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_values(cost, row_mass, column_mass, epsilon)
    row, column = _sides(sides)
    solve = sinkhorn_torch.solve
    if choose(cost.device).implementation == "triton":
        from signllm.kernels import sinkhorn_triton

        solve = sinkhorn_triton.solve
    result = solve(
        cost,
        row_mass,
        column_mass,
        epsilon,
        row,
        column,
        start,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    if must_converge:
        _require_convergence(result[3], result[4], tolerance)
    return result


@_sinkhorn.register_fake
def _(
    cost: Tensor, row_mass: Tensor, column_mass: Tensor, epsilon: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(cost, memory_format=torch.contiguous_format),
        torch.empty_like(row_mass, memory_format=torch.contiguous_format),
        torch.empty_like(column_mass, memory_format=torch.contiguous_format),
        torch.empty(epsilon.shape, dtype=torch.int64, device=cost.device),
        torch.empty(epsilon.shape, dtype=torch.float64, device=cost.device),
    )


@torch.library.custom_op("signllm::sinkhorn_backward", mutates_args=())
def _sinkhorn_backward(
    grad_plan: Tensor,
    plan: Tensor,
    f: Tensor,
    g: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: Tensor,
    sides: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    return plan_gradients(grad_plan, plan, f, g, row_mass, column_mass, epsilon, *_sides(sides))


@_sinkhorn_backward.register_fake
def _(
    grad_plan: Tensor, plan: Tensor, f: Tensor, g: Tensor, row_mass: Tensor, column_mass: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(plan), torch.empty_like(row_mass), torch.empty_like(column_mass)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, row_mass, column_mass, epsilon, _, sides, *_ = inputs
    plan, f, g, _, _ = output
    ctx.save_for_backward(plan, f, g, row_mass, column_mass, epsilon)
    ctx.sides = sides


def _backward(ctx: Any, grad_plan: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _sinkhorn_backward(grad_plan, *ctx.saved_tensors, ctx.sides)
    return (*grads, None, None, None, None, None, None)


_sinkhorn.register_autograd(_backward, setup_context=_save)


def _sides(numbers: list[float]) -> tuple[Side, Side]:
    row_kind, row_parameter, column_kind, column_parameter = numbers
    return from_numbers(int(row_kind), row_parameter), from_numbers(int(column_kind), column_parameter)


def _check(
    cost: Tensor, row_mass: Tensor, column_mass: Tensor, start: Tensor | None, row: Side, column: Side
) -> None:
    """Check shapes, dtypes and parameters, without reading values of tensors, so that it can be traced."""
    shapes = [tuple(t.shape) for t in (cost, row_mass, column_mass)]
    if cost.dim() != 3 or row_mass.dim() != 2 or column_mass.dim() != 2:
        raise ValueError(f"cost must be (B, R, C), row_mass (B, R), column_mass (B, C); got {shapes}")
    (batch, rows), columns = row_mass.shape, column_mass.shape[1]
    if cost.shape[0] not in (1, batch) or column_mass.shape[0] != batch or cost.shape[1:] != (rows, columns):
        raise ValueError(f"cost must be (B, R, C), row_mass (B, R), column_mass (B, C); got {shapes}")
    if start is not None and start.shape != column_mass.shape:
        raise ValueError(f"start must be (B, C) = {shapes[2]}, a column potential; got {tuple(start.shape)}")
    if cost.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"cost must be float32 or float64; got {cost.dtype}")
    for name, side in (("row", row), ("column", column)):
        value = side.slack if isinstance(side, Slack) else side.rho if isinstance(side, Soft) else 0.0
        if not 0 <= value < float("inf") or (isinstance(side, Soft) and value == 0):
            raise ValueError(f"{name}={side}: the parameter must be positive and finite (a slack may be 0)")


def _check_values(cost: Tensor, row_mass: Tensor, column_mass: Tensor, epsilon: Tensor) -> None:
    """Check the values of tensors, in one pass over the cost and with one synchronization on a GPU."""
    if cost.numel() == 0:
        return
    positive = (epsilon > 0) & (epsilon < torch.inf)
    are_valid = (row_mass.amin() >= 0) & (row_mass.amax() < torch.inf) & (column_mass.amin() >= 0)
    are_valid &= (column_mass.amax() < torch.inf) & (cost.amin() > -torch.inf) & positive.all()
    if bool(are_valid):
        return
    bad = (cost.isnan() | (cost == -torch.inf)).nonzero()
    if len(bad) > 0:
        raise ValueError(
            f"cost contains NaN or -inf, first at {tuple(bad[0].tolist())}; use +inf to forbid a pair"
        )
    for name, mass in (("row_mass", row_mass), ("column_mass", column_mass)):
        bad = (~(mass >= 0) | mass.isinf()).nonzero()
        if len(bad) > 0:
            raise ValueError(
                f"{name} must be finite and non-negative; first violation at {tuple(bad[0].tolist())}"
            )
    raise ValueError(f"epsilon must be positive and finite; got {epsilon[~positive].tolist()[:8]}")


def _require_convergence(iterations: Tensor, error: Tensor, tolerance: float) -> None:
    late = (error > tolerance).nonzero()[:, 0]
    if len(late) > 0:
        b = int(late[0])
        raise NotConvergedError(
            f"{len(late)} of {len(error)} transport problems missed the tolerance {tolerance}; "
            f"number {b}, the first, has error {float(error[b]):.2g} after {int(iterations[b])} iterations; "
            "allow more iterations or a larger epsilon; exact masses must have equal sums"
        )
