"""Tests of transcoding to h264: the same frames, times and sizes as over RGB."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.video.decoding import Video, encode_h264, read_video, resample_video, shrink_short_side
from signllm.data.video.frame_rate import resample_pictures
from signllm.data.video.stream import VideoReader, open_video
from signllm.data.video.transcoding import EncodedVideo, transcode

from .conftest import drawn
from .test_video import rotated


def coded(
    source: bytes | Path, short_side: int = 256, fps: float | None = None, crf: int = 10
) -> EncodedVideo:
    with open_video(source) as (container, stream):
        return transcode(VideoReader(container, stream), fit=shrink_short_side(short_side), fps=fps, crf=crf)


def distance(source: bytes | Path, short_side: int = 256, fps: float | None = None) -> float:
    """Return the mean difference of the frames to those of the source; their numbers must be equal."""
    made = coded(source, short_side, fps)
    video, expected = read_video(made.mp4), read_video(source, fit=shrink_short_side(short_side), fps=fps)
    height, width = (side - side % 2 for side in expected.frames.shape[1:3])
    assert video.frames.shape == (len(expected.frames), height, width, 3)
    assert (made.frames, made.height, made.width) == video.frames.shape[:3]
    assert video.fps == pytest.approx(expected.fps, abs=1e-4)
    return float(np.abs(video.frames.astype(int) - expected.frames[:, :height, :width]).mean())


def stream_of(codec: str, pixels: str, frames: np.ndarray, **tags: int) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pixels, {"crf": "4"}
        stream.codec_context.thread_count = 1
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            matrix = {1: "ITU709", 2: "ITU601", 0: "ITU601"}[tags.get("colorspace", 2)]
            full = tags.get("color_range") == 2
            picture = picture.reformat(
                format=pixels, dst_colorspace=matrix, dst_color_range="JPEG" if full else "MPEG"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize(
    ("codec", "pixels", "tags"),
    [
        ("libx264", "yuv420p", {}),
        ("libx264", "yuv420p", {"colorspace": 1, "color_range": 1}),
        ("libx264", "yuvj420p", {"color_range": 2}),
        ("libx264", "yuv444p", {}),
        ("libx264", "yuv420p10le", {}),
        ("libx264rgb", "rgb24", {}),
    ],
)
def test_colours_stay_what_they_are(codec: str, pixels: str, tags: dict[str, int]) -> None:
    frames = drawn(10, height=64, width=96)
    frames[:, :, 40:60] = (200, 30, 40)
    frames[:, 20:40, :30] = (10, 60, 220)
    assert distance(stream_of(codec, pixels, frames, **tags)) < 3


@pytest.mark.parametrize("name", ["vertical_full_range.mp4", "two_video_streams.mp4", "take_care.gif"])
@pytest.mark.parametrize("fps", [None, 10])
def test_real_files(realdata: Path, name: str, fps: float | None) -> None:
    assert distance(realdata / "clips" / name, fps=fps) < 3


@pytest.mark.parametrize("shape", [(64, 96), (50, 38), (51, 49), (49, 50)])
@pytest.mark.parametrize("short_side", [256, 32, 33])
def test_every_size(shape: tuple[int, int], short_side: int) -> None:
    frames = drawn(5, height=shape[0], width=shape[1])
    target = io.BytesIO()
    with av.open(target, "w", format="avi") as container:  # lossless RGB holds odd sizes
        stream = container.add_stream("ffv1", rate=25)
        (stream.height, stream.width), stream.pix_fmt = shape, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert distance(target.getvalue(), short_side) < 4


def test_rotated_frames_become_upright() -> None:
    turned = rotated(encode_h264(drawn(6, height=32, width=64), 25), (0, 1, -1, 0))
    assert (coded(turned).height, coded(turned).width) == (64, 32)
    assert distance(turned) < 3


def test_the_same_stream_gives_the_same_bytes() -> None:
    data = encode_h264(drawn(30, height=96, width=96), 25)
    assert len({coded(data, 64).mp4 for _ in range(6)}) == 1


def test_the_key_frames_are_those_of_the_new_file() -> None:
    source = encode_h264(drawn(40, height=96, width=96), 25, group=5)
    with av.open(io.BytesIO(coded(source).mp4)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 12, 24, 36]


@given(gaps=st.lists(st.floats(0.001, 0.3), max_size=30), source=st.floats(5, 60), fps=st.floats(1, 60))
@settings(deadline=None, max_examples=200)
def test_resampling_while_decoding_equals_resampling_the_decoded_video(
    gaps: list[float], source: float, fps: float
) -> None:
    times_s = 2 + np.cumsum([0.0, *gaps])
    numbers = np.arange(len(times_s)).reshape(-1, 1, 1, 1)
    expected = resample_video(Video(frames=numbers, fps=source), times_s, fps).frames.ravel().tolist()
    assert list(resample_pictures(zip(times_s, range(len(times_s)), strict=True), source, fps)) == expected
