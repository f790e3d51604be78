"""The Triton implementation of ``vq_assign``: one kernel for products, minimum and distance.

A program processes one tile of vectors. It iterates over tiles of codes and keeps the smallest score and its
code. In 16 bits, a tile has up to 256 codes: if that is all of them, x is read once from memory and the
codebook from the L2 cache. For N = 1,000,000, D = 1024 and K = 256, reading 2.0 GB of x takes 0.43 ms at 4.8
TB/s, while 0.52 TFLOP take 0.66 ms at 790 TFLOP/s, with 6.0 GB through the L2 cache. Tiles of 128 vectors and
256 codes are the largest whose sums fit into registers. (Calculated, not measured.)

Products of 16-bit numbers are exact in float32, so 16-bit inputs are not centered, which would round them.
float32 inputs are centered on the mean code and multiplied in float32 ("ieee"). tf32x3 is faster on tensor
cores, but drops the last bits of each product, which matters for small D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from signllm.kernels.implementation import KernelVariant
from signllm.kernels.vq_assign_torch import first_equal_code, raise_not_finite

NORM_CODES, NORM_WIDTH = 16, 128
SEARCH_ROWS = 4096
"""Number of rows read at a time to find the one that is not finite."""


@triton.jit
def _centred(
    pointer: tl.tensor,  # first number of a row, of each row of a tile
    centre: tl.tensor,  # (D,), or unused
    d: tl.tensor,
    inside: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    CENTRED: tl.constexpr,
) -> tl.tensor:
    """Return a tile (rows, d), minus the mean code in float32 if CENTRED; 0 outside."""
    tile = tl.load(
        pointer[:, None] + d[None, :] * stride, mask=inside[:, None] & (d < width)[None, :], other=0.0
    )
    if CENTRED:
        middle = tl.load(centre + d, mask=d < width, other=0.0)
        tile = tl.where(inside[:, None], tile.to(tl.float32) - middle[None, :], 0.0)
    return tile


@triton.jit
def _norms(
    codebook: tl.tensor,  # (K, D)
    centre: tl.tensor,  # (D,)
    norms: tl.tensor,  # (K,)
    flag: tl.tensor,  # (1,), set if a code is not finite
    n_codes: tl.tensor,
    width: tl.tensor,
    stride_k: tl.tensor,
    stride_kd: tl.tensor,
    CENTRED: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Compute the squared norms of the codes."""
    k = tl.program_id(0) * CODES + tl.arange(0, CODES)
    row = codebook + k.to(tl.int64) * stride_k
    total = tl.zeros((CODES,), tl.float32)
    for first in range(0, width, WIDTH):
        d = first + tl.arange(0, WIDTH)
        code = _centred(row, centre, d, k < n_codes, stride_kd, width, CENTRED).to(tl.float32)
        total += tl.sum(code * code, axis=1)
    tl.store(norms + k, total, mask=k < n_codes)
    is_bad = tl.max(tl.where((total < float("inf")) | (k >= n_codes), 0, 1), axis=0)
    tl.atomic_max(flag, is_bad, mask=is_bad > 0)


