"""The projector f: two linear layers with ReLU from sign vectors to the language model's embedding space.

See section 3.4 of the paper, which does not state the hidden width; ours is D by default. The initial weights
of the last layer are scaled so that the outputs have the size of the model's token embeddings (root mean
square 0.02 for LLaMA). Otherwise training first has to shrink them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signllm.validation import PositiveInt, validated


@validated
class ProjectorConfig:
    """Configuration of the projector.

    Attributes:
        hidden: width between the two layers; None means D.
        match_scale: whether the initial outputs are scaled to the size of the text embeddings (not in the
            paper).
    """

    hidden: PositiveInt | None = None
    match_scale: bool = True


class Projector(nn.Module):
    """Linear layer, ReLU, linear layer, from (n, D) to (n, E)."""

    def __init__(self, config: ProjectorConfig, width: int, embedding_width: int) -> None:
        super().__init__()
        hidden = config.hidden or width
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, embedding_width)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the projections (n, E) of vectors (n, D)."""
        return self.second(torch.relu(self.first(vectors.to(self.first.weight.dtype))))

    @torch.no_grad()
    def scale_to(self, rms: float, *, seed: int = 0) -> None:
        """Scale the last layer so that inputs of norm sqrt(D) give outputs with root mean square ``rms``."""
        generator = torch.Generator().manual_seed(seed)
        probe = torch.randn(256, self.first.in_features, generator=generator)
        factor = rms / self(probe.to(self.first.weight.device)).float().square().mean().sqrt().clamp(
            min=1e-12
        )
        self.second.weight.mul_(factor)
        self.second.bias.mul_(factor)
