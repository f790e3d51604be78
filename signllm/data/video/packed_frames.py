"""One array for the frames of several videos, into which every frame is copied only once.

Further copies of a batch would take a considerable part of the time of decoding it, most of it for new memory
(``tools/bench_pipeline``). The array belongs to numpy, because numpy requests huge pages and torch does not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_HINTED_BYTES = 1 << 30
"""Most bytes that are allocated for a declared number of frames; then the array grows with its frames."""
_KEPT_ARRAYS = 4
"""Number of reused arrays: the batch of the current step, two prefetched ones, and the one being filled."""


class ArrayPool:
    """The arrays of the last batches, which are reused when no reference to them is left."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take_array(self, shape: tuple[int, ...], dtype: type[np.uint8]) -> np.ndarray:
        """Return an uninitialized array of this shape, reused if one of a suitable size is free."""
        size_bytes = math.prod(shape)
        # The count of an object that only its list refers to includes the references of the counting itself.
        free_count = _count_references([object()])[0]
        counted = zip(self._arrays, _count_references(self._arrays), strict=True)
        free = [array for array, references in counted if references == free_count]
        result = next((array for array in free if size_bytes <= array.nbytes <= 2 * size_bytes), None)
        if result is None:
            result = np.empty(size_bytes, dtype)
            self._arrays = [*self._arrays[1 - _KEPT_ARRAYS :], result]
        return result[:size_bytes].reshape(shape)


def _count_references(objects: Sequence[Any]) -> list[int]:
    """Return the number of references to each object, including those of the counting itself."""
    return [sys.getrefcount(item) for item in objects]


class PackedFrames:
    """Frames of one or several videos of one size in one array.

    Args:
        expected: expected number of frames; the actual number may be smaller or larger.
        memory: pool that the array is taken from; None allocates new memory.
    """

    def __init__(self, expected: int = 0, memory: ArrayPool | None = None) -> None:
        self._expected, self._count, self._buffer = expected, 0, np.empty((0, 0, 0, 3), np.uint8)
        self._allocate = np.empty if memory is None else memory.take_array

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def extend(self, chunks: Iterable[np.ndarray]) -> int:
        """Append chunks of frames (T, H, W, 3) and return the number of their frames.

        If the iteration over ``chunks`` raises an exception, none of its frames is appended.
        """
        begin = self._count
        try:
            for chunk in chunks:
                self._make_room(chunk)
                self._buffer[self._count : self._count + len(chunk)] = chunk
                self._count += len(chunk)
        except BaseException:
            self._count = begin
            raise
        return self._count - begin

    def _make_room(self, chunk: np.ndarray) -> None:
        """Replace the array by a larger one if a chunk does not fit into it."""
        needed = self._count + len(chunk)
        if needed <= len(self._buffer) and self._buffer.shape[1:] == chunk.shape[1:]:
            return
        hinted = min(self._expected, _HINTED_BYTES // chunk[0].nbytes)
        size = max(needed, hinted, len(self._buffer) * 3 // 2)
        larger = self._allocate((size, *chunk.shape[1:]), np.uint8)
        if self._count:
            larger[: self._count] = self._buffer[: self._count]
        self._buffer = larger

    def frames_from(self, begin: int) -> np.ndarray:
        """Return the frames from number ``begin`` on, (T, H, W, 3), as a view."""
        return self._buffer[begin : self._count]

    def keep_frames(self, begin: int, numbers: np.ndarray) -> None:
        """Replace the frames from ``begin`` on by a selection of them.

        Args:
            begin: number of the first frame that is affected.
            numbers: numbers of the frames to keep, relative to ``begin``, in their new order; repeats are
                allowed.
        """
        chosen_THWC = self.frames_from(begin)[numbers]
        self._count = begin
        self.extend([chosen_THWC])

    def all(self) -> np.ndarray:
        """Return all frames (T, H, W, 3) as a view, or as a copy if over a quarter of the array is unused."""
        frames_THWC = self.frames_from(0)
        return frames_THWC if 4 * self._count >= 3 * len(self._buffer) else frames_THWC.copy()
