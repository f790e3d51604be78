"""Collapsing runs: hand-made sequences, both scopes of the mean, and the laws of packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm.cra.repeats import (
    CollapsedSequences,
    collapse_corpus,
    collapse_repeats,
    mean_run_length,
    mean_run_lengths,
)

SLOW = 9
SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=5)


def packed(*sequences: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c for s in sequences for c in s], dtype=np.int64), np.array(
        [len(s) for s in sequences], dtype=np.int64
    )


def unpacked(collapsed: CollapsedSequences) -> list[list[int]]:
    return [part.tolist() for part in np.split(collapsed.characters, np.cumsum(collapsed.counts)[:-1])]


def test_a_run_keeps_one_character_and_a_long_one_adds_slowing_down() -> None:
    collapsed = collapse_repeats(*packed([1, 1, 1, 2, 2, 3], [3, 1]), slow_down=SLOW, alpha=2.0)
    assert unpacked(collapsed) == [[1, SLOW, 2, 3], [3, 1]]
    assert collapsed.place.tolist() == [0, 0, 0, 2, 2, 3, 4, 5]
    assert collapsed.run_lengths.tolist() == [3, 3, 3, 2, 2, 1, 1, 1]


def test_a_run_ends_with_its_video() -> None:
    assert unpacked(collapse_repeats(*packed([1, 1], [1]), slow_down=SLOW, alpha=5.0)) == [[1], [1]]


def test_the_mean_is_over_repeats_or_over_all_runs() -> None:
    characters, counts = packed([1, 1, 1, 2], [3, 3, 4])
    assert mean_run_length(characters, counts) == 2.5
    assert mean_run_length(characters, counts, repeated_only=False) == 7 / 4
    assert mean_run_lengths(characters, counts).tolist() == [3.0, 2.0]
    assert mean_run_lengths(characters, counts, repeated_only=False).tolist() == [2.0, 1.5]
    assert mean_run_length(*packed([1, 2, 3])) == 1.0


def test_without_alpha_each_video_has_its_own_mean() -> None:
    sequences = packed([1, 1, 2, 2, 2, 2], [3, 3, 3])
    assert unpacked(collapse_repeats(*sequences, slow_down=SLOW, alpha=None)) == [[1, 2, SLOW], [3]]


@given(SEQUENCES, st.sampled_from([None, 1.0, 2.5]))
def test_a_batch_is_its_videos_and_collapsing_settles(
    sequences: list[list[int]], alpha: float | None
) -> None:
    together = unpacked(collapse_repeats(*packed(*sequences), slow_down=SLOW, alpha=alpha))
    alone = [unpacked(collapse_repeats(*packed(s), slow_down=SLOW, alpha=alpha))[0] for s in sequences]
    assert together == alone
    for before, after in zip(sequences, together, strict=True):
        heads = [c for k, c in enumerate(before) if k == 0 or before[k - 1] != c]
        assert [c for c in after if c != SLOW] == heads


@given(SEQUENCES)
def test_shares_of_a_run_add_up_to_one(sequences: list[list[int]]) -> None:
    collapsed = collapse_repeats(*packed(*sequences), slow_down=SLOW, alpha=1.0)
    total = np.bincount(
        collapsed.place, weights=1 / collapsed.run_lengths, minlength=len(collapsed.characters)
    )
    assert total == pytest.approx((collapsed.characters != SLOW).astype(float))


@given(SEQUENCES, st.sampled_from([None, 1.0, 2.5]), st.booleans())
def test_collapsing_in_chunks_equals_collapsing_at_once(
    sequences: list[list[int]], alpha: float | None, repeated_only: bool
) -> None:
    characters, counts = packed(*sequences)
    narrow = characters.astype(np.uint8)
    mean = mean_run_length(characters, counts, repeated_only=repeated_only)
    asked = {"slow_down": 256, "alpha": alpha, "repeated_only": repeated_only}
    together = collapse_repeats(characters, counts, **asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", 5)
        assert mean_run_length(narrow, counts, repeated_only=repeated_only) == mean
        result = collapse_corpus(narrow, counts, **asked)
    assert result.characters.tolist() == together.characters.tolist()
    assert result.counts.tolist() == together.counts.tolist()
    assert result.characters.dtype == np.uint16
