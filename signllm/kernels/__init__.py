"""The three operators that no library of the field has in one place (design 4.2).

Each is exact, bounded in memory and usable alone: nearest code, batched entropic transport, maximum mean
discrepancy. Each has a torch reference, which is the CPU implementation, a Triton twin for CUDA, and is a
``torch.library`` operator that differentiates and compiles; ``implementation`` says which implementation
runs.
"""

from signllm.kernels.mmd import median_bandwidths, mmd
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
