"""Words as vectors: the mean of a word's characters plus a learned offset that starts at 0 (design 2.2).

Through the mean the gradient of the text reaches codebook and encoder; the offset lets the order of a word's
characters matter, which a mean forgets. A character brings its own offset into every word that it is part of,
as n-grams do in fastText (Bojanowski et al. 2017): what is learnt of a character serves rare words too. That,
and that the vector of the "slowing down" token is learned and starts at 0, is not stated in the paper.
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
        self.slow_down_id = words.slow_down
        self.slow_down = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor, index: Tensor, segmentation: Segmentation) -> Tensor:
        """Return the word vectors (sum M, D) of characters (sum N, D) with the indices (sum N,), packed."""
        own = self.offsets(segmentation.words) * (segmentation.words >= self.slow_down_id)[:, None]
        slow = segmentation.slow_weight[:, None].to(own.dtype) * self.slow_down
        characters = vectors.to(own.dtype) + self.offsets(index)
        return (own + slow).index_add(
            0, segmentation.slot, characters * segmentation.weight[:, None].to(own.dtype)
        )
