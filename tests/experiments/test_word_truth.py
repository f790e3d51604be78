"""Scores of words against the truth: worked out by hand, and exact where words are the signs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from signllm.cra.word_codebook import Segmentation
from signllm.demo.language import LEVELS, first_units, glosses, lexicon
from signllm.demo.studio import _sign_starts, read_truth
from signllm.errors import UsageError
from signllm.experiments.information import mutual_information
from signllm.experiments.word_truth import (
    REST,
    MomentTruth,
    count_hits,
    entropy,
    moment_truth,
    score_characters,
    score_words,
)

CODES = 10


def segmentation(words: list[int], slot: list[int]) -> Segmentation:
    empty = torch.zeros(0)
    return Segmentation(torch.tensor(words), empty, torch.tensor(slot), empty, empty, empty)


def truth_of(signs: list[list[int]]) -> MomentTruth:
    """One list of signs per video, a sign per moment; equal neighbours are one sign."""
    places = [np.cumsum(np.diff(video, prepend=video[0]) != 0) for video in map(np.array, signs)]
    packed = np.concatenate([np.array(video) for video in signs])
    place = np.where(packed == REST, REST, np.concatenate(places))
    return MomentTruth(np.array([len(video) for video in signs]), packed, packed, place)


TWO = truth_of([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, REST, REST]])


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_unit_of_every_sign_is_found(level: str) -> None:
    signs = glosses()[:3]
    made = [unit for sign in signs for unit in lexicon(level)[sign]]
    assert first_units(signs, made) == (0, 2, 5)
    with pytest.raises(UsageError, match="not made of the units"):
        first_units(signs, made[1:])


def test_signs_begin_where_the_lexicon_says_in_new_and_older_files(filmed: Path) -> None:
    for record in read_truth(filmed):
        begun = record.pop("sign_starts")
        assert begun[0] == record["starts"][0]
        assert len(begun) == len(record["signs"])
        assert set(begun) <= set(record["starts"])
        assert _sign_starts(record) == begun


def test_a_moment_shows_what_the_frame_in_question_shows() -> None:
    first, second = glosses()[0], glosses()[3]
    record = {
        "id": "video",
        "signs": [first, second],
        "units": [4, 7, 5],
        "starts": [7, 11, 15],
        "ends": [11, 15, 23],
        "sign_starts": [7, 15],
    }
    truth = moment_truth([record, record], [5, 2])
    # Frames 6, 10, 14, 18, 22 and, of the second, 6 and 10.
    assert truth.units.tolist() == [REST, 4, 7, 5, 5, REST, 4]
    assert truth.signs.tolist() == [REST, 0, 0, 3, 3, REST, 0]
    assert truth.places.tolist() == [REST, 0, 0, 1, 1, REST, 0]
    assert moment_truth([record], [4], frame=12).signs.tolist() == [0, 3, 3, REST]
    with pytest.raises(UsageError, match="characters for signs that end at frame 23"):
        moment_truth([record], [7])


def test_words_that_are_the_signs_score_one() -> None:
    exact = segmentation([20, 21, 21], [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2])
    scores = score_words(exact, truth_of([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1]]), codes=CODES)
    for name in ("boundary_f1_0", "boundary_f1_1", "word_f1_0", "word_f1_1", "coverage", "named"):
        assert scores[name] == 1, name
    assert scores["word_sign_nmi_raw"] == pytest.approx(1)
    assert scores["words_per_video"] == 1.5


def test_a_boundary_one_moment_off_counts_at_tolerance_one_only() -> None:
    segments = segmentation([20, 21, 21, 5], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3])
    scores = score_words(segments, TWO, codes=CODES)
    assert (scores["boundary_precision_0"], scores["boundary_recall_0"]) == (0, 0)
    assert (scores["boundary_precision_1"], scores["boundary_recall_1"]) == (1, 1)
    # Three signs; of four words three cover one, the last covers rest.
    assert (scores["word_precision_1"], scores["word_recall_1"]) == (3 / 4, 1)
    assert scores["word_f1_0"] == 0
    assert scores["coverage"] == 13 / 14


def test_a_word_of_s0_alone_covers_no_moment_but_is_a_word() -> None:
    with_s0 = segmentation([20, CODES, 21, 21, 5], [0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4])
    without = segmentation([20, 21, 21, 5], [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    one, other = (score_words(segments, TWO, codes=CODES) for segments in (with_s0, without))
    assert one["boundary_f1_0"] == other["boundary_f1_0"] == 1
    assert (one["word_precision_0"], other["word_precision_0"]) == (3 / 5, 3 / 4)
    assert one["word_sign_nmi_raw"] == other["word_sign_nmi_raw"]


def test_signs_are_named_from_the_other_half_of_the_videos() -> None:
    truth = truth_of([[0, 0, 1], [0, 1, 1]])
    segments = segmentation([20, 3, 20, 4], [0, 0, 1, 2, 3, 3])
    # 20 was 0; 4 was not seen before.
    assert score_words(segments, truth, codes=CODES)["named"] == 1 / 3


@pytest.mark.parametrize(
    ("detected", "true", "tolerance", "hits"),
    [
        ([], [3], 1, 0),
        ([3], [3], 0, 1),
        ([2, 4], [3], 1, 1),
        ([2, 3, 4], [3, 4], 1, 2),
        ([2, 6], [3, 4, 5], 1, 2),
        ([2, 6], [3, 4, 5], 0, 0),
    ],
)
def test_hits_are_one_to_one(detected: list[int], true: list[int], tolerance: int, hits: int) -> None:
    assert count_hits(np.array(detected), np.array(true), tolerance) == hits


def test_information_in_closed_form() -> None:
    one = np.array([0, 0, 1, 1])
    assert entropy(one) == pytest.approx(np.log(2))
    assert mutual_information(one, one) == pytest.approx(np.log(2))
    assert mutual_information(one, np.array([0, 1, 0, 1])) == pytest.approx(0)


def test_chance_is_taken_out_of_many_labels() -> None:
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 5, 400)
    truth = MomentTruth(np.array([400]), signs, signs, np.arange(400))
    scores = score_characters(rng.integers(0, 100, 400), truth)
    assert scores["character_unit_nmi_raw"] > 0.1
    assert abs(scores["character_unit_nmi"]) < 0.05
    assert score_characters(signs, truth)["character_unit_nmi"] == pytest.approx(1)
