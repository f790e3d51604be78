"""Tests of the encoder: accurate, reproducible, and with an error for frames that it cannot encode."""

from __future__ import annotations

import numpy as np
import pytest

from signllm.data.video.decoding import encode_h264, read_video
from signllm.data.video.video_error import VideoError

from .conftest import drawn


@pytest.mark.parametrize("side", [48, 64, 96])
def test_the_same_frames_give_the_same_bytes(side: int) -> None:
    # x264's mbtree broke this at these very sizes: it read memory that nobody had written
    frames = drawn(40, height=side, width=side)
    litter, result = [], set()
    for number in range(12):
        litter.append(
            np.random.default_rng(number).integers(0, 255, 30_000 * (1 + number % 4), dtype=np.uint8)
        )
        result.add(encode_h264(frames, 25))
    assert len(result) == 1


@pytest.mark.parametrize(
    ("fps", "kept"), [(25, 25), (30000 / 1001, 29.97003), (12.5, 12.5), (359 / 12, 29.91667)]
)
def test_pictures_and_rate_survive(fps: float, kept: float) -> None:
    frames = drawn(20)
    video = read_video(encode_h264(frames, fps, crf=10))
    assert video.fps == pytest.approx(kept, abs=1e-4)
    assert np.abs(video.frames.astype(int) - frames).mean() < 2


def test_odd_sides_lose_their_last_row_or_column() -> None:
    assert read_video(encode_h264(drawn(5, height=51, width=49), 25)).frames.shape == (5, 50, 48, 3)


def test_nothing_to_encode() -> None:
    with pytest.raises(ValueError, match="no frames"):
        encode_h264([], 25)
    with pytest.raises(ValueError, match="at least 2 x 2"):
        encode_h264(np.zeros((1, 1, 8, 3), np.uint8), 25)


def test_a_side_that_x264_cannot_encode_is_named() -> None:
    with pytest.raises(VideoError, match="16500 x 2"):
        encode_h264(np.zeros((1, 2, 16_500, 3), np.uint8), 25)
