"""Squared maximum mean discrepancy of two samples, differentiable in both (design 4.2; L_MMD).

MMD² = Σ p_i p_j k(x_i, x_j) + Σ q_i q_j k(y_i, y_j) − 2 Σ p_i q_j k(x_i, y_j), k(x, y) = Σ_b exp(−‖x −
y‖²/2b²), the biased estimate, p and q normalised weights. Kernel matrices exist one block at a time: the
result is a scalar, so the gradient is accumulated in the same pass as the value, and nothing of size N×M is
kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths by default, in units of the median distance (not stated in the paper)."""

BLOCK_FLOATS = 2 * 1024 * 1024
"""Largest number of entries of a kernel matrix that exist at once: 8 MB in float32."""


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] | None = None,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
) -> Tensor:
    """Return the squared MMD between x and y as a scalar; 0 where the weighted samples are equal.

    Args:
        x: (N, E) sample; float32 inside (float64 stays float64).
        y: (M, E) sample.
        bandwidths: standard deviations b of the kernels; by default ``median_bandwidths``, without gradient.
        weights_x: (N,) non-negative weights (0 = masked out), constants to the gradient; equal by default.
        weights_y: (M,) the same for y.

    Raises:
        ValueError: shapes that do not fit, weights that are negative or all 0, bandwidths that are not
            positive.
    """
    _check(x, y)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    p_N, q_M = _shares(x, weights_x, "weights_x", dtype), _shares(y, weights_y, "weights_y", dtype)
    if bandwidths is None:
        bandwidths = median_bandwidths(x, y, weights_x=p_N, weights_y=q_M)
    if len(bandwidths) == 0 or not all(0 < float(b) < float("inf") for b in bandwidths):
        raise ValueError(f"bandwidths must be positive and finite; got {list(bandwidths)}")
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()  # forward also computes the gradients that somebody may ask for
    gammas = tuple(0.5 / float(b) ** 2 for b in bandwidths)
    value: Tensor = _Mmd.apply(x.to(dtype), y.to(dtype), p_N, q_M, gammas)
    return value


def median_bandwidths(
    x: Tensor,
    y: Tensor,
    *,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    multiples: Sequence[float] = MULTIPLES,
    sample: int = 256,
) -> list[float]:
    """Return multiples of the median distance between different points of x and y together.

    The median is taken over at most ``sample`` evenly spaced rows of each side whose weight is not 0: the
    same rows every time. Where more than half of the pairs coincide, the mean distance stands in, and 1
    where all do.
    """
    with torch.no_grad():
        pooled_NE = torch.cat([_spaced(x, weights_x, sample), _spaced(y, weights_y, sample)]).float()
        pooled_NE -= pooled_NE.mean(dim=0)
        distances_NN = torch.cdist(pooled_NE, pooled_NE, compute_mode="use_mm_for_euclid_dist")
        pairs = torch.triu_indices(len(pooled_NE), len(pooled_NE), offset=1, device=x.device)
        distances = distances_NN[pairs[0], pairs[1]]
        scale = float(distances.median()) if len(distances) else 0.0
        scale = scale or (float(distances.mean()) if len(distances) else 0.0) or 1.0
    return [multiple * scale for multiple in multiples]


def _spaced(x: Tensor, weights: Tensor | None, sample: int) -> Tensor:
    rows = x.detach() if weights is None else x.detach()[weights > 0]
    if len(rows) <= sample:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, sample, device=rows.device).round().long()]


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x must be (N, E) and y (M, E); got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.is_floating_point() or not y.is_floating_point():
        raise ValueError(f"x and y must be floating point; got {x.dtype} and {y.dtype}")
    if len(x) == 0 or len(y) == 0:
        raise ValueError(f"both samples need at least one row; got {len(x)} and {len(y)}")


