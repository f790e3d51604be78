"""Description length: by hand, its minimum, and its estimate from a sample of the videos."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.cra.frequencies import description_length, sample_of_videos, word_frequencies
from signllm.cra.packed_sequences import Packed
from signllm.cra.segmentation import Method, count_occurrences


def test_the_length_is_that_of_the_definition() -> None:
    """Two characters, one word (0, 1): 0 once, 1 three times, the word four times."""
    frequencies = np.array([1, 3, 4])
    text = -(np.log(1 / 8) + 3 * np.log(3 / 8) + 4 * np.log(4 / 8))
    parameters = 3 * 0.5 * np.log(8)
    letters = -np.log(5 / 12) - np.log(7 / 12)
    length = np.log(2)
    result = description_length(((0, 1),), frequencies)
    assert result == pytest.approx(text + parameters + letters + length)


def test_a_larger_corpus_has_the_same_words_to_write_down() -> None:
    frequencies, words = np.array([1, 3, 4]), ((0, 1),)
    one, ten = (description_length(words, k * frequencies) for k in (1, 10))
    assert description_length(words, frequencies, times=10) == pytest.approx(ten)
    assert ten < 10 * one


def test_without_words_it_is_the_entropy_of_the_characters_and_their_frequencies() -> None:
    frequencies = np.array([2, 0, 6])
    text = -(2 * np.log(2 / 8) + 6 * np.log(6 / 8))
    assert description_length((), frequencies) == pytest.approx(text + np.log(8))


def test_planted_words_are_shorter_than_none_than_parts_and_than_too_many() -> None:
    rng = np.random.default_rng(0)
    signs = [tuple(rng.permutation(40)[:4].tolist()) for _ in range(20)]
    message = [signs[k] for k in rng.integers(0, 20, 2000)]
    characters = np.array([c for sign in message for c in sign])
    halves = [half for sign in signs for half in (sign[:2], sign[2:])]
    pairs = [first[2:] + second[:2] for first in signs for second in signs]
    lengths = []
    for words in ((), tuple(dict.fromkeys(halves)), tuple(signs), tuple(dict.fromkeys(signs + pairs))):
        counts = np.array([len(characters)])
        occurrences = count_occurrences(characters, counts, words, 40)
        result = word_frequencies(Packed(characters, counts), words, occurrences, method="viterbi")
        lengths.append(description_length(words, result))
    assert lengths[2] == min(lengths)
    assert lengths[0] == max(lengths)


@pytest.mark.parametrize("method", ["viterbi", "longest"])
def test_frequencies_count_every_character_once(method: Method) -> None:
    rng = np.random.default_rng(1)
    characters, counts = rng.integers(0, 5, 600), np.full(20, 30)
    words = ((0, 1), (1, 2, 3), (4, 4))
    occurrences = count_occurrences(characters, counts, words, 5)
    result = word_frequencies(Packed(characters, counts), words, occurrences, method=method)
    assert result @ np.array([1, 1, 1, 1, 1, 2, 3, 2]) == 600
    assert (result <= occurrences).all()


def test_a_sample_has_complete_videos_and_is_equal_for_any_order() -> None:
    rng = np.random.default_rng(2)
    videos = [rng.integers(0, 9, length) for length in rng.integers(0, 40, 200)]

    def sampled(order: list[int]) -> tuple[list[tuple[int, ...]], float]:
        packed = np.concatenate([videos[k] for k in order])
        lengths = np.array([len(videos[k]) for k in order])
        (characters, counts), times = sample_of_videos(Packed(packed, lengths), 500)
        assert times == pytest.approx(len(packed) / len(characters))
        assert 500 <= len(characters) < 540
        parts = np.split(characters, np.cumsum(counts)[:-1])
        return sorted(tuple(part.tolist()) for part in parts), times

    one = sampled(list(range(200)))
    assert one == sampled(rng.permutation(200).tolist())
    assert all(any(tuple(video.tolist()) == part for video in videos) for part in one[0])
    (everything, counts), times = sample_of_videos(Packed(np.arange(10), np.array([4, 6])), 10)
    assert (everything.tolist(), counts.tolist(), times) == (list(range(10)), [4, 6], 1.0)
