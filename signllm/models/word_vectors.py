"""Vectors of sign words: the mean of the vectors of a word's characters, plus learned offsets.

Through the mean, the gradient of the translation loss reaches the codebook and the encoder. Besides an offset
of its own, a word has two parameters that all words share and that therefore also serve rare words, as
n-grams do in fastText (Bojanowski et al. 2017): an offset of each character, which is added wherever the
character occurs, and gains for the positions within a word, so that the order of characters matters. The
vector of the "slowing down" token s0 is its offset. All parameters start at 0, where a word vector is the
plain mean. The paper states only the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signllm.cra.word_codebook import Segmentation, WordCodebook

POSITIONS = 8
"""Number of positions within a word with gains of their own; later positions use those of the last."""


class WordVectors(nn.Module):
    """Computes the vectors of sign words from those of characters.

    Attributes:
        characters: (K + 1, D) offset of every character; the last row is that of s0.
        words: (1 + V, D) offset of s0 as a word of its own, then of every word of two or more characters.
        gains: (POSITIONS, D) factor of a character's vector at each position, minus 1.
    """

    def __init__(self, words: WordCodebook, width: int) -> None:
        super().__init__()
        self.slow_down = words.slow_down
        self.characters = nn.Parameter(torch.zeros(words.slow_down + 1, width))
        self.words = nn.Parameter(torch.zeros(1 + len(words.words), width))
        self.gains = nn.Parameter(torch.zeros(POSITIONS, width))

    def forward(self, vectors: Tensor, index: Tensor, segmentation: Segmentation) -> Tensor:
        """Return the vectors (sum M, D) of the packed words.

        Args:
            vectors: (sum N, D) packed vectors of the characters.
            index: (sum N,) their codes.
            segmentation: which characters each word consists of.
        """
        dtype = self.characters.dtype
        gains = 1 + self.gains[segmentation.position.clamp(max=POSITIONS - 1)]
        shares = (vectors.to(dtype) + self.characters[index]) * gains * segmentation.weight[:, None].to(dtype)
        slow = segmentation.slow_weight[:, None].to(dtype) * self.characters[self.slow_down]
        place = segmentation.words - self.slow_down
        own = self.words[place.clamp(min=0)] * (place >= 0)[:, None]
        return (own + slow).index_add(0, segmentation.slot, shares)
