"""Words as vectors: the mean of a word's characters plus a learned offset that starts at 0 (design 2.2).

Through the mean the gradient of the text reaches codebook and encoder. Two things that all words share keep
what a mean forgets and carry over to rare words, as n-grams do in fastText (Bojanowski et al. 2017): a
character's own offset, which it brings into every word, and gains by its position within the word, so that
order matters. The vector of the "slowing down" token s0 is its offset. All start at 0: a plain mean. None of
this is stated in the paper, which gives the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signllm.cra.word_codebook import Segmentation, WordCodebook

POSITIONS = 8
"""Positions within a word that have gains of their own; later ones share the last's."""


class WordVectors(nn.Module):
    """Offsets of characters and of words, and gains by position.

    Attributes:
        characters: (K + 1, D) offset of every character, s0 last.
        words: (1 + V, D) offset of s0 by itself and of every word of two characters and more.
        gains: (POSITIONS, D) how much a character counts at each position, less 1.

    The rows of one video never touch another's.
    """

    def __init__(self, words: WordCodebook, width: int) -> None:
        super().__init__()
        self.slow_down = words.slow_down
        self.characters = nn.Parameter(torch.zeros(words.slow_down + 1, width))
        self.words = nn.Parameter(torch.zeros(1 + len(words.words), width))
        self.gains = nn.Parameter(torch.zeros(POSITIONS, width))

    def forward(self, vectors: Tensor, index: Tensor, segmentation: Segmentation) -> Tensor:
        """Return the word vectors (sum M, D) of characters (sum N, D) with the indices (sum N,), packed."""
        dtype = self.characters.dtype
        gains = 1 + self.gains[segmentation.position.clamp(max=POSITIONS - 1)]
        shares = (vectors.to(dtype) + self.characters[index]) * gains * segmentation.weight[:, None].to(dtype)
        slow = segmentation.slow_weight[:, None].to(dtype) * self.characters[self.slow_down]
        place = segmentation.words - self.slow_down
        own = self.words[place.clamp(min=0)] * (place >= 0)[:, None]
        return (own + slow).index_add(0, segmentation.slot, shares)
