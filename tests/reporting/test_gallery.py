"""The gallery of words with frames, and the usage of the codes."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.cra.word_codebook import WordCodebook
from signllm.reporting.video_frames import VideoFrames
from signllm.reporting.vocabulary import (
    Vocabulary,
    describe_usage,
    measure_usage,
    videos_of_gallery,
    word_charts,
)

WORDS = Vocabulary(
    codebook=WordCodebook(
        codes=4,
        words=((0, 1), (2, 3)),
        frequencies=(1,) * 7,
        alpha=None,
        codebook="x",
        segmentation="longest",
    )
)
SEQUENCES = [[0, 1, 2], [2, 3, 0, 1], [0, 1]]
FRAMES = VideoFrames(frames=np.zeros((40, 16, 16, 3), np.uint8))


def test_occurrences_of_words_with_the_most_used_first() -> None:
    uses = WORDS.find_uses(SEQUENCES)
    assert {
        word: [(video, span.start, span.stop) for video, span in places] for word, places in uses.items()
    } == {
        5: [(0, 0, 2), (1, 2, 4), (2, 0, 2)],
        6: [(1, 0, 2)],
    }
    assert list(uses) == [5, 6]
    assert videos_of_gallery(uses) == [0, 1]  # two videos of each word


def test_the_gallery_shows_frames_if_there_are_videos() -> None:
    uses = WORDS.find_uses(SEQUENCES)
    pictured = WORDS.gallery(uses, {0: FRAMES, 1: FRAMES})
    assert [len(word.clips) for word in pictured] == [2, 1]
    assert pictured[0].clips[0].description == "frames 0 to 16 of a video, encoded as word 5"
    assert pictured[0].clips[0].address.startswith("data:image/jpeg;base64,")
    plain = WORDS.gallery(uses, {})
    assert [(word.word, word.spelling, word.count, word.clips) for word in plain] == [
        (5, [0, 1], 3, []),
        (6, [2, 3], 1, []),
    ]
    assert WORDS.gallery({}, {}) == []


def test_usage_of_the_codes_by_hand() -> None:
    assert measure_usage([[0, 0, 1, 1]]) == (2, pytest.approx(2.0))
    usage = describe_usage([[0, 0, 1, 1]], 4, "the split dev")
    assert usage
    assert "2 of 4 codes are used in the split dev, 2 are not" in usage.sentence
    assert "perplexity is 2.0" in usage.sentence
    assert "perplexity 2<" in usage.chart.picture
    assert describe_usage([], 4, "dev") is None


@pytest.mark.parametrize(
    ("choose_by", "decided"),
    [("marginal_utility", "Marginal utility"), ("description_length", "Description length")],
)
def test_the_deciding_curve_is_named(choose_by: str, decided: str) -> None:
    curve = tuple(
        {
            "size": size,
            "entropy": 1.0 / size,
            "marginal_utility": 1.0,
            "description_length": float(size),
            "chosen": size == 4,
        }
        for size in (2, 4, 6)
    )
    settings = {"words": {"size": None, "transport": {"choose_by": choose_by}}}
    codebook = WordCodebook(
        codes=2, words=(), frequencies=(1,) * 3, alpha=None, codebook="x", curve=curve, config=settings
    )
    deciding = [chart for chart in word_charts(codebook) if "this curve decided" in " ".join(chart.notes)]
    assert [chart.title for chart in deciding] == [decided]
