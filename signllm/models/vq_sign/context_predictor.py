"""Context prediction: the contrastive loss L_cp of VQ-Sign (paper section 3.2).

From the codes up to position tau, the model distinguishes the vector at position tau + k from *negatives*,
that is, vectors from other videos or from other positions of the same video:

    L_cp = - sum_{k=1..3} mean_tau [ log s(z_{tau+k} . W_k h_tau) + lambda E_{z'} log s(-z' . W_k h_tau) ]

h = g(codes up to tau), and s is the logistic function. The quantized codes are the context; the continuous
vectors z are targets and negatives. The mean is over the positions of all real videos of the global batch
that have a target; the paper sums. g is a GRU, which is the paper's convolutional GRU with a 1x1 kernel on
pooled maps. We divide dot products by sqrt(D), because at D = 1024 they would saturate s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.distributed.collectives import (
    gather_counts,
    gather_packed,
    own_rows,
    reduce_sum,
    sequence_starts,
    video_of_each_row,
)
from signllm.models.vq_sign.negatives import Positions, draw_negatives, negative_weights
from signllm.models.vq_sign.quantizer import row_weights
from signllm.validation import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, validated

if TYPE_CHECKING:
    from signllm.data.loading.batch import Batch


@validated
class ContextPredictorConfig:
    """Configuration of context prediction.

    The paper contradicts itself about lambda and the negatives, or does not state them; these defaults and
    the hidden width are our choice.

    Attributes:
        steps: K_pred, the number of positions that are predicted ahead (paper: 3).
        hidden: width of h; None means D.
        negatives: number of negatives drawn for every prediction; 0 computes the exact expectation over all
            admissible negatives. That has no sampling noise, and its cost is the number of this rank's
            positions times the number of positions of the global batch.
        negative_weight: lambda, the weight of the negatives.
        same_video_share: share of the negatives that come from the same video; the others come from other
            videos.
        exclude: number of positions before and after the target that are not used as negatives in the same
            video, because a clip overlaps its neighbours.
    """

    steps: PositiveInt = 3
    hidden: PositiveInt | None = None
    negatives: NonNegativeInt = 10
    negative_weight: NonNegativeFloat = 1.0
    same_video_share: Fraction = 0.0
    exclude: NonNegativeInt = 4


class ContextPredictor(nn.Module):
    """A GRU over the codes, and one linear head W_k per number of positions ahead."""

    def __init__(self, config: ContextPredictorConfig, width: int) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden or width
        self.context = nn.GRU(width, hidden, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(config.steps))

    def forward(self, codes: Tensor, z: Tensor, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return this rank's shares of the loss ``l_cp`` and of the metric ``cp_accuracy``.

        The accuracy is the share of targets with a positive score and of negatives with a negative one.

        Args:
            codes: (n, D) packed straight-through vectors, the context.
            z: (n, D) packed continuous vectors, the targets and negatives.
            counts: (B,) number of positions of each video.
            batch: its ``is_real`` marks the videos that count; its ``seed``, ``epoch`` and ``positions`` seed
                the drawing of negatives.
        """
        positions, all_positions = self._positions(counts, batch)
        context = self._context(codes, counts)
        pool = gather_packed(z.float(), counts)
        generator = _seeded_generator(batch)
        loss = torch.zeros((), device=z.device)
        correct = torch.zeros((), device=z.device)
        for ahead, head in enumerate(self.heads, start=1):
            anchors = (positions.place + ahead < positions.length).nonzero()[:, 0]
            weight = positions.weight[anchors]
            total = reduce_sum(weight.sum()).clamp(min=1.0)
            predicted = head(context[anchors]).float() / math.sqrt(z.shape[1])
            hit = (predicted * z[anchors + ahead].float()).sum(dim=1)
            miss, right = self._score_negatives(
                predicted, pool, positions, all_positions, anchors + ahead, generator
            )
            loss = (
                loss
                + ((functional.softplus(-hit) + self.config.negative_weight * miss) * weight).sum() / total
            )
            correct = correct + (((hit > 0).float() + right) / 2 * weight).sum().detach() / total
        return {"l_cp": loss, "cp_accuracy": correct / self.config.steps}

    def _context(self, codes: Tensor, counts: Tensor) -> Tensor:
        """Return packed h (n, hidden); the GRU runs over codes (B, N, D) that are padded at the end."""
        longest = int(counts.max())
        inside = torch.arange(longest, device=counts.device) < counts[:, None]
        padded_BND = codes.new_zeros(*inside.shape, codes.shape[1]).masked_scatter(inside[..., None], codes)
        hidden_BNH, _ = self.context(padded_BND)
        return hidden_BNH[inside]

    def _positions(self, counts: Tensor, batch: Batch) -> tuple[Positions, Positions]:
        """Return the positions of this rank's videos and those of the global batch."""
        counts_all, real_all = gather_counts(counts), gather_counts(batch.is_real.to(counts.dtype)).bool()
        video = video_of_each_row(counts_all)
        start = sequence_starts(counts_all)[video]
        row = torch.arange(len(video), device=counts.device)
        weight = row_weights(counts_all, real_all)
        all_positions = Positions(
            row=row, start=start, place=row - start, length=counts_all[video], weight=weight
        )
        return all_positions.at(own_rows(counts_all)), all_positions

    def _score_negatives(
        self,
        predicted: Tensor,
        pool: Tensor,
        positions: Positions,
        all_positions: Positions,
        targets: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return for each prediction the expected loss of its negatives, and the share with a score <= 0.

        Args:
            predicted: (m, D) predictions W_k h, divided by sqrt(D).
            pool: (R, D) vectors of the global batch, from which negatives are taken.
            positions: positions of this rank.
            all_positions: positions of the global batch.
            targets: (m,) index among this rank's positions of the target of each prediction.
            generator: draws the negatives; its state is identical on every rank.
        """
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


def _seeded_generator(batch: Batch) -> torch.Generator:
    """Return a random generator for the negatives, seeded equally for any number of ranks.

    The seed is computed from the seed, the epoch and the sample positions of the global batch.
    """
    places = gather_counts(batch.positions.to(torch.int64))
    mixed = int((places * torch.arange(1, len(places) + 1, device=places.device)).sum())
    return torch.Generator().manual_seed((batch.seed * 1_000_003 + batch.epoch * 9_176_263 + mixed) % (2**63))
