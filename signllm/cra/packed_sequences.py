"""Packed sequences: the videos of a corpus end to end in one array, gone through whole videos at a time.

A corpus is kept in the smallest integers that hold its ids, 2 bytes per character for K = 256 with s₀.
Every pass over it widens a chunk, works in int64, and keeps a total or narrow results: what a pass needs
besides does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CHUNK_CHARACTERS = 1 << 17
"""Whole videos are handled in chunks of about so many characters, whose tables stay in the cache."""


class Packed(NamedTuple):
    """Videos end to end.

    Attributes:
        characters: (sum N,) of any integer type.
        counts: (B,) int64, how many of them each video has.
    """

    characters: NDArray[np.integer]
    counts: Ints


def video_chunks(characters: NDArray[np.integer], counts: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield characters as int64 and the counts of their videos, chunk by chunk; a video is never parted."""
    ends, video, begin = np.cumsum(counts), 0, 0
    while video < len(counts):
        after = max(video + 1, int(np.searchsorted(ends, begin + CHUNK_CHARACTERS, side="right")))
        end = int(ends[after - 1])
        yield characters[begin:end].astype(np.int64), counts[video:after]
        video, begin = after, end


def count_characters(characters: NDArray[np.integer]) -> Ints:
    """(largest + 1,) how often each character occurs."""
    total = np.zeros(int(characters.max()) + 1 if len(characters) > 0 else 0, dtype=np.int64)
    for begin in range(0, len(characters), CHUNK_CHARACTERS):
        total += np.bincount(characters[begin : begin + CHUNK_CHARACTERS], minlength=len(total))
    return total
