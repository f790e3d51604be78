"""Byte-pair candidates: solved by hand, within limits, independent of the order of videos."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.cra import candidates
from signllm.cra.candidates import learn_merges


def packed(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c for s in sequences for c in s], dtype=np.int64), np.array(
        [len(s) for s in sequences], dtype=np.int64
    )


def learn_candidates(
    characters: np.ndarray, counts: np.ndarray, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[tuple[int, ...], ...]:
    merges = learn_merges(characters, counts, limit=limit, longest=longest, min_frequency=min_frequency)
    return tuple(dict.fromkeys(left + right for left, right in merges))


def test_merges_come_most_frequent_first() -> None:
    """The pair 5 6 occurs five times, then (5 6) 7 three times; 8 9 twice; no other pair twice."""
    sequences = [[5, 6, 7, 8, 9], [5, 6, 7], [1, 5, 6, 7, 3], [5, 6, 2], [4, 5, 6, 0, 8, 9]]
    result = learn_candidates(*packed(sequences), limit=10, longest=4)
    assert result == ((5, 6), (5, 6, 7), (8, 9))


def test_a_word_may_be_as_long_as_the_limit_and_no_longer() -> None:
    sequence = [1, 2, 3, 4]
    assert (1, 2, 3, 4) in learn_candidates(*packed([sequence] * 5), limit=9, longest=4)
    assert max(map(len, learn_candidates(*packed([sequence] * 5), limit=9, longest=3))) <= 3


def test_no_merge_crosses_videos() -> None:
    assert learn_candidates(*packed([[1], [2]] * 10), limit=10, longest=4) == ()


def test_limits_are_kept() -> None:
    rng = np.random.default_rng(0)
    characters, counts = rng.integers(0, 300, 30_000), np.full(1000, 30)
    everything = learn_candidates(characters, counts, limit=10_000, longest=3)
    assert {len(word) for word in everything} == {2, 3}
    assert len(set(everything)) == len(everything)
    assert learn_candidates(characters, counts, limit=7, longest=3) == everything[:7]
    assert len(learn_candidates(characters, counts, limit=10_000, longest=3, min_frequency=4)) < len(
        everything
    )
    assert learn_candidates(characters, counts, limit=0, longest=3) == ()
    assert learn_candidates(characters[:0], counts[:0], limit=9, longest=3) == ()


def test_characters_of_a_large_codebook_survive() -> None:
    """Ids on either side of the 16-bit surrogates, which would not be valid code points by themselves."""
    sequence = [0xD7FF, 0xD800, 0xDFFF, 65_535]
    assert learn_candidates(*packed([sequence] * 5), limit=9, longest=4)[-1] == tuple(sequence)


@pytest.mark.parametrize("seed", range(6))
def test_cutting_at_seldom_met_neighbours_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial F does not matter: with F = 1 no sequence is cut, and the merges are equal."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 60, 80)
    characters = np.minimum(rng.geometric(0.2, counts.sum()), 20)
    expected = {"limit": 150, "longest": 5, "min_frequency": 1}
    cut = candidates.learn_merges(characters, counts, **expected)
    monkeypatch.setattr(candidates, "_frequency_of_rank", lambda pairs, pair_counts: 0)
    assert candidates.learn_merges(characters, counts, **expected) == cut


@pytest.mark.parametrize("seed", range(4))
def test_shared_counters_chunks_and_narrow_integers_change_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last chunk has videos, but no characters."""
    rng = np.random.default_rng(seed)
    counts = np.append(rng.integers(0, 60, 80), [150, 0, 0])
    characters = np.minimum(rng.geometric(0.2, counts.sum()), 20)
    expected = candidates.learn_merges(characters, counts, limit=60, longest=5)
    monkeypatch.setattr(candidates, "PAIR_COUNTERS", 97)
    monkeypatch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", 100)
    assert candidates.learn_merges(characters.astype(np.uint8), counts, limit=60, longest=5) == expected


def test_the_order_of_videos_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 12, rng.integers(1, 25)).tolist() for _ in range(300)]
    expected = learn_candidates(*packed(sequences), limit=200, longest=5)
    assert len(expected) > 100
    for _ in range(3):
        rng.shuffle(sequences)
        assert learn_candidates(*packed(sequences), limit=200, longest=5) == expected
