"""Iterations of the Triton Sinkhorn kernel on one K, until convergence or until one is void.

Rows that are resident and rows that are streamed go through the same half step; ``review`` chooses the
over-relaxation. Vectors of scales and K have the cost's dtype, errors and relaxation are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from signllm.kernels.sinkhorn_triton_steps import EXACT, SLACK

FAR = tl.constexpr(1e8)
"""A sum beyond this factor of 1 may have lost terms to underflow: float32 ends at 1e-38."""

SLOW, STRONGEST = tl.constexpr(0.5), tl.constexpr(1.97)
"""A contraction per iteration above which over-relaxation pays, and the limit of the relaxation."""

REVIEW = tl.constexpr(10)
"""Iterations between two looks at a problem's rate of convergence."""

STAGES = tl.constexpr(3)
"""Blocks under way from memory at a time."""


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
    """Iterate on one K until the error is within the goal, the last iteration is done, or one is void.

    Return v, which of the two u (slot) goes with it, the iterations so far, the error that these two were
    measured to have, and whether that is the end rather than a void iteration.
    """
    columns = tl.arange(0, BLOCK_C)
    held = tl.arange(0, RESIDENT if RESIDENT > 0 else 1) + (iteration < 0).to(tl.int32)  # + 0: not hoisted
    if RESIDENT > 0:
        kernel_RC = _rows(kernel, held, columns, R, width)
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
                kernel_RC, moving, scale, weight, sums, v_C, held, R, epsilon, row_number, omega, slot, ROW
            )
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
    """A block of K, 0 outside."""
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
    """``_row_step`` of the rows in registers, with its vectors spread over all threads.

    The layout of K would give every thread the vectors of all its rows, four times 16 registers: the sums go
    through memory (the first-level cache) and take the layout of a plain vector there.
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
    """Return the next u and |marginal − asked|. A void row gets inf: the columns' sums then tell."""
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
    """Read the rows that are not resident once: their half step, and the columns' sums with the new u."""
    columns = tl.arange(0, BLOCK_C)
    sums_RC = tl.zeros([BLOCK_R, BLOCK_C], v_C.dtype)  # added up over rows once, at the end
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
    """From S = K·(the other side's scale): the new scale, who was too far from 1, and |marginal − asked|.

    Exact: mass/S. Slack: S·weight clipped to the box, over S. Soft: weight·S^−p. Over-relaxed in the log
    domain by omega; at most by e^10, that a wild estimate cannot overflow.
    """
    sums = tl.where(mass > 0, sums, 1.0)
    is_far = (sums >= 1 / FAR) & (sums <= FAR)
    is_far = is_far == 0  # also where it is NaN
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
    wanted = asked / sums
    is_both = (wanted > 0) & (scale > 0)
    ratio = tl.log(tl.where(is_both, wanted, 1.0)) - tl.log(tl.where(is_both, scale, 1.0))
    push = tl.minimum(tl.maximum((omega - 1).to(mass.dtype) * ratio, -10.0), 10.0)
    return wanted * tl.exp(push), is_far, tl.abs(asked - scale * sums)


@triton.jit
def review(
    moved: tl.tensor, before: tl.tensor, omega: tl.tensor, contraction: tl.tensor, mass: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Choose omega from how fast the error fell since the last review: Young's theory of over-relaxation.

    A rate above omega − 1 tells the contraction of a plain iteration, λ = (rate + ω − 1)² / (ω²·rate), and
    that the best relaxation, 2 / (1 + √(1 − λ)), has not been reached.
    """
    rate = tl.exp((tl.log(tl.maximum(moved, 1e-300)) - tl.log(tl.maximum(before, 1e-300))) / REVIEW)
    seen = (rate + omega - 1) * (rate + omega - 1) / (omega * omega * tl.maximum(rate, 1e-30))
    is_telling = (rate > omega - 1 + tl.where(omega > 1, 0.01, 0.0)) & (seen < 1)
    nearest = tl.where(contraction > 0, 1 - (1 - contraction) / 4, 1.0)  # one look can be far off
    contraction = tl.where(is_telling, tl.minimum(seen, nearest), contraction)
    best = tl.where(contraction > SLOW, tl.minimum(2 / (1 + tl.sqrt(1 - contraction)), STRONGEST), 1.0)
    is_calm = (rate < 1) & (moved <= 0.1 * mass)  # else not yet, or no longer, in the linear regime
    return tl.where(is_calm, best, 1.0), tl.where(is_calm, contraction, 0.0)
