"""A trie over words, as one array that every place of many sequences walks at once.

Sequences are laid end to end with a character of no word after each, so that no match leaves its sequence.
The walk is sparse: from the third character on, only places go on where a word may still follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Where the words of one length occur, overlaps included.

    Attributes:
        length: in characters.
        places: (M,) where each starts, rising.
        words: (M,) its place in the list that the trie was built from.
    """

    length: int
    places: Ints
    words: Ints


class Trie:
    """Words of two characters and more.

    Args:
        words: spelt in characters below ``alphabet``, distinct.
        alphabet: number of characters; ``alphabet`` itself stands for the end of a sequence.
    """

    def __init__(self, words: Sequence[tuple[int, ...]], alphabet: int) -> None:
        self.longest = max((len(word) for word in words), default=1)
        letters = sorted({character for word in words for character in word})
        # Column 0 is for characters of no word. Row 0 is where no word follows, row 1 the root.
        self._letter = np.zeros(alphabet + 1, dtype=np.int64)
        self._letter[letters] = np.arange(1, len(letters) + 1)
        self._width = len(letters) + 1
        # By length: the rows that every place reads lie together and stay in the cache.
        beginnings = sorted({word[:end] for word in words for end in range(1, len(word) + 1)}, key=len)
        node = {(): 1} | {beginning: row for row, beginning in enumerate(beginnings, start=2)}
        table = np.zeros((len(node) + 1, self._width), dtype=np.int32)
        for beginning in beginnings:
            table[node[beginning[:-1]], self._letter[beginning[-1]]] = node[beginning]
        self._next = table.reshape(-1)
        self._first = table[1, self._letter].astype(np.int64) * self._width
        self._word = np.full(len(node) + 1, -1, dtype=np.int64)
        for index, word in enumerate(words):
            self._word[node[word]] = index

    def find(self, characters: Ints) -> list[Matches]:
        """Return every occurrence of every word, by rising length; each sequence ends in ``alphabet``."""
        if self.longest < 2 or len(characters) < 2:
            return []
        letters = self._letter.take(characters)
        node = self._next.take(self._first.take(characters[:-1]) + letters[1:])
        places = node.nonzero()[0]
        node, found = node.take(places).astype(np.int64), []
        for length in range(2, self.longest + 1):
            words = self._word.take(node)
            is_word = words >= 0
            found.append(Matches(length, places[is_word], words[is_word]))
            if length < self.longest:
                # The end of a sequence stops every walk before it could pass the end of the array.
                node = self._next.take(node * self._width + letters.take(places + length))
                alive = node.nonzero()[0]
                places, node = places.take(alive), node.take(alive).astype(np.int64)
        return found
