"""Byte-pair order: solved by hand, as published if no word is dropped, and with dropped words."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from signllm.cra.byte_pair_merging import Merge, MergeTable
from signllm.cra.candidates import learn_merges, words_of_size
from signllm.cra.segmentation import WordTable, segment

ALPHABET = 4
AB, BC, ABC, CD = (0, 1), (1, 2), (0, 1, 2), (2, 3)
SEQUENCES = st.lists(st.lists(st.integers(0, ALPHABET - 1), max_size=15), min_size=1, max_size=6)


@st.composite
def merge_lists(draw: Any) -> tuple[Merge, ...]:
    pieces: list[tuple[int, ...]] = [(c,) for c in range(ALPHABET)]
    merges: list[Merge] = []
    for _ in range(draw(st.integers(0, 12))):
        merge = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        if merge not in merges and len(merge[0] + merge[1]) <= 8:
            merges.append(merge)
            pieces = list(dict.fromkeys([*pieces, merge[0] + merge[1]]))
    return tuple(merges)


def packed(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c for s in sequences for c in s], dtype=np.int64), np.array(
        [len(s) for s in sequences], dtype=np.int64
    )


def split(
    sequences: list[list[int]], merges: tuple[Merge, ...], words: list[tuple[int, ...]]
) -> list[list[tuple[int, ...]]]:
    table = WordTable(words, ALPHABET, np.zeros(ALPHABET + len(words)), merges)
    characters, counts = packed(sequences)
    _, result = segment(characters, counts, table, method="bpe")
    spelt = [(c,) for c in range(ALPHABET)] + words
    return [[spelt[w] for w in part if w >= 0] for part in np.split(result, np.cumsum(counts)[:-1])]


def made_by(merges: tuple[Merge, ...]) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(left + right for left, right in merges))


def segment_by_definition(
    sequence: list[int], merges: tuple[Merge, ...], kept: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Return the segmentation by the definition in the module's docstring, one pair at a time."""
    pieces = [(c,) for c in sequence]
    while possible := [m for m in merges if m in list(pairwise(pieces))]:
        joined, place = [], 0
        while place < len(pieces):
            if tuple(pieces[place : place + 2]) == possible[0]:
                joined.append(pieces[place] + pieces[place + 1])
                place += 2
            else:
                joined.append(pieces[place])
                place += 1
        pieces = joined

    def opened(piece: tuple[int, ...]) -> list[tuple[int, ...]]:
        if len(piece) == 1 or piece in kept:
            return [piece]
        left, right = next(m for m in merges if m[0] + m[1] == piece)
        return opened(left) + opened(right)

    return [part for piece in pieces for part in opened(piece)]


def test_the_earlier_merge_goes_first() -> None:
    assert split([[0, 1, 2, 3]], (((1,), (2,)), ((0,), (1,))), [BC, AB]) == [[(0,), BC, (3,)]]
    assert split([[0, 1, 2, 3]], (((0,), (1,)), ((1,), (2,))), [AB, BC]) == [[AB, (2,), (3,)]]


def test_merges_of_dropped_parts_are_applied_and_undone_at_the_end() -> None:
    merges = (((0,), (1,)), (AB, (2,)))
    assert split([[0, 1, 2, 0, 1, 3]], merges, [ABC]) == [[ABC, (0,), (1,), (3,)]]


def test_a_dropped_word_is_replaced_by_its_kept_parts() -> None:
    merges = (((0,), (1,)), ((2,), (3,)), (AB, CD))
    assert split([[0, 1, 2, 3]], merges, [CD]) == [[(0,), (1,), CD]]


def test_overlapping_pairs_join_from_the_left() -> None:
    assert split([[1] * 5], (((1,), (1,)),), [(1, 1)]) == [[(1, 1), (1, 1), (1,)]]


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, merge_lists(), st.data())
def test_it_is_what_one_pair_after_the_other_gives(
    sequences: list[list[int]], merges: tuple[Merge, ...], data: Any
) -> None:
    made = made_by(merges)
    kept = data.draw(st.lists(st.sampled_from(made), unique=True)) if made else []
    assert split(sequences, merges, kept) == [segment_by_definition(s, merges, kept) for s in sequences]


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, merge_lists())
def test_with_nothing_dropped_it_is_what_tokenizers_does(
    sequences: list[list[int]], merges: tuple[Merge, ...]
) -> None:
    assume(len(made_by(merges)) == len(merges))  # tokenizers goes pair by pair where two make one word

    def text(spelling: Any) -> str:
        return "".join("abcd"[c] for c in spelling)

    vocabulary = {text(w): k for k, w in enumerate([(c,) for c in range(ALPHABET)] + made_by(merges))}
    peer = Tokenizer(BPE(vocabulary, [(text(left), text(right)) for left, right in merges]))
    expected = [peer.encode(text(sequence)).tokens for sequence in sequences]
    assert [[text(w) for w in part] for part in split(sequences, merges, made_by(merges))] == expected


def test_learnt_merges_split_what_they_were_learnt_from() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.choice(ALPHABET, 40, p=[0.4, 0.3, 0.2, 0.1]).tolist() for _ in range(30)]
    merges = learn_merges(*packed(sequences), limit=60, longest=5)
    few = words_of_size(merges, 20)
    assert len(made_by(few)) == 20
    assert merges[: len(few)] == few
    assert made_by(learn_merges(*packed(sequences), limit=20, longest=5)) == made_by(few)
    kept = made_by(merges)[::2]
    assert split(sequences, merges, kept) == [segment_by_definition(s, merges, kept) for s in sequences]


def test_merges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no earlier merge makes"):
        MergeTable(((AB, (2,)),), [ABC], ALPHABET)
    with pytest.raises(ValueError, match="no merge makes"):
        MergeTable((((0,), (1,)),), [CD], ALPHABET)
    with pytest.raises(ValueError, match="needs the merges"):
        split([[0, 1]], (), [AB])
