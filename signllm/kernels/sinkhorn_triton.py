"""The Triton implementation of ``sinkhorn``: one program per problem, which stops at its convergence.

The iteration is that of ``sinkhorn_torch``: the plan is u·K·v with K = exp(F + G − C/ε), whose sums are near
1. An iteration whose sums leave [1/FAR, FAR] is discarded and repeated in the log domain in float64, which
gives new F, G and K. K is stored in the memory of the plan, or, if C is not a multiple of 16, in an array
with longer rows, so that every memory access is at least four numbers wide. As many rows of K as fit stay in
registers for all iterations. For a larger problem, each iteration reads the other rows once, mostly from the
L2 cache: a block of rows yields its sums, its new u and its share of the sums of the columns. From 4096
columns on, the vectors of a program spill from registers, which is correct but slower.

Memory traffic: an iteration of a problem that fits into registers moves no data; otherwise it reads 4·R·C
bytes (8·R·C in float64) per problem. A problem occupies one multiprocessor, so fewer than about a hundred
large problems do not fill a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from signllm.kernels.implementation import KernelVariant
from signllm.kernels.sinkhorn_sides import Side, to_numbers
from signllm.kernels.sinkhorn_triton_iterate import iterate
from signllm.kernels.sinkhorn_triton_steps import finish, inspect_problem, log_step

ON_CHIP_BYTES = 64 * 1024
"""Bytes of K in registers: 128x128 in float32. It takes 64 of the 255 registers of each of 256 threads. The
products of a sum need as many again, and vectors and addresses the rest. With twice the size, ptxas spills
registers inside the loop."""

BLOCK = 2048
"""Elements of K that a program streams at a time: 16 per thread, or 8 in float64 and in wide rows."""

LOG_BLOCK = 128
"""Number of elements that a warp processes at a time in the log domain: four float64 exponents per thread."""

ALIGNMENT = tl.constexpr(16)
"""Rows of K begin at multiples of this number, so that for any C an access is at least four numbers wide."""

STEP, BREADTH = tl.constexpr(4.0), tl.constexpr(8.0)
"""ε scaling: without a start, ε begins above the range of the costs / BREADTH and is divided by STEP."""

CAP, COARSE = tl.constexpr(200), tl.constexpr(1e-3)
"""Largest number of iterations, and the error as a share of the mass, at which a step of ε scaling ends."""


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
    """Return plan (B, R, C), potentials (B, R) and (B, C), iterations (B,) and error (B,).

    The arguments are those of :func:`signllm.kernels.sinkhorn`, already checked; ``epsilon`` is (B,) float64,
    and ``on_chip_bytes`` is for tests. It does not synchronize with the device.
    """
    B, R, C = cost.shape
    plan, f, g = cost.new_empty(B, R, C), cost.new_empty(B, R), cost.new_empty(B, C)
    iterations = torch.zeros(B, dtype=torch.int64, device=cost.device)
    error = epsilon.new_zeros(B)
    if B == 0 or R == 0 or C == 0:
        return plan, f.zero_(), g.zero_(), iterations, error
    width = triton.cdiv(C, ALIGNMENT.value) * ALIGNMENT.value
    (row_kind, row_number), (column_kind, column_number) = to_numbers(row), to_numbers(column)
    numbers = epsilon.new_zeros(3)  # float64 in memory, because Triton passes a Python float as float32
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
        plan if width == C else cost.new_empty(B, R, width),
        plan,
        f,
        g,
        iterations,
        error,
        epsilon.new_empty(B, R + C),
        cost.new_empty(B, 5 * R + 2 * C),
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


def kernel_variants() -> list[KernelVariant]:
    """Return the kernel for problems in registers, partly streamed and fully streamed, in both precisions."""
    shapes = {"fp32": ((64, 64), (128, 128), (256, 256), (1024, 1024)), "fp64": ((64, 128), (1024, 1024))}
    return [
        _kernel_variant(R, C, kind, side)
        for kind, sizes in shapes.items()
        for R, C in sizes
        for side in ((0, 0), (1, 2), (2, 1))
    ]


def _kernel_variant(R: int, C: int, kind: str, sides: tuple[int, int]) -> KernelVariant:
    constants, options = _sizes(R, C, 4 if kind == "fp32" else 8, ON_CHIP_BYTES)
    constants |= {"ROW": sides[0], "COLUMN": sides[1], "HAS_START": False, "stride_c": 1}
    types = dict.fromkeys(("epsilons", "numbers", "errors", "offsets"), "*fp64") | {"iterations": "*i64"}
    for name in ("cost", "row_mass", "column_mass", "start", "kernel", "plan", "f", "g", "scales"):
        types[name] = f"*{kind}"
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in solve_kernel.arg_names
    }
    return KernelVariant(
        name=f"sinkhorn {R}x{C} {kind} sides {sides}",
        kernel=solve_kernel,
        signature=signature,
        constants=constants,
        options=options,
    )


def _sizes(R: int, C: int, item_bytes: int, on_chip_bytes: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Choose the number of rows in registers, the block size of the other rows, and the number of warps.

    ``maxnreg`` is set because ptxas would otherwise aim at more programs per multiprocessor and spill
    registers.
    """
    width, height = max(16, triton.next_power_of_2(C)), triton.next_power_of_2(R)
    fits = on_chip_bytes // item_bytes // width
    block = max(1, min(height, BLOCK // width))
    if height <= fits:
        resident = height
    else:  # a few of many rows are not worth their registers
        resident = fits if 4 * fits >= R else 0
    streamed = 2 * block if R > resident else 0  # twice, because of the sums over its rows
    resident_bytes = max(resident, streamed) * width * item_bytes
    warps = 16 if width > 4096 else 8 if resident_bytes > 16 * 1024 or width * item_bytes >= 4096 else 4
    constants = {
        "RESIDENT": resident,
        "IS_STREAMED": R > resident,
        "BLOCK_L": max(1, min(height, LOG_BLOCK * warps // width)),
        "BLOCK_R": block,
        "BLOCK_C": width,
    }
    return constants, {"num_warps": warps, "maxnreg": min(255, 64 * 1024 // (32 * warps))}


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
    kernel: tl.tensor,  # (B, R, C rounded up to ALIGNMENT) K; it is plan itself if the sizes are equal
    plan: tl.tensor,  # (B, R, C)
    f: tl.tensor,  # (B, R)
    g: tl.tensor,  # (B, C)
    iterations: tl.tensor,  # (B,) int64
    errors: tl.tensor,  # (B,) float64
    offsets: tl.tensor,  # (B, R + C) float64 scratch: F, G
    scales: tl.tensor,  # (B, 5·R + 2·C) scratch: u twice, weights, masses, sums; columns' weights, masses
    R: tl.tensor,
    C: tl.tensor,
    max_iterations: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    HAS_START: tl.constexpr,
    RESIDENT: tl.constexpr,
    IS_STREAMED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Solve one problem."""
    problem = tl.program_id(0).to(tl.int64)
    cost += problem * stride_b
    width = (C + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    kernel = tl.multiple_of(kernel + problem * R * width, 16)  # in bytes; torch aligns its allocations
    plan += problem * R * C
    offsets += problem * (R + C)
    scales += problem * (5 * R + 2 * C)
    weights, moving, sums = scales + 2 * R, scales + 3 * R, scales + 4 * R
    column_weights, column_moving = scales + 5 * R, scales + 5 * R + C
    row_number, column_number, tolerance = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    mass, unmet, span = inspect_problem(
        cost, stride_r, stride_c, row_mass + problem * R, column_mass + problem * C, moving, column_moving,
        scales, R, C, row_number, column_number, ROW, COLUMN, BLOCK_L, BLOCK_C,
    )  # fmt: skip
    epsilon, stage = _begin(
        epsilons + problem, span, start + problem * C, offsets + R, C, max_iterations, HAS_START, BLOCK_C
    )
    cap = tl.minimum(max_iterations // (2 * tl.maximum(stage, 1)), CAP)
    v_C = tl.full([BLOCK_C], 1.0, plan.dtype.element_ty)
    slot, iteration, begun = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    moved, step = tl.full([], 0.0, tl.float64), tl.full([], 1.0, tl.float64)
    is_running = span >= 0
    tl.debug_barrier()
    while is_running:
        v_C = log_step(
            cost, stride_r, stride_c, kernel, offsets, moving, scales, weights, offsets + R, column_moving,
            column_weights, v_C, step, R, C, width, epsilon, row_number, column_number,
            ROW, COLUMN, BLOCK_L, BLOCK_C,
        )  # fmt: skip
        goal = mass * tl.where(stage > 0, tl.maximum(tolerance, COARSE), tolerance)
        last = tl.where(stage > 0, begun + cap, max_iterations)
        v_C, slot, iteration, moved, is_over = iterate(
            kernel, moving, scales, weights, sums, column_moving, column_weights, v_C, R, C, width, epsilon,
            row_number, column_number, mass, goal, iteration + 1, last,
            ROW, COLUMN, RESIDENT, IS_STREAMED, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        is_running = (is_over == 0) | (stage > 0)
        step = tl.full([], 1.0, tl.float64)
        if is_over & (stage > 0):
            step *= STEP
            epsilon /= STEP
            stage -= 1
            begun = iteration
    finish(
        kernel, plan, offsets, moving, scales + slot * R, f + problem * R, g + problem * C, offsets + R,
        column_moving, v_C, R, C, width, epsilon, BLOCK_L, BLOCK_C,
    )  # fmt: skip
    tl.store(iterations + problem, iteration.to(tl.int64))
    tl.store(errors + problem, (moved + unmet) / tl.where(mass > 0, mass, 1.0))


@triton.jit
def _begin(
    target: tl.tensor,
    span: tl.tensor,
    start: tl.tensor,
    column_offset: tl.tensor,
    C: tl.tensor,
    max_iterations: tl.tensor,
    HAS_START: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Store G; return the initial ε, and the number of times that it will be lowered."""
    epsilon = tl.load(target)
    columns = tl.arange(0, BLOCK_C)
    G_C = tl.zeros([BLOCK_C], tl.float64)
    stage = tl.full([], 0, tl.int32)
    if HAS_START:
        G_C += tl.load(start + columns, columns < C, other=0.0).to(tl.float64) / epsilon
    else:
        while (epsilon * BREADTH < span) & (8 * stage + 8 <= max_iterations):
            epsilon *= STEP
            stage += 1
    tl.store(column_offset + columns, G_C, columns < C)
    return epsilon, stage
