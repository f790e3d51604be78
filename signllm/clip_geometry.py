"""Clips of a video: which frames the encoder reads for each sign code, and where a code is on the time axis.

The visual encoder applies two temporal convolutions with kernel 5, stride 2 and no padding
(:mod:`signllm.models.vq_sign.visual_encoder`). Together they read clips of 13 frames, one every 4 frames: the
clips of 13 frames with gap 4 of the paper (section 3.2). Each clip becomes one sign code ("character"). Clips
and frames are numbered from 0: clip n is read from frames 4n to 4n + 12.

The functions take plain integers, NumPy arrays and tensors alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

TEMPORAL_KERNEL, TEMPORAL_STRIDE = 5, 2
"""Kernel size and stride, in frames, of each of the two temporal convolutions."""
CLIP_FRAMES = TEMPORAL_KERNEL + TEMPORAL_STRIDE * (TEMPORAL_KERNEL - 1)
"""Frames that one clip is read from: 13, the receptive field of the two convolutions."""
CLIP_STRIDE = TEMPORAL_STRIDE**2
"""Frames from the beginning of a clip to the beginning of the next: 4."""
CLIP_MIDDLE = CLIP_FRAMES // 2
"""Position of the middle frame in a clip: 6, counted from 0."""
INTERVAL_START = (CLIP_FRAMES - CLIP_STRIDE) // 2
"""Position in a clip of the first of the four frames that its code stands for on a time axis: 4."""

Number = TypeVar("Number", int, "NDArray[np.int64]", "Tensor")


def count_clips(frames: Number) -> Number:
    """Return the number of clips N = floor((max(T, 13) - 13) / 4) + 1 of videos with T frames, T >= 1.

    A video shorter than a clip has one clip: the encoder continues it by its last frame.
    """
    beyond_first_clip = frames - CLIP_FRAMES
    return beyond_first_clip * (beyond_first_clip > 0) // CLIP_STRIDE + 1


def count_convolution_outputs(rows: Number) -> Number:
    """Return the outputs, floor((rows - 5) / 2) + 1, of one temporal convolution over 5 or more rows."""
    return (rows - TEMPORAL_KERNEL) // TEMPORAL_STRIDE + 1


def clip_frames(start: int, stop: int) -> range:
    """Return the frames that the clips from ``start`` up to, not including, ``stop`` are read from.

    The last of them may lie behind the end of a video that is shorter than one clip.
    """
    return range(CLIP_STRIDE * start, CLIP_STRIDE * (stop - 1) + CLIP_FRAMES)


def middle_frame(clip: Number) -> Number:
    """Return the middle one of the 13 frames that a clip is read from, 4n + 6."""
    return CLIP_STRIDE * clip + CLIP_MIDDLE


def interval_start(clip: Number) -> Number:
    """Return the first frame, 4n + 4, of the interval that a clip's code stands for on a time axis.

    The interval is the four frames in the middle of the clip, so that the intervals of consecutive clips
    touch without overlap although the clips themselves overlap.
    """
    return CLIP_STRIDE * clip + INTERVAL_START
