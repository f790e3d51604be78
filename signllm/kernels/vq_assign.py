"""Nearest code of every vector: argmin_k ‖x − c_k‖² (design 4.2; paper section 3.2, the quantiser).

Distances are never formed: ‖x‖² is the same for every code, so argmin of ‖c_k‖² − 2 x·c_k is enough, one
matrix product per block of rows. Blocks bound the workspace whatever N is. Both sides are centred on the
mean code first, which keeps float32 exact enough for features that sit far from the origin.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORKSPACE_FLOATS = 8 * 1024 * 1024
"""Largest number of float32 a block may hold: 32 MB."""


def vq_assign(x: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code by squared Euclidean distance; ties go to the lowest index.

    Args:
        x: (N, D) vectors, any floating dtype; float32 inside (float64 stays float64).
        codebook: (K, D) codes.

    Returns:
        (N,) int64.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, or a value that is not finite.
    """
    _check(x, codebook)
    with torch.no_grad():
        dtype = torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32
        codes_KD = codebook.detach().to(dtype)
        centre_D = codes_KD.mean(dim=0)
        centred_KD = codes_KD - centre_D
        norms_K = centred_KD.square().sum(dim=1)
        index_N = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
        step = max(1, WORKSPACE_FLOATS // (codebook.shape[0] + codebook.shape[1]))
        for begin in range(0, x.shape[0], step):
            block_ND = x[begin : begin + step].detach().to(dtype) - centre_D
            best_N, index_N[begin : begin + step] = torch.addmm(
                norms_K, block_ND, centred_KD.T, alpha=-2
            ).min(dim=1)
            if not bool(best_N.isfinite().all()):
                place = begin + int((~best_N.isfinite()).nonzero()[0])
                raise ValueError(
                    f"x or the codebook holds a value that is not finite (first at row {place} of x)"
                )
        return _first_of_equals(codes_KD)[index_N]


def _check(x: Tensor, codebook: Tensor) -> None:
    if x.dim() != 2 or codebook.dim() != 2 or x.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"x must be (N, D) and codebook (K, D); got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    if not x.is_floating_point() or not codebook.is_floating_point():
        raise ValueError(f"x and codebook must be floating point; got {x.dtype} and {codebook.dtype}")
    if codebook.shape[0] == 0:
        raise ValueError("the codebook is empty: it must hold at least one code")


def _first_of_equals(codes_KD: Tensor) -> Tensor:
    """(K,) the lowest index among codes equal to each code.

    A matrix product may round equal columns differently at the edge of a tile, so ties between equal codes
    are not left to it. A hash of the bits finds candidates in one pass; only those are compared.
    """
    first_K = torch.arange(codes_KD.shape[0], device=codes_KD.device)
    bits_KD = (codes_KD + 0.0).view(torch.int64 if codes_KD.dtype == torch.float64 else torch.int32)
    _, group_K, sizes = bits_KD.sum(dim=1).unique(return_inverse=True, return_counts=True)
    suspects = (sizes[group_K] > 1).nonzero()[:, 0]
    if len(suspects) == 0:
        return first_K
    _, group = codes_KD[suspects].unique(dim=0, return_inverse=True)
    lowest = torch.full_like(suspects, codes_KD.shape[0]).scatter_reduce(0, group, suspects, "amin")
    return first_K.index_copy(0, suspects, lowest[group])
