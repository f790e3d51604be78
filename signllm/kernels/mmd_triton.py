"""The Triton implementation of ``mmd.kernel_sum`` and ``mmd.slopes``: one pass for all bandwidths.

The inner products are computed by cuBLAS. The following times are calculated, not measured, for an H200 (790
TFLOP/s in bf16, 67 in float32, 4.8 TB/s) and two samples of 16,384×4096 in bf16. One product takes
2·16,384²·4096/790e12 = 2.8 ms. Three full products take 8.4 ms; two triangular ones and a full one take 5.6
ms. Blocks of 512×16,384 in float32 have 32 MiB and fit into the L2 cache of 50 MB. If they did not, writing
and reading 2·16,384² entries would take 8·5.4e8/4.8e12 = 0.9 ms. Five exp2 of each entry take 2.7e9/(132
SMs·16·1.8e9) = 0.7 ms. The sum is 7.2 ms, 0.86 times the three products. A fused kernel would save the 0.9 ms
if its product came within 14 % of cuBLAS, with five times the code. In float32 a product takes 33 ms, and the
rest does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from signllm.kernels.implementation import KernelVariant

ROWS = {torch.float32: 16, torch.float64: 2}
COLUMNS = 256
"""Rows and columns of a program. Each of its 128 threads has 32 entries without spilling registers, and 4 in
float64, whose exp2 needs many registers (``tools/gpu_check`` prints registers and spills)."""

OPTIONS = {"num_warps": 4, "maxnreg": 128}
"""Four programs per multiprocessor; without ``maxnreg``, ptxas sometimes aims at more and spills."""


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
    """Return −‖x − y‖²/2 of a tile; on the diagonal unchanged (DIAGONAL 0), 0 (1) or −inf (2)."""
    inside = (r < n_rows)[:, None] & (c < n_columns)[None, :]
    half = tl.load(product + r.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)
    half -= tl.load(left + r, mask=r < n_rows, other=0.0)[:, None]
    half -= tl.load(right + c, mask=c < n_columns, other=0.0)[None, :]
    half = tl.where(half > 0.0, 0.0, half)  # tl.minimum could lose a NaN
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
    """Return ``mmd.kernel_sum``; each program writes a partial sum, and these are added in a fixed order."""
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
    """Return ``mmd.slopes``, computed in place."""
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
    """Return the tensors, of which the kernels require that their last dimension is contiguous."""
    assert all(tensor.stride(-1) == 1 for tensor in tensors)
    return tensors


def _constants(scales: Tensor, diagonal: float | None) -> dict[str, int]:
    diagonal_mode = 0 if diagonal is None else 1 if diagonal == 0 else 2
    return {
        "BANDWIDTHS": len(scales),
        "DIAGONAL": diagonal_mode,
        "ROWS": ROWS[scales.dtype],
        "COLUMNS": COLUMNS,
    }


def kernel_variants() -> list[KernelVariant]:
    """Return both kernels in both precisions, on and off the diagonal."""
    return [
        _kernel_variant(kernel, dtype, diagonal)
        for kernel in (_kernel_sum, _slopes)
        for dtype in (torch.float32, torch.float64)
        for diagonal in (None, 0.0, -torch.inf)
    ]


def _kernel_variant(kernel: triton.JITFunction, dtype: torch.dtype, diagonal: float | None) -> KernelVariant:
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
