"""The torch reference of ``vq_assign``, which is the CPU implementation.

It compares blocks of vectors with blocks of codes. The workspace is a few blocks for any N and K, and the
codebook is centered block by block without a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from signllm.kernels import vq_assign_bfloat16 as bfloat16

ROW_BYTES = 16 * 1024 * 1024
"""Largest size of a block of vectors. With the next two constants, the workspace is at most about 60 MB for
vectors of 4096 numbers."""

CODE_BYTES = 4 * 1024 * 1024
"""Largest size of a block of codes."""

SCORE_BYTES = 2 * 1024 * 1024
"""Largest size of the scores of a block; up to four such arrays exist at a time."""

LARGEST_ROWS = 2048
"""Largest number of vectors in a block; more leave the cache and do not make the product faster."""


def accumulator(x: Tensor, codebook: Tensor) -> torch.dtype:
    """Return the dtype of products and distances: float64 if an input has it, otherwise float32."""
    return torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32


def nearest_codes(x: Tensor, codebook: Tensor, with_distance: bool) -> tuple[Tensor, Tensor]:
    """Return the squared distances (N,), or (0,) if not requested, and the indices (N,) int64.

    Args:
        x: (N, D) vectors.
        codebook: (K, D) codes; K and D must be at least 1.
        with_distance: whether to compute the distance to the chosen code.

    Raises:
        ValueError: a value is not finite, or too large to be squared.
    """
    dtype = accumulator(x, codebook)
    codes = BlockedCodebook.from_tensor(codebook, dtype, len(x))
    index_N = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distance_N = torch.empty(len(x) if with_distance else 0, dtype=dtype, device=x.device)
    is_finite = torch.ones((), dtype=torch.bool, device=x.device)
    scratch_RD = torch.empty((codes.rows, x.shape[1]), dtype=dtype, device=x.device)
    for begin in range(0, len(x), codes.rows):
        block_RD = x[begin : begin + codes.rows].to(dtype)
        free_RD = scratch_RD[: len(block_RD)]
        best_R, index_R = codes.nearest(torch.sub(block_RD, codes.centre_D, out=free_RD))
        is_finite &= best_R.isfinite().all()
        index_N[begin : begin + codes.rows] = index_R
        if with_distance:
            chosen_RD = torch.index_select(
                codebook, 0, index_R, out=free_RD if codebook.dtype == dtype else None
            )
            difference_RD = torch.sub(block_RD, chosen_RD, out=free_RD)
            torch.linalg.vector_norm(difference_RD, dim=1, out=distance_N[begin : begin + codes.rows])
    if not bool(is_finite):
        raise_not_finite(x, codebook, codes.rows)
    return distance_N.square_(), first_equal_code(codebook, codes.size)[index_N]


@dataclass(frozen=True)
class CodeBlock:
    """A block of centered codes.

    Attributes:
        first: number of its first code.
        centred_CD: codes minus the mean code.
        norms_C: their squared norms.
        rounded: the codes in bfloat16, or None if it is not used.
    """

    first: int
    centred_CD: Tensor
    norms_C: Tensor
    rounded: bfloat16.RoundedCodes | None

    def nearest(self, block_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest score ‖c‖² − 2 x·c of centered vectors (R, D), and the index of its code."""
        return torch.addmm(self.norms_C, block_RD, self.centred_CD.T, alpha=-2).min(dim=1)


