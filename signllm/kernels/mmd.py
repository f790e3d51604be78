"""Squared maximum mean discrepancy (MMD) of two samples, differentiable in both; the loss L_MMD.

    MMD² = Σ p_i p_j k(x_i, x_j) + Σ q_i q_j k(y_i, y_j) − 2 Σ p_i q_j k(x_i, y_j)

Here k(x, y) = Σ_b exp(−‖x − y‖²/2b²), and p and q are normalized weights (Gretton et al., A Kernel Two-Sample
Test, JMLR 13, 2012: Eq. 5 for the biased and Eq. 3 for the unbiased estimate).

The kernel matrices are computed block by block: the inner products of a block, then all bandwidths while the
block is in the cache. The backward pass computes the blocks again instead of storing N×M numbers, which takes
three products per block where autograd takes two. Of a sample with itself, only the blocks on and above the
diagonal are computed, so that the forward pass takes 2 products instead of 3.

Each bandwidth has its own exp2. The default bandwidths could be computed from one exponential and eight
squarings, but four pairs of squarings multiply its rounding error by 4⁴ and would save little, because most
of the time is spent in the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from signllm.kernels.implementation import choose
from signllm.kernels.mmd_bandwidths import (
    MULTIPLES,
    check_samples,
    compute_bandwidths,
    result_dtype,
)
from signllm.kernels.mmd_blocks import SamplePair, product, sample_pairs, wide_dtype


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] | Tensor | None = None,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    groups_x: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    """Return the squared MMD between x and y as a scalar, which is 0 for equal weighted samples.

    Args:
        x: (N, E) sample; computation and result are float32, or float64 for float64 inputs.
        y: (M, E) sample.
        bandwidths: standard deviations b of the kernels, floats or a (B,) tensor, without gradient; by
            default those of :func:`median_bandwidths`, computed on the device without synchronization.
        weights_x: (N,) non-negative weights without gradient, equal by default. A row with weight 0 is
            ignored, whatever its values.
        weights_y: (M,) likewise for y.
        groups_x: (N,) int64 group of each row of x; rows in the same group must be equal. Each group is
            computed as one row with the sum of the weights, which gives the same value and gradient from G² /
            N² of the pairs for G groups.
        unbiased: whether to leave out the pairs (i, i): Σ_{i≠j} p_i p_j k(x_i, x_j) / (1 − Σ p_i²), likewise
            for y. With equal weights this is the U-statistic of Gretton et al. (2012), Eq. 3. Its mean is 0
            for equal distributions, so it can be negative.

    It is differentiable once. It needs memory for three blocks, and in the backward pass for the gradients in
    float32.

    Raises:
        ValueError: shapes do not match, weights are negative or all 0, bandwidths are not positive, or fewer
            than two rows have a positive weight for the unbiased estimate. The check of weights on a GPU
            synchronizes with it; bandwidths on a GPU are not checked, and invalid ones give NaN.
    """
    check_samples(x, y, weights_x, weights_y, unbiased)
    if bandwidths is None:
        bandwidths = compute_bandwidths(x, y, weights_x, weights_y, MULTIPLES, 256)
    if groups_x is not None:
        if unbiased or groups_x.shape != (len(x),):
            what = f"got {tuple(groups_x.shape)}, {unbiased=}"
            raise ValueError(f"groups_x must be ({len(x)},), and the estimate biased; {what}")
        x, weights_x = _merge_groups(x, groups_x, weights_x)
    value: Tensor = _mmd(x, y, _bandwidths(bandwidths), weights_x, weights_y, unbiased)
    return value


def _merge_groups(x: Tensor, groups: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return one row per group, (G, E), the mean of its equal rows, and the group's weight, (G,).

    The members of a group receive its gradient in proportion to their weights, as they would separately.
    """
    weights = torch.ones_like(x[:, 0]) if weights is None else weights.to(result_dtype(x, x))
    numbers, group_N = torch.unique(groups, return_inverse=True)
    weight_G = weights.new_zeros(len(numbers)).index_add(0, group_N, weights)
    share_N = weights / torch.where(weight_G > 0, weight_G, 1.0)[group_N]
    row_GE = x.new_zeros(len(numbers), x.shape[1]).index_add(0, group_N, x * share_N[:, None].to(x.dtype))
    return row_GE, weight_G


