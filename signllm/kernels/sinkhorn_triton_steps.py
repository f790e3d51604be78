"""The parts of the Triton Sinkhorn kernel that read the costs: at the start, for every new K, and at the end.

``inspect_problem`` computes masses and the range of the costs, ``log_step`` is an iteration in the log domain
that computes a new K, and ``finish`` turns K into the plan. In suffixes, R is a block of rows and C are all
columns, padded. Padded and masked entries have mass 0. K and the vectors of scales have the dtype of the
cost; logarithms are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

EXACT, SLACK = tl.constexpr(0), tl.constexpr(1)
"""Indices in ``sinkhorn_sides.KINDS``; index 2 is Soft."""

TOP = tl.constexpr(80.0)
"""Largest exponent in K and weights, so that they do not overflow in float32."""


@triton.jit
def inspect_problem(
    cost: tl.tensor,
    stride_r: tl.tensor,
    stride_c: tl.tensor,
    row_mass: tl.tensor,
    column_mass: tl.tensor,
    moving: tl.tensor,
    column_moving: tl.tensor,
    scale: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    row_number: tl.tensor,
    column_number: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Store the masses that can move, and u = 0; return the mass, the unmovable part, and the cost range."""
    columns = tl.arange(0, BLOCK_C)
    b_C = tl.load(column_mass + columns, columns < C, other=0.0)
    reached_C = tl.zeros([BLOCK_C], tl.int32)
    mass, unmet = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    lowest_C = tl.full([BLOCK_C], float("inf"), cost.dtype.element_ty)
    highest_C = tl.full([BLOCK_C], float("-inf"), cost.dtype.element_ty)
    for first in range(0, R, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        a_R = tl.load(row_mass + rows, rows < R, other=0.0)
        inside = (rows < R)[:, None] & (columns < C)[None, :]
        places = rows.to(tl.int64)[:, None] * stride_r + columns.to(tl.int64)[None, :] * stride_c
        cost_RC = tl.load(cost + places, inside, other=float("inf"))
        is_open = (cost_RC < float("inf")) & (a_R > 0)[:, None] & (b_C > 0)[None, :]
        is_reached = tl.max(is_open.to(tl.int32), 1) > 0
        reached_C = tl.maximum(reached_C, tl.max(is_open.to(tl.int32), 0))
        lowest_C = tl.minimum(lowest_C, tl.min(tl.where(is_open, cost_RC, float("inf")), 0))
        highest_C = tl.maximum(highest_C, tl.max(tl.where(is_open, cost_RC, float("-inf")), 0))
        mass += tl.sum(a_R.to(tl.float64))
        unmet += tl.sum(tl.where(is_reached, 0.0, _least(a_R, row_number, ROW)))
        tl.store(moving + rows, tl.where(is_reached, a_R, 0.0), rows < R)
        tl.store(scale + rows, tl.zeros([BLOCK_R], cost.dtype.element_ty), rows < R)
    mass = tl.maximum(mass, tl.sum(b_C.to(tl.float64)))
    unmet += tl.sum(tl.where(reached_C > 0, 0.0, _least(b_C, column_number, COLUMN)))
    span = tl.max(highest_C).to(tl.float64) - tl.min(lowest_C).to(tl.float64)  # -inf if no pair is allowed
    tl.store(column_moving + columns, tl.where(reached_C > 0, b_C, 0.0), columns < C)
    return mass, unmet, span


@triton.jit
def _least(mass: tl.tensor, number: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Return the smallest marginal that a side allows; see ``sinkhorn_sides.least_marginal``."""
    mass = mass.to(tl.float64)
    if KIND == EXACT:
        return mass
    elif KIND == SLACK:
        return tl.maximum(mass - number, 0.0)
    else:
        return mass * 0.0


@triton.jit
def log_step(
    cost: tl.tensor,
    stride_r: tl.tensor,
    stride_c: tl.tensor,
    kernel: tl.tensor,
    offset: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    column_offset: tl.tensor,
    column_moving: tl.tensor,
    column_weight: tl.tensor,
    v_C: tl.tensor,
    step: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    row_number: tl.tensor,
    column_number: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """Compute φ from γ = step·(G + log v), then γ from φ, then K, F, G, u and weights from both; return v.

    One pass computes the log-sum-exp of rows and of columns: φ of a block is known as soon as the block is
    read.
    """
    columns = tl.arange(0, BLOCK_C)
    b_C = tl.load(column_moving + columns, columns < C, other=0.0)
    G_C = tl.load(column_offset + columns, columns < C, other=0.0)
    gamma_C = step * (G_C + tl.log(tl.maximum(v_C.to(tl.float64), 1e-38)))
    top_C = tl.full([BLOCK_C], float("-inf"), tl.float64)
    sum_C = tl.zeros([BLOCK_C], tl.float64)
    for first in range(0, R, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        a_R = tl.load(moving + rows, rows < R, other=0.0)
        x_RC = _exponent(cost, stride_r, stride_c, a_R, b_C, rows, columns, R, C, epsilon)
        y_RC = x_RC + gamma_C[None, :]
        top_R = tl.max(y_RC, 1)
        top_R = tl.where(a_R > 0, top_R, 0.0)
        sum_R = tl.sum(tl.exp((y_RC - top_R[:, None]).to(a_R.dtype)), 1).to(tl.float64)
        log_R = top_R + tl.log(tl.where(a_R > 0, sum_R, 1.0))
        phi_R, u_R, weight_R = _log_rule(a_R, log_R, epsilon, row_number, ROW)
        tl.store(offset + rows, -log_R, rows < R)
        tl.store(scale + rows, u_R, rows < R)
        tl.store(weight + rows, weight_R, rows < R)
        x_RC += phi_R[:, None]
        higher_C = tl.maximum(top_C, tl.max(x_RC, 0))
        reference_C = tl.where(b_C > 0, higher_C, 0.0)
        reference_C = tl.where(reference_C == float("-inf"), 0.0, reference_C)
        part_C = tl.sum(tl.exp((x_RC - reference_C[None, :]).to(a_R.dtype)), 0)
        sum_C = sum_C * tl.exp(top_C - reference_C) + part_C.to(tl.float64)
        top_C = higher_C
    log_C = tl.where(b_C > 0, top_C, 0.0) + tl.log(tl.where(b_C > 0, sum_C, 1.0))
    _, v_C, weight_C = _log_rule(b_C, log_C, epsilon, column_number, COLUMN)
    tl.debug_barrier()
    tl.store(column_offset + columns, -log_C, columns < C)
    tl.store(column_weight + columns, weight_C, columns < C)
    for first in range(0, R, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        a_R = tl.load(moving + rows, rows < R, other=0.0)
        F_R = tl.load(offset + rows, rows < R, other=0.0)
        x_RC = _exponent(cost, stride_r, stride_c, a_R, b_C, rows, columns, R, C, epsilon)
        x_RC = tl.minimum(x_RC + F_R[:, None] - log_C[None, :], TOP)
        inside = (rows < R)[:, None] & (columns < width)[None, :]
        places = rows.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(kernel + places, tl.exp(x_RC.to(a_R.dtype)), inside)
    tl.debug_barrier()
    return v_C


@triton.jit
def _exponent(
    cost: tl.tensor,
    stride_r: tl.tensor,
    stride_c: tl.tensor,
    a_R: tl.tensor,
    b_C: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    epsilon: tl.tensor,
) -> tl.tensor:
    """Return −C/ε in float64, −inf where masked or forbidden."""
    inside = (rows < R)[:, None] & (columns < C)[None, :] & (a_R > 0)[:, None] & (b_C > 0)[None, :]
    places = rows.to(tl.int64)[:, None] * stride_r + columns.to(tl.int64)[None, :] * stride_c
    return tl.load(cost + places, inside, other=float("inf")).to(tl.float64) * (-1.0 / epsilon)


@triton.jit
def _log_rule(
    mass: tl.tensor, log_s: tl.tensor, epsilon: tl.tensor, number: tl.tensor, KIND: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return, given log S, the potential over ε (−inf if masked), the scale and the weight for a step."""
    mass64 = mass.to(tl.float64)
    log_mass = tl.log(tl.where(mass > 0, mass64, 1.0))
    if KIND == EXACT:
        asked = log_mass
        weight = mass
    elif KIND == SLACK:
        least = tl.maximum(mass64 - number, 0.0)
        lowest = tl.where(least > 0, tl.log(tl.where(least > 0, least, 1.0)), float("-inf"))
        asked = tl.minimum(tl.maximum(log_s, lowest), tl.log(mass64 + number + tl.where(mass > 0, 0.0, 1.0)))
        weight = tl.exp(tl.minimum(tl.maximum(log_s, -TOP), TOP)).to(mass.dtype)
    else:
        share = number / (number + epsilon)
        asked = share * log_mass + (1 - share) * log_s
        weight = tl.exp(tl.minimum(asked, TOP)).to(mass.dtype)
    scale = tl.where(mass > 0, tl.exp(tl.minimum(asked, TOP)), 0.0).to(mass.dtype)
    return tl.where(mass > 0, asked - log_s, float("-inf")), scale, tl.where(mass > 0, weight, 0.0)


@triton.jit
def finish(
    kernel: tl.tensor,
    plan: tl.tensor,
    offset: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    f: tl.tensor,
    g: tl.tensor,
    column_offset: tl.tensor,
    column_moving: tl.tensor,
    v_C: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Write the plan u·K·v, f and g, which are 0 where masked; ``plan`` may share the memory of K."""
    columns = tl.arange(0, BLOCK_C)
    for first in range(0, R, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        u_R = tl.load(scale + rows, rows < R, other=0.0)
        a_R = tl.load(moving + rows, rows < R, other=0.0)
        F_R = tl.load(offset + rows, rows < R, other=0.0)
        inside = (rows < R)[:, None] & (columns < width)[None, :]
        places = rows.to(tl.int64)[:, None] * width + columns[None, :]
        kernel_RC = tl.load(kernel + places, inside, other=0.0)
        is_present = (u_R > 0)[:, None] & (v_C > 0)[None, :]  # elsewhere K may be uninitialized
        plan_RC = tl.where(is_present, u_R[:, None] * kernel_RC * v_C[None, :], 0.0)
        places = rows.to(tl.int64)[:, None] * C + columns[None, :]
        tl.store(plan + places, plan_RC, (rows < R)[:, None] & (columns < C)[None, :])
        tl.store(f + rows, potential(a_R, F_R, u_R, epsilon).to(a_R.dtype), rows < R)
    b_C = tl.load(column_moving + columns, columns < C, other=0.0)
    G_C = tl.load(column_offset + columns, columns < C, other=0.0)
    tl.store(g + columns, potential(b_C, G_C, v_C, epsilon).to(b_C.dtype), columns < C)


@triton.jit
def potential(mass: tl.tensor, offset: tl.tensor, scale: tl.tensor, epsilon: tl.tensor) -> tl.tensor:
    """Return ε·(offset + log scale) in float64, 0 where masked; scales below 1e-38 count as 1e-38."""
    return tl.where(mass > 0, epsilon * (offset + tl.log(tl.maximum(scale.to(tl.float64), 1e-38))), 0.0)