@triton.jit
def _nearest(
    x: tl.tensor,  # (N, D)
    codebook: tl.tensor,  # (K, D)
    centre: tl.tensor,  # (D,)
    norms: tl.tensor,  # (K,)
    index: tl.tensor,  # (N,)
    distance: tl.tensor,  # (N,), or unused
    flag: tl.tensor,  # (1,), set if a score is not finite
    n_rows: tl.tensor,
    n_codes: tl.tensor,
    width: tl.tensor,
    stride_n: tl.tensor,
    stride_nd: tl.tensor,
    stride_k: tl.tensor,
    stride_kd: tl.tensor,
    CENTRED: tl.constexpr,
    WITH_DISTANCE: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Compute the index, and optionally the distance, of the nearest code for a tile of vectors."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    vector = x + n.to(tl.int64) * stride_n
    best = tl.full((ROWS,), float("inf"), tl.float32)
    chosen = tl.zeros((ROWS,), tl.int32)
    for first_code in range(0, n_codes, CODES):
        k = first_code + tl.arange(0, CODES)
        code = codebook + k.to(tl.int64) * stride_k
        products = tl.zeros((ROWS, CODES), tl.float32)
        for first in range(0, width, WIDTH):
            d = first + tl.arange(0, WIDTH)
            left = _centred(vector, centre, d, n < n_rows, stride_nd, width, CENTRED)
            right = _centred(code, centre, d, k < n_codes, stride_kd, width, CENTRED)
            products = tl.dot(left, right.T, products, input_precision="ieee")
        norm = tl.load(norms + k, mask=k < n_codes, other=float("inf"))
        score = norm[None, :] - 2.0 * products
        score = tl.where(
            score < float("inf"), score, float("inf")
        )  # turns NaN into inf, because minima treat NaN inconsistently
        score, place = tl.min(score, axis=1, return_indices=True, return_indices_tie_break_left=True)
        chosen = tl.where(score < best, first_code + place, chosen)
        best = tl.where(score < best, score, best)
    tl.store(index + n, chosen.to(tl.int64), mask=n < n_rows)
    is_good = (best < float("inf")) & (best > float("-inf"))
    is_bad = tl.max(tl.where(is_good | (n >= n_rows), 0, 1), axis=0)
    tl.atomic_max(flag, is_bad, mask=is_bad > 0)
    if WITH_DISTANCE:
        code = codebook + chosen.to(tl.int64) * stride_k
        total = tl.zeros((ROWS,), tl.float32)
        for first in range(0, width, WIDTH):
            d = first + tl.arange(0, WIDTH)
            left = _centred(vector, centre, d, n < n_rows, stride_nd, width, False).to(tl.float32)
            right = _centred(code, centre, d, n < n_rows, stride_kd, width, False).to(tl.float32)
            total += tl.sum((left - right) * (left - right), axis=1)
        tl.store(distance + n, total, mask=n < n_rows)


@dataclass(frozen=True)
class Tile:
    """The numbers of vectors, codes and dimensions in a tile of ``_nearest``, and its launch options."""

    rows: int
    codes: int
    width: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The sizes of the tile as arguments of the kernel."""
        return {"ROWS": self.rows, "CODES": self.codes, "WIDTH": self.width}


WIDE = Tile(rows=128, codes=256, width=64, warps=8, stages=4)
NARROW = Tile(rows=128, codes=64, width=64, warps=4, stages=4)
FEW = Tile(rows=64, codes=128, width=64, warps=4, stages=4)
FLOAT32 = Tile(rows=64, codes=64, width=32, warps=8, stages=3)

ODD = Tile(rows=64, codes=64, width=32, warps=8, stages=3)
"""The tile for 16-bit rows that are not aligned to 16 bytes. They are read number by number, for which larger
tiles need too many registers."""

ROWS_THAT_FILL = 128 * 132
"""Number of vectors below which tiles of 128 leave some of the 132 multiprocessors of an H200 idle."""


def tile_for(x: Tensor, codebook: Tensor) -> Tile:
    """Return the tile for a shape: in 16 bits with all codes if they fit, and smaller for few vectors."""
    if x.dtype == torch.float32:
        return FLOAT32
    if not (_is_aligned(x) and _is_aligned(codebook)):
        return ODD
    if len(x) < ROWS_THAT_FILL:
        return FEW
    return WIDE if len(codebook) > NARROW.codes else NARROW


def _is_aligned(rows: Tensor) -> bool:
    return (
        rows.stride(1) == 1
        and rows.shape[1] % 16 == 0
        and rows.stride(0) % 16 == 0
        and rows.data_ptr() % 16 == 0
    )


def launch(x: Tensor, codebook: Tensor, with_distance: bool) -> tuple[Tensor, Tensor]:
    """Return the squared distances (N,), or (0,) if not requested, and the indices (N,) int64.

    Raises:
        ValueError: a value is not finite, or too large to be squared. Reading this flag is the only
            synchronization with the device; it is omitted while a CUDA graph is captured.
    """
    dtype = torch.promote_types(x.dtype, codebook.dtype)
    x, codebook = x.to(dtype), codebook.to(dtype)
    index_N = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distance_N = torch.empty(len(x) if with_distance else 0, dtype=torch.float32, device=x.device)
    if len(x) == 0:
        return distance_N, index_N
    norms_K = torch.empty(len(codebook), dtype=torch.float32, device=x.device)
    flag = torch.zeros(1, dtype=torch.int32, device=x.device)
    is_centred = dtype == torch.float32
    centre_D = codebook.mean(dim=0) if is_centred else norms_K
    codes, width = codebook.shape
    _norms[(triton.cdiv(codes, NORM_CODES),)](
        *(codebook, centre_D, norms_K, flag, codes, width, *codebook.stride()),
        CENTRED=is_centred,
        CODES=NORM_CODES,
        WIDTH=NORM_WIDTH,
    )
    tile = tile_for(x, codebook)
    _nearest[(triton.cdiv(len(x), tile.rows),)](
        *(x, codebook, centre_D, norms_K, index_N, distance_N, flag),
        *(len(x), codes, width, *x.stride(), *codebook.stride()),
        CENTRED=is_centred,
        WITH_DISTANCE=with_distance,
        **tile.constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    is_captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
    if not is_captured and bool(flag):
        raise_not_finite(x, codebook, SEARCH_ROWS)
    if not x.is_cuda:
        # In the interpreter, NumPy computes the product, and OpenBLAS on a Zen 5 rounds equal columns
        # differently. A GPU applies the same operations to every column of a tile.
        index_N = first_equal_code(codebook, SEARCH_ROWS)[index_N]
    return distance_N, index_N


def kernel_variants() -> list[KernelVariant]:
    """Return the variants of the kernels that ``launch`` uses, for compilation without a GPU."""
    cases = [
        (WIDE, "bf16", True),
        (WIDE, "bf16", False),
        (NARROW, "bf16", True),
        (FEW, "fp16", True),
        (ODD, "bf16", True),
        (FLOAT32, "fp32", True),
    ]
    return [_nearest_variant(*case) for case in cases] + [_norms_variant("bf16"), _norms_variant("fp32")]


def _nearest_variant(tile: Tile, dtype: str, with_distance: bool) -> KernelVariant:
    types = dict.fromkeys(("x", "codebook"), f"*{dtype}") | dict.fromkeys(("centre", "norms"), "*fp32")
    types |= {"index": "*i64", "distance": "*fp32", "flag": "*i32"}
    types |= dict.fromkeys(("n_rows", "n_codes", "width", "stride_n", "stride_k"), "i32")
    constants = {"stride_nd": 1, "stride_kd": 1, "CENTRED": dtype == "fp32", "WITH_DISTANCE": with_distance}
    what = " with distance" if with_distance else ""
    return KernelVariant(
        name=f"vq_assign {dtype} {tile.rows}x{tile.codes}x{tile.width}{what}",
        kernel=_nearest,
        signature={name: types.get(name, "constexpr") for name in _nearest.arg_names},
        constants=constants | tile.constants,
        options={"num_warps": tile.warps, "num_stages": tile.stages},
        is_aligned=tile in (WIDE, NARROW, FEW),
    )


def _norms_variant(dtype: str) -> KernelVariant:
    types = {"codebook": f"*{dtype}", "centre": "*fp32", "norms": "*fp32", "flag": "*i32"}
    types |= dict.fromkeys(("n_codes", "width", "stride_k"), "i32")
    return KernelVariant(
        name=f"vq_assign norms {dtype}",
        kernel=_norms,
        signature={name: types.get(name, "constexpr") for name in _norms.arg_names},
        constants={"stride_kd": 1, "CENTRED": dtype == "fp32", "CODES": NORM_CODES, "WIDTH": NORM_WIDTH},
    )