def _bandwidths(bandwidths: Sequence[float] | Tensor) -> Tensor:
    if isinstance(bandwidths, Tensor):
        if bandwidths.dim() != 1 or len(bandwidths) == 0:
            raise ValueError(f"bandwidths must be (B,), one or more; got {tuple(bandwidths.shape)}")
        return bandwidths.detach()
    if len(bandwidths) == 0 or not all(0 < b < math.inf for b in bandwidths):
        raise ValueError(f"bandwidths must be positive and finite; got {list(bandwidths)}")
    return torch.tensor([float(b) for b in bandwidths], dtype=torch.float64)


def kernel_sum(
    product_RC: Tensor,
    left_R: Tensor,
    right_C: Tensor,
    p_R: Tensor,
    q_C: Tensor,
    scales: Tensor,
    diagonal: float | None,
) -> Tensor:
    """Return Σ p_i q_j Σ_b 2^(scale_b·h_ij) over a block, with h = product − left − right = −‖x − y‖²/2.

    Args:
        product_RC: inner products of the rows; they are overwritten.
        left_R: ‖x‖²/2 of each row.
        right_C: ‖y‖²/2 of each column.
        p_R: weights of the rows.
        q_C: weights of the columns.
        scales: (B,) log2(e)/b² for each bandwidth b.
        diagonal: value of the diagonal of h: 0, −inf to leave the diagonal out, or None to keep its values.
    """
    half_RC = _halved(product_RC, left_R, right_C, diagonal)
    power_RC, by_row_R = torch.empty_like(half_RC), torch.zeros_like(p_R)
    for scale in scales.tolist():
        torch.mul(half_RC, scale, out=power_RC)
        by_row_R.addmv_(power_RC.exp2_(), q_C)
    return p_R.to(wide_dtype(p_R.device)) @ by_row_R.to(wide_dtype(p_R.device))


def slopes(
    product_RC: Tensor,
    left_R: Tensor,
    right_C: Tensor,
    p_R: Tensor,
    q_C: Tensor,
    scales: Tensor,
    diagonal: float | None,
) -> Tensor:
    """Return p_i q_j Σ_b scale_b 2^(scale_b·h_ij), (R, C); the arguments are those of :func:`kernel_sum`."""
    half_RC = _halved(product_RC, left_R, right_C, diagonal)
    power_RC, slope_RC = torch.empty_like(half_RC), torch.zeros_like(half_RC)
    for scale in scales.tolist():
        torch.mul(half_RC, scale, out=power_RC)
        slope_RC.add_(power_RC.exp2_(), alpha=scale)
    return slope_RC.mul_(p_R[:, None]).mul_(q_C)


def _halved(product_RC: Tensor, left_R: Tensor, right_C: Tensor, diagonal: float | None) -> Tensor:
    half_RC = product_RC.sub_(left_R[:, None]).sub_(right_C).clamp_(max=0)
    if diagonal is not None:
        half_RC.diagonal().fill_(diagonal)
    return half_RC


