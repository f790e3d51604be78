"""Bandwidths of the kernels of MMD: multiples of the median distance, and the checks of the two samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Default bandwidths in units of the median distance (not stated in the paper)."""


def median_bandwidths(
    x: Tensor,
    y: Tensor,
    *,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    multiples: Sequence[float] = MULTIPLES,
    sample: int = 256,
) -> list[float]:
    """Return multiples of the median distance between two different rows of x and y together.

    The median is taken over at most ``sample`` evenly spaced rows of each sample with a positive weight, so
    the result is deterministic. If more than half of the distances are 0, the mean distance is used instead,
    and 1 if all are 0.

    Args:
        x: (N, E) sample.
        y: (M, E) sample.
        weights_x: (N,) non-negative weights, or None.
        weights_y: (M,) non-negative weights, or None.
        multiples: factors of the median distance.
        sample: largest number of rows of each sample.

    Raises:
        ValueError: shapes do not match.
    """
    check_samples(x, y, weights_x, weights_y, False)
    bandwidths: list[float] = compute_bandwidths(x, y, weights_x, weights_y, multiples, sample).tolist()
    return bandwidths


def check_samples(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, unbiased: bool
) -> None:
    """Raise ``ValueError`` for samples or weights whose shapes, types or devices do not match."""
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x must be (N, E) and y (M, E); got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.is_floating_point() or not y.is_floating_point():
        raise ValueError(f"x and y must be floating point; got {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device; got {x.device} and {y.device}")
    if len(x) == 0 or len(y) == 0:
        raise ValueError(f"both samples need at least one row; got {len(x)} and {len(y)}")
    if unbiased and (len(x) < 2 or len(y) < 2):
        raise ValueError(f"the unbiased estimate needs two rows of each sample; got {len(x)} and {len(y)}")
    for name, weights, rows in (("weights_x", weights_x, len(x)), ("weights_y", weights_y, len(y))):
        if weights is not None and weights.shape != (rows,):
            raise ValueError(f"{name} must be ({rows},), one for each row; got {tuple(weights.shape)}")


def compute_bandwidths(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    multiples: Sequence[float],
    sample: int,
) -> Tensor:
    """Return :func:`median_bandwidths` as a (B,) tensor.

    No shape depends on values, so it can be compiled and does not synchronize with a device.
    """
    with torch.no_grad():
        (x_NE, is_x_N), (y_ME, is_y_M) = (
            _sample_rows(x, weights_x, sample),
            _sample_rows(y, weights_y, sample),
        )
        pooled_NE, is_row_N = torch.cat([x_NE, y_ME]).to(result_dtype(x, y)), torch.cat([is_x_N, is_y_M])
        pooled_NE = pooled_NE - pooled_NE.mean(dim=0)
        distances_NN = torch.cdist(pooled_NE, pooled_NE, compute_mode="use_mm_for_euclid_dist")
        is_pair_NN = (is_row_N[:, None] & is_row_N).triu(diagonal=1)
        pairs_NN = torch.where(is_pair_NN, distances_NN, torch.nan)
        median, mean = pairs_NN.nanmedian(), pairs_NN.nanmean()
        scale = torch.where(median > 0, median, torch.where(mean > 0, mean, 1.0))
        return torch.stack([scale * multiple for multiple in multiples])


def _sample_rows(x: Tensor, weights: Tensor | None, sample: int) -> tuple[Tensor, Tensor]:
    """Return at most ``sample`` evenly spaced rows with positive weights, and a mask, False for padding."""
    last = min(len(x), sample) - 1
    slot_S = torch.arange(last + 1, device=x.device)
    weighs_N = torch.ones_like(x[:, 0], dtype=torch.bool) if weights is None else weights > 0
    nth_N = weighs_N.cumsum(dim=0)
    count = nth_N[-1]
    spaced_S = (2 * slot_S * (count - 1) + last) // max(2 * last, 1)
    nth_S = torch.where(count > last + 1, spaced_S, slot_S)
    index_S = torch.searchsorted(nth_N, torch.where(nth_S < count, nth_S, 0) + 1)
    return x.detach()[index_S.clamp(max=len(x) - 1)], nth_S < count


def result_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """Return the type that MMD of x and y is computed in: float64 if one of them is, else float32."""
    return torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
