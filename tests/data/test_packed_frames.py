"""Tests of packed frames: they are returned unchanged, and memory that is in use is not reused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from signllm.data.video.packed_frames import ArrayPool, PackedFrames

from .conftest import drawn


@pytest.mark.parametrize("expected", [0, 3, 17, 100, 10**9])
def test_chunks_are_appended_for_any_expected_number_of_frames(expected: int) -> None:
    runs = [drawn(length, seed=length) for length in (1, 5, 11)]
    packed = PackedFrames(expected)
    assert [packed.extend([run]) for run in runs] == [1, 5, 11]
    np.testing.assert_array_equal(packed.all(), np.concatenate(runs))
    np.testing.assert_array_equal(packed.frames_from(6), runs[2])


def test_a_video_that_breaks_leaves_nothing_behind() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield drawn(40)
        raise OSError("broken")

    packed = PackedFrames()
    packed.extend([drawn(5)])
    with pytest.raises(OSError, match="broken"):
        packed.extend(broken())
    packed.extend([drawn(3, seed=1)])
    np.testing.assert_array_equal(packed.all(), np.concatenate([drawn(5), drawn(3, seed=1)]))


@pytest.mark.parametrize("shown", [[0, 0, 1, 4, 4, 5, 5], [1, 3], [0, 1, 2, 3, 4, 5]])
def test_frames_can_be_left_out_and_shown_twice(shown: list[int]) -> None:
    packed = PackedFrames(10)
    packed.extend([drawn(4), drawn(6, seed=1)])
    packed.keep_frames(4, np.array(shown))
    np.testing.assert_array_equal(packed.all(), np.concatenate([drawn(4), drawn(6, seed=1)[shown]]))


def test_unused_memory_is_not_kept() -> None:
    packed = PackedFrames(100)
    packed.extend([drawn(3)])
    assert packed.all().base is None


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    memory = ArrayPool()

    def batch(frames: int, seed: int) -> torch.Tensor:
        packed = PackedFrames(frames, memory)
        packed.extend([drawn(frames, seed)])
        return torch.from_numpy(packed.all()).permute(0, 3, 1, 2)

    first = batch(8, 0)
    part, place = first[2:4].unbind()[0], first.data_ptr()
    second = batch(8, 1)
    assert second.data_ptr() != place
    del first
    third = batch(8, 2)  # a part of the first is still held
    assert third.data_ptr() != place
    np.testing.assert_array_equal(part.permute(1, 2, 0).numpy(), drawn(8, 0)[2])
    np.testing.assert_array_equal(second.permute(0, 2, 3, 1).numpy(), drawn(8, 1))
    places = {second.data_ptr(), third.data_ptr()}
    del second
    assert batch(7, 3).data_ptr() in places