def _block_functions(x: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return ``kernel_sum`` and ``slopes`` of the implementation for the device of x."""
    if choose(x.device).implementation == "torch":
        return kernel_sum, slopes
    from signllm.kernels import mmd_triton  # imported here because Triton may not be installed

    return mmd_triton.kernel_sum, mmd_triton.slopes


def _scales(bandwidths: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return log2(e)/b², (B,), so that a kernel is 2^(scale · −‖x − y‖²/2); finite for every b > 0."""
    if bandwidths.device.type == "cpu" and not bool((bandwidths > 0).all() & bandwidths.isfinite().all()):
        raise ValueError(f"bandwidths must be positive and finite; got {bandwidths.tolist()}")
    scales = (math.log2(math.e) / bandwidths / bandwidths).to(x.device, dtype)
    return scales.clamp(max=torch.finfo(dtype).max)


@torch.library.custom_op("signllm::mmd", mutates_args=())
def _mmd(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    unbiased: bool,
) -> Tensor:
    block_function, _ = _block_functions(x)
    value = x.new_zeros((), dtype=result_dtype(x, y))
    scales = _scales(bandwidths, x, value.dtype)
    with torch.autocast(x.device.type, enabled=False):
        for pair in sample_pairs(x, y, weights_x, weights_y, unbiased, value.dtype, backward=False):
            value = value + pair.factor * _pair_sum(
                pair, scales, -math.inf if unbiased else 0.0, block_function
            )
    return value.to(result_dtype(x, y))


def _pair_sum(
    pair: SamplePair, scales: Tensor, diagonal: float, block_function: Callable[..., Tensor]
) -> Tensor:
    """Return Σ p_i q_j k(x_i, y_j) over all pairs of two samples."""
    sums = []
    for rows, columns, block in pair.blocks():
        q_C = pair.right.share_N[columns]
        if pair.is_same:  # a block right of the diagonal also counts for its mirror image
            q_C = torch.cat([q_C[: block.square], 2 * q_C[block.square :]])
        diagonal_value = diagonal if block.square else None
        sums.append(
            block_function(
                block.product(), *block.norms, pair.left.share_N[rows], q_C, scales, diagonal_value
            )
        )
    return torch.stack(sums).sum()


@torch.library.custom_op("signllm::mmd_backward", mutates_args=())
def _mmd_backward(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    unbiased: bool,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients in x and y; an empty tensor for one that is not needed."""
    _, block_function = _block_functions(x)
    dtype = result_dtype(x, y)
    scales = _scales(bandwidths, x, dtype)
    dx_NE = x.new_zeros(x.shape if needs_x else (0,), dtype=dtype)
    dy_ME = y.new_zeros(y.shape if needs_y else (0,), dtype=dtype)
    with torch.autocast(x.device.type, enabled=False):
        of_x, of_y, across = sample_pairs(x, y, weights_x, weights_y, unbiased, dtype, backward=True)
        if needs_x:
            _add_gradient(of_x, scales, upstream, block_function, dx_NE, dx_NE)
        if needs_y:
            _add_gradient(of_y, scales, upstream, block_function, dy_ME, dy_ME)
        if needs_x or needs_y:
            _add_gradient(
                across,
                scales,
                upstream,
                block_function,
                dx_NE if needs_x else None,
                dy_ME if needs_y else None,
            )
    return dx_NE.to(x.dtype), dy_ME.to(y.dtype)


def _add_gradient(
    pair: SamplePair,
    scales: Tensor,
    upstream: Tensor,
    block_function: Callable[..., Tensor],
    dx_NE: Tensor | None,
    dy_ME: Tensor | None,
) -> None:
    """Add the gradient of factor·Σ p_i q_j k in both samples: Σ_j slope_ij (x_i − y_j), and likewise for y.

    Slopes are scaled to be between 0 and 1, so that half precision can represent them; the scale is in the
    coefficient.
    """
    p_N, q_M = pair.left.share_N, pair.right.share_N
    heaviest, total = p_N.max() * q_M.max(), scales.sum()
    coefficient = (2 if pair.is_same else 1) * -math.log(2) * pair.factor * upstream * heaviest * total
    p_N, q_M = p_N / (p_N.max() * total), q_M / q_M.max()
    for rows, columns, block in pair.blocks():
        diagonal_value = -math.inf if block.square else None
        slope_RC = block_function(
            block.product(), *block.norms, p_N[rows], q_M[columns], scales, diagonal_value
        )
        slope_RC = slope_RC.to(block.left_RE.dtype)
        if dx_NE is not None:
            _add_differences(dx_NE[rows], slope_RC, block.left_RE, block.right_CE, coefficient)
        if dy_ME is not None:  # the square block on the diagonal is its own mirror image
            mirrored_RC, right_CE = slope_RC[:, block.square :], block.right_CE[block.square :]
            _add_differences(
                dy_ME[columns][block.square :], mirrored_RC.T, right_CE, block.left_RE, coefficient
            )


def _add_differences(
    grad_RE: Tensor, slope_RC: Tensor, own_RE: Tensor, other_CE: Tensor, coefficient: Tensor
) -> None:
    """Add coefficient · Σ_j slope_ij (own_i − other_j) to the gradient of the own rows."""
    if grad_RE.numel() == 0:
        return
    sums_R = slope_RC.sum(dim=1, dtype=grad_RE.dtype)
    grad_RE.addcmul_((coefficient * sums_R)[:, None], own_RE.to(grad_RE.dtype))
    grad_RE.addcmul_(product(slope_RC, other_CE), -coefficient)


@_mmd.register_fake
def _(
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    unbiased: bool,
) -> Tensor:
    return x.new_empty((), dtype=result_dtype(x, y))


@_mmd_backward.register_fake
def _(
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidths: Tensor,
    weights_x: Tensor | None,
    weights_y: Tensor | None,
    unbiased: bool,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_x else (0,)), y.new_empty(y.shape if needs_y else (0,))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.unbiased = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_y = ctx.needs_input_grad[:2]
    dx, dy = _mmd_backward(upstream, *ctx.saved_tensors, ctx.unbiased, needs_x, needs_y)
    return dx if needs_x else None, dy if needs_y else None, None, None, None, None


_mmd.register_autograd(_backward, setup_context=_save_inputs)
