"""Collective operations of one training step: sums over the ranks, and packed rows in global video order.

A rank's batch is *packed*: the rows of its videos are concatenated, and ``counts`` (B,) gives the number of
rows of each video. Video i of rank r is video i * world_size + r of the global batch, whatever the number of
ranks. Random numbers that are drawn and sums that are formed in this order are therefore the same on 1 rank
and on 64. Without ``torch.distributed`` there is one rank, and nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_and_rank() -> tuple[int, int]:
    """Return the number of ranks and the number of this rank; (1, 0) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    return dist.get_world_size(), dist.get_rank()


def reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over all ranks, detached and identical on every rank."""
    total = value.detach().clone()
    if world_and_rank()[0] > 1:
        dist.all_reduce(total)
    return total


def gather_packed(x: Tensor, counts: Tensor) -> Tensor:
    """Return the packed rows of all ranks in global video order.

    The backward pass sums the gradient of a row over all ranks, because the loss is the sum of the shares
    that the ranks return.

    Args:
        x: (n, ...) packed rows of this rank.
        counts: (B,) number of rows of each video; B must be equal on every rank.

    Returns:
        (total number of rows, ...) tensor, identical on every rank.
    """
    return gather_rows(x, gather_counts(counts))


def gather_rows(x: Tensor, counts_all: Tensor) -> Tensor:
    """Return :func:`gather_packed` for known counts of all ranks.

    Args:
        x: (n, ...) packed rows of this rank.
        counts_all: (B * world_size,) number of rows of each video, in global video order.
    """
    if world_and_rank()[0] == 1:
        return x
    return _Gather.apply(x, counts_all)


def gather_counts(counts: Tensor) -> Tensor:
    """Return the values (B, ...) of the videos of all ranks, (B * world_size, ...), in global order."""
    world, _ = world_and_rank()
    if world == 1:
        return counts
    parts = [torch.empty_like(counts) for _ in range(world)]
    dist.all_gather(parts, counts.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def sequence_starts(counts: Tensor) -> Tensor:
    """Return the index (B,) of the first packed row of each sequence."""
    return counts.cumsum(0) - counts


def video_of_each_row(counts: Tensor) -> Tensor:
    """Return the number of the video that each packed row is part of, (sum of counts,)."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def own_rows(counts_all: Tensor) -> Tensor:
    """Return the indices of this rank's rows among the rows that :func:`gather_packed` returns."""
    world, rank = world_and_rank()
    places = video_of_each_row(counts_all)
    return (places % world == rank).nonzero()[:, 0]


class _Gather(torch.autograd.Function):
    """All-gather of an unequal number of rows; the backward pass sums over ranks and selects the own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts_all: Tensor) -> Tensor:
        world, _ = world_and_rank()
        place = video_of_each_row(counts_all)
        rows_of_rank = [(place % world == rank).nonzero()[:, 0] for rank in range(world)]
        longest = max(len(rows) for rows in rows_of_rank)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        gathered = x.new_empty(len(place), *x.shape[1:])
        for rows, part in zip(rows_of_rank, parts, strict=True):
            gathered[rows] = part[: len(rows)]
        ctx.save_for_backward(own_rows(counts_all))
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (own,) = ctx.saved_tensors
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[own], None


@contextmanager
def gathered_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gather parameters that ZeRO-3 has partitioned, so that they are readable in full inside the block.

    Every rank must enter the block. Parameters that are not partitioned are left as they are.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=None):
        yield
