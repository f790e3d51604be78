"""Nearest codes on CPUs with bfloat16 products: most codes are excluded before float32 decides.

Such a processor computes the scores s = ‖c‖² − 2 x·c twice as fast in bfloat16 as in float32. With x̂ and ĉ
rounded, the error of each score is bounded by |x·c − x̂·ĉ| ≤ ‖x − x̂‖ ‖c‖ + ‖x̂‖ ‖c − ĉ‖ (Cauchy-Schwarz) and
the errors of accumulation and of rounding the result. A code is excluded if its smallest possible score
exceeds the largest possible score of another code. The bound always holds, so the result equals that of
float32. On ordinary data the bound is much larger than the error, and still only few codes remain, which cost
little.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-8
"""Largest relative error of rounding a number to bfloat16."""

TINY = 2.0**-60
"""Added to norms, per dimension, to cover squares, products and inputs that are flushed to zero."""

LEAST_WIDTH = 384
"""Least width D; below it, the passes over the scores take longer than the faster products save."""

LEAST_ROWS = 64
LEAST_CODES = 64

MOST_CANDIDATES = 16
"""Largest mean number of candidates per vector; comparing more takes the time that bfloat16 saves."""


def is_worthwhile(codebook_KD: Tensor, dtype: torch.dtype, rows: int) -> bool:
    """Return whether the processor has bfloat16 products and the shape is large enough to gain from them."""
    codes, width = codebook_KD.shape
    return (
        codebook_KD.device.type == "cpu"
        and dtype == torch.float32
        and rows >= LEAST_ROWS
        and codes >= LEAST_CODES
        and width >= LEAST_WIDTH
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_avx512_bf16_supported()
    )


class Scratch(NamedTuple):
    """Arrays that are reused for every block of vectors; new ones would cost page faults each time."""

    x_RD: Tensor
    products_RC: Tensor
    score_RC: Tensor
    margin_RC: Tensor
    most_RC: Tensor

    @classmethod
    def _x_(cls, rows: int, codes_CD: Tensor) -> Scratch:
        """Return arrays for ``rows`` vectors and the given codes."""
        codes, width = codes_CD.shape
        floats = (torch.empty(rows, codes) for _ in range(3))
        x_RD, products_RC = (torch.empty(rows, n, dtype=torch.bfloat16) for n in (width, codes))
        return cls(x_RD, products_RC, *floats)


@dataclass(frozen=True)
class RoundedCodes:
    """Centered codes in bfloat16, and the parts of the error bound that do not depend on x.

    Attributes:
        codes_CD: codes in bfloat16.
        error_C: largest error of a score for a vector of norm 1, before the product is rounded.
        rest_C: additional error of rounding in float32.
        scratch: reused arrays for blocks of vectors.
    """

    codes_CD: Tensor
    error_C: Tensor
    rest_C: Tensor
    scratch: Scratch

    @classmethod
    def from_codes(cls, codes_CD: Tensor, norms_C: Tensor, rows: int) -> RoundedCodes:
        """Round centered codes (C, D), for blocks of at most ``rows`` vectors."""
        rounded_CD = codes_CD.to(torch.bfloat16)
        width = codes_CD.shape[1]
        rounding_C = _norms(codes_CD - rounded_CD.to(torch.float32))
        relative = UNIT + width * 2.0**-22  # of rounding x, and of accumulation in float32
        error_C = 2.02 * (rounding_C + relative * _norms(codes_CD))
        return cls(rounded_CD, error_C, norms_C * 2.0**-20, Scratch._x_(rows, codes_CD))

    def nearest(self, x_RD: Tensor, codes_CD: Tensor, norms_C: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return float32 scores and codes of centered vectors.

        Returns:
            None if there are too many candidates, or none for a vector because a value is not finite.
        """
        candidates = self._candidates(x_RD, norms_C).nonzero()
        if len(candidates) > MOST_CANDIDATES * len(x_RD):
            return None
        row_P, code_P = candidates.T.contiguous()
        starts = torch.searchsorted(row_P, torch.arange(len(x_RD) + 1))
        if not bool((starts[:-1] < starts[1:]).all()):
            return None
        return _best_candidates(x_RD, codes_CD, norms_C, row_P, code_P, starts)

    def _candidates(self, x_RD: Tensor, norms_C: Tensor) -> Tensor:
        """Return a mask (R, C) of the codes that may be the nearest."""
        low_RD, rounded_RC, score_RC, margin_RC, most_RC = (a[: len(x_RD)] for a in self.scratch)
        torch.mm(low_RD.copy_(x_RD), self.codes_CD.T, out=rounded_RC)
        most_RC.copy_(rounded_RC)
        torch.sub(norms_C, most_RC, alpha=2, out=score_RC)
        torch.outer(_norms(x_RD), self.error_C, out=margin_RC).add_(self.rest_C)
        margin_RC.add_(most_RC.abs_(), alpha=2.02 * UNIT)
        limit_R = torch.add(score_RC, margin_RC, out=most_RC).amin(dim=1)
        return score_RC.sub_(margin_RC) <= limit_R[:, None]


def _norms(rows_RD: Tensor) -> Tensor:
    """Return upper bounds of the norms of rows."""
    width = rows_RD.shape[1]
    return torch.linalg.vector_norm(rows_RD, dim=1) * (1 + width * 2.0**-22) + width * TINY


def _best_candidates(
    x_RD: Tensor, codes_CD: Tensor, norms_C: Tensor, row_P: Tensor, code_P: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the smallest float32 score among the candidates of each vector, and the lowest code with it."""
    pattern = _compressed_rows(starts, code_P, (len(x_RD), len(codes_CD)))
    products_P = torch.sparse.sampled_addmm(pattern, x_RD, codes_CD.T).values()
    score_P = torch.sub(norms_C[code_P], products_P, alpha=2)
    best_R = torch.full_like(x_RD[:, 0], torch.inf).scatter_reduce_(0, row_P, score_P, "amin")
    code_P = torch.where(score_P == best_R[row_P], code_P, len(codes_CD))
    place_R = torch.full_like(starts[1:], len(codes_CD)).scatter_reduce_(0, row_P, code_P, "amin")
    return best_R, place_R


def _compressed_rows(starts: Tensor, columns_P: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that CSR tensors are in beta
        return torch.sparse_csr_tensor(
            starts, columns_P, torch.zeros(len(columns_P)), shape, check_invariants=False
        )
