"""Packed sequences: the characters of all videos of a corpus in one array, processed in chunks of videos.

A corpus is stored in the smallest integer type for its ids, which takes 2 bytes per character for K = 256
with s₀. Each pass over the corpus converts one chunk at a time to int64 and keeps only totals or small
integers. The additional memory of a pass therefore does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CHUNK_CHARACTERS = 1 << 17
"""Approximate number of characters in a chunk; the tables for so many stay in the processor's cache."""


class Packed(NamedTuple):
    """The packed sequences of B videos.

    Attributes:
        characters: (sum N,) characters of all videos, of any integer type.
        counts: (B,) int64, number of characters of each video.
    """

    characters: NDArray[np.integer]
    counts: Ints


def video_chunks(characters: NDArray[np.integer], counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield chunks of packed videos: their characters as int64, and the number of characters of each video.

    A video is never split between two chunks.
    """
    ends, video, begin = np.cumsum(counts), 0, 0
    while video < len(counts):
        after = max(video + 1, int(np.searchsorted(ends, begin + CHUNK_CHARACTERS, side="right")))
        end = int(ends[after - 1])
        yield characters[begin:end].astype(np.int64), counts[video:after]
        video, begin = after, end


def count_characters(characters: NDArray[np.integer]) -> Ints:
    """Return how often each character occurs, (largest character + 1,)."""
    total = np.zeros(int(characters.max()) + 1 if len(characters) > 0 else 0, dtype=np.int64)
    for begin in range(0, len(characters), CHUNK_CHARACTERS):
        total += np.bincount(characters[begin : begin + CHUNK_CHARACTERS], minlength=len(total))
    return total
