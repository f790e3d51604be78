"""Byte-pair order: the merges of the candidates, applied to a sequence in the order they were learnt.

The earliest merge of those possible joins all its pairs, left to right; then again the earliest of those
possible now; until none is. A merge whose word was dropped is applied all the same, for it may be part of a
longer word that was kept. At the end each piece that spells a dropped word opens into the two parts that it
was first learnt of, and those that were dropped too into theirs. So a kept word never depends on whether
its parts were kept; with nothing dropped this is byte-pair encoding as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from signllm.cra.trie import Trie

Ints = NDArray[np.int64]
Merge = tuple[tuple[int, ...], tuple[int, ...]]


class MergeTable:
    """Merges as arrays, for many pieces at once.

    Args:
        merges: pairs of spellings in the order they were learnt; parts are characters or made earlier. Two
            merges may spell one word.
        words: those that were kept; word i has the id ``alphabet + i``.
        alphabet: number of characters.

    Raises:
        ValueError: a part that no earlier merge makes, or, where there are merges, a word that none makes.
    """

    def __init__(self, merges: Sequence[Merge], words: Sequence[tuple[int, ...]], alphabet: int) -> None:
        first = {left + right: (left, right) for left, right in reversed(merges)}
        spellings = list(dict.fromkeys(left + right for left, right in merges))
        symbol: dict[tuple[int, ...], int] = {(c,): c for c in range(alphabet)} if merges else {}
        for left, right in merges:
            for part in (left, right):
                if part not in symbol:
                    raise ValueError(f"merge {left} + {right}: {part} is made by no earlier merge")
            symbol.setdefault(left + right, len(symbol))
        kept = {word: alphabet + index for index, word in enumerate(words)}
        if merges and (unmade := kept.keys() - first.keys()):
            raise ValueError(f"word {min(unmade)} is made by no merge")
        self.is_whole = bool(merges) or not words
        self.trie = Trie(spellings, alphabet)
        self.ids = np.array([kept.get(spelling, -1) for spelling in spellings], dtype=np.int64)
        self._none = len(merges)
        self._result = np.array([symbol[left + right] for left, right in merges], dtype=np.int64)
        self._length = np.array([len(spelling) for spelling in symbol], dtype=np.int64)
        # The parts of a dropped word's symbol; -1 where nothing has to be opened.
        self._left = np.full(len(symbol), -1, dtype=np.int64)
        self._right = np.full(len(symbol), -1, dtype=np.int64)
        for spelling in spellings:
            if spelling not in kept:
                left, right = first[spelling]
                self._left[symbol[spelling]], self._right[symbol[spelling]] = symbol[left], symbol[right]
        self._pairs([(symbol[left], symbol[right]) for left, right in merges], len(symbol))

    def _pairs(self, pairs: list[tuple[int, int]], symbols: int) -> None:
        """Rank of each pair, over those symbols only that are the left or the right of one."""
        self._row, self._column = np.zeros(symbols, dtype=np.int64), np.zeros(symbols, dtype=np.int64)
        lefts, rights = sorted({left for left, _ in pairs}), sorted({right for _, right in pairs})
        self._row[lefts] = np.arange(1, len(lefts) + 1) * (len(rights) + 1)
        self._column[rights] = np.arange(1, len(rights) + 1)
        self._rank = np.full((len(lefts) + 1) * (len(rights) + 1), self._none, dtype=np.int32)
        for rank, (left, right) in reversed(list(enumerate(pairs))):
            self._rank[self._row[left] + self._column[right]] = rank

    def lengths(self, characters: Ints, begins: Ints) -> Ints:
        """Return (N,) the length of the word that starts at each place; 1 where none does.

        Args:
            characters: (N,) of pieces that no merge crosses, one after the other.
            begins: (P,) where each piece begins.
        """
        if not self.is_whole:
            raise ValueError("byte-pair order needs the merges that the words were learnt by")
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
            self._write(length, places[is_done], symbols[is_done])
            first = _every_second(((rank == np.repeat(least, counts)) & ~is_done).nonzero()[0])
            symbols[first] = self._result[rank[first]]
            is_done[first + 1] = True
            counts = np.add.reduceat(~is_done, begins, dtype=np.int64)
            counts, places, symbols = counts[counts > 0], places[~is_done], symbols[~is_done]
        return length

    def _write(self, length: Ints, places: Ints, symbols: Ints) -> None:
        """Write the lengths of symbols, those of dropped words opened."""
        while len(places) > 0:
            left, right = self._left.take(symbols), self._right.take(symbols)
            is_kept = left < 0
            length[places[is_kept]] = self._length.take(symbols[is_kept])
            places, left, right = places[~is_kept], left[~is_kept], right[~is_kept]
            places = np.concatenate([places, places + self._length.take(left)])
            symbols = np.concatenate([left, right])


def _every_second(places: Ints) -> Ints:
    """Of each run of neighbours the first, third, ...: x x x holds one pair x x, not two."""
    if len(places) == 0:
        return places
    starts = np.ones(len(places), dtype=bool)
    starts[1:] = np.diff(places) != 1
    within = np.arange(len(places)) - np.maximum.accumulate(np.where(starts, np.arange(len(places)), 0))
    return places[within % 2 == 0]
