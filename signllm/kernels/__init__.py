"""The three operators that no library of the field has in one place, as plain torch (design 4.2).

Each is exact, bounded in memory and usable alone: nearest code, batched entropic transport, maximum mean
discrepancy.
"""

from signllm.kernels.mmd import median_bandwidths, mmd
from signllm.kernels.sinkhorn import Exact, Side, SinkhornResult, Slack, Soft, sinkhorn
from signllm.kernels.vq_assign import vq_assign

__all__ = [
    "Exact",
    "Side",
    "SinkhornResult",
    "Slack",
    "Soft",
    "median_bandwidths",
    "mmd",
    "sinkhorn",
    "vq_assign",
]
