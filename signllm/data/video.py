"""Pictures in: a video file, a frame folder, a video's bytes or its encoded frames → one uint8 array.

PyAV carries its own FFmpeg, so this runs wherever pip does, on anything FFmpeg reads. What is decoded comes
in runs of some frames (``pictures.py``), which are copied once, to where they are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.frame_folder import decode_image, list_frame_files
from signllm.data.frame_rate import USUAL_FPS, count_frames_at_rate, frame_numbers_at_rate, monotonic_begins_s
from signllm.data.h264 import encode_h264
from signllm.data.pictures import Fit, check_total, convert_to_rgb, scale_to_rgb
from signllm.data.stream import VideoReader, open_video
from signllm.data.video_error import VideoError

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
"""A video file or frame folder, a video's bytes, or the encoded frames of a video."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded video: frames uint8 (T, H, W, 3), upright, and frames per second (the average)."""

    frames: np.ndarray
    fps: float


def decode_video(source: DecodableVideo, *, size: int | None = None) -> np.ndarray:
    """Decode all frames, in order, by what :func:`signllm.data.decoder.choose_decoder` says.

    Args:
        source: where the video is.
        size: scale the short side to this and crop the centre square; None keeps the video's own size.

    Returns:
        uint8 (T, H, W, 3), RGB, rotated as the file asks.

    Raises:
        VideoError: no video stream, damaged, or beyond the limits of pixels, frames and memory.
        OSError: the file cannot be read.
    """
    from signllm.data.decoder import decode_by_torchcodec

    if size is None and (isinstance(source, bytes) or (isinstance(source, Path) and source.is_file())):
        frames_THWC = decode_by_torchcodec(source)
        if frames_THWC is not None:
            return frames_THWC
    return decode_by_pyav(source, size=size)


def decode_by_pyav(source: DecodableVideo, *, size: int | None = None) -> np.ndarray:
    """Decode as :func:`decode_video` does, by PyAV whatever is chosen."""
    from signllm.data.packed_frames import PackedFrames

    with _open_chunks(source, size) as (declared, runs):
        packed = PackedFrames(declared)
        packed.extend(runs)
    return packed.all()


def decode_chunks(source: DecodableVideo, *, size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of :func:`decode_video` in chunks; errors may be raised after the last chunk.

    The caller must copy a chunk before it requests the next one, which may reuse the memory.
    """
    with _open_chunks(source, size) as (_, runs):
        yield from runs


@contextmanager
def _open_chunks(source: DecodableVideo, size: int | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Open a source; yield how many frames it declares and the runs of its frames."""
    fit = None if size is None else partial(scale_short_side, short_side=size)
    source = _read_frame_files(source)
    if isinstance(source, (bytes, Path)):
        with open_video(source) as (container, stream):
            reading = VideoReader(container, stream)
            yield (
                reading.declared_frames,
                (crop_center_square(run, size) for run in decode_upright_chunks(reading, fit)),
            )
    else:
        yield len(source), (crop_center_square(run, size) for run in decode_image_chunks(source, fit))


def crop_center_square(frames: np.ndarray, size: int | None) -> np.ndarray:
    """Cut the centre square of side ``size`` out of frames (T, H, W, 3); None leaves them whole."""
    if size is None:
        return frames
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[:, top : top + size, left : left + size]


def _read_frame_files(source: DecodableVideo) -> DecodableVideo:
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
    """Decode a video, scaled as ``fit`` says and, if ``fps`` is given, resampled in time to that rate.

    Resampling shows at each new instant the last frame that had begun by then, so it copes with a varying
    rate and with a first time stamp that is not 0. Raises as :func:`decode_video`.
    """
    import numpy as np

    from signllm.data.packed_frames import PackedFrames

    source = _read_frame_files(source)
    if isinstance(source, (bytes, Path)):
        with open_video(source) as (container, stream):
            return decode_to_rgb(VideoReader(container, stream), fit=fit, fps=fps)
    packed = PackedFrames(len(source))
    packed.extend(decode_image_chunks(source, fit))
    video = Video(frames=packed.all(), fps=fps_of_frames or USUAL_FPS)
    return video if fps is None else resample_video(video, np.arange(len(packed)) / video.fps, fps)


def decode_to_rgb(reading: VideoReader, *, fit: Fit | None, fps: float | None) -> Video:
    """Decode an opened stream, or the part of it that ``reading`` is, as :func:`read_video` does."""
    import numpy as np

    from signllm.data.packed_frames import PackedFrames

    packed = PackedFrames(reading.declared_frames)
    packed.extend(decode_upright_chunks(reading, fit))
    video = Video(frames=packed.all(), fps=reading.timing.fps)
    return video if fps is None else resample_video(video, np.array(reading.times_s), fps)


def shrink_short_side(short_side: int) -> Fit:
    """Return a fit that shrinks the short side to ``short_side`` and never enlarges."""
    return partial(_shrink, short_side=short_side)


def _shrink(width: int, height: int, short_side: int) -> tuple[int, int]:
    return (
        (width, height) if min(width, height) <= short_side else scale_short_side(width, height, short_side)
    )


def scale_short_side(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the size with this short side; the long one is even, which decodes faster (``pictures.py``)."""
    factor = short_side / min(width, height)
    scaled_width, scaled_height = (max(short_side, 2 * round(side * factor / 2)) for side in (width, height))
    return scaled_width, scaled_height


def resample_video(video: Video, times_s: np.ndarray, fps: float) -> Video:
    """Return the video at ``fps``: at each new instant the last frame that had begun (``times_s``, (T,))."""
    count = count_frames_at_rate(float(monotonic_begins_s(times_s)[-1]) + 1 / video.fps, fps)
    check_total(count, video.frames.shape[2], video.frames.shape[1])
    return Video(frames=video.frames[frame_numbers_at_rate(times_s, video.fps, fps)], fps=fps)


def decode_image_chunks(images: Sequence[bytes], fit: Fit | None) -> Iterator[np.ndarray]:
    """Yield each picture as a run of one frame, all of the size that ``fit`` gives the first."""
    import av
    from av.video.reformatter import VideoReformatter

    if not images:
        raise VideoError("no frames")
    reformatter, wanted = VideoReformatter(), None
    for done, data in enumerate(images, start=1):
        frame_HWC = decode_image(data)
        height, width = frame_HWC.shape[:2]
        wanted = wanted or (fit(width, height) if fit else (width, height))
        if (width, height) != wanted:
            frame_HWC = scale_to_rgb(
                reformatter, av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"), wanted
            )
        check_total(done, *wanted)
        yield frame_HWC[None]


def decode_upright_chunks(
    reading: VideoReader, fit: Fit | None, frames: Iterator[Any] | None = None
) -> Iterator[np.ndarray]:
    """Yield runs of frames (T, H, W, 3) as the file shows them: upright, of square pixels, scaled by ``fit``.

    ``frames`` are those of ``reading`` that are wanted, all by default.
    """
    for run in convert_to_rgb(reading.frames() if frames is None else frames, reading.square(fit)):
        yield reading.orientation.turn_upright(run)
