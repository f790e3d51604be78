"""Words as vectors: the mean of a word's characters plus a learned offset that starts at 0 (design 2.2).

Through the mean the gradient of the text reaches codebook and encoder; the offset lets the order of a word's
characters matter, which a mean forgets. The vector of the "slowing down" token is learned and starts at 0
(not stated in the paper).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signllm.cra.word_codebook import Segmentation, WordCodebook


class WordVectors(nn.Module):
    """Offsets for every word id, and the vector of the token s0.

    The rows of one video never touch another's.
    """

    def __init__(self, words: WordCodebook, width: int) -> None:
        super().__init__()
        self.offsets = nn.Embedding(words.size, width, _weight=torch.zeros(words.size, width))
        self.slow_down = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor, segmentation: Segmentation) -> Tensor:
        """Return the word vectors (sum M, D) of packed character vectors (sum N, D)."""
        offsets = self.offsets(segmentation.words)
        slow = segmentation.slow_weight[:, None].to(offsets.dtype) * self.slow_down
        shares = vectors.to(offsets.dtype) * segmentation.weight[:, None].to(offsets.dtype)
        return (offsets + slow).index_add(0, segmentation.slot, shares)
