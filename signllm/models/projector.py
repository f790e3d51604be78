"""f: sign vectors to the language model's embedding space, two linear layers with ReLU (paper section 3.4).

The hidden width is not stated in the paper; here D by default. The last layer's first weights are scaled so
that the outputs are as large as the model's own token embeddings (RMS 0.02 for LLaMA): otherwise training
begins by shrinking them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """``hidden`` width (None: D); ``match_scale``: outputs start at the scale of text embeddings (ours)."""

    hidden: int | None = None
    match_scale: bool = True


class Projector(nn.Module):
    """Linear, ReLU, Linear: (n, D) to (n, E)."""

    def __init__(self, config: ProjectorConfig, width: int, embedding_width: int) -> None:
        super().__init__()
        hidden = config.hidden or width
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, embedding_width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (n, E) of vectors (n, D)."""
        return self.second(torch.relu(self.first(vectors.to(self.first.weight.dtype))))

    @torch.no_grad()
    def scale_to(self, rms: float, *, seed: int = 0) -> None:
        """Scale the last layer so that vectors of norm sqrt(D) come out with root mean square ``rms``."""
        generator = torch.Generator().manual_seed(seed)
        probe = torch.randn(256, self.first.in_features, generator=generator)
        factor = rms / self(probe.to(self.first.weight.device)).float().square().mean().sqrt().clamp(
            min=1e-12
        )
        self.second.weight.mul_(factor)
        self.second.bias.mul_(factor)
