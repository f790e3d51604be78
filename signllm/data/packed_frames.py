"""Frames of several videos in one array, one video behind the other: each picture is copied there once.

Further copies of a batch would take a good part of the time of decoding it, most of that for fresh memory
(``tools/bench_pipeline``). The array is numpy's, because numpy asks for huge pages and torch does not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_HINTED_BYTES = 1 << 30
"""Most that is set aside because of a number somebody declared; beyond it the array grows by what comes."""
_KEPT_ARRAYS = 4
"""The batch that is trained on, two that wait for it, and the one in the making."""


class ArrayPool:
    """The arrays of the last batches, handed out again when nobody holds anything of them any more."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def array(self, shape: tuple[int, ...], dtype: type[np.uint8]) -> np.ndarray:
        """Return an array of unknown content, of this shape."""
        size_bytes = math.prod(shape)
        unheld = _count_references([object()])[0]
        counted = zip(self._arrays, _count_references(self._arrays), strict=True)
        free = [array for array, references in counted if references == unheld]
        found = next((array for array in free if size_bytes <= array.nbytes <= 2 * size_bytes), None)
        if found is None:
            found = np.empty(size_bytes, dtype)
            self._arrays = [*self._arrays[1 - _KEPT_ARRAYS :], found]
        return found[:size_bytes].reshape(shape)


def _count_references(held: Sequence[Any]) -> list[int]:
    """Count the references to each; one that only ``held`` holds shows what counting itself adds."""
    return [sys.getrefcount(one) for one in held]


class PackedFrames:
    """Frames of videos of one size.

    Args:
        expected: frames that will come, as far as is known; more or fewer may come.
        memory: where the array is taken from; None takes fresh memory.
    """

    def __init__(self, expected: int = 0, memory: ArrayPool | None = None) -> None:
        self._expected, self._count, self._held = expected, 0, np.empty((0, 0, 0, 3), np.uint8)
        self._array = np.empty if memory is None else memory.array

    def __len__(self) -> int:
        """Return the number of frames held."""
        return self._count

    def extend(self, runs: Iterable[np.ndarray]) -> int:
        """Copy runs of frames (T, H, W, 3) behind those held, all or none of them; return how many.

        Raises:
            whatever ``runs`` raises, and then nothing of it is held.
        """
        begin = self._count
        try:
            for run in runs:
                self._make_room(run)
                self._held[self._count : self._count + len(run)] = run
                self._count += len(run)
        except BaseException:
            self._count = begin
            raise
        return self._count - begin

    def _make_room(self, run: np.ndarray) -> None:
        wanted = self._count + len(run)
        if wanted <= len(self._held) and self._held.shape[1:] == run.shape[1:]:
            return
        hinted = min(self._expected, _HINTED_BYTES // run[0].nbytes)
        larger = self._array((max(wanted, hinted, len(self._held) * 3 // 2), *run.shape[1:]), np.uint8)
        if self._count:
            larger[: self._count] = self._held[: self._count]
        self._held = larger

    def since(self, begin: int) -> np.ndarray:
        """Return the frames from number ``begin`` on, (T, H, W, 3), without copying them."""
        return self._held[begin : self._count]

    def keep(self, begin: int, shown: np.ndarray) -> None:
        """Of the frames from ``begin`` on keep those of these numbers, in this order; some may come twice."""
        chosen_THWC = self.since(begin)[shown]
        self._count = begin
        self.extend([chosen_THWC])

    def all(self) -> np.ndarray:
        """Return all frames, without copying them unless much of the memory set aside is unused."""
        held_THWC = self.since(0)
        return held_THWC if 4 * self._count >= 3 * len(self._held) else held_THWC.copy()
