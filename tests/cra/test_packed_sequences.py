"""Passes over a corpus: complete videos per chunk, and integers that do not overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm.cra.packed_sequences import count_characters, video_chunks


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 12))
def test_chunks_are_complete_videos_and_cover_the_corpus(lengths: list[int], size: int) -> None:
    counts, characters = np.array(lengths, dtype=np.int64), np.arange(sum(lengths), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signllm.cra.packed_sequences.CHUNK_CHARACTERS", size)
        chunks = list(video_chunks(characters, counts))
    for chunk, chunk_counts in chunks:
        assert chunk.dtype == np.int64
        assert len(chunk) == chunk_counts.sum()
        assert len(chunk) <= size or len(chunk_counts) == 1
    assert [c for chunk, _ in chunks for c in chunk.tolist()] == characters.tolist()
    assert [n for _, chunk_counts in chunks for n in chunk_counts.tolist()] == lengths


def test_characters_are_tallied() -> None:
    assert count_characters(np.array([3, 0, 3, 255, 3], dtype=np.uint8)).tolist() == [
        1,
        0,
        0,
        3,
        *[0] * 251,
        1,
    ]
    assert count_characters(np.zeros(0, dtype=np.uint8)).tolist() == []
