"""The Triton twin of ``sinkhorn_torch``: one program per problem, which stops when *its* problem has converged.

The iteration is the reference's: plan = u·K·v with K = exp(F + G − C/ε), whose sums are near 1. An iteration
that leaves [1/FAR, FAR] is void and done again in the log domain, in float64, which makes F, G and K anew.
K lies in the memory of the plan. Its first rows, as many as a multiprocessor's registers hold, stay there for
all iterations; of a problem larger than that each iteration reads the other rows once, mostly from the
second-level cache: a block of rows gives its sums, its new u and its share of the columns' sums in one go.
More columns than ``COLUMNS`` go another way (``sinkhorn_triton_wide``).

Bytes: an iteration of a problem that fits moves none; of one that does not, 4·R·C (8 in float64) per problem.
A problem keeps one multiprocessor busy: fewer than about a hundred large ones leave much of a GPU idle.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from signllm.kernels.choice import Specimen
from signllm.kernels.sinkhorn_sides import Side, to_numbers
from signllm.kernels.sinkhorn_triton_steps import (
    REVIEW,
    finish,
    half_step,
    log_step,
    review,
    survey,
)

ON_CHIP_BYTES = 128 * 1024
"""Bytes of K that stay in registers: half of a multiprocessor's 256 KB; the rest holds vectors and a block."""

COLUMNS = 4096
"""Most columns whose vectors a program holds: beyond, registers would spill."""

BLOCK = 4096
"""Elements of K that a program streams or makes at a time: 8 to 32 a thread."""

STAGES = tl.constexpr(3)
"""Blocks under way from memory at a time."""

STEP, BREADTH = tl.constexpr(4.0), tl.constexpr(8.0)
"""Without a start ε comes down by this factor, from where it is above the costs' range over BREADTH."""

CAP, COARSE = tl.constexpr(200), tl.constexpr(1e-3)
"""A coarser ε is left after so many iterations or at this error (share of the mass)."""


