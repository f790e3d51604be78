"""Pictures in: a video file, a frame folder, a video's bytes or its encoded frames → one uint8 array.

PyAV carries its own FFmpeg, so this runs wherever pip does, on anything FFmpeg reads. The decoder gets one
thread: parallelism is over clips. What is declared is believed only within limits (``pictures.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.frame_folder import check_regular, decode_image, frame_files
from signllm.data.h264 import encode_h264
from signllm.data.pictures import Fit, check_size, check_total, rgb_pictures, scaled
from signllm.data.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Fit", "Source", "Video", "VideoError", "decode", "encode_h264", "fit_short_side", "read_video"]

Source = Path | bytes | Sequence[bytes]
"""A video file or frame folder, a video's bytes, or the encoded frames of a video."""

FRAME_FOLDER_FPS = 25.0
"""Frames per second of a frame folder whose dataset states none."""
SLOWEST_FPS, FASTEST_FPS = 0.01, 1000


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded video: frames uint8 (T, H, W, 3), upright, and frames per second (the average)."""

    frames: np.ndarray
    fps: float


def decode(source: Source, *, size: int | None = None) -> np.ndarray:
    """Decode all frames, in order.

    Args:
        source: where the video is.
        size: scale the short side to this and crop the centre square; None keeps the video's own size.

    Returns:
        uint8 (T, H, W, 3), RGB, rotated as the file asks.

    Raises:
        VideoError: no video stream, damaged, or beyond the limits of pixels, frames and memory.
        OSError: the file cannot be read.
    """
    if size is None:
        return read_video(source).frames
    frames_THWC = read_video(source, fit=partial(_scaled, short_side=size)).frames
    top, left = (frames_THWC.shape[1] - size) // 2, (frames_THWC.shape[2] - size) // 2
    return frames_THWC[:, top : top + size, left : left + size]


def read_video(
    source: Source, *, fit: Fit | None = None, fps: float | None = None, fps_of_frames: float | None = None
) -> Video:
    """Decode a video, scaled as ``fit`` says and, if ``fps`` is given, resampled in time to that rate.

    Resampling shows at each new instant the last frame that had begun by then, so it copes with a varying
    rate and with a first time stamp that is not 0. Raises as :func:`decode`.
    """
    if isinstance(source, Path) and source.is_dir():
        source = [path.read_bytes() for path in frame_files(source)]
    if isinstance(source, (bytes, Path)):
        video, times_s = _decode_stream(source, fit)
    else:
        video, times_s = _decode_images(source, fit, fps_of_frames or FRAME_FOLDER_FPS)
    return video if fps is None else resampled(video, times_s, fps)


def fit_short_side(short_side: int) -> Fit:
    """Return a fit that shrinks the short side to ``short_side`` and never enlarges."""
    return partial(_shrunk, short_side=short_side)


def _shrunk(width: int, height: int, short_side: int) -> tuple[int, int]:
    return (width, height) if min(width, height) <= short_side else _scaled(width, height, short_side)


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the size with this short side; the long one is even, which decodes faster (``pictures.py``)."""
    factor = short_side / min(width, height)
    scaled_width, scaled_height = (max(short_side, 2 * round(side * factor / 2)) for side in (width, height))
    return scaled_width, scaled_height


def resampled(video: Video, times_s: np.ndarray, fps: float) -> Video:
    """Return the video at ``fps``: at each new instant the last frame that had begun (``times_s``, (T,))."""
    import numpy as np

    begun_s = times_s - times_s[0]
    wanted = max(1, round((begun_s[-1] + 1 / video.fps) * fps))
    check_total(wanted, video.frames.shape[2], video.frames.shape[1])
    shown = np.searchsorted(begun_s, np.arange(wanted) / fps + 1e-6, side="right") - 1
    return Video(frames=video.frames[shown], fps=fps)


def _decode_images(images: Sequence[bytes], fit: Fit | None, fps: float) -> tuple[Video, np.ndarray]:
    import av
    import numpy as np
    from av.video.reformatter import VideoReformatter

    if not images:
        raise VideoError("no frames")
    frames, reformatter, wanted = [], VideoReformatter(), None
    for data in images:
        frame_HWC = decode_image(data)
        height, width = frame_HWC.shape[:2]
        wanted = wanted or (fit(width, height) if fit else (width, height))
        if (width, height) != wanted:
            frame_HWC = scaled(reformatter, av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"), wanted)
        frames.append(frame_HWC)
        check_total(len(frames), *wanted)
    return Video(frames=np.stack(frames), fps=fps), np.arange(len(frames)) / fps


def _decode_stream(source: Path | bytes, fit: Fit | None) -> tuple[Video, np.ndarray]:
    import numpy as np

    with opened(source) as (container, stream):
        fps = frame_rate(stream)
        times_s: list[float] = []
        rotations: set[int] = set()

        def noted(frames: Iterable[Any]) -> Iterator[Any]:
            for frame in frames:
                rotations.add(frame.rotation)
                times_s.append(len(times_s) / fps if frame.time is None else frame.time)
                yield frame

        parts = list(rgb_pictures(noted(container.decode(stream)), fit))
        declared = stream.frames
    if not parts:
        raise VideoError("no frame could be decoded")
    if len(times_s) < declared / 2:
        raise VideoError(f"truncated: {len(times_s)} frames of {declared} could be decoded")
    frames_THWC = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Video(frames=upright(frames_THWC, rotations), fps=fps), np.array(times_s)


def frame_rate(stream: Any) -> float:
    """Return the frames per second of a PyAV stream, on average.

    Raises:
        VideoError: a rate that no video has.
    """
    fps = float(stream.average_rate or stream.guessed_rate or FRAME_FOLDER_FPS)
    if not SLOWEST_FPS <= fps <= FASTEST_FPS:
        raise VideoError(f"{fps:g} frames per second; taken are {SLOWEST_FPS} to {FASTEST_FPS}")
    return fps


def upright(frames: np.ndarray, rotations: set[int]) -> np.ndarray:
    """Turn frames (T, H, W, 3) by the largest of the rotations in degrees that their file asks for."""
    import numpy as np

    quarters = round(max(rotations, key=abs) / 90)
    return np.rot90(frames, k=quarters, axes=(1, 2)) if quarters % 4 else frames


@contextmanager
def opened(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """Open a video's main stream for decoding with one thread; FFmpeg's errors become :class:`VideoError`.

    A playlist posing as a video may name other files or hosts: only the file itself may be opened.
    """
    import av

    if isinstance(source, Path) and check_regular(source) == 0:
        raise VideoError("the file has zero bytes")
    # "file:" because a name such as x-00:00:05.333 would be taken for a protocol
    target = f"file:{source}" if isinstance(source, Path) else io.BytesIO(source)
    protocols = "file" if isinstance(source, Path) else "none"
    try:
        with av.open(
            target, options={"protocol_whitelist": protocols}, metadata_errors="replace"
        ) as container:
            stream: Any = container.streams.best("video")
            if stream is None:
                raise VideoError("no video stream in the file")
            if stream.codec_context is None:
                raise VideoError("the video stream has a codec that FFmpeg does not know")
            check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            yield container, stream
    except (PermissionError, FileNotFoundError):
        raise
    except av.FFmpegError as error:
        raise VideoError(f"not a video that FFmpeg can decode: {error.strerror or error}") from None
