"""What the ranks of one step have to agree on: sums, and packed rows in the global order of the videos.

Place i of rank r is global place i * world + r, whatever the number of ranks, so what is drawn or summed in
that order is the same on 1 rank and on 64. Without ``torch.distributed`` every function is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_and_rank() -> tuple[int, int]:
    """Return how many ranks take part and which one this is; (1, 0) without a process group."""
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

    The gradient of a row is summed over the ranks that used it, as the sum of the ranks' loss shares asks
    for.

    Args:
        x: (n, ...) rows of this rank, one video after the other.
        counts: (B,) rows of each video, B equal on every rank.

    Returns:
        (rows of all ranks, ...), identical on every rank.
    """
    return gather_rows(x, gather_counts(counts))


def gather_rows(x: Tensor, counts_all: Tensor) -> Tensor:
    """As :func:`gather_packed`, given the counts of all ranks, (B * world,), in global video order."""
    if world_and_rank()[0] == 1:
        return x
    return _Gather.apply(x, counts_all)


def gather_counts(counts: Tensor) -> Tensor:
    """Return the values (B, ...) of all ranks' videos, (B * world, ...), in global video order."""
    world, _ = world_and_rank()
    if world == 1:
        return counts
    parts = [torch.empty_like(counts) for _ in range(world)]
    dist.all_gather(parts, counts.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def sequence_starts(counts: Tensor) -> Tensor:
    """Return the packed place of each sequence's first row, (B,)."""
    return counts.cumsum(0) - counts


def video_of_each_row(counts: Tensor) -> Tensor:
    """Return the video of each packed row, (sum of counts,)."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def own_rows(counts_all: Tensor) -> Tensor:
    """Return where this rank's packed rows lie among the gathered ones."""
    world, rank = world_and_rank()
    places = video_of_each_row(counts_all)
    return (places % world == rank).nonzero()[:, 0]


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows; backward sums over ranks and keeps the own rows."""

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
    """Make parameters that ZeRO-3 has partitioned readable in full inside the block (all ranks)."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=None):
        yield
