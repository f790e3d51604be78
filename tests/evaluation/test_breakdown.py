"""Breakdowns: edit distance against its definition, every sentence in one group, known faults found."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from signllm.evaluation.breakdown import (
    Sentence,
    breakdowns,
    by_frequency,
    edit_distance,
    word_error_rate,
)
from signllm.evaluation.scores import ScoreConfig


def sentences(count: int = 40) -> list[Sentence]:
    """Sentences that lose more words the longer the video is, and all of those of signer B."""
    drawn = random.Random(3)
    made = []
    for place in range(count):
        words = [f"w{drawn.randrange(30)}" for _ in range(4 + place % 9)]
        kept = words[:4] if place % 4 else []
        made.append(
            Sentence(
                hypothesis=" ".join(kept) or "x",
                reference=" ".join(words),
                characters=3 * len(words),
                words=len(words),
                signer="A" if place % 4 else "B",
            )
        )
    return made


def plain_distance(left: str, right: str) -> int:
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


def test_edit_distance_is_that_of_the_definition() -> None:
    drawn = random.Random(0)
    for _ in range(100):
        left, right = ("".join(drawn.choices("abc", k=drawn.randint(0, 8))) for _ in range(2))
        assert edit_distance(left, right) == plain_distance(left, right) == edit_distance(right, left)
    assert word_error_rate([("a b".split(), "a c d".split()), ([], ["e"])]) == pytest.approx(100 * 3 / 4)


def test_every_sentence_is_in_one_group_and_the_fault_shows() -> None:
    made = sentences()
    found = breakdowns(made, ScoreConfig())
    assert list(found) == ["characters", "sign_words", "reference_words", "signer"]
    for groups in found.values():
        assert sum(group["samples"] for group in groups) == len(made)
    ranges = [tuple(map(int, group["group"].split(" to "))) for group in found["characters"]]
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(ranges))
    lengths = [group["wer"] for group in found["sign_words"]]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    signers = {group["group"]: group for group in found["signer"]}
    assert signers["B"]["wer"] == 100.0 > signers["A"]["wer"]
    assert signers["B"]["bleu4"] == 0.0 < signers["A"]["bleu4"]


def test_one_signer_or_one_length_is_no_breakdown() -> None:
    alike = [Sentence(hypothesis="a", reference="b", characters=5, words=2, signer="") for _ in range(9)]
    assert breakdowns(alike, ScoreConfig()) == {}


def test_words_by_their_count_in_training() -> None:
    pair = Sentence(hypothesis="der wind", reference="der der sturm wind", characters=1, words=1)
    groups = by_frequency([pair], ScoreConfig(), {"der": 500, "wind": 4})
    assert groups == [
        {"group": "0", "words": 1, "missed": 100.0},  # sturm
        {"group": "1 to 4", "words": 1, "missed": 0.0},  # wind
        {"group": "100 and more", "words": 2, "missed": 50.0},  # der, one of two
    ]
