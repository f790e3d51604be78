"""Clips have 13 frames, one begins every 4 frames, and integers, arrays and tensors are counted alike."""

import numpy as np
import torch

from signllm.clip_geometry import (
    CLIP_FRAMES,
    CLIP_STRIDE,
    clip_frames,
    count_clips,
    count_convolution_outputs,
    interval_start,
    middle_frame,
)

LENGTHS = [1, 5, 12, 13, 14, 16, 17, 20, 21, 147, 300]


def test_clips_have_13_frames_and_begin_every_4() -> None:
    assert (CLIP_FRAMES, CLIP_STRIDE) == (13, 4)
    assert clip_frames(3, 4) == range(12, 25)
    assert clip_frames(0, 3) == range(0, 21)


def test_the_number_of_clips_is_the_number_of_clips_that_fit() -> None:
    for frames in LENGTHS:
        fitting = [n for n in range(frames) if clip_frames(n, n + 1).stop <= frames]
        assert count_clips(frames) == max(1, len(fitting))


def test_two_temporal_convolutions_make_as_many_outputs_as_there_are_clips() -> None:
    for frames in range(13, 60):
        assert count_convolution_outputs(count_convolution_outputs(frames)) == count_clips(frames)


def test_integers_arrays_and_tensors_give_equal_counts() -> None:
    expected = [count_clips(frames) for frames in LENGTHS]
    assert count_clips(np.array(LENGTHS)).tolist() == expected
    assert count_clips(torch.tensor(LENGTHS)).tolist() == expected


def test_an_interval_is_in_the_middle_of_its_clip_and_touches_the_next() -> None:
    for clip in range(5):
        frames = clip_frames(clip, clip + 1)
        interval = range(interval_start(clip), interval_start(clip + 1))
        assert len(interval) == CLIP_STRIDE
        assert middle_frame(clip) in interval
        assert frames[len(frames) // 2] == middle_frame(clip)
