"""Decoding a video file, a folder of frames, the bytes of a video or its encoded frames to one uint8 array.

PyAV contains its own FFmpeg, so this works wherever pip installs it, for every format that FFmpeg reads.
Frames are decoded in chunks (``pictures.py``), each of which is copied once, to its final place in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.video.frame_folder import decode_image, list_frame_files
from signllm.data.video.frame_rate import (
    USUAL_FPS,
    count_frames_at_rate,
    frame_numbers_at_rate,
    monotonic_begins_s,
)
from signllm.data.video.h264 import encode_h264
from signllm.data.video.pictures import Fit, check_total, convert_to_rgb, scale_to_rgb
from signllm.data.video.stream import VideoReader, open_video
from signllm.data.video.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Fit",
    "DecodableVideo",
    "Video",
    "VideoError",
    "decode_video",
    "encode_h264",
    "shrink_short_side",
    "read_video",
]

DecodableVideo = Path | bytes | Sequence[bytes]
"""Path of a video file or folder of frames, the bytes of a video, or the encoded frames of a video."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded video.

    Attributes:
        frames: upright frames, uint8 (T, H, W, 3).
        fps: average rate in frames per second.
    """

    frames: np.ndarray
    fps: float


def decode_video(source: DecodableVideo, *, size: int | None = None) -> np.ndarray:
    """Decode all frames of a video in order.

    Args:
        source: the video.
        size: side in pixels to which the short side is scaled and the center is cropped; None keeps the size.

    Returns:
        RGB frames, uint8 (T, H, W, 3), rotated as the file states.

    Raises:
        VideoError: there is no video stream, it is damaged, or it exceeds the limits of pixels, frames and
            memory.
        OSError: the file cannot be read.
    """
    from signllm.data.video.packed_frames import PackedFrames

    with _open_chunks(source, size) as (declared, chunks):
        packed = PackedFrames(declared)
        packed.extend(chunks)
    return packed.all()


def decode_chunks(source: DecodableVideo, *, size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of :func:`decode_video` in chunks; errors may be raised after the last chunk.

    The caller must copy a chunk before it requests the next one, which may reuse the memory.
    """
    with _open_chunks(source, size) as (_, chunks):
        yield from chunks


@contextmanager
def _open_chunks(source: DecodableVideo, size: int | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Open a video; yield the number of frames that it declares and the chunks of its frames."""
    fit = None if size is None else partial(scale_short_side, short_side=size)
    source = _read_frame_files(source)
    if isinstance(source, (bytes, Path)):
        with open_video(source) as (container, stream):
            reader = VideoReader(container, stream)
            yield (
                reader.declared_frames,
                (crop_center_square(chunk, size) for chunk in decode_upright_chunks(reader, fit)),
            )
    else:
        yield len(source), (crop_center_square(chunk, size) for chunk in decode_image_chunks(source, fit))


def crop_center_square(frames: np.ndarray, size: int | None) -> np.ndarray:
    """Return the center square of side ``size`` of frames (T, H, W, 3); None returns them unchanged."""
    if size is None:
        return frames
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[:, top : top + size, left : left + size]


def _read_frame_files(source: DecodableVideo) -> DecodableVideo:
    """Return the encoded frames of a folder; other sources are returned unchanged."""
    if isinstance(source, Path) and source.is_dir():
        return [path.read_bytes() for path in list_frame_files(source)]
    return source


def read_video(
    source: DecodableVideo,
    *,
    fit: Fit | None = None,
    fps: float | None = None,
    fps_of_frames: float | None = None,
) -> Video:
    """Decode a video, scale it, and resample it in time.

    Resampling shows at each new instant the last frame that has begun, so it works for a varying rate and for
    a first time stamp other than 0.

    Args:
        source: the video.
        fit: rule by which the frames are scaled; None keeps their size.
        fps: rate in frames per second to resample to; None keeps every frame.
        fps_of_frames: rate of separate frames, which state none; 25 by default.

    Raises:
        VideoError: as :func:`decode_video`.
        OSError: the file cannot be read.
    """
    import numpy as np

    from signllm.data.video.packed_frames import PackedFrames

    source = _read_frame_files(source)
    if isinstance(source, (bytes, Path)):
        with open_video(source) as (container, stream):
            return decode_to_rgb(VideoReader(container, stream), fit=fit, fps=fps)
    packed = PackedFrames(len(source))
    packed.extend(decode_image_chunks(source, fit))
    video = Video(frames=packed.all(), fps=fps_of_frames or USUAL_FPS)
    return video if fps is None else resample_video(video, np.arange(len(packed)) / video.fps, fps)


def decode_to_rgb(reader: VideoReader, *, fit: Fit | None, fps: float | None) -> Video:
    """Decode the frames of a reader as :func:`read_video` does."""
    import numpy as np

    from signllm.data.video.packed_frames import PackedFrames

    packed = PackedFrames(reader.declared_frames)
    packed.extend(decode_upright_chunks(reader, fit))
    video = Video(frames=packed.all(), fps=reader.timing.fps)
    return video if fps is None else resample_video(video, np.array(reader.times_s), fps)


def shrink_short_side(short_side: int) -> Fit:
    """Return a fit that shrinks frames to this short side in pixels, and never enlarges them."""
    return partial(_shrink, short_side=short_side)


def _shrink(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) scaled down to a short side, or unchanged if it is not larger."""
    return (
        (width, height) if min(width, height) <= short_side else scale_short_side(width, height, short_side)
    )


def scale_short_side(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) scaled to this short side; the long side is even, which is faster to convert."""
    factor = short_side / min(width, height)
    scaled_width, scaled_height = (max(short_side, 2 * round(side * factor / 2)) for side in (width, height))
    return scaled_width, scaled_height


def resample_video(video: Video, times_s: np.ndarray, fps: float) -> Video:
    """Return a video at another rate: at each new instant the last frame that has begun.

    Args:
        video: the video.
        times_s: begin of each frame in seconds, (T,).
        fps: new rate in frames per second.
    """
    count = count_frames_at_rate(float(monotonic_begins_s(times_s)[-1]) + 1 / video.fps, fps)
    check_total(count, video.frames.shape[2], video.frames.shape[1])
    return Video(frames=video.frames[frame_numbers_at_rate(times_s, video.fps, fps)], fps=fps)


def decode_image_chunks(images: Sequence[bytes], fit: Fit | None) -> Iterator[np.ndarray]:
    """Yield each encoded image as a chunk of one frame, all of the size that ``fit`` gives the first."""
    import av
    from av.video.reformatter import VideoReformatter

    if not images:
        raise VideoError("there are no frames")
    reformatter, target = VideoReformatter(), None
    for done, data in enumerate(images, start=1):
        frame_HWC = decode_image(data)
        height, width = frame_HWC.shape[:2]
        target = target or (fit(width, height) if fit else (width, height))
        if (width, height) != target:
            frame_HWC = scale_to_rgb(
                reformatter, av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"), target
            )
        check_total(done, *target)
        yield frame_HWC[None]


def decode_upright_chunks(
    reader: VideoReader, fit: Fit | None, frames: Iterator[Any] | None = None
) -> Iterator[np.ndarray]:
    """Yield chunks of frames (T, H, W, 3) as the file shows them: upright, with square pixels, scaled.

    Args:
        reader: reader of the stream.
        fit: rule by which the frames are scaled; None keeps their size.
        frames: frames of the reader to convert; all by default.
    """
    for chunk in convert_to_rgb(
        reader.frames() if frames is None else frames, reader.with_square_pixels(fit)
    ):
        yield reader.orientation.turn_upright(chunk)
