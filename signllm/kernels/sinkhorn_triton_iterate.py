"""The iterations of the Triton Sinkhorn kernel with one K, until convergence or until one is discarded.

An iteration is void, and is discarded, if its sums leave [1/FAR, FAR]. Rows that are resident in registers
and rows that are streamed from memory use the same half step; ``review`` chooses the over-relaxation. K and
the vectors of scales have the dtype of the cost; errors and relaxation are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from signllm.kernels.sinkhorn_triton_steps import EXACT, SLACK

FAR = tl.constexpr(1e8)
"""Largest factor between a sum and 1. Beyond it, terms may underflow: the smallest float32 is 1e-38."""

SLOW, STRONGEST = tl.constexpr(0.5), tl.constexpr(1.97)
"""Contraction per iteration above which over-relaxation is used, and the limit of the relaxation."""

REVIEW = tl.constexpr(10)
"""Number of iterations between two reviews of the rate of convergence."""

STAGES = tl.constexpr(3)
"""Number of blocks that are loaded from memory at a time."""


@triton.jit
def iterate(
    kernel: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    sums: tl.tensor,
    column_moving: tl.tensor,
    column_weight: tl.tensor,
    v_C: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    row_number: tl.tensor,
    column_number: tl.tensor,
    mass: tl.tensor,
    goal: tl.tensor,
    iteration: tl.tensor,
    last: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    RESIDENT: tl.constexpr,
    IS_STREAMED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Iterate with one K until the error is at most ``goal``, iteration ``last`` is done, or one is void.

    Return v, the slot (0 or 1) of the corresponding u, the number of iterations so far, the measured error of
    these scales, and whether the iteration is complete (True) or has stopped at a void iteration (False).
    """
    columns = tl.arange(0, BLOCK_C)
    resident_rows = tl.arange(0, RESIDENT if RESIDENT > 0 else 1) + (iteration < 0).to(
        tl.int32
    )  # adds 0, so that the load is not hoisted
    if RESIDENT > 0:
        kernel_RC = _rows(kernel, resident_rows, columns, R, width)
    slot = tl.full([], 0, tl.int32)
    counted = tl.full([], 0, tl.int32)
    omega, relaxation = tl.full([], 1.0, tl.float64), tl.full([], 1.0, tl.float64)
    contraction, before = tl.full([], 0.0, tl.float64), tl.full([], float("inf"), tl.float64)
    moved = tl.full([], 0.0, tl.float64)
    is_over, is_going = iteration < 0, iteration >= 0
    while is_going:
        moved = tl.full([], 0.0, tl.float64)
        sums_C = tl.zeros([BLOCK_C], v_C.dtype)
        if IS_STREAMED:
            sums_C, moved = _stream(
                kernel, moving, scale, weight, v_C, R, width, epsilon, row_number, omega, slot,
                ROW, RESIDENT, BLOCK_R, BLOCK_C,
            )  # fmt: skip
        if RESIDENT > 0:
            next_R, moved_R = _resident_step(
                kernel_RC, moving, scale, weight, sums, v_C, resident_rows, R, epsilon, row_number, omega,
                slot, ROW,
            )  # fmt: skip
            sums_C += tl.sum(kernel_RC * next_R[:, None], 0)
            moved += tl.sum(moved_R)
        is_met = moved <= goal
        is_over = (is_met & (omega == 1.0)) | (iteration >= last)
        b_C = tl.load(column_moving + columns, columns < C, other=0.0)
        weight_C = tl.load(column_weight + columns, columns < C, other=0.0)
        next_C, is_far, _ = half_step(sums_C, v_C, b_C, weight_C, epsilon, column_number, omega, COLUMN)
        is_going = (is_over == 0) & (tl.max(is_far.to(tl.int32)) == 0)
        if is_going:
            v_C = next_C
            slot = 1 - slot
            iteration += 1
            counted += 1
            if counted == REVIEW:
                relaxation, contraction = review(moved, before, relaxation, contraction, mass)
                before = moved
                counted = 0
            omega = tl.where(is_met | (iteration + 1 >= last), 1.0, relaxation)
        tl.debug_barrier()
    return v_C, slot, iteration, moved, is_over


@triton.jit
def _rows(
    kernel: tl.tensor, rows: tl.tensor, columns: tl.tensor, R: tl.tensor, width: tl.tensor
) -> tl.tensor:
    """Return a block of K, 0 outside."""
    inside = (rows < R)[:, None] & (columns < width)[None, :]
    return tl.load(kernel + rows.to(tl.int64)[:, None] * width + columns[None, :], inside, other=0.0)


