"""All bandwidths of MMD on a block of products in one pass over it: ``mmd.kernel_sum`` and ``mmd.slopes``.

The products are left to cuBLAS. Counted, not measured, for an H200 (790 TFLOP/s bf16, 67 float32, 4.8 TB/s)
at 16,384×16,384×4096 in bf16: one takes 2·16,384²·4096/790e12 = 2.8 ms, three bare ones 8.4, our two halves
and a whole 5.6 ms. Blocks of 512×16,384 in float32 are 32 MiB, less than its L2 cache of 50 MB. Should they
leave it, 2·16,384² entries written and read take 8·5.4e8/4.8e12 = 0.9 ms, and five exp2 of each
2.7e9/(132 SMs·16·1.8e9) = 0.7 ms: 7.2 ms in all, 0.86 times the bare products. A fused product would save the
0.9 ms if it came within 14 % of cuBLAS, at five times the code. In float32 a product takes 33 ms and none of
this shows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from signllm.kernels.implementation import KernelVariant

ROWS = {torch.float32: 16, torch.float64: 2}
COLUMNS = 256
"""Entries of a program: 32 for each of 128 threads, none of which spills; in float64, whose exp2 needs many
registers, 4 (tools/gpu_check prints registers and spills)."""

OPTIONS = {"num_warps": 4, "maxnreg": 128}
"""Four programs on a multiprocessor; left to itself, ptxas aims at more here and there and spills for it."""


@triton.jit
def _half(
    product: tl.tensor,  # (R, C), rows stride apart
    left: tl.tensor,  # (R,)
    right: tl.tensor,  # (C,)
    r: tl.tensor,
    c: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    stride: tl.tensor,
    DIAGONAL: tl.constexpr,
) -> tl.tensor:
    """−‖x − y‖²/2 of a tile; DIAGONAL 0: as it is, 1: 0 on the diagonal, 2: −inf on the diagonal."""
    inside = (r < n_rows)[:, None] & (c < n_columns)[None, :]
    half = tl.load(product + r.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)
    half -= tl.load(left + r, mask=r < n_rows, other=0.0)[:, None]
    half -= tl.load(right + c, mask=c < n_columns, other=0.0)[None, :]
    half = tl.where(half > 0.0, 0.0, half)  # not minimum, which may lose a NaN
    if DIAGONAL == 1:
        half = tl.where(r[:, None] == c[None, :], 0.0, half)
    if DIAGONAL == 2:
        half = tl.where(r[:, None] == c[None, :], float("-inf"), half)
    return half


@triton.jit
def _kernel_sum(
    product: tl.tensor,  # (R, C), rows stride apart
    left: tl.tensor,  # (R,)
    right: tl.tensor,  # (C,)
    p: tl.tensor,  # (R,)
    q: tl.tensor,  # (C,)
    scales: tl.tensor,  # (B,)
    sums: tl.tensor,  # (programs,)
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    stride: tl.tensor,
    BANDWIDTHS: tl.constexpr,
    DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    half = _half(product, left, right, r, c, n_rows, n_columns, stride, DIAGONAL)
    total = tl.zeros_like(half)
    for b in tl.static_range(BANDWIDTHS):
        total += tl.exp2(half * tl.load(scales + b))
    total *= tl.load(q + c, mask=c < n_columns, other=0.0)[None, :]
    by_row = tl.sum(total, axis=1) * tl.load(p + r, mask=r < n_rows, other=0.0)
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(by_row, axis=0))


@triton.jit
def _slopes(
    product: tl.tensor,  # (R, C), rows stride apart; overwritten with the slopes
    left: tl.tensor,  # (R,)
    right: tl.tensor,  # (C,)
    p: tl.tensor,  # (R,)
    q: tl.tensor,  # (C,)
    scales: tl.tensor,  # (B,)
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    stride: tl.tensor,
    BANDWIDTHS: tl.constexpr,
    DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    half = _half(product, left, right, r, c, n_rows, n_columns, stride, DIAGONAL)
    slope = tl.zeros_like(half)
    for b in tl.static_range(BANDWIDTHS):
        scale = tl.load(scales + b)
        slope += scale * tl.exp2(half * scale)
    slope *= tl.load(p + r, mask=r < n_rows, other=0.0)[:, None]
    slope *= tl.load(q + c, mask=c < n_columns, other=0.0)[None, :]
    inside = (r < n_rows)[:, None] & (c < n_columns)[None, :]
    tl.store(product + r.to(tl.int64)[:, None] * stride + c[None, :], slope, mask=inside)


def kernel_sum(
    product_RC: Tensor,
    left_R: Tensor,
    right_C: Tensor,
    p_R: Tensor,
    q_C: Tensor,
    scales: Tensor,
    diagonal: float | None,
) -> Tensor:
    """Launch what ``mmd.kernel_sum`` says; a partial sum for each program, added up in one order always."""
    grid = _grid(product_RC)
    sums = product_RC.new_empty(grid)
    _kernel_sum[grid](
        *_tensors(product_RC, left_R, right_C, p_R, q_C, scales),
        sums,
        *product_RC.shape,
        product_RC.stride(0),
        **_constants(scales, diagonal),
        **OPTIONS,
    )
    return sums.sum(dtype=torch.float64)


def slopes(
    product_RC: Tensor,
    left_R: Tensor,
    right_C: Tensor,
    p_R: Tensor,
    q_C: Tensor,
    scales: Tensor,
    diagonal: float | None,
) -> Tensor:
    """Launch what ``mmd.slopes`` says, in place."""
    _slopes[_grid(product_RC)](
        *_tensors(product_RC, left_R, right_C, p_R, q_C, scales),
        *product_RC.shape,
        product_RC.stride(0),
        **_constants(scales, diagonal),
        **OPTIONS,
    )
    return product_RC


def _grid(product_RC: Tensor) -> tuple[int, int]:
    rows, columns = product_RC.shape
    return triton.cdiv(rows, ROWS[product_RC.dtype]), triton.cdiv(columns, COLUMNS)


def _tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    assert all(tensor.stride(-1) == 1 for tensor in tensors)
    return tensors


def _constants(scales: Tensor, diagonal: float | None) -> dict[str, int]:
    stands = 0 if diagonal is None else 1 if diagonal == 0 else 2
    return {"BANDWIDTHS": len(scales), "DIAGONAL": stands, "ROWS": ROWS[scales.dtype], "COLUMNS": COLUMNS}


def kernel_variants() -> list[KernelVariant]:
    """Return both kernels in both precisions, on the diagonal and beside it."""
    return [
        _specimen(kernel, dtype, diagonal)
        for kernel in (_kernel_sum, _slopes)
        for dtype in (torch.float32, torch.float64)
        for diagonal in (None, 0.0, -torch.inf)
    ]


def _specimen(kernel: triton.JITFunction, dtype: torch.dtype, diagonal: float | None) -> KernelVariant:
    constants = _constants(torch.empty(5, dtype=dtype), diagonal)
    kind = f"fp{dtype.itemsize * 8}"
    signature = dict.fromkeys(kernel.arg_names, f"*{kind}")
    signature |= dict.fromkeys(("n_rows", "n_columns", "stride"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    return KernelVariant(
        name=f"mmd{kernel.fn.__name__} {kind} diagonal {diagonal}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        options=OPTIONS,
    )
