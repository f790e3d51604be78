"""The words of a run with frames, and the use of its codes."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.cra.word_codebook import WordCodebook
from signllm.evaluation.report.video_frames import VideoFrames
from signllm.evaluation.report.vocabulary import Vocabulary, pictured, usage, usage_chart, word_charts

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
FILM = VideoFrames(frames=np.zeros((40, 16, 16, 3), np.uint8))


def test_words_are_counted_where_they_are_the_most_used_first() -> None:
    uses = WORDS.uses(SEQUENCES)
    assert {
        word: [(video, span.start, span.stop) for video, span in places] for word, places in uses.items()
    } == {
        5: [(0, 0, 2), (1, 2, 4), (2, 0, 2)],
        6: [(1, 0, 2)],
    }
    assert list(uses) == [5, 6]
    assert pictured(uses) == [0, 1]  # two videos of each word


def test_the_gallery_shows_frames_where_there_are_videos() -> None:
    uses = WORDS.uses(SEQUENCES)
    drawn = str(WORDS.gallery(uses, {0: FILM, 1: FILM}))
    assert drawn.count("<img") == 3
    assert 'alt="frames 0 to 16 of a video, read as word 5"' in drawn
    plain = str(WORDS.gallery(uses, {}))
    assert "<img" not in plain
    assert "w5" in plain
    assert WORDS.gallery({}, {}) is None


def test_use_of_the_codes_by_hand() -> None:
    assert usage([[0, 0, 1, 1]]) == (2, pytest.approx(2.0))
    told = str(usage_chart([[0, 0, 1, 1]], 4, "the split dev"))
    assert "2 of 4 codes are used in the split dev, 2 are not; perplexity 2.0" in told
    assert usage_chart([], 4, "dev") is None


@pytest.mark.parametrize(
    ("choose_by", "decided"),
    [("marginal_utility", "Marginal utility"), ("description_length", "Description length")],
)
def test_the_curve_that_decided_says_so(choose_by: str, decided: str) -> None:
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
    figures = str(word_charts(codebook)).split("<figure")
    assert [decided in one for one in figures if "this one decided" in one] == [True]
