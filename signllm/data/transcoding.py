"""A stream → h264 as it is decoded: frame by frame, scaled in its own colours, without a detour over RGB.

Only one frame is held at a time, and the coded values change no more than scaling asks for. Colours keep
their matrix, which the new file names, and full range becomes limited range, which every reader expects.
Turned, mirrored and odd-sized pictures take the way over RGB, because 4:2:0 cannot hold an odd row, and so do
those of high dynamic range, whose light is computed from RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from signllm.data.display import Orientation
from signllm.data.frame_rate import resample_pictures
from signllm.data.h264 import encode_av_frames
from signllm.data.pictures import Fit, check_size, check_total, scale_to_rgb
from signllm.data.stream import VideoReader
from signllm.data.tone_mapping import is_high_dynamic_range
from signllm.data.video_error import VideoError


@dataclass(frozen=True, kw_only=True)
class EncodedVideo:
    """An mp4 file, how many frames it holds, their size, and frames per second."""

    mp4: bytes
    frames: int
    width: int
    height: int
    fps: float


def transcode(reading: VideoReader, *, fit: Fit | None, fps: float | None, crf: int) -> EncodedVideo:
    """Decode an opened stream and encode it as mp4, scaled and resampled in time as ``read_video`` does.

    Raises:
        VideoError: damaged, too small, or beyond the limits of pixels, frames and memory.
    """
    last: Any = None
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal last, count
        timed = ((reading.times_s[-1], picture) for picture in _prepare_pictures(reading, fit))
        for picture in (
            resample_pictures(timed, reading.fps, fps) if fps else (picture for _, picture in timed)
        ):
            last, count = picture, count + 1
            check_total(count, picture.width, picture.height)
            yield picture

    mp4 = encode_av_frames(counted(), fps or reading.fps, crf=crf)
    return EncodedVideo(mp4=mp4, frames=count, width=last.width, height=last.height, fps=fps or reading.fps)


def _prepare_pictures(reading: VideoReader, fit: Fit | None) -> Iterator[Any]:
    """Yield PyAV frames for the encoder, upright, with even sides, all of the size that the first gets."""
    from av.video.reformatter import VideoReformatter

    reformatter, size, orientation = VideoReformatter(), (0, 0), Orientation()
    for number, frame in enumerate(reading.frames(), start=1):
        check_size(frame.width, frame.height)
        if number == 1:
            size = reading.square(fit)(frame.width, frame.height)
            orientation = reading.orientation
            check_size(*size)
            if min(size) < 2:
                raise VideoError(f"frames of {size[0]} x {size[1]}, too small for h264")
        check_total(number, *size)
        is_even = size[0] % 2 == size[1] % 2 == 0
        if not orientation.is_upright or not is_even or is_high_dynamic_range(frame):
            yield _convert_over_rgb(scale_to_rgb(reformatter, frame, size), orientation)
            continue
        picture = reformatter.reformat(
            frame,
            *size,
            format="yuv420p",
            interpolation="BICUBIC",
            dst_color_range="MPEG",
            threads=1,
        )
        picture.pict_type = 0  # the encoder would copy the source's key frames
        yield picture


def _convert_over_rgb(frame_HWC: Any, orientation: Orientation) -> Any:
    import av
    import numpy as np

    upright_HWC = orientation.turn_upright(frame_HWC[None])[0]
    height, width = (side - side % 2 for side in upright_HWC.shape[:2])
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(upright_HWC[:height, :width]), format="rgb24")
