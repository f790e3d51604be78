"""Rule codes out in bfloat16, decide between the rest in float32: the same nearest code for less work.

A processor with bfloat16 products forms the scores s = ‖c‖² − 2 x·c at twice float32's rate. With x̂ and ĉ
rounded, |x·c − x̂·ĉ| ≤ ‖x − x̂‖ ‖c‖ + ‖x̂‖ ‖c − ĉ‖ (Cauchy-Schwarz) bounds the error of each, together with what
accumulation and the rounded result add; a code whose least possible score exceeds the greatest possible score
of another is out. The bound is never short, so the result is float32's; on ordinary data it is many times too
wide, and the few codes that it leaves cost little.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-8
"""Largest relative error of a number rounded to bfloat16."""

TINY = 2.0**-60
"""Added to norms, per dimension: covers squares, products and inputs that are flushed to zero."""

LEAST_WIDTH = 384
"""Below, the passes over the scores cost more than the products save."""

LEAST_ROWS = 64
LEAST_CODES = 64

MOST_CANDIDATES = 16
"""Mean per vector: beyond, deciding between them costs what bfloat16 saves."""


def is_worthwhile(codebook_KD: Tensor, dtype: torch.dtype, rows: int) -> bool:
    """Return whether the processor has bfloat16 products and the shape is large enough for them to pay."""
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
    """Arrays that every block of vectors writes again: fresh ones would cost their page faults each time."""

    x_RD: Tensor
    products_RC: Tensor
    score_RC: Tensor
    margin_RC: Tensor
    most_RC: Tensor

    @classmethod
    def of(cls, rows: int, codes_CD: Tensor) -> Scratch:
        """Return arrays for ``rows`` vectors against the codes."""
        codes, width = codes_CD.shape
        floats = (torch.empty(rows, codes) for _ in range(3))
        x_RD, products_RC = (torch.empty(rows, n, dtype=torch.bfloat16) for n in (width, codes))
        return cls(x_RD, products_RC, *floats)


@dataclass(frozen=True)
class RoundedCodes:
    """Centred codes in bfloat16, and the two parts of the error bound that do not depend on x.

    Attributes:
        codes_CD: bfloat16.
        error_C: largest error of a score, for a vector of norm 1, before the product is rounded.
        rest_C: what rounding in float32 adds.
        scratch: for blocks of vectors.
    """

    codes_CD: Tensor
    error_C: Tensor
    rest_C: Tensor
    scratch: Scratch

    @classmethod
    def from_codes(cls, codes_CD: Tensor, norms_C: Tensor, rows: int) -> RoundedCodes:
        """Round centred codes (C, D), to be met by blocks of at most ``rows`` vectors."""
        rounded_CD = codes_CD.to(torch.bfloat16)
        width = codes_CD.shape[1]
        rounding_C = _norms(codes_CD - rounded_CD.to(torch.float32))
        relative = UNIT + width * 2.0**-22  # of x's rounding, and of accumulation in float32
        error_C = 2.02 * (rounding_C + relative * _norms(codes_CD))
        return cls(rounded_CD, error_C, norms_C * 2.0**-20, Scratch.of(rows, codes_CD))

    def nearest(self, x_RD: Tensor, codes_CD: Tensor, norms_C: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return float32 score and code of centred vectors, or None: too many candidates, or not finite."""
        found = self._candidates(x_RD, norms_C).nonzero()
        if len(found) > MOST_CANDIDATES * len(x_RD):
            return None
        row_P, code_P = found.T.contiguous()
        starts = torch.searchsorted(row_P, torch.arange(len(x_RD) + 1))
        if not bool((starts[:-1] < starts[1:]).all()):
            return None
        return _least(x_RD, codes_CD, norms_C, row_P, code_P, starts)

    def _candidates(self, x_RD: Tensor, norms_C: Tensor) -> Tensor:
        """(R, C) bool, true for every code that may be nearest."""
        low_RD, rounded_RC, score_RC, margin_RC, most_RC = (a[: len(x_RD)] for a in self.scratch)
        torch.mm(low_RD.copy_(x_RD), self.codes_CD.T, out=rounded_RC)
        most_RC.copy_(rounded_RC)
        torch.sub(norms_C, most_RC, alpha=2, out=score_RC)
        torch.outer(_norms(x_RD), self.error_C, out=margin_RC).add_(self.rest_C)
        margin_RC.add_(most_RC.abs_(), alpha=2.02 * UNIT)
        limit_R = torch.add(score_RC, margin_RC, out=most_RC).amin(dim=1)
        return score_RC.sub_(margin_RC) <= limit_R[:, None]


def _norms(rows_RD: Tensor) -> Tensor:
    """Return norms, rounded up."""
    width = rows_RD.shape[1]
    return torch.linalg.vector_norm(rows_RD, dim=1) * (1 + width * 2.0**-22) + width * TINY


def _least(
    x_RD: Tensor, codes_CD: Tensor, norms_C: Tensor, row_P: Tensor, code_P: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the least float32 score among the candidates, and the lowest code that has it."""
    wanted = _compressed_rows(starts, code_P, (len(x_RD), len(codes_CD)))
    products_P = torch.sparse.sampled_addmm(wanted, x_RD, codes_CD.T).values()
    score_P = torch.sub(norms_C[code_P], products_P, alpha=2)
    best_R = torch.full_like(x_RD[:, 0], torch.inf).scatter_reduce_(0, row_P, score_P, "amin")
    code_P = torch.where(score_P == best_R[row_P], code_P, len(codes_CD))
    place_R = torch.full_like(starts[1:], len(codes_CD)).scatter_reduce_(0, row_P, code_P, "amin")
    return best_R, place_R


def _compressed_rows(starts: Tensor, columns_P: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says once that it calls them a beta
        return torch.sparse_csr_tensor(
            starts, columns_P, torch.zeros(len(columns_P)), shape, check_invariants=False
        )
