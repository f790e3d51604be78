"""The nearest code of every vector, argmin_k ‖x − c_k‖² (paper section 3.2).

Since ‖x‖² is the same for every code, it is sufficient to minimize ‖c_k‖² − 2 x·c_k, which takes one matrix
product. The computation is split into blocks, so that the workspace does not grow with N and K
(``vq_assign_torch``). On a CPU with bfloat16 products, most codes are first excluded in that precision, with
equal results (``vq_assign_bfloat16``). The distance to the chosen code, if requested, is computed from x − c
while the block is in the cache, so that it is accurate also near 0.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from signllm.kernels.implementation import choose
from signllm.kernels.vq_assign_torch import accumulator, nearest_codes


@overload
def vq_assign(x: Tensor, codebook: Tensor, *, return_distance: Literal[False] = False) -> Tensor: ...


@overload
def vq_assign(x: Tensor, codebook: Tensor, *, return_distance: Literal[True]) -> tuple[Tensor, Tensor]: ...


def vq_assign(
    x: Tensor, codebook: Tensor, *, return_distance: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the index of the nearest code by squared Euclidean distance; of equal codes, the lowest index.

    If the scores ‖c_k‖² − 2 x·c_k of two codes differ by less than the rounding error of float32, either may
    be chosen.

    Args:
        x: (N, D) vectors of any floating dtype; the computation is in float32, or float64 for float64 inputs.
        codebook: (K, D) codes of any floating dtype.
        return_distance: whether to return also the squared distance to the chosen code. It is differentiable
            in x, with gradient 2 (x − c), and in the codebook; the index has no gradient.

    Returns:
        (N,) int64 indices; with ``return_distance`` also (N,) distances, float32 or float64.

    Raises:
        ValueError: shapes do not match, the codebook is empty, or a value is not finite or too large to be
            squared. On CUDA this check is the only synchronization.
    """
    _check(x, codebook)
    if return_distance:
        distance, index = _vq_assign(x, codebook, True)
        return index, distance
    return _vq_assign(x.detach(), codebook.detach(), False)[1]


def _check(x: Tensor, codebook: Tensor) -> None:
    if x.dim() != 2 or codebook.dim() != 2 or x.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"x must be (N, D) and codebook (K, D); got {tuple(x.shape)} and {tuple(codebook.shape)}"
        )
    if not x.is_floating_point() or not codebook.is_floating_point():
        raise ValueError(f"x and codebook must be floating point; got {x.dtype} and {codebook.dtype}")
    if x.device != codebook.device:
        raise ValueError(f"x and codebook must be on one device; got {x.device} and {codebook.device}")
    if codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ValueError(
            f"the codebook is empty, {tuple(codebook.shape)}: it must have at least one code of one number"
        )


@torch.library.custom_op("signllm::vq_assign", mutates_args=())
def _vq_assign(x: Tensor, codebook: Tensor, with_distance: bool) -> tuple[Tensor, Tensor]:
    """Return the distances (N,), or (0,) if not requested, and the indices (N,) int64."""
    if choose(x.device).implementation == "triton" and accumulator(x, codebook) == torch.float32:
        from signllm.kernels.vq_assign_triton import launch

        return launch(x, codebook, with_distance)
    return nearest_codes(x, codebook, with_distance)


@_vq_assign.register_fake
def _(x: Tensor, codebook: Tensor, with_distance: bool) -> tuple[Tensor, Tensor]:
    index = x.new_empty((x.shape[0],), dtype=torch.int64)
    distance = x.new_empty((x.shape[0] if with_distance else 0,), dtype=accumulator(x, codebook))
    return distance, index


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    x, codebook, ctx.with_distance = inputs
    if ctx.with_distance:
        ctx.save_for_backward(x, codebook, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream_N: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream_N is None or not ctx.with_distance:
        return None, None, None
    x, codebook, index_N = ctx.saved_tensors
    # Only one N×D array: the difference becomes the gradient of x, and its sums the gradient of the codes.
    gradient_ND = (x - codebook.index_select(0, index_N)).to(upstream_N.dtype) * (2 * upstream_N)[:, None]
    gradient_x = gradient_ND.to(x.dtype) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return gradient_x, None, None
    sums_KD = torch.zeros(codebook.shape, dtype=upstream_N.dtype, device=x.device)
    return gradient_x, sums_KD.index_add(0, index_N, gradient_ND, alpha=-1).to(codebook.dtype), None


_vq_assign.register_autograd(_backward, setup_context=_save)
