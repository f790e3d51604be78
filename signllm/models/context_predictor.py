"""Context prediction: from the characters so far, tell the next vectors from others (paper section 3.2).

L_cp = - sum_{k=1..3} mean_tau [ log s(z_{tau+k} . W_k h_tau) + lambda E_{z'} log s(-z' . W_k h_tau) ], h =
g(codes up to tau), s the logistic function. The mean is over the positions of all real videos of the global
batch that have a target; the paper sums. g is a GRU (the paper's convolutional one with a 1x1 kernel on
pooled maps). Dot products are divided by sqrt(D), ours: at D=1024 the raw ones saturate. Continuous z is the
target, the quantised codes are the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.errors import UsageError
from signllm.models.collectives import (
    gather_counts,
    gather_packed,
    own_rows,
    reduce_sum,
    sequence_starts,
    video_of_each_row,
)
from signllm.models.negatives import Positions, draw_negatives, negative_weights
from signllm.models.quantizer import row_weights

if TYPE_CHECKING:
    from signllm.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class ContextPredictorConfig:
    """Horizon, context network and negatives.

    Contradictory or not stated in the paper, so ours: lambda, the negatives, the hidden width.

    Attributes:
        steps: K_pred, how many positions ahead (paper: 3).
        hidden: width of h; None takes D.
        negatives: vectors drawn for every prediction; 0 takes the exact expectation over all admissible ones,
            which has no sampling noise and costs (own positions) x (positions of the global batch).
        negative_weight: lambda.
        same_video_share: share of the negatives from the same video, the rest from other videos.
        exclude: positions around the target that are no negatives in the same video (a clip overlaps its
            neighbours).
    """

    steps: int = 3
    hidden: int | None = None
    negatives: int = 10
    negative_weight: float = 1.0
    same_video_share: float = 0.0
    exclude: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.negatives < 0 or self.exclude < 0:
            raise UsageError(
                f"predictor.steps {self.steps}, negatives {self.negatives}, exclude {self.exclude}",
                remedy="steps >= 1, others >= 0",
            )
        if not 0.0 <= self.same_video_share <= 1.0:
            raise UsageError(
                f"predictor.same_video_share is {self.same_video_share}", remedy="give a share from 0 to 1"
            )


class ContextPredictor(nn.Module):
    """GRU over the codes and one linear head per step ahead."""

    def __init__(self, config: ContextPredictorConfig, width: int) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden or width
        self.context = nn.GRU(width, hidden, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(config.steps))

    def forward(self, codes: Tensor, z: Tensor, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return shares of ``l_cp`` and ``cp_accuracy``, how often targets score above 0 and negatives below.

        Args:
            codes: (n, D) straight-through vectors, packed: the context.
            z: (n, D) continuous vectors: targets and negatives.
            counts: (B,) positions of each video.
            batch: gives ``is_real`` and what seeds the negatives: ``seed``, ``epoch``, ``positions``.
        """
        positions, all_positions = self._positions(counts, batch)
        context = self._context(codes, counts)
        pool = gather_packed(z.float(), counts)
        generator = _generator(batch)
        loss = torch.zeros((), device=z.device)
        correct = torch.zeros((), device=z.device)
        for ahead, head in enumerate(self.heads, start=1):
            anchors = (positions.place + ahead < positions.length).nonzero()[:, 0]
            weight = positions.weight[anchors]
            total = reduce_sum(weight.sum()).clamp(min=1.0)
            predicted = head(context[anchors]).float() / math.sqrt(z.shape[1])
            hit = (predicted * z[anchors + ahead].float()).sum(dim=1)
            miss, right = self._miss(predicted, pool, positions, all_positions, anchors + ahead, generator)
            loss = (
                loss
                + ((functional.softplus(-hit) + self.config.negative_weight * miss) * weight).sum() / total
            )
            correct = correct + (((hit > 0).float() + right) / 2 * weight).sum().detach() / total
        return {"l_cp": loss, "cp_accuracy": correct / self.config.steps}

    def _context(self, codes: Tensor, counts: Tensor) -> Tensor:
        """Return packed h (n, hidden); the GRU runs over (B, N, D), padded on the right."""
        longest = int(counts.max())
        inside = torch.arange(longest, device=counts.device) < counts[:, None]
        padded_BND = codes.new_zeros(*inside.shape, codes.shape[1]).masked_scatter(inside[..., None], codes)
        hidden_BNH, _ = self.context(padded_BND)
        return hidden_BNH[inside]

    def _positions(self, counts: Tensor, batch: Batch) -> tuple[Positions, Positions]:
        counts_all, real_all = gather_counts(counts), gather_counts(batch.is_real.to(counts.dtype)).bool()
        video = video_of_each_row(counts_all)
        start = sequence_starts(counts_all)[video]
        row = torch.arange(len(video), device=counts.device)
        weight = row_weights(counts_all, real_all)
        everywhere = Positions(
            row=row, start=start, place=row - start, length=counts_all[video], weight=weight
        )
        return everywhere.at(own_rows(counts_all)), everywhere

    def _miss(
        self,
        predicted: Tensor,
        pool: Tensor,
        positions: Positions,
        all_positions: Positions,
        targets: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return E log-loss of the negatives of each prediction, and the share of them that score below 0."""
        own = positions.at(targets)
        share, exclude = self.config.same_video_share, self.config.exclude
        if self.config.negatives == 0:
            weights = negative_weights(own, all_positions, same_video_share=share, exclude=exclude)
            scores = predicted @ pool.T
        else:
            rows, valid = draw_negatives(
                all_positions,
                self.config.negatives,
                same_video_share=share,
                exclude=exclude,
                generator=generator,
            )
            weights = (valid / valid.sum(dim=1, keepdim=True).clamp(min=1))[own.row].to(pool.dtype)
            scores = torch.einsum("nd,nmd->nm", predicted, pool[rows[own.row]])
        return (functional.softplus(scores) * weights).sum(dim=1), ((scores <= 0) * weights).sum(dim=1)


def _generator(batch: Batch) -> torch.Generator:
    """Seed by (seed, epoch, positions of the global batch): the same on any number of ranks."""
    places = gather_counts(batch.positions.to(torch.int64))
    mixed = int((places * torch.arange(1, len(places) + 1, device=places.device)).sum())
    return torch.Generator().manual_seed((batch.seed * 1_000_003 + batch.epoch * 9_176_263 + mixed) % (2**63))
