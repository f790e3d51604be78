"""Breakdowns: the edit distance equals its definition, and known weaknesses of a model show in the groups."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from signllm.metrics.breakdown import (
    Sentence,
    compute_breakdowns,
    count_missed_words_by_frequency,
    edit_distance,
    word_error_rate,
)
from signllm.metrics.scores import ScoreConfig


def make_sentences(count: int = 40) -> list[Sentence]:
    """Return sentences that miss more words in longer videos, and all words of signer B."""
    rng = random.Random(3)
    sentences = []
    for place in range(count):
        words = [f"w{rng.randrange(30)}" for _ in range(4 + place % 9)]
        kept = words[:4] if place % 4 else []
        sentences.append(
            Sentence(
                hypothesis=" ".join(kept) or "x",
                reference=" ".join(words),
                characters=3 * len(words),
                words=len(words),
                signer="A" if place % 4 else "B",
            )
        )
    return sentences


def recursive_distance(left: str, right: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (left[i - 1] != right[j - 1]),
        )

    return distance(len(left), len(right))


def test_edit_distance_equals_its_recursive_definition() -> None:
    rng = random.Random(0)
    for _ in range(100):
        left, right = ("".join(rng.choices("abc", k=rng.randint(0, 8))) for _ in range(2))
        assert edit_distance(left, right) == recursive_distance(left, right) == edit_distance(right, left)
    assert word_error_rate([("a b".split(), "a c d".split()), ([], ["e"])]) == pytest.approx(100 * 3 / 4)


def test_every_sentence_is_in_one_group_and_weaknesses_show() -> None:
    sentences = make_sentences()
    breakdowns = compute_breakdowns(sentences, ScoreConfig())
    assert list(breakdowns) == ["characters", "sign_words", "reference_words", "signer"]
    for groups in breakdowns.values():
        assert sum(group["samples"] for group in groups) == len(sentences)
    ranges = [tuple(map(int, group["group"].split(" to "))) for group in breakdowns["characters"]]
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(ranges))
    lengths = [group["wer"] for group in breakdowns["sign_words"]]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    signers = {group["group"]: group for group in breakdowns["signer"]}
    assert signers["B"]["wer"] == 100.0 > signers["A"]["wer"]
    assert signers["B"]["bleu4"] == 0.0 < signers["A"]["bleu4"]


def test_a_single_group_is_no_breakdown() -> None:
    equal = [Sentence(hypothesis="a", reference="b", characters=5, words=2, signer="") for _ in range(9)]
    assert compute_breakdowns(equal, ScoreConfig()) == {}


def test_missed_words_by_their_count_in_training() -> None:
    pair = Sentence(hypothesis="der wind", reference="der der sturm wind", characters=1, words=1)
    groups = count_missed_words_by_frequency([pair], ScoreConfig(), {"der": 500, "wind": 4})
    assert groups == [
        {"group": "0", "words": 1, "missed": 100.0},  # sturm
        {"group": "1 to 4", "words": 1, "missed": 0.0},  # wind
        {"group": "100 and more", "words": 2, "missed": 50.0},  # der, one of two
    ]
