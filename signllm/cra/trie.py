"""A trie over words, stored as one array, which finds the words at all positions of many sequences at once.

Sequences are concatenated with a separator after each, a character of no word, so that no match crosses the
border between two sequences. From the third character on, only positions are followed at which a word may
still match.
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
        length: number of characters of these words.
        places: (M,) position at which each match starts, ascending.
        words: (M,) index of the matched word in the list that the trie was built from.
    """

    length: int
    places: Ints
    words: Ints


class Trie:
    """A trie over words of two or more characters.

    Args:
        words: distinct spellings, with characters below ``alphabet``.
        alphabet: number of characters; the value ``alphabet`` marks the end of a sequence.

    Attributes:
        longest: number of characters of the longest word.
    """

    def __init__(self, words: Sequence[tuple[int, ...]], alphabet: int) -> None:
        self.longest = max((len(word) for word in words), default=1)
        letters = sorted({character for word in words for character in word})
        # Column 0 is for characters of no word. Row 0 is the state without a match, row 1 the root.
        self._letter = np.zeros(alphabet + 1, dtype=np.int64)
        self._letter[letters] = np.arange(1, len(letters) + 1)
        self._width = len(letters) + 1
        # Sorted by length: the rows that every position reads are adjacent and stay in the cache.
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
        """Return all occurrences of all words, by ascending length.

        Args:
            characters: (N,) concatenated sequences, each followed by the value ``alphabet``.
        """
        if self.longest < 2 or len(characters) < 2:
            return []
        letters = self._letter.take(characters)
        node = self._next.take(self._first.take(characters[:-1]) + letters[1:])
        places = node.nonzero()[0]
        node, matches = node.take(places).astype(np.int64), []
        for length in range(2, self.longest + 1):
            words = self._word.take(node)
            is_word = words >= 0
            matches.append(Matches(length, places[is_word], words[is_word]))
            if length < self.longest:
                # The end of its sequence stops each match, so no index exceeds the array.
                node = self._next.take(node * self._width + letters.take(places + length))
                remaining = node.nonzero()[0]
                places, node = places.take(remaining), node.take(remaining).astype(np.int64)
        return matches
