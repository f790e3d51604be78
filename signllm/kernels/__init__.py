"""Three differentiable operators: nearest code, batched entropic optimal transport, maximum mean discrepancy.

Each operator is exact, uses bounded memory and can be used without the rest of the project. Each has a torch
reference, which is the CPU implementation, and an equivalent Triton implementation for CUDA. Each is a
``torch.library`` operator that supports autograd and ``torch.compile``. :mod:`signllm.kernels.implementation`
selects the implementation.
"""

from signllm.kernels.mmd import mmd
from signllm.kernels.mmd_bandwidths import median_bandwidths
from signllm.kernels.sinkhorn import NotConvergedError, SinkhornResult, objective, sinkhorn
from signllm.kernels.sinkhorn_sides import Exact, Side, Slack, Soft
from signllm.kernels.vq_assign import vq_assign

__all__ = [
    "Exact",
    "NotConvergedError",
    "Side",
    "SinkhornResult",
    "Slack",
    "Soft",
    "median_bandwidths",
    "mmd",
    "objective",
    "sinkhorn",
    "vq_assign",
]
