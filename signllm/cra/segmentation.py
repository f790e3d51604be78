"""Segmentation of character sequences into words, deterministic and vectorized, by one of three methods.

- "viterbi": the segmentation that maximizes Σ log P(word), where words are independent with their
frequencies in
  the corpus (a unigram model); of equal segmentations, the one with the longer word.
- "longest": from left to right, the longest word that matches.
- "bpe": byte-pair order (:mod:`signllm.cra.byte_pair_merging`).

Every single character is a word as well, so a segmentation always exists.

At most positions no word continues from the left, so that every segmentation is cut there. These cuts split
the sequences into short pieces, which are solved independently, one time step of all pieces of a chunk at
once. Scores are integers in units of 2⁻²⁸ nats, whose sums are exact. The words of a video therefore depend
neither on the other videos nor on the cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from signllm.cra.byte_pair_merging import Merge, MergeTable
from signllm.cra.packed_sequences import video_chunks
from signllm.cra.trie import Matches, Trie

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Method = Literal["viterbi", "longest", "bpe"]

UNITS_PER_NAT = 1 << 28
IMPOSSIBLE = -(1 << 60)


class WordTable:
    """The words with their scores, prepared for segmentation.

    Args:
        words: spellings with characters below ``alphabet``; word i has the id ``alphabet + i``. Each single
            character is a word with its own id.
        alphabet: number of characters, including s₀.
        frequencies: (alphabet + len(words),) number of occurrences of each word in the corpus. One is added
            to each, so that words without occurrences remain possible.
        merges: for the method "bpe", all merges that were learned, including those of dropped words.
    """

    def __init__(
        self,
        words: Sequence[tuple[int, ...]],
        alphabet: int,
        frequencies: Ints | NDArray[np.float64],
        merges: Sequence[Merge] = (),
    ) -> None:
        self.alphabet = alphabet
        self.trie = Trie(words, alphabet)
        self.merging = MergeTable(merges, words, alphabet)
        smoothed = np.asarray(frequencies, dtype=np.float64) + 1
        self.units = np.rint(np.log(smoothed / smoothed.sum()) * UNITS_PER_NAT).astype(np.int64)

    @property
    def score(self) -> NDArray[np.float64]:
        """Log P of each word in nats, rounded as the Viterbi method uses it."""
        return self.units / UNITS_PER_NAT


def segment(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, *, method: Method = "viterbi"
) -> tuple[Ints, Ints]:
    """Segment packed sequences without repeats into words.

    Args:
        characters: (sum R,) characters below ``table.alphabet``.
        counts: (B,) number of characters of each video.
        table: the words.
        method: method of segmentation.

    Returns:
        (sum R,) int64, 1 where a word starts and 0 elsewhere; (sum R,) id of the word that starts there, −1
        elsewhere.
    """
    words = np.concatenate([np.zeros(0, dtype=np.int64), *_segment_chunks(characters, counts, table, method)])
    return (words >= 0).astype(np.int64), words


def count_words(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, *, method: Method = "viterbi"
) -> Ints:
    """Return how often each word occurs in the segmentation by :func:`segment`, (alphabet + words,)."""
    total = np.zeros(len(table.units), dtype=np.int64)
    for words in _segment_chunks(characters, counts, table, method):
        total += np.bincount(words[words >= 0], minlength=len(total))
    return total


def count_occurrences(
    characters: NDArray[np.integer], counts: Ints, words: Sequence[tuple[int, ...]], alphabet: int
) -> Ints:
    """Return how often each character and each word occurs, including overlaps, (alphabet + len(words),)."""
    trie, total = Trie(words, alphabet), np.zeros(alphabet + len(words), dtype=np.int64)
    for chunk, chunk_counts in video_chunks(characters, counts):
        spread, _ = _append_ends(chunk, chunk_counts, alphabet)
        total[:alphabet] += np.bincount(chunk, minlength=alphabet)
        for matches in trie.find(spread):
            total[alphabet:] += np.bincount(matches.words, minlength=len(words))
    return total


def _segment_chunks(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, method: Method
) -> Iterator[Ints]:
    """Yield the words of each chunk of videos, in the form of the second result of :func:`segment`."""
    for chunk, chunk_counts in video_chunks(characters, counts):
        spread, kept = _append_ends(chunk, chunk_counts, table.alphabet)
        yield _words_at_starts(spread, table, method)[kept]


def _append_ends(characters: Ints, counts: Ints, end: int) -> tuple[Ints, Bools]:
    """Append the value ``end`` to each video.

    Returns:
        the characters with ends, and a mask of the same length that is True at characters.
    """
    kept = np.ones(len(characters) + len(counts), dtype=bool)
    kept[np.cumsum(counts + 1) - 1] = False
    spread = np.full(len(kept), end, dtype=np.int64)
    spread[kept] = characters
    return spread, kept


def _words_at_starts(spread: Ints, table: WordTable, method: Method) -> Ints:
    """Return the word that starts at each position, (N,), −1 where none does.

    The values at the ends of videos are arbitrary.
    """
    trie, ids = (table.merging.trie, table.merging.ids) if method == "bpe" else (table.trie, table.alphabet)
    matches_by_length = trie.find(spread)
    length = np.ones(len(spread), dtype=np.int64)
    for matches in matches_by_length:
        length[matches.places] = matches.length
    cuts = _find_cuts(length)
    places, begins = _find_pieces(cuts)
    if method == "viterbi":
        length[places] = _viterbi_lengths(spread, matches_by_length, table, places, begins)
    elif method == "bpe":
        length[places] = table.merging.lengths(spread[places], begins)
    starts = _find_starts(cuts, length)
    words = np.where(starts, spread, -1)
    for matches in matches_by_length:
        is_taken = starts[matches.places] & (length[matches.places] == matches.length)
        taken = matches.words[is_taken]
        words[matches.places[is_taken]] = taken + ids if isinstance(ids, int) else ids[taken]
    return words


def _find_cuts(longest: Ints) -> Bools:
    """Return the positions, as a mask (N,), that no word which starts earlier covers.

    Every segmentation is cut there. ``longest`` (N,) is the length of the longest word that starts at each
    position.
    """
    reach = np.arange(len(longest)) + longest
    np.maximum.accumulate(reach, out=reach)
    cuts = np.ones(len(longest), dtype=bool)
    cuts[1:] = reach[:-1] <= np.arange(1, len(longest))
    return cuts


def _find_pieces(cuts: Bools) -> tuple[Ints, Ints]:
    """Return the positions in pieces of two or more characters, and the index at which each piece begins."""
    is_alone = cuts.copy()
    is_alone[:-1] &= cuts[1:]
    places = (~is_alone).nonzero()[0]
    return places, cuts[places].nonzero()[0]


def _find_starts(cuts: Bools, length: Ints) -> Bools:
    """Return a mask (N,) of the positions at which words start: at cuts, and where the previous word ends."""
    starts, inside = cuts.copy(), ~cuts
    at = (cuts[:-1] & inside[1:]).nonzero()[0]
    while len(at) > 0:
        at = at + length.take(at)
        at = at[inside.take(at)]
        starts[at] = True
    return starts


def _viterbi_lengths(
    spread: Ints, matches_by_length: list[Matches], table: WordTable, places: Ints, begins: Ints
) -> Ints:
    """Return the length of the first word of the best segmentation from each position on.

    The score of the best segmentation from time t on is best(t) = max over l of score(t, l) + best(t + l).
    The lowest bits of a score contain l, so that of equal scores the longer word wins. Pieces are the columns
    of a table, sorted by length, and times are its rows; a time step processes the first columns, which are
    the pieces that are long enough.

    Args:
        spread: (N,) characters with ends of videos.
        matches_by_length: matches of the words, one entry per length.
        table: the words with their scores.
        places: (P,) positions in pieces.
        begins: index in ``places`` at which each piece begins.

    Returns:
        (P,) lengths.
    """
    longest, counts = table.trie.longest, np.diff(np.append(begins, len(places)))
    if len(counts) == 0:
        return counts
    bits = longest.bit_length()
    order = np.argsort(-counts, kind="stable")
    active = np.searchsorted(-counts[order], -np.arange(counts[order[0]]), side="left")
    offset = np.cumsum(active) - active
    column = np.empty(len(counts), dtype=np.int64)
    column[order] = np.arange(len(counts))
    time = np.arange(len(places)) - np.repeat(begins, counts)
    width, slot = active[time], offset[time]
    total = np.full(longest * len(places), IMPOSSIBLE, dtype=np.int64)
    slot_of_place = np.empty(len(spread), dtype=np.int64)
    width_of_place = np.empty(len(spread), dtype=np.int64)
    column_N = np.repeat(column, counts)
    slot_of_place[places], width_of_place[places] = longest * slot + column_N, width
    worth = table.units << bits
    total[slot_of_place[places]] = worth[spread[places]] + 1
    for matches in matches_by_length:
        target = slot_of_place[matches.places] + (matches.length - 1) * width_of_place[matches.places]
        total[target] = worth[table.alphabet + matches.words] + matches.length
    length = _best_lengths(total, active.tolist(), longest, bits)
    return length[slot + column_N]


def _best_lengths(total: Ints, active: list[int], longest: int, bits: int) -> Ints:
    """Return the length in the lowest bits of the best score of each slot, by recursion from the end."""
    low = (1 << bits) - 1
    length = np.empty(len(total) // longest, dtype=np.int64)
    # The table is stored twice, so that the scores of the next ``longest`` times are always consecutive rows.
    best_RB = np.zeros((2 * longest, active[0]), dtype=np.int64)
    end = len(length)
    for t in range(len(active) - 1, -1, -1):
        columns, row, after = active[t], t % longest, (t + 1) % longest
        begin = end - columns
        total_LB = total[longest * begin : longest * end].reshape(longest, columns)
        total_LB += best_RB[after : after + longest, :columns]
        best_B = total_LB.max(axis=0)
        np.bitwise_and(best_B, low, out=length[begin:end])
        best_B &= ~low
        best_RB[row, :columns] = best_RB[row + longest, :columns] = best_B
        end = begin
    return length
