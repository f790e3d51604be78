"""Segmentation: examples by hand, Viterbi against all segmentations, and complete coverage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.cra.segmentation import Method, WordTable, count_occurrences, count_words, segment

ALPHABET = 4
WORDS = ((0, 1), (1, 2), (0, 1, 2), (2, 2), (3, 0, 1, 2), (2, 3))
MERGES = (((0,), (1,)), ((1,), (2,)), ((0, 1), (2,)), ((2,), (2,)), ((3,), (0, 1, 2)), ((2,), (3,)))
METHODS = st.sampled_from(["viterbi", "longest", "bpe"])
SEQUENCES = st.lists(st.lists(st.integers(0, ALPHABET - 1), max_size=11), min_size=1, max_size=6)
FREQUENCIES = st.lists(st.integers(0, 50), min_size=ALPHABET + len(WORDS), max_size=ALPHABET + len(WORDS))


def packed(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c for s in sequences for c in s], dtype=np.int64), np.array(
        [len(s) for s in sequences], dtype=np.int64
    )


def table(frequencies: list[int] | None = None) -> WordTable:
    return WordTable(WORDS, ALPHABET, np.array(frequencies or [1] * (ALPHABET + len(WORDS))), MERGES)


def split(sequences: list[list[int]], words: WordTable, method: Method) -> list[list[int]]:
    characters, counts = packed(sequences)
    starts, result = segment(characters, counts, words, method=method)
    assert np.array_equal(starts == 1, result >= 0)
    return [part[part >= 0].tolist() for part in np.split(result, np.cumsum(counts)[:-1])]


def spell(words: list[int]) -> list[int]:
    return [c for word in words for c in ([word] if word < ALPHABET else WORDS[word - ALPHABET])]


def every_split(sequence: list[int]) -> list[list[int]]:
    if not sequence:
        return [[]]
    ids = {(c,): c for c in range(ALPHABET)} | {word: ALPHABET + k for k, word in enumerate(WORDS)}
    return [
        [ids[head], *rest]
        for length in range(1, len(sequence) + 1)
        if (head := tuple(sequence[:length])) in ids
        for rest in every_split(sequence[length:])
    ]


def test_longest_match_goes_from_left_to_right() -> None:
    assert split([[0, 1, 2, 2, 3], [3, 0, 1], []], table(), "longest") == [[6, 9], [3, 4], []]


def test_viterbi_prefers_frequent_words() -> None:
    frequent = [10, 10, 10, 10, 500, 1, 1, 500, 1, 1]  # 0 1 and 2 2
    assert split([[0, 1, 2, 2]], table(frequent), "viterbi") == [[4, 7]]
    assert split([[0, 1, 2, 2]], table(frequent), "longest") == [[6, 2]]


def test_equally_probable_splits_begin_with_the_longer_word() -> None:
    words = WordTable(((0, 1), (1, 2)), 3, np.zeros(5))
    assert segment(*packed([[0, 1, 2]]), words)[1].tolist() == [3, -1, 2]


@settings(max_examples=150, deadline=None)
@given(SEQUENCES, FREQUENCIES)
def test_viterbi_finds_the_most_probable_of_all_splits(
    sequences: list[list[int]], frequencies: list[int]
) -> None:
    words = table(frequencies)
    for sequence, result in zip(sequences, split(sequences, words, "viterbi"), strict=True):
        best = max(sum(words.score[w] for w in candidate) for candidate in every_split(sequence))
        assert sum(words.score[w] for w in result) == pytest.approx(best, abs=1e-9)


def segment_by_definition(sequence: list[int], words: WordTable) -> list[int]:
    """Return the best segmentation by plain recursion in integers; of equal scores, the longer word."""
    ids = {(c,): c for c in range(ALPHABET)} | {word: ALPHABET + k for k, word in enumerate(WORDS)}
    best: list[tuple[int, list[int]]] = [(0, [])]
    for begin in range(len(sequence) - 1, -1, -1):
        rest = [
            (int(words.units[ids[head]]) + best[-length][0], length, [ids[head], *best[-length][1]])
            for length in range(1, len(sequence) - begin + 1)
            if (head := tuple(sequence[begin : begin + length])) in ids
        ]
        worth, _, split_there = max(rest)
        best.append((worth, split_there))
    return best[-1][1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, ALPHABET - 1), max_size=60), min_size=1, max_size=8),
    st.one_of(FREQUENCIES, FREQUENCIES.map(lambda result: [3 * (f % 2) for f in result])),
)
def test_viterbi_is_the_plain_recursion_ties_included(
    sequences: list[list[int]], frequencies: list[int]
) -> None:
    words = table(frequencies)
    assert split(sequences, words, "viterbi") == [segment_by_definition(s, words) for s in sequences]


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, FREQUENCIES, METHODS)
def test_no_character_is_lost_and_a_batch_is_its_videos(
    sequences: list[list[int]], frequencies: list[int], method: Method
) -> None:
    words = table(frequencies)
    result = split(sequences, words, method)
    assert [spell(w) for w in result] == sequences
    assert result == [split([s], words, method)[0] for s in sequences]


@given(SEQUENCES, METHODS)
def test_chunks_do_not_show(sequences: list[list[int]], method: Method) -> None:
    expected = split(sequences, table(), method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", 8)
        assert split(sequences, table(), method) == expected


@given(SEQUENCES, METHODS)
def test_word_counts_equal_the_segmentation(sequences: list[list[int]], method: Method) -> None:
    """Narrow integer types and chunks have no effect."""
    result = split(sequences, table(), method)
    expected = [sum(words.count(w) for words in result) for w in range(ALPHABET + len(WORDS))]
    characters, counts = packed(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", 8)
        assert count_words(characters.astype(np.uint8), counts, table(), method=method).tolist() == expected


@given(SEQUENCES)
def test_occurrences_are_counted_with_overlaps(sequences: list[list[int]]) -> None:
    expected = [
        sum(s[k : k + len(w)] == list(w) for s in sequences for k in range(len(s)))
        for w in [(c,) for c in range(ALPHABET)] + list(WORDS)
    ]
    assert count_occurrences(*packed(sequences), WORDS, ALPHABET).tolist() == expected


def test_without_words_every_character_stands_alone() -> None:
    words = WordTable((), 3, np.ones(3))
    for method in ("viterbi", "longest", "bpe"):
        assert segment(*packed([[2, 0, 1]]), words, method=method)[1].tolist() == [2, 0, 1]


def test_sequences_longer_than_any_chunk_are_handled() -> None:
    rng = np.random.default_rng(1)
    sequence = rng.integers(0, ALPHABET, 5000).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", 100)
        (result,) = split([sequence], table(), "viterbi")
    assert spell(result) == sequence
    assert any(a >= ALPHABET and b >= ALPHABET for a, b in pairwise(result))
