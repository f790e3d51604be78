"""Transcoding a stream to h264 frame by frame: frames are scaled in their own color space, not in RGB.

Only one frame is in memory at a time, and the coded values change only by the scaling. Colors keep their
matrix, which the new file states. Full range becomes limited range, which every reader expects. Rotated,
mirrored and odd-sized frames are converted over RGB, because 4:2:0 has no odd rows, and so are frames of high
dynamic range, whose tone mapping needs RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from signllm.data.video.display import Orientation
from signllm.data.video.frame_rate import resample_pictures
from signllm.data.video.h264 import encode_av_frames
from signllm.data.video.pictures import Fit, check_size, check_total, scale_to_rgb
from signllm.data.video.stream import VideoReader
from signllm.data.video.tone_mapping import is_high_dynamic_range
from signllm.data.video.video_error import VideoError


@dataclass(frozen=True, kw_only=True)
class EncodedVideo:
    """A video that was encoded as mp4.

    Attributes:
        mp4: bytes of the file.
        frames: number of frames.
        width: width in pixels.
        height: height in pixels.
        fps: rate in frames per second.
    """

    mp4: bytes
    frames: int
    width: int
    height: int
    fps: float


def transcode(reader: VideoReader, *, fit: Fit | None, fps: float | None, crf: int) -> EncodedVideo:
    """Decode an open stream and encode it as mp4, scaled and resampled in time as ``read_video`` does.

    Args:
        reader: reader of the stream.
        fit: rule by which the frames are scaled; None keeps their size.
        fps: rate in frames per second to resample to; None keeps every frame.
        crf: constant rate factor of x264.

    Raises:
        VideoError: the video is damaged, too small, or exceeds the limits of pixels, frames and memory.
    """
    last: Any = None
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal last, count
        timed = ((reader.times_s[-1], picture) for picture in _prepare_pictures(reader, fit))
        for picture in (
            resample_pictures(timed, reader.fps, fps) if fps else (picture for _, picture in timed)
        ):
            last, count = picture, count + 1
            check_total(count, picture.width, picture.height)
            yield picture

    mp4 = encode_av_frames(counted(), fps or reader.fps, crf=crf)
    return EncodedVideo(mp4=mp4, frames=count, width=last.width, height=last.height, fps=fps or reader.fps)


def _prepare_pictures(reader: VideoReader, fit: Fit | None) -> Iterator[Any]:
    """Yield upright PyAV frames with even sides for the encoder, all of the size of the first."""
    from av.video.reformatter import VideoReformatter

    reformatter, size, orientation = VideoReformatter(), (0, 0), Orientation()
    for number, frame in enumerate(reader.frames(), start=1):
        check_size(frame.width, frame.height)
        if number == 1:
            size = reader.with_square_pixels(fit)(frame.width, frame.height)
            orientation = reader.orientation
            check_size(*size)
            if min(size) < 2:
                raise VideoError(f"the frames are {size[0]} x {size[1]}, too small for h264")
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
        picture.pict_type = 0  # otherwise the encoder would repeat the key frames of the source
        yield picture


def _convert_over_rgb(frame_HWC: Any, orientation: Orientation) -> Any:
    """Return an RGB frame turned upright, with even sides, as a PyAV frame."""
    import av
    import numpy as np

    upright_HWC = orientation.turn_upright(frame_HWC[None])[0]
    height, width = (side - side % 2 for side in upright_HWC.shape[:2])
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(upright_HWC[:height, :width]), format="rgb24")
