"""The blocks of the kernel matrices of MMD: rows and columns, their inner products and norms.

The kernel depends on differences of rows only. Therefore a mean is subtracted from both samples, because
otherwise ‖x‖² + ‖y‖² − 2x·y would lose precision by cancellation. Rows are centered block by block: centered
copies of two samples of 8192×1024 would take 64 MB, and centring them repeatedly costs one subtraction per
512 multiplications. For Triton, rows in half precision are not centered: their products are exact in float32,
and the cancellation error is smaller than their own rounding (2⁻²⁴ compared with 2⁻⁹ of the distance from the
origin).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from signllm.kernels.implementation import choose

HALF = (torch.bfloat16, torch.float16)

EDGES = {"cpu": (512, 512), "device": (1024, 1024), "half": (512, 16_384), "half, copied": (2048, 2048)}
"""Rows and columns of a block. On a CPU it takes 1 MB of float32 for two cores, half of the L2 cache of each;
the benchmark prints time and memory. On a GPU (calculated, not measured), products, slopes and rows take 64
MB at E = 1024, and a product takes longer than its launch."""


@dataclass(frozen=True)
class WeightedSample:
    """A sample with weights.

    Attributes:
        rows_NE: (N, E) rows as they were given.
        share_N: (N,) normalized weights, with sum 1.
        is_masked: whether weights may be 0.
        is_centred: whether blocks are centered.
    """

    rows_NE: Tensor
    share_N: Tensor
    is_masked: bool
    is_centred: bool

    def block(self, rows: slice, centre_E: Tensor) -> Tensor:
        """Return rows minus the center, (R, E); a row with weight 0 becomes 0."""
        block_RE = self.rows_NE[rows]
        if self.is_centred:
            block_RE = block_RE.to(centre_E.dtype) - centre_E
        return block_RE.masked_fill(self.share_N[rows, None] == 0, 0) if self.is_masked else block_RE

    def total(self) -> Tensor:
        """Return Σ p, 1 up to a rounding error that would not cancel between samples of unequal size."""
        return self.share_N.sum(dtype=wide_dtype(self.share_N.device))

    def mean(self) -> Tensor:
        """Return the weighted mean of the rows, (E,)."""
        zero_E = self.share_N.new_zeros(self.rows_NE.shape[1])
        if not self.is_centred:
            return zero_E
        parts = [self.share_N[rows] @ self.block(rows, zero_E) for rows in _slices(0, len(self.share_N), 512)]
        return torch.stack(parts).sum(dim=0)

    def halved_norms(self, centre_E: Tensor) -> Tensor:
        """Return ‖x − center‖²/2 of each row, (N,)."""
        if not self.is_centred:  # half precision: one reduction with float32 accumulation
            norm_N = torch.linalg.vector_norm(self.rows_NE, dim=1, dtype=self.share_N.dtype)
            return norm_N.masked_fill_(self.share_N == 0, 0).square_() / 2
        blocks = (self.block(rows, centre_E) for rows in _slices(0, len(self.share_N), 512))
        return torch.cat([block_RE.square().sum(dim=1) for block_RE in blocks]) / 2


@dataclass(frozen=True)
class Block:
    """A block of a kernel matrix.

    Attributes:
        left_RE: (R, E) rows.
        right_CE: (C, E) columns.
        norms: ‖·‖²/2 of the rows and of the columns.
        square: number of leading columns that are the rows themselves; 0 away from the diagonal.
    """

    left_RE: Tensor
    right_CE: Tensor
    norms: tuple[Tensor, Tensor]
    square: int

    def product(self) -> Tensor:
        """Return the inner products of rows and columns, (R, C)."""
        return product(self.left_RE, self.right_CE.T)


@dataclass(frozen=True)
class SamplePair:
    """One of the three sums in the formula of the MMD.

    Attributes:
        left: first sample.
        right: second sample.
        factor: factor of the sum.
        edges: numbers of rows and columns of a block.
    """

    left: WeightedSample
    right: WeightedSample
    factor: Tensor
    edges: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Whether both samples are the same; blocks below the diagonal are then left out as mirror images."""
        return self.left is self.right

    def blocks(self) -> Iterator[tuple[slice, slice, Block]]:
        """Yield all blocks with their rows and columns."""
        centre_E = self.left.mean() if self.is_same else (self.left.mean() + self.right.mean()) / 2
        left_N = self.left.halved_norms(centre_E)
        right_M = left_N if self.is_same else self.right.halved_norms(centre_E)
        for rows in _slices(0, len(left_N), self.edges[0]):
            left_RE = self.left.block(rows, centre_E)
            for columns in _slices(rows.start if self.is_same else 0, len(right_M), self.edges[1]):
                square = len(left_RE) if self.is_same and columns.start == rows.start else 0
                right_CE = self.right.block(columns, centre_E)
                yield rows, columns, Block(left_RE, right_CE, (left_N[rows], right_M[columns]), square)


def sample_pairs(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    unbiased: bool,
    dtype: torch.dtype,
    *,
    backward: bool,
) -> tuple[SamplePair, SamplePair, SamplePair]:
    """Return the pairs x with x, y with y, and x with y; ``dtype`` is the dtype of the computation.

    Raises:
        ValueError: weights are negative or all 0, or fewer than two rows have a positive weight for the
            unbiased estimate.
    """
    is_half = x.dtype == y.dtype and x.dtype in HALF and choose(x.device).implementation == "triton"
    left = _weighted_sample(x, weights_x, "weights_x", unbiased, dtype, not is_half)
    right = _weighted_sample(y, weights_y, "weights_y", unbiased, dtype, not is_half)
    if is_half:
        edges = EDGES["half, copied" if backward or left.is_masked or right.is_masked else "half"]
    else:
        edges = EDGES["cpu" if x.device.type == "cpu" else "device"]
    minus_two_across = -2 / (left.total() * right.total())
    return (
        SamplePair(left, left, _factor(left, unbiased), edges),
        SamplePair(right, right, _factor(right, unbiased), edges),
        SamplePair(left, right, minus_two_across, edges),
    )


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it, for sums whose differences form the result."""
    return torch.float32 if device.type == "mps" else torch.float64


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right; for half precision the result is float32, without converting inputs on a GPU."""
    if left.dtype not in HALF:
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()


def _factor(side: WeightedSample, unbiased: bool) -> Tensor:
    """Return 1/(Σ p)², or 1/((Σ p)² − Σ p²) if unbiased, computed without cancellation."""
    return 1 / (side.share_N * (side.total() - side.share_N)).sum() if unbiased else side.total() ** -2


def _weighted_sample(
    x: Tensor, weights: Tensor | None, name: str, unbiased: bool, dtype: torch.dtype, centred: bool
) -> WeightedSample:
    if weights is None:
        return WeightedSample(
            x, torch.full((len(x),), 1 / len(x), dtype=dtype, device=x.device), False, centred
        )
    weights_N = weights.detach().to(dtype)
    total, positive = weights_N.sum(), (weights_N > 0).sum()
    is_valid = (weights_N >= 0).all() & (total > 0) & (total < torch.inf)
    if not bool(is_valid & (positive >= (2 if unbiased else 1))):
        rule = f"{name} must be non-negative with a positive finite sum"
        rule += ", at least two of them positive for the unbiased estimate" if unbiased else ""
        raise ValueError(f"{rule}; got {int(positive)} positive ones with the sum {float(total)}")
    return WeightedSample(x, weights_N / total, True, centred)


def _slices(begin: int, end: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, end)) for start in range(begin, end, step))