@dataclass
class BlockedCodebook:
    """A codebook that is processed in centered blocks.

    Attributes:
        codebook_KD: the codebook.
        centre_D: mean code, in the dtype of the products.
        rows: number of vectors in a block.
        size: number of codes in a block.
        excludes_in_bfloat16: whether codes are first excluded in bfloat16; it becomes False at the first
            block of vectors for which bfloat16 leaves too many candidates.
        only_block: the block, if all codes are in one; it is then built only once.
    """

    codebook_KD: Tensor
    centre_D: Tensor
    rows: int
    size: int
    excludes_in_bfloat16: bool
    only_block: list[CodeBlock] = field(default_factory=list)

    @classmethod
    def from_tensor(cls, codebook_KD: Tensor, dtype: torch.dtype, vectors: int) -> BlockedCodebook:
        """Return the codebook with block sizes for a number of vectors."""
        codes, width = codebook_KD.shape
        row_bytes = width * dtype.itemsize
        rows = max(1, min(ROW_BYTES // row_bytes, LARGEST_ROWS, vectors))
        size = max(1, min(CODE_BYTES // row_bytes, SCORE_BYTES // (rows * dtype.itemsize), codes))
        centre_D = torch.zeros(width, dtype=dtype, device=codebook_KD.device)
        for block_CD in codebook_KD.split(size):
            centre_D += block_CD.to(dtype).sum(dim=0) / codes
        return cls(codebook_KD, centre_D, rows, size, bfloat16.is_worthwhile(codebook_KD, dtype, rows))

    def nearest(self, block_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and the numbers of the nearest codes of centered vectors (R, D)."""
        blocks = self._blocks()
        best_R, index_R = self._nearest_of(next(blocks), block_RD)
        for block in blocks:
            score_R, code_R = self._nearest_of(block, block_RD)
            is_nearer_R = score_R < best_R  # strictly, so that of equal scores the lower code wins
            best_R = torch.where(is_nearer_R, score_R, best_R)
            index_R = torch.where(is_nearer_R, code_R, index_R)
        return best_R, index_R

    def _nearest_of(self, block: CodeBlock, block_RD: Tensor) -> tuple[Tensor, Tensor]:
        nearest = None
        if block.rounded and self.excludes_in_bfloat16:
            nearest = block.rounded.nearest(block_RD, block.centred_CD, block.norms_C)
            self.excludes_in_bfloat16 = nearest is not None
        score_R, place_R = nearest or block.nearest(block_RD)
        return score_R, place_R + block.first

    def _blocks(self) -> Iterator[CodeBlock]:
        if self.only_block:
            yield self.only_block[0]
            return
        for first in range(0, len(self.codebook_KD), self.size):
            codes_CD = self.codebook_KD[first : first + self.size].to(self.centre_D.dtype) - self.centre_D
            norms_C = codes_CD.square().sum(dim=1)
            rounded = (
                bfloat16.RoundedCodes.from_codes(codes_CD, norms_C, self.rows)
                if self.excludes_in_bfloat16
                else None
            )
            block = CodeBlock(first, codes_CD, norms_C, rounded)
            if len(codes_CD) == len(self.codebook_KD):
                self.only_block.append(block)
            yield block


def first_equal_code(codebook_KD: Tensor, size: int) -> Tensor:
    """Return the lowest index among the codes that are equal to each code, (K,).

    A matrix product may round equal columns differently at the edge of a tile, so it cannot decide between
    equal codes. A hash of the bits finds possibly equal codes in one pass over blocks; only those are
    compared.
    """
    first_K = torch.arange(len(codebook_KD), device=codebook_KD.device)
    hashes_K = torch.empty_like(first_K)
    for target_C, block_CD in zip(hashes_K.split(size), codebook_KD.split(size), strict=True):
        target_C.copy_(
            _hashes(block_CD)
        )  # written in place: small allocations between blocks would fragment the heap
    open_S = first_K
    while len(open_S):  # repeated only if different codes share a hash
        _, group_S, sizes = hashes_K[open_S].unique(return_inverse=True, return_counts=True)
        lowest = torch.full_like(sizes, len(codebook_KD)).scatter_reduce_(0, group_S, open_S, "amin")
        leader_S = lowest[group_S]
        is_follower_S = (sizes[group_S] > 1) & (leader_S != open_S)
        open_S, leader_S = open_S[is_follower_S], leader_S[is_follower_S]
        pairs = zip(open_S.split(size), leader_S.split(size), strict=True)
        equal = [(codebook_KD[a] == codebook_KD[b]).all(dim=1) for a, b in pairs]
        is_equal_S = torch.cat(equal) if equal else open_S.bool()
        first_K[open_S[is_equal_S]] = leader_S[is_equal_S]
        open_S = open_S[~is_equal_S]
    return first_K


def _hashes(codes_CD: Tensor) -> Tensor:
    """Return a hash of each code, (C,) int64, which is equal for equal codes; 0 and -0 are equal."""
    wide_CD = codes_CD.to(torch.float64 if codes_CD.dtype == torch.float64 else torch.float32) + 0.0
    bits_CD = wide_CD.view(torch.int64 if codes_CD.dtype == torch.float64 else torch.int32)
    factors_D = torch.arange(1, codes_CD.shape[1] + 1, device=codes_CD.device) * 0x9E3779B1 | 1
    return (bits_CD * factors_D.to(bits_CD.dtype)).sum(dim=1, dtype=bits_CD.dtype)


def raise_not_finite(x: Tensor, codebook: Tensor, size: int) -> NoReturn:
    """Raise a ValueError that names the first row of the codebook or of x with a value that is not finite."""
    for name, rows in (("codebook", codebook), ("x", x)):
        for number, block in enumerate(rows.split(size)):
            is_bad = ~block.isfinite().all(dim=1)
            if bool(is_bad.any()):
                place = number * size + int(is_bad.nonzero()[0])
                raise ValueError(f"row {place} of {name} contains a value that is not finite")
    raise ValueError("x or the codebook contains values that are too large to be squared: scale both down")