def solve(
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: Tensor,
    row: Side,
    column: Side,
    start: Tensor | None,
    *,
    max_iterations: int,
    tolerance: float,
    on_chip_bytes: int = ON_CHIP_BYTES,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return plan (B, R, C), potentials (B, R) and (B, C), iterations (B,) and error (B,); waits for nothing.

    Arguments as of ``sinkhorn``, checked; ``epsilon`` is (B,) float64. ``on_chip_bytes`` is for tests.
    """
    B, R, C = cost.shape
    plan, f, g = cost.new_empty(B, R, C), cost.new_empty(B, R), cost.new_empty(B, C)
    iterations = torch.zeros(B, dtype=torch.int64, device=cost.device)
    error = epsilon.new_zeros(B)
    if B == 0 or R == 0 or C == 0:
        return plan, f.zero_(), g.zero_(), iterations, error
    (row_kind, row_number), (column_kind, column_number) = to_numbers(row), to_numbers(column)
    numbers = epsilon.new_zeros(3)  # float64 by pointer: Triton passes a Python float as float32
    for k, number in enumerate((row_number, column_number, tolerance)):
        numbers[k].fill_(number)
    arguments = (
        cost,
        *cost.stride(),
        row_mass.contiguous(),
        column_mass.contiguous(),
        epsilon.contiguous(),
        g if start is None else start.contiguous(),
        numbers,
        plan,
        f,
        g,
        iterations,
        error,
        epsilon.new_empty(B, R),
        cost.new_empty(B, 4, R),
        R,
        C,
        max_iterations,
    )
    constants, options = _sizes(R, C, cost.element_size(), on_chip_bytes)
    with torch.cuda.device_of(cost):
        solve_kernel[(B,)](
            *arguments, ROW=row_kind, COLUMN=column_kind, HAS_START=start is not None, **constants, **options
        )
    return plan, f, g, iterations, error


def _sizes(R: int, C: int, item_bytes: int, on_chip_bytes: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Choose how many rows stay on chip, the block of the others, and the warps that hold them."""
    width, height = max(16, triton.next_power_of_2(C)), triton.next_power_of_2(R)
    fits = on_chip_bytes // item_bytes // width
    block = max(1, min(height, BLOCK // width))
    if height <= fits:
        resident = height
    else:  # a few rows of many would cost more registers than the reads they save
        resident = fits if 4 * fits >= R else 0
    held = max(resident, block) * width * item_bytes
    warps = 4 if held <= 16 * 1024 else 8 if held <= 64 * 1024 else 16
    constants = {"RESIDENT": resident, "IS_STREAMED": R > resident, "BLOCK_R": block, "BLOCK_C": width}
    return constants, {"num_warps": warps}


@triton.jit
def solve_kernel(
    cost: tl.tensor,  # (B, R, C), any strides
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    stride_c: tl.tensor,
    row_mass: tl.tensor,  # (B, R)
    column_mass: tl.tensor,  # (B, C)
    epsilons: tl.tensor,  # (B,) float64
    start: tl.tensor,  # (B, C) g in units of cost; not read without HAS_START
    numbers: tl.tensor,  # (3,) float64: parameters of the sides, tolerance
    plan: tl.tensor,  # (B, R, C): K until the end
    f: tl.tensor,  # (B, R)
    g: tl.tensor,  # (B, C)
    iterations: tl.tensor,  # (B,) int64
    errors: tl.tensor,  # (B,) float64
    offsets: tl.tensor,  # (B, R) float64 scratch: F
    scales: tl.tensor,  # (B, 4, R) scratch: u twice, weights of the rows' rule, masses that can move
    R: tl.tensor,
    C: tl.tensor,
    max_iterations: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    HAS_START: tl.constexpr,
    RESIDENT: tl.constexpr,
    IS_STREAMED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Solve one problem."""
    problem = tl.program_id(0).to(tl.int64)
    cost += problem * stride_b
    plan += problem * R * C
    offsets += problem * R
    scales += problem * 4 * R
    weights, moving = scales + 2 * R, scales + 3 * R
    columns = tl.arange(0, BLOCK_C)
    is_column = columns < C
    row_number, column_number, tolerance = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    b_C = tl.load(column_mass + problem * C + columns, is_column, other=0.0)
    b_C, mass, unmet, span = survey(
        cost, stride_r, stride_c, row_mass + problem * R, b_C, moving, scales, R, C,
        row_number, column_number, ROW, COLUMN, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    epsilon = tl.load(epsilons + problem)
    gamma_C = tl.zeros([BLOCK_C], tl.float64)
    stage = tl.full([], 0, tl.int32)
    if HAS_START:
        gamma_C += tl.load(start + problem * C + columns, is_column, other=0.0).to(tl.float64) / epsilon
    else:
        while (epsilon * BREADTH < span) & (8 * stage + 8 <= max_iterations):
            epsilon *= STEP
            stage += 1
    cap = tl.minimum(max_iterations // (2 * tl.maximum(stage, 1)), CAP)
    G_C, v_C = tl.zeros([BLOCK_C], tl.float64), tl.zeros([BLOCK_C], plan.dtype.element_ty)
    slot, iteration, begun = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    moved = tl.full([], 0.0, tl.float64)
    is_running = span >= 0
    tl.debug_barrier()
    while is_running:
        G_C, v_C, weight_C = log_step(
            cost, stride_r, stride_c, plan, offsets, moving, scales, weights, b_C, gamma_C, R, C, epsilon,
            row_number, column_number, ROW, COLUMN, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        goal = mass * tl.where(stage > 0, tl.maximum(tolerance, COARSE), tolerance)
        last = tl.where(stage > 0, begun + cap, max_iterations)
        v_C, slot, iteration, moved, is_over = _iterate(
            plan, moving, scales, weights, b_C, v_C, weight_C, R, C, epsilon, row_number, column_number,
            mass, goal, iteration + 1, last, ROW, COLUMN, RESIDENT, IS_STREAMED, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        gamma_C = G_C + tl.log(tl.maximum(v_C.to(tl.float64), 1e-38))
        is_running = (is_over == 0) | (stage > 0)
        if is_over & (stage > 0):
            gamma_C *= STEP
            epsilon /= STEP
            stage -= 1
            begun = iteration
    finish(
        plan, offsets, moving, scales + slot * R, f + problem * R, g + problem * C,
        b_C, G_C, v_C, R, C, epsilon, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    tl.store(iterations + problem, iteration.to(tl.int64))
    tl.store(errors + problem, (moved + unmet) / tl.where(mass > 0, mass, 1.0))


@triton.jit
def _iterate(
    kernel: tl.tensor,
    moving: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    b_C: tl.tensor,
    v_C: tl.tensor,
    weight_C: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
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
    held = tl.arange(0, RESIDENT if RESIDENT > 0 else 1)
    if RESIDENT > 0:
        a_R = tl.load(moving + held, held < R, other=0.0)
        u_R = tl.load(scale + held, held < R, other=0.0)
        weight_R = tl.load(weight + held, held < R, other=0.0)
        kernel_RC = _rows(kernel, held, columns, R, C)
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
                kernel, moving, scale, weight, v_C, R, C, epsilon, row_number, omega, slot,
                ROW, RESIDENT, BLOCK_R, BLOCK_C,
            )  # fmt: skip
        if RESIDENT > 0:
            next_R, moved_R = _row_step(kernel_RC, v_C, u_R, a_R, weight_R, epsilon, row_number, omega, ROW)
            sums_C += tl.sum(kernel_RC * next_R[:, None], 0)
            moved += tl.sum(moved_R)
        is_met = moved <= goal
        is_over = (is_met & (omega == 1.0)) | (iteration >= last)
        next_C, is_far, _ = half_step(sums_C, v_C, b_C, weight_C, epsilon, column_number, omega, COLUMN)
        is_going = (is_over == 0) & (tl.max(is_far.to(tl.int32)) == 0)
        if is_going:
            v_C = next_C
            if RESIDENT > 0:
                u_R = next_R
            slot = 1 - slot
            iteration += 1
            counted += 1
            if counted == REVIEW:
                relaxation, contraction = review(moved, before, relaxation, contraction, mass)
                before = moved
                counted = 0
            omega = tl.where(is_met | (iteration + 1 >= last), 1.0, relaxation)
        if IS_STREAMED:
            tl.debug_barrier()
    if RESIDENT > 0:
        tl.store(scale + slot * R + held, u_R, held < R)
    tl.debug_barrier()
    return v_C, slot, iteration, moved, is_over


@triton.jit
def _rows(
    kernel: tl.tensor, rows: tl.tensor, columns: tl.tensor, R: tl.tensor, C: tl.tensor
) -> tl.tensor:
    """A block of K, 0 outside."""
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    return tl.load(kernel + rows.to(tl.int64)[:, None] * C + columns[None, :], inside, other=0.0)


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
    C: tl.tensor,
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
        kernel_RC = _rows(kernel, rows, columns, R, C)
        next_R, more_R = _row_step(kernel_RC, v_C, u_R, a_R, weight_R, epsilon, number, omega, ROW)
        sums_RC += kernel_RC * next_R[:, None]
        moved_R += more_R
        tl.store(scale + (1 - slot) * R + rows, next_R, rows < R)
    return tl.sum(sums_RC, 0), tl.sum(moved_R)
