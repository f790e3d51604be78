"""The negatives of context prediction: vectors of other videos, and of the same video far from the target.

They are either drawn at random or replaced by the exact expectation, as a weight for every vector. Both refer
to the *global* batch, so that 1 and 64 ranks compute the same loss. Every rank draws for every row of the
global batch, which is a few thousand integers, and uses the draws of its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Where packed rows are in the global batch; each field has the shape (n,).

    Attributes:
        row: index of the row in the global batch.
        start: index of the first row of its video.
        place: position of the row within its video.
        length: number of positions of its video.
        weight: 1.0 for the row of a real video, 0.0 for that of a video that only fills up the batch.
    """

    row: Tensor
    start: Tensor
    place: Tensor
    length: Tensor
    weight: Tensor

    def at(self, index: Tensor) -> Positions:
        """Return the positions of the rows at ``index``."""
        return Positions(
            row=self.row[index],
            start=self.start[index],
            place=self.place[index],
            length=self.length[index],
            weight=self.weight[index],
        )


def negative_weights(targets: Positions, pool: Positions, *, same_video_share: float, exclude: int) -> Tensor:
    """Return the weight (n, R) of every row of the pool as a negative of every target.

    The weights of a target sum to 1, or to 0 if it has no negative. The admissible positions of its own video
    have the share ``same_video_share`` in equal parts, those of other videos the rest. If one kind does not
    exist, the other has the full share.

    Args:
        targets: n targets.
        pool: R rows of the global batch.
        same_video_share: share of the target's own video.
        exclude: positions of the own video at most this far from the target are not admissible.
    """
    same = targets.start[:, None] == pool.start[None, :]
    far = (targets.place[:, None] - pool.place[None, :]).abs() > exclude
    real = (pool.weight > 0)[None, :]
    near, other = same & far & real, ~same & real
    share = torch.where(other.any(dim=1), near.any(dim=1) * same_video_share, 1.0)[:, None]
    return _evenly(near) * share + _evenly(other) * (1.0 - share)


def draw_negatives(
    pool: Positions, count: int, *, same_video_share: float, exclude: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ``count`` negatives for every row of the global batch as a target.

    The first round(count * same_video_share) come from the same video, the others from other videos. If one
    kind does not exist, all come from the other.

    Returns:
        indices of the drawn rows, (R, count) int64, and whether a negative exists, (R, count) bool.
    """
    real_rows = (pool.weight > 0).nonzero()[:, 0]
    # Nothing is drawn for videos that only fill up the batch. Where frames per batch are limited, the number
    # of these videos depends on the number of ranks.
    drawn = torch.rand(len(real_rows), count, generator=generator, dtype=torch.float64).to(pool.row.device)
    uniform = drawn.new_zeros(len(pool.row), count).index_copy(0, real_rows, drawn)
    other, other_exists = _draw_other(pool, real_rows, uniform)
    same, same_exists = _draw_same(pool, uniform, exclude)
    from_same = torch.arange(count, device=pool.row.device) < round(count * same_video_share)
    take_same = torch.where(from_same, same_exists[:, None], same_exists[:, None] & ~other_exists[:, None])
    return torch.where(take_same, same, other), (take_same | other_exists[:, None])


def _draw_other(pool: Positions, real_rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of other videos, (R, count), and whether there are any, (R,).

    A uniform number selects one of the real rows without those of the own video: indices from the own video
    on are shifted by its length.
    """
    before = torch.searchsorted(real_rows, pool.start)
    own = torch.where(pool.weight > 0, pool.length, torch.zeros_like(pool.length))
    free = len(real_rows) - own
    place = (uniform * free[:, None]).long().clamp(max=max(len(real_rows) - 1, 0))
    place = place + own[:, None] * (place >= before[:, None])
    safe = place.clamp(max=max(len(real_rows) - 1, 0))
    return (real_rows[safe] if len(real_rows) else safe), free > 0


def _draw_same(pool: Positions, uniform: Tensor, exclude: int) -> tuple[Tensor, Tensor]:
    """Return rows of the same video, (R, count), and whether there are any, (R,).

    A uniform number selects a position outside the excluded window around the target: positions from the
    window on are shifted by its length.
    """
    low = (pool.place - exclude).clamp(min=0)
    high = torch.minimum(pool.place + exclude, pool.length - 1)
    window = high - low + 1
    free = pool.length - window
    place = (uniform * free[:, None]).long()
    place = place + window[:, None] * (place >= low[:, None])
    return pool.start[:, None] + torch.minimum(place, pool.length[:, None] - 1), (free > 0) & (
        pool.weight > 0
    )


def _evenly(mask: Tensor) -> Tensor:
    """Return equal weights for the True entries of each row, with sum 1; 0 for a row without any."""
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