def _shares(x: Tensor, weights: Tensor | None, name: str, dtype: torch.dtype) -> Tensor:
    if weights is None:
        return torch.full((len(x),), 1 / len(x), dtype=dtype, device=x.device)
    if weights.shape != (len(x),):
        raise ValueError(f"{name} must be ({len(x)},), one for each row; got {tuple(weights.shape)}")
    shares = weights.detach().to(dtype)
    total = float(shares.sum())
    if not bool((shares >= 0).all()) or not 0 < total < float("inf"):
        raise ValueError(f"{name} must be non-negative with a positive finite sum; got a sum of {total}")
    return shares / total


class _Mmd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NE: Tensor, y_ME: Tensor, p_N: Tensor, q_M: Tensor, gammas: tuple[float, ...]
    ) -> Tensor:
        # The kernel sees differences only; centring keeps ‖x‖² + ‖y‖² − 2x·y from cancelling.
        centre_E = p_N @ x_NE
        x_NE, y_ME = x_NE - centre_E, y_ME - centre_E
        want_x, want_y = ctx.needs_input_grad[:2]
        xx, dx_self = _same(x_NE, p_N, gammas, want_x)
        yy, dy_self = _same(y_ME, q_M, gammas, want_y)
        xy, dx_cross, dy_cross = _cross(x_NE, y_ME, p_N, q_M, gammas, want_x, want_y)
        ctx.save_for_backward(dx_self - 2 * dx_cross, dy_self - 2 * dy_cross)
        return xx + yy - 2 * xy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:2]
        grads = [
            upstream * grad if want else None for grad, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        return (*grads, None, None, None)


def _same(x_NE: Tensor, p_N: Tensor, gammas: tuple[float, ...], want: bool) -> tuple[Tensor, Tensor]:
    """Σ p_i p_j k(x_i, x_j) and its gradient: by symmetry twice that of the left argument."""
    value, grad_NE, _ = _cross(x_NE, x_NE, p_N, p_N, gammas, want, False)
    return value, 2 * grad_NE


def _cross(
    x_NE: Tensor,
    y_ME: Tensor,
    p_N: Tensor,
    q_M: Tensor,
    gammas: tuple[float, ...],
    want_x: bool,
    want_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ p_i q_j k(x_i, y_j) and its gradients in x and y (zeros where not wanted), block by block of x."""
    value = x_NE.new_zeros(())
    dx_NE, dy_ME = (
        (torch.zeros_like(x_NE) if want_x else value),
        (torch.zeros_like(y_ME) if want_y else value),
    )
    norms_M = y_ME.square().sum(dim=1)
    step = max(1, BLOCK_FLOATS // len(y_ME))
    for begin in range(0, len(x_NE), step):
        rows = slice(begin, begin + step)
        block_NE, p_block_N = x_NE[rows], p_N[rows]
        squared_NM = (block_NE.square().sum(dim=1)[:, None] + norms_M - 2 * block_NE @ y_ME.T).clamp_(min=0)
        if x_NE is y_ME:
            squared_NM.diagonal(begin).zero_()
        kernel_NM, slope_NM = _kernel(squared_NM, gammas, slope=want_x or want_y)
        value = value + p_block_N @ (kernel_NM @ q_M)
        if want_x or want_y:
            slope_NM *= -2 * p_block_N[:, None] * q_M
        if want_x:
            dx_NE[rows] = slope_NM.sum(dim=1)[:, None] * block_NE - slope_NM @ y_ME
        if want_y:
            dy_ME += slope_NM.sum(dim=0)[:, None] * y_ME - slope_NM.T @ block_NE
    return value, dx_NE, dy_ME


def _kernel(squared_NM: Tensor, gammas: tuple[float, ...], *, slope: bool) -> tuple[Tensor, Tensor]:
    """Σ_b exp(−γ_b d²) and −its derivative in d², Σ_b γ_b exp(−γ_b d²)."""
    kernel_NM = torch.zeros_like(squared_NM)
    slope_NM = torch.zeros_like(squared_NM) if slope else kernel_NM
    for gamma in gammas:
        one_NM = (squared_NM * -gamma).exp_()
        kernel_NM += one_NM
        if slope:
            slope_NM.add_(one_NM, alpha=gamma)
    return kernel_NM, slope_NM