@triton.jit
def _resident_step(
    kernel_RC: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    sums: tl.tensor,
    v_C: tl.tensor,
    rows: tl.tensor,
    R: tl.tensor,
    epsilon: tl.tensor,
    number: tl.tensor,
    omega: tl.tensor,
    slot: tl.tensor,
    ROW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return ``_row_step`` of the rows in registers, with vectors distributed over all threads.

    In the layout of K every thread would hold the vectors of all its rows, four times 16 registers. Therefore
    the sums are written to memory (the L1 cache) and read in the layout of a plain vector.
    """
    tl.store(sums + rows, tl.sum(kernel_RC * v_C[None, :], 1), rows < R)
    tl.debug_barrier()
    sums_R = tl.load(sums + rows, rows < R, other=1.0)
    u_R = tl.load(scale + slot * R + rows, rows < R, other=0.0)
    a_R = tl.load(moving + rows, rows < R, other=0.0)
    weight_R = tl.load(weight + rows, rows < R, other=0.0)
    next_R, is_far, moved_R = half_step(sums_R, u_R, a_R, weight_R, epsilon, number, omega, ROW)
    tl.store(scale + (1 - slot) * R + rows, tl.where(is_far, float("inf"), next_R), rows < R)
    tl.debug_barrier()
    return tl.load(scale + (1 - slot) * R + rows, rows < R, other=0.0), moved_R.to(tl.float64)


@triton.jit
def _row_step(
    kernel_RC: tl.tensor,
    v_C: tl.tensor,
    u_R: tl.tensor,
    a_R: tl.tensor,
    weight_R: tl.tensor,
    epsilon: tl.tensor,
    number: tl.tensor,
    omega: tl.tensor,
    ROW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the next u and the errors; u of a void row is inf, which the sums of the columns reveal."""
    sums_R = tl.sum(kernel_RC * v_C[None, :], 1)
    next_R, is_far, moved_R = half_step(sums_R, u_R, a_R, weight_R, epsilon, number, omega, ROW)
    return tl.where(is_far, float("inf"), next_R), moved_R.to(tl.float64)


@triton.jit
def _stream(
    kernel: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    v_C: tl.tensor,
    R: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    number: tl.tensor,
    omega: tl.tensor,
    slot: tl.tensor,
    ROW: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Read the streamed rows once: do their half step and return the sums of the columns with the new u."""
    columns = tl.arange(0, BLOCK_C)
    sums_RC = tl.zeros([BLOCK_R, BLOCK_C], v_C.dtype)  # summed over rows only once, at the end
    moved_R = tl.zeros([BLOCK_R], tl.float64)
    for first in tl.range(RESIDENT, R, BLOCK_R, num_stages=STAGES):
        rows = first + tl.arange(0, BLOCK_R)
        a_R = tl.load(moving + rows, rows < R, other=0.0)
        u_R = tl.load(scale + slot * R + rows, rows < R, other=0.0)
        weight_R = tl.load(weight + rows, rows < R, other=0.0)
        kernel_RC = _rows(kernel, rows, columns, R, width)
        next_R, more_R = _row_step(kernel_RC, v_C, u_R, a_R, weight_R, epsilon, number, omega, ROW)
        sums_RC += kernel_RC * next_R[:, None]
        moved_R += more_R
        tl.store(scale + (1 - slot) * R + rows, next_R, rows < R)
    return tl.sum(sums_RC, 0), tl.sum(moved_R)


@triton.jit
def half_step(
    sums: tl.tensor,
    scale: tl.tensor,
    mass: tl.tensor,
    weight: tl.tensor,
    epsilon: tl.tensor,
    number: tl.tensor,
    omega: tl.tensor,
    KIND: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the new scale, a mask of sums that are too far from 1, and the errors of the marginals.

    With S = K·(scale of the other side), the new scale is mass/S (exact), S·weight clipped to the box and
    divided by S (slack), or weight·S^−p (soft). It is over-relaxed by omega in the log domain, at most by
    e^10, so that a bad estimate of omega cannot cause an overflow.
    """
    sums = tl.where(mass > 0, sums, 1.0)
    is_far = (sums >= 1 / FAR) & (sums <= FAR)
    is_far = is_far == 0  # also True for NaN
    sums = tl.where(sums >= 1e-30, tl.minimum(sums, 1e30), 1e-30)
    if KIND == EXACT:
        asked = mass
    elif KIND == SLACK:
        box = number.to(mass.dtype)
        asked = tl.minimum(tl.maximum(sums * weight, tl.maximum(mass - box, 0.0)), mass + box)
        asked = tl.where(mass > 0, asked, 0.0)
    else:
        rest = (epsilon / (number + epsilon)).to(mass.dtype)
        asked = weight * tl.exp(rest * tl.log(sums))
    target = asked / sums
    is_both = (target > 0) & (scale > 0)
    ratio = tl.log(tl.where(is_both, target, 1.0)) - tl.log(tl.where(is_both, scale, 1.0))
    push = tl.minimum(tl.maximum((omega - 1).to(mass.dtype) * ratio, -10.0), 10.0)
    return target * tl.exp(push), is_far, tl.abs(asked - scale * sums)


@triton.jit
def review(
    moved: tl.tensor, before: tl.tensor, omega: tl.tensor, contraction: tl.tensor, mass: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Choose omega from the decrease of the error since the last review (Young's over-relaxation theory).

    From a rate above omega − 1 follows the contraction of an iteration without relaxation, λ = (rate + ω −
    1)² / (ω²·rate); then omega is below the best relaxation 2 / (1 + √(1 − λ)).
    """
    rate = tl.exp((tl.log(tl.maximum(moved, 1e-300)) - tl.log(tl.maximum(before, 1e-300))) / REVIEW)
    estimate = (rate + omega - 1) * (rate + omega - 1) / (omega * omega * tl.maximum(rate, 1e-30))
    is_informative = (rate > omega - 1 + tl.where(omega > 1, 0.01, 0.0)) & (estimate < 1)
    nearest = tl.where(contraction > 0, 1 - (1 - contraction) / 4, 1.0)  # a single estimate can be inaccurate
    contraction = tl.where(is_informative, tl.minimum(estimate, nearest), contraction)
    best = tl.where(contraction > SLOW, tl.minimum(2 / (1 + tl.sqrt(1 - contraction)), STRONGEST), 1.0)
    is_linear = (rate < 1) & (moved <= 0.1 * mass)  # otherwise convergence is not yet, or no longer, linear
    return tl.where(is_linear, best, 1.0), tl.where(is_linear, contraction, 0.0)
