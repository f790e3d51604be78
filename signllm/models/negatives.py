"""Which vectors are negatives of a target: those of other real videos, and of its own away from the target.

Both the exact weights (an expectation without noise) and a draw are made over the *global* batch, so 1 and 64
ranks agree; a draw is made for every row of the global batch on every rank (a few thousand integers) and each
uses its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Packed rows of the global batch: each field (n,).

    Attributes:
        row: place among the rows of the global batch.
        start: row of the first position of its video.
        place: position within its video.
        length: positions of its video.
        weight: 1.0 in a real video, 0.0 in one that only fills up the batch.
    """

    row: Tensor
    start: Tensor
    place: Tensor
    length: Tensor
    weight: Tensor

    def at(self, index: Tensor) -> Positions:
        """Return the rows at ``index`` only."""
        return Positions(
            row=self.row[index],
            start=self.start[index],
            place=self.place[index],
            length=self.length[index],
            weight=self.weight[index],
        )


def negative_weights(targets: Positions, pool: Positions, *, same_video_share: float, exclude: int) -> Tensor:
    """Return the weight (n, R) of every pool row as a negative of every target; rows sum to 1, or 0 if none.

    The same video's admissible positions share ``same_video_share`` evenly, the other videos' the rest; where
    one kind does not exist the other takes its share.
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

    The first round(count * same_video_share) come from the same video; where a kind is absent the other is
    drawn.

    Returns:
        rows (R, count) int64 and valid (R, count) bool, False where no negative exists at all.
    """
    real_rows = (pool.weight > 0).nonzero()[:, 0]
    # Nothing is drawn for what only fills up a batch: under a limit of frames, that depends on the ranks.
    drawn = torch.rand(len(real_rows), count, generator=generator, dtype=torch.float64).to(pool.row.device)
    uniform = drawn.new_zeros(len(pool.row), count).index_copy(0, real_rows, drawn)
    other, other_exists = _draw_other(pool, real_rows, uniform)
    same, same_exists = _draw_same(pool, uniform, exclude)
    from_same = torch.arange(count, device=pool.row.device) < round(count * same_video_share)
    take_same = torch.where(from_same, same_exists[:, None], same_exists[:, None] & ~other_exists[:, None])
    return torch.where(take_same, same, other), (take_same | other_exists[:, None])


def _draw_other(pool: Positions, real_rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A place among the real rows with the own video's cut out: places after it move up by its length."""
    before = torch.searchsorted(real_rows, pool.start)
    own = torch.where(pool.weight > 0, pool.length, torch.zeros_like(pool.length))
    free = len(real_rows) - own
    place = (uniform * free[:, None]).long().clamp(max=max(len(real_rows) - 1, 0))
    place = place + own[:, None] * (place >= before[:, None])
    safe = place.clamp(max=max(len(real_rows) - 1, 0))
    return (real_rows[safe] if len(real_rows) else safe), free > 0


def _draw_same(pool: Positions, uniform: Tensor, exclude: int) -> tuple[Tensor, Tensor]:
    """A position of the same video with the window around the target cut out."""
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
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
