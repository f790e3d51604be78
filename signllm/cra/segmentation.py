"""Characters → words, deterministically and vectorised: most probable split, longest match, byte-pair order.

Viterbi: the split of a sequence into words that maximises Σ log P(word), words independent (unigram model
over the word frequencies of the corpus); ties go to the longer word. Longest: from left to right, the
longest word that fits. Byte-pair order: ``signllm.cra.byte_pair_merging``. Every single character is a word,
so nothing is ever lost.

No word crosses most places, and there every split parts: sequences fall into short pieces which are solved
by themselves, a step in time of all pieces of a chunk at once. Scores are whole numbers (2⁻²⁸ nats), whose
sums are exact: a video's words depend neither on its neighbours nor on where it was parted.
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
    """What splitting needs of the words.

    Args:
        words: spelt in characters below ``alphabet``; word i has the id ``alphabet + i``. Single characters
            are words.
        alphabet: number of characters, s₀ included.
        frequencies: (alphabet + len(words),) how often each word occurs in the corpus; one is added to
            each, so that a word never seen is still possible.
        merges: for the method "bpe": all that were learnt, those of dropped words too.
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
        """Log P of each word in nats, as Viterbi adds them up."""
        return self.units / UNITS_PER_NAT


def segment(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, *, method: Method = "viterbi"
) -> tuple[Ints, Ints]:
    """Split packed sequences without repeats into words.

    Args:
        characters: (sum R,) below ``table.alphabet``.
        counts: (B,) how many each video has.
        table: the words.
        method: "viterbi", "longest" or "bpe".

    Returns:
        (sum R,) bool as int64, 1 where a word starts; (sum R,) the word that starts there, −1 elsewhere.
    """
    words = np.concatenate([np.zeros(0, dtype=np.int64), *_segmented(characters, counts, table, method)])
    return (words >= 0).astype(np.int64), words


def count_words(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, *, method: Method = "viterbi"
) -> Ints:
    """Count each word where ``segment`` finds it: (alphabet + words,); arguments are those of ``segment``."""
    total = np.zeros(len(table.units), dtype=np.int64)
    for words in _segmented(characters, counts, table, method):
        total += np.bincount(words[words >= 0], minlength=len(total))
    return total


def count_occurrences(
    characters: NDArray[np.integer], counts: Ints, words: Sequence[tuple[int, ...]], alphabet: int
) -> Ints:
    """Count each character and each word, overlaps included: (alphabet + len(words),)."""
    trie, total = Trie(words, alphabet), np.zeros(alphabet + len(words), dtype=np.int64)
    for chunk, chunk_counts in video_chunks(characters, counts):
        spread, _ = _spread(chunk, chunk_counts, alphabet)
        total[:alphabet] += np.bincount(chunk, minlength=alphabet)
        for matches in trie.find(spread):
            total[alphabet:] += np.bincount(matches.words, minlength=len(words))
    return total


def _segmented(
    characters: NDArray[np.integer], counts: Ints, table: WordTable, method: Method
) -> Iterator[Ints]:
    """Yield the words of a chunk of whole videos after the other, as ``segment`` gives them."""
    for chunk, chunk_counts in video_chunks(characters, counts):
        spread, kept = _spread(chunk, chunk_counts, table.alphabet)
        yield _words(spread, table, method)[kept]


def _spread(characters: Ints, counts: Ints, end: int) -> tuple[Ints, Bools]:
    """Put ``end`` after each video; also return where the characters went."""
    kept = np.ones(len(characters) + len(counts), dtype=bool)
    kept[np.cumsum(counts + 1) - 1] = False
    spread = np.full(len(kept), end, dtype=np.int64)
    spread[kept] = characters
    return spread, kept


def _words(spread: Ints, table: WordTable, method: Method) -> Ints:
    """(N,) the word that starts at each place, −1 where none does; anything at the ends of videos."""
    trie, ids = (table.merging.trie, table.merging.ids) if method == "bpe" else (table.trie, table.alphabet)
    found = trie.find(spread)
    length = np.ones(len(spread), dtype=np.int64)
    for matches in found:
        length[matches.places] = matches.length
    parts = _parts(length)
    places, begins = _pieces(parts)
    if method == "viterbi":
        length[places] = _most_probable(spread, found, table, places, begins)
    elif method == "bpe":
        length[places] = table.merging.lengths(spread[places], begins)
    starts = _starts(parts, length)
    words = np.where(starts, spread, -1)
    for matches in found:
        is_taken = starts[matches.places] & (length[matches.places] == matches.length)
        taken = matches.words[is_taken]
        words[matches.places[is_taken]] = taken + ids if isinstance(ids, int) else ids[taken]
    return words


def _parts(longest: Ints) -> Bools:
    """(N,) whether no word that starts earlier reaches a place: every split parts there."""
    reach = np.arange(len(longest)) + longest
    np.maximum.accumulate(reach, out=reach)
    parts = np.ones(len(longest), dtype=bool)
    parts[1:] = reach[:-1] <= np.arange(1, len(longest))
    return parts


def _pieces(parts: Bools) -> tuple[Ints, Ints]:
    """Places that lie in pieces of two characters and more; where among them each piece begins."""
    is_alone = parts.copy()
    is_alone[:-1] &= parts[1:]
    places = (~is_alone).nonzero()[0]
    return places, parts[places].nonzero()[0]


def _starts(parts: Bools, length: Ints) -> Bools:
    """(N,) whether a word starts: at every part, and where the word before ends; all pieces at once."""
    starts, inside = parts.copy(), ~parts
    at = (parts[:-1] & inside[1:]).nonzero()[0]
    while len(at) > 0:
        at = at + length.take(at)
        at = at[inside.take(at)]
        starts[at] = True
    return starts


def _most_probable(spread: Ints, found: list[Matches], table: WordTable, places: Ints, begins: Ints) -> Ints:
    """(len(places),) length of the first word of the best split from each place to its piece's end.

    Time first, longest piece first: a step handles a leading part of the columns. The best from place t on
    is max over l of score(t, l) + best(t + l), l in the lowest bits of the score: of equals the longer word.
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
    for matches in found:
        target = slot_of_place[matches.places] + (matches.length - 1) * width_of_place[matches.places]
        total[target] = worth[table.alphabet + matches.words] + matches.length
    length = _best_lengths(total, active.tolist(), longest, bits)
    return length[slot + column_N]


def _best_lengths(total: Ints, active: list[int], longest: int, bits: int) -> Ints:
    """Return the low bits of the best at each slot, by recursion from the end."""
    low = (1 << bits) - 1
    length = np.empty(len(total) // longest, dtype=np.int64)
    # Twice over, so that the best of the next ``longest`` times are always rows in order.
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
