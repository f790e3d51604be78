"""Counts equal those counted by hand, and the reservoir keeps real occurrences from different videos."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from signllm.cra.word_codebook import WordCodebook
from signllm.experiments import codebook_usage
from signllm.experiments.codebook_usage import Usage, count_usage, usage_record
from signllm.reporting.timeline import build_spans

CODES = 7
WORDS = ((1, 2), (2, 3, 1), (4, CODES), (0, 0 + 5))


def make_words() -> WordCodebook:
    return WordCodebook(
        codes=CODES, words=WORDS, frequencies=(1,) * (CODES + 1 + len(WORDS)), alpha=2.0, codebook="c"
    )


def random_sequences(videos: int, *, seed: int = 0) -> list[np.ndarray]:
    """Random videos of 0 to 40 characters, with runs; code 6 never occurs."""
    rng = np.random.default_rng(seed)
    return [
        np.repeat(rng.integers(0, CODES - 1, n), rng.integers(1, 5, n))[:40].astype(np.int64)
        for n in rng.integers(0, 30, videos)
    ]


def word_spans(words: WordCodebook, sequence: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the word id, start and stop of every word of a video."""
    segmentation = words.segment(torch.from_numpy(sequence), torch.tensor([len(sequence)]))
    ids = segmentation.words.tolist()
    spans = build_spans(range(len(ids)), segmentation.slot.tolist())
    return [(ids[span.word], span.start, span.stop) for span in spans]


@pytest.fixture(params=[1 << 19, 50], ids=["one chunk", "many chunks"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Usage:
    monkeypatch.setattr(codebook_usage, "CHUNK_CHARACTERS", request.param)
    return count_usage(make_words(), random_sequences(60), examples=3)


def test_counts_equal_those_of_one_video_at_a_time(counted: Usage) -> None:
    words, sequences = make_words(), random_sequences(60)
    characters = Counter(int(c) for sequence in sequences for c in sequence)
    assert counted.characters.tolist() == [characters[c] for c in range(CODES)]
    word_counts: Counter[int] = Counter()
    covered = 0
    for sequence in sequences:
        segmentation = words.segment(torch.from_numpy(sequence), torch.tensor([len(sequence)]))
        word_counts.update(segmentation.words.tolist())
        covered += sum(stop - start for word, start, stop in word_spans(words, sequence) if word > CODES)
    assert counted.word_counts.tolist() == [word_counts[word] for word in range(words.size)]
    assert 0 < counted.covered == covered < counted.total
    total = sum(characters.values())
    entropy = -sum(n / total * math.log(n / total) for n in characters.values())
    assert counted.perplexity == pytest.approx(math.exp(entropy))


def test_the_record_names_dead_codes_and_spells_words(counted: Usage) -> None:
    record = usage_record(counted, top=2)
    assert record["characters"]["dead"] == [CODES - 1]
    assert (record["characters"]["codes_used"], record["characters"]["dead_codes"]) == (CODES - 1, 1)
    assert record["words"]["covered"] == counted.covered / counted.total
    counts = [item["count"] for item in record["most_used_characters"]]
    assert counts == sorted(counted.characters.tolist(), reverse=True)[:2]
    longest = record["longest_words"][0]
    assert (longest["spelling"], longest["length"]) == ("2 3 1", 3)
    assert "4 s₀" in [item["spelling"] for item in usage_record(counted, top=9)["most_used_words"]]


def test_examples_are_occurrences_in_different_videos(counted: Usage) -> None:
    words, sequences = make_words(), random_sequences(60)
    videos_with: dict[int, set[int]] = {}
    occurrences = set()
    for video, sequence in enumerate(sequences):
        places = [(int(c), place, place + 1) for place, c in enumerate(sequence)]
        for id, start, stop in places + [span for span in word_spans(words, sequence) if span[0] > CODES]:
            occurrences.add((video, id, start, stop))
            videos_with.setdefault(id, set()).add(video)
    assert counted.examples.keys() == videos_with.keys()
    for word, examples in counted.examples.items():
        assert len(examples) == min(3, len(videos_with[word]))
        assert len({example.video for example in examples}) == len(examples)
        assert all((ex.video, word, ex.start, ex.stop) in occurrences for ex in examples)


def test_every_video_has_the_same_chance() -> None:
    words, same = make_words(), [np.array([5], np.int64)] * 8
    drawn = Counter(
        example.video
        for seed in range(300)
        for example in count_usage(words, same, examples=2, seed=seed).examples[5]
    )
    assert set(drawn) == set(range(8))
    assert all(45 < count < 110 for count in drawn.values())  # 75 expected, deviation 7.5


def test_no_videos() -> None:
    usage = count_usage(make_words(), [])
    assert (usage.total, usage.perplexity, usage.examples) == (0, 0.0, {})
    assert usage_record(usage, top=3)["most_used_characters"] == []
