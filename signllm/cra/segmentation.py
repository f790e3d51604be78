"""Characters → words, deterministically and vectorised: the most probable split, or the longest match.

Viterbi: the split of a sequence into words that maximises Σ log P(word), words independent (unigram model
over the word frequencies of the corpus); ties go to the longer word. Longest: from left to right, the
longest word that fits. Every single character is a word, so nothing is ever lost. Sequences are laid out
time first and sorted by length: a step in time handles all videos that reach it at once, and each video's
result is independent of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Method = Literal["viterbi", "longest"]

CHUNK_CHARACTERS = 1 << 19
"""Videos are handled in chunks of about so many characters: 64 MB of tables for words of up to 8."""


class WordTable:
    """A trie over words of two characters and more, as arrays that a whole batch walks at once.

    Args:
        words: spelt in characters below ``alphabet``; word i has the id ``alphabet + i``. Single characters
            are words.
        alphabet: number of characters, s₀ included.
        frequencies: (alphabet + len(words),) how often each word occurs in the corpus; one is added to
            each, so that a word never seen is still possible.
    """

    def __init__(
        self, words: Sequence[tuple[int, ...]], alphabet: int, frequencies: Ints | NDArray[np.float64]
    ) -> None:
        self.alphabet = alphabet
        self.longest = max((len(word) for word in words), default=1)
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for word in words:
            for end in range(1, len(word) + 1):
                nodes.setdefault(word[:end], len(nodes))
        # One more node, the dead one, and one more character, beyond the end, which leads there.
        self.dead = len(nodes)
        self.next = np.full((len(nodes) + 1, alphabet + 1), self.dead, dtype=np.int32)
        for spelling, node in nodes.items():
            if spelling:
                self.next[nodes[spelling[:-1]], spelling[-1]] = node
        self.word = np.full(len(nodes) + 1, -1, dtype=np.int64)
        for index, word in enumerate(words):
            self.word[nodes[word]] = alphabet + index
        smoothed = np.asarray(frequencies, dtype=np.float64) + 1
        self.score = np.log(smoothed / smoothed.sum())

    def matches(self, characters_TB: Ints) -> Ints:
        """(T, L, B) the word that starts at each place with length 1..L, −1 where there is none.

        Places beyond a video's end hold the character ``alphabet``.
        """
        times, videos = characters_TB.shape
        found_TLB = np.full((times, self.longest, videos), -1, dtype=np.int64)
        found_TLB[:, 0] = np.where(characters_TB < self.alphabet, characters_TB, -1)
        node_TB = self.next[0][characters_TB]
        for length in range(2, min(self.longest, times) + 1):
            node_TB = self.next[node_TB[: times - length + 1], characters_TB[length - 1 :]]
            found_TLB[: times - length + 1, length - 1] = self.word[node_TB]
        return found_TLB


def segment(
    characters: Ints, counts: Ints, table: WordTable, *, method: Method = "viterbi"
) -> tuple[Ints, Ints]:
    """Split packed sequences without repeats into words.

    Args:
        characters: (sum R,) below ``table.alphabet``.
        counts: (B,) how many each video has.
        table: the words.
        method: "viterbi" or "longest".

    Returns:
        (sum R,) bool as int64, 1 where a word starts; (sum R,) the word that starts there, −1 elsewhere.
    """
    begins = np.cumsum(counts) - counts
    words = np.full(len(characters), -1, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    for videos in _chunks(order, counts):
        _segment_chunk(characters, begins[videos], counts[videos], table, method, words)
    return (words >= 0).astype(np.int64), words


def _chunks(order: Ints, counts: Ints) -> list[Ints]:
    """Split videos, longest first, into chunks whose padded size is bounded."""
    chunks, begin = [], 0
    while begin < len(order) and counts[order[begin]] > 0:
        step = max(1, CHUNK_CHARACTERS // int(counts[order[begin]]))
        chunks.append(order[begin : begin + step])
        begin += step
    return chunks


def count_occurrences(
    characters: Ints, counts: Ints, words: Sequence[tuple[int, ...]], alphabet: int
) -> Ints:
    """Count each character and each word, overlaps included: (alphabet + len(words),)."""
    table = WordTable(words, alphabet, np.zeros(alphabet + len(words)))
    begins, total = np.cumsum(counts) - counts, np.zeros(alphabet + len(words), dtype=np.int64)
    for videos in _chunks(np.argsort(-counts, kind="stable"), counts):
        characters_TB, *_ = _time_first(characters, begins[videos], counts[videos], table.alphabet)
        found_TLB = table.matches(characters_TB)
        total += np.bincount(found_TLB[found_TLB >= 0], minlength=len(total))
    return total


def _time_first(characters: Ints, begins: Ints, counts: Ints, beyond: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Lay videos out as (T, B), ``beyond`` after their end; time, column, packed place of each character."""
    counts = counts[counts > 0]
    column = np.repeat(np.arange(len(counts)), counts)
    time = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    packed = np.repeat(begins[: len(counts)], counts) + time
    characters_TB = np.full((counts[0], len(counts)), beyond, dtype=np.int64)
    characters_TB[time, column] = characters[packed]
    return characters_TB, time, column, packed


def _segment_chunk(
    characters: Ints, begins: Ints, counts: Ints, table: WordTable, method: Method, words: Ints
) -> None:
    """Segment videos sorted by falling length, writing into ``words``."""
    counts = counts[counts > 0]
    characters_TB, time, column, packed = _time_first(characters, begins, counts, table.alphabet)
    active_T = np.searchsorted(-counts, -np.arange(counts[0]), side="left")
    found_TLB = table.matches(characters_TB)
    length_TB = _most_probable(found_TLB, active_T, table) if method == "viterbi" else _longest(found_TLB)
    starts_TB = np.zeros((counts[0] + table.longest, len(counts)), dtype=bool)
    starts_TB[0] = True
    for t in range(counts[0]):
        here = starts_TB[t, : active_T[t]].nonzero()[0]
        starts_TB[t + length_TB[t, here], here] = True
    begun = starts_TB[time, column]
    time, column = time[begun], column[begun]
    words[packed[begun]] = found_TLB[time, length_TB[time, column] - 1, column]


def _longest(found_TLB: Ints) -> Ints:
    """(T, B) length of the longest word that starts at each place."""
    return found_TLB.shape[1] - (found_TLB[:, ::-1] >= 0).argmax(axis=1)


def _most_probable(found_TLB: Ints, active_T: Ints, table: WordTable) -> Ints:
    """(T, B) length of the first word of the best split from each place on, by recursion from the end."""
    times, lengths, videos = found_TLB.shape
    # Longest first: argmax takes the first of equals.
    score_TLB = np.append(table.score, -np.inf)[found_TLB[:, ::-1]]
    best_TB = np.zeros((times + lengths, videos))
    length_TB = np.ones((times, videos), dtype=np.int64)
    for t in range(times - 1, -1, -1):
        active = active_T[t]
        total_LB = score_TLB[t, :, :active] + best_TB[t + 1 : t + 1 + lengths, :active][::-1]
        length_TB[t, :active] = lengths - total_LB.argmax(axis=0)
        best_TB[t, :active] = total_LB.max(axis=0)
    return length_TB
