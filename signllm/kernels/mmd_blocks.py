"""The blocks in which MMD meets its pairs of rows: products of centred rows, and what stands beside them.

The kernel sees differences only, so a mean is subtracted where ‖x‖² + ‖y‖² − 2x·y would cancel. Centring is
done block by block: centred copies of two samples of 8192×1024 would take 64 MB, and doing it again and again
costs one subtraction for 512 multiplications. For Triton, rows in half precision are left as they came: their
products are exact in float32, and what cancels is below their own rounding (2⁻²⁴ against 2⁻⁹ of the distance
from the origin).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from signllm.kernels.implementation import choose

HALF = (torch.bfloat16, torch.float16)

EDGES = {"cpu": (512, 512), "device": (1024, 1024), "half": (512, 16_384), "half, copied": (2048, 2048)}
"""Rows and columns of a block. CPU: 1 MB of float32 for two cores, half of the L2 cache of each; the
benchmark prints time and memory. Others, counted for a GPU: product, slopes and rows fit 64 MB at E = 1024,
rows growing with E, and a product takes longer than its launch."""


@dataclass(frozen=True)
class WeightedSample:
    """A sample: its rows as they came, shares that add up to 1; may some be 0, are blocks centred."""

    rows_NE: Tensor
    share_N: Tensor
    is_masked: bool
    is_centred: bool

    def block(self, rows: slice, centre_E: Tensor) -> Tensor:
        """(R, E) rows less the centre, an absent row as 0."""
        block_RE = self.rows_NE[rows]
        if self.is_centred:
            block_RE = block_RE.to(centre_E.dtype) - centre_E
        return block_RE.masked_fill(self.share_N[rows, None] == 0, 0) if self.is_masked else block_RE

    def total(self) -> Tensor:
        """Σ p: 1, but for the rounding of shares, which would not cancel between samples of unequal size."""
        return self.share_N.sum(dtype=wide_dtype(self.share_N.device))

    def mean(self) -> Tensor:
        """(E,) mean by the shares."""
        zero_E = self.share_N.new_zeros(self.rows_NE.shape[1])
        if not self.is_centred:
            return zero_E
        parts = [self.share_N[rows] @ self.block(rows, zero_E) for rows in _slices(0, len(self.share_N), 512)]
        return torch.stack(parts).sum(dim=0)

    def halved_norms(self, centre_E: Tensor) -> Tensor:
        """(N,) ‖x − centre‖²/2."""
        if not self.is_centred:  # half precision: one reduction that widens as it reads
            norm_N = torch.linalg.vector_norm(self.rows_NE, dim=1, dtype=self.share_N.dtype)
            return norm_N.masked_fill_(self.share_N == 0, 0).square_() / 2
        blocks = (self.block(rows, centre_E) for rows in _slices(0, len(self.share_N), 512))
        return torch.cat([block_RE.square().sum(dim=1) for block_RE in blocks]) / 2


@dataclass(frozen=True)
class Block:
    """Rows and columns that meet, ‖·‖²/2 of each, and how many of the columns are the rows themselves."""

    left_RE: Tensor
    right_CE: Tensor
    norms: tuple[Tensor, Tensor]
    square: int

    def product(self) -> Tensor:
        """(R, C) inner products."""
        return product(self.left_RE, self.right_CE.T)


@dataclass(frozen=True)
class SamplePair:
    """Two samples of the formula, the factor of their sum in it, and the shape of blocks."""

    left: WeightedSample
    right: WeightedSample
    factor: Tensor
    edges: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Is this a sample with itself: blocks below the diagonal mirror those above and are left out?"""
        return self.left is self.right

    def blocks(self) -> Iterator[tuple[slice, slice, Block]]:
        """Rows, columns, and the block they meet in."""
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
    """Return x with x, y with y and x with y; ``dtype`` is what is computed in.

    Raises:
        ValueError: weights that are negative or all 0, or fewer than two rows with weight where the
            estimate is unbiased.
    """
    is_half = x.dtype == y.dtype and x.dtype in HALF and choose(x.device).implementation == "triton"
    left = _side(x, weights_x, "weights_x", unbiased, dtype, not is_half)
    right = _side(y, weights_y, "weights_y", unbiased, dtype, not is_half)
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
    """Return float64 where the device has it: what the few numbers are in whose differences the result is."""
    return torch.float32 if device.type == "mps" else torch.float64


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right, of half precision in float32, which a GPU does without widening them first."""
    if left.dtype not in HALF:
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()


def _factor(side: WeightedSample, unbiased: bool) -> Tensor:
    """1/(Σ p)², or 1/((Σ p)² − Σ p²) without the cancellation of that."""
    return 1 / (side.share_N * (side.total() - side.share_N)).sum() if unbiased else side.total() ** -2


def _side(
    x: Tensor, weights: Tensor | None, name: str, unbiased: bool, dtype: torch.dtype, centred: bool
) -> WeightedSample:
    if weights is None:
        return WeightedSample(
            x, torch.full((len(x),), 1 / len(x), dtype=dtype, device=x.device), False, centred
        )
    wide_N = weights.detach().to(dtype)
    total, least = wide_N.sum(), 2 if unbiased else 1
    is_right = (wide_N >= 0).all() & (total > 0) & (total < torch.inf)
    if not bool(is_right & ((wide_N > 0).sum() >= least)):
        why = f"{int((wide_N > 0).sum())} positive ones with a sum of {float(total)}"
        what = f"{name} must be non-negative with a positive finite sum"
        raise ValueError(f"{what}{', two of them positive where unbiased' if unbiased else ''}; got {why}")
    return WeightedSample(x, wide_N / total, True, centred)


def _slices(begin: int, end: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, end)) for start in range(begin, end, step))
