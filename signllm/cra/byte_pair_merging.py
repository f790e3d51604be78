"""Segmentation in byte-pair order: the merges of the candidates are applied in the order they were learned.

Of all merges that are possible in a sequence, the one that was learned first joins all its pairs from left to
right. This is repeated until no merge is possible. A merge is also applied if its word was dropped from the
codebook, because that word may be part of a longer word that was kept. At the end, each dropped word is
replaced by the two parts that it was learned from, and dropped parts by theirs. Whether a kept word is
found therefore does not depend on whether its parts were kept. If no word is dropped, this is byte-pair
encoding as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from signllm.cra.trie import Trie

Ints = NDArray[np.int64]
Merge = tuple[tuple[int, ...], tuple[int, ...]]


class MergeTable:
    """Merges in the form of arrays, which are applied to many pieces of sequences at once.

    Args:
        merges: pairs of spellings in the order they were learned. Each part is a character or the result of
            an earlier merge. Two merges may make the same word.
        words: words that were kept; word i has the id ``alphabet + i``.
        alphabet: number of characters.

    Attributes:
        trie: finds the words of all merges.
        ids: id of the word of each spelling in the trie; -1 for a dropped word.
        is_complete: whether the table can segment, which needs merges unless there are no words.

    Raises:
        ValueError: a part is not the result of an earlier merge, or a word is not the result of any merge.
    """

    def __init__(self, merges: Sequence[Merge], words: Sequence[tuple[int, ...]], alphabet: int) -> None:
        first = {left + right: (left, right) for left, right in reversed(merges)}
        spellings = list(dict.fromkeys(left + right for left, right in merges))
        symbol: dict[tuple[int, ...], int] = {(c,): c for c in range(alphabet)} if merges else {}
        for left, right in merges:
            for part in (left, right):
                if part not in symbol:
                    raise ValueError(f"merge {left} + {right}: no earlier merge makes {part}")
            symbol.setdefault(left + right, len(symbol))
        kept = {word: alphabet + index for index, word in enumerate(words)}
        if merges and (unmade := kept.keys() - first.keys()):
            raise ValueError(f"no merge makes the word {min(unmade)}")
        self.is_complete = bool(merges) or not words
        self.trie = Trie(spellings, alphabet)
        self.ids = np.array([kept.get(spelling, -1) for spelling in spellings], dtype=np.int64)
        self._none = len(merges)
        self._result = np.array([symbol[left + right] for left, right in merges], dtype=np.int64)
        self._length = np.array([len(spelling) for spelling in symbol], dtype=np.int64)
        # The two parts of the symbol of a dropped word; -1 for characters and kept words.
        self._left = np.full(len(symbol), -1, dtype=np.int64)
        self._right = np.full(len(symbol), -1, dtype=np.int64)
        for spelling in spellings:
            if spelling not in kept:
                left, right = first[spelling]
                self._left[symbol[spelling]], self._right[symbol[spelling]] = symbol[left], symbol[right]
        self._rank_pairs([(symbol[left], symbol[right]) for left, right in merges], len(symbol))

    def _rank_pairs(self, pairs: list[tuple[int, int]], symbols: int) -> None:
        """Set up the table of the rank of each pair of symbols.

        It has rows and columns only for symbols that are the left or the right part of a merge.
        """
        self._row, self._column = np.zeros(symbols, dtype=np.int64), np.zeros(symbols, dtype=np.int64)
        lefts, rights = sorted({left for left, _ in pairs}), sorted({right for _, right in pairs})
        self._row[lefts] = np.arange(1, len(lefts) + 1) * (len(rights) + 1)
        self._column[rights] = np.arange(1, len(rights) + 1)
        self._rank = np.full((len(lefts) + 1) * (len(rights) + 1), self._none, dtype=np.int32)
        for rank, (left, right) in reversed(list(enumerate(pairs))):
            self._rank[self._row[left] + self._column[right]] = rank

    def lengths(self, characters: Ints, begins: Ints) -> Ints:
        """Return the length of the word that starts at each position, (N,); 1 if none starts there.

        Args:
            characters: (N,) characters of P pieces of sequences that no merge crosses, concatenated.
            begins: (P,) position at which each piece begins.
        """
        if not self.is_complete:
            raise ValueError(
                "segmentation in byte-pair order needs the merges that the words were learnt from"
            )
        length = np.ones(len(characters), dtype=np.int64)
        places, symbols, counts = (
            np.arange(len(characters)),
            characters,
            np.diff(np.append(begins, len(characters))),
        )
        while len(places) > 0:
            begins = np.cumsum(counts) - counts
            rank = np.full(len(places), self._none, dtype=np.int32)
            rank[:-1] = self._rank.take(self._row.take(symbols[:-1]) + self._column.take(symbols[1:]))
            rank[begins[1:] - 1] = self._none
            least = np.minimum.reduceat(rank, begins)
            is_done = np.repeat(least == self._none, counts)
            self._write_lengths(length, places[is_done], symbols[is_done])
            first = _first_of_pairs(((rank == np.repeat(least, counts)) & ~is_done).nonzero()[0])
            symbols[first] = self._result[rank[first]]
            is_done[first + 1] = True
            counts = np.add.reduceat(~is_done, begins, dtype=np.int64)
            counts, places, symbols = counts[counts > 0], places[~is_done], symbols[~is_done]
        return length

    def _write_lengths(self, length: Ints, places: Ints, symbols: Ints) -> None:
        """Write the lengths of symbols into ``length``; dropped words are replaced by their parts."""
        while len(places) > 0:
            left, right = self._left.take(symbols), self._right.take(symbols)
            is_kept = left < 0
            length[places[is_kept]] = self._length.take(symbols[is_kept])
            places, left, right = places[~is_kept], left[~is_kept], right[~is_kept]
            places = np.concatenate([places, places + self._length.take(left)])
            symbols = np.concatenate([left, right])


def _first_of_pairs(places: Ints) -> Ints:
    """Return the first, third, fifth, ... of each run of neighbouring places.

    They begin pairs that do not overlap: x x x contains one pair x x, not two.
    """
    if len(places) == 0:
        return places
    starts = np.ones(len(places), dtype=bool)
    starts[1:] = np.diff(places) != 1
    within = np.arange(len(places)) - np.maximum.accumulate(np.where(starts, np.arange(len(places)), 0))
    return places[within % 2 == 0]
