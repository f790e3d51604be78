"""Conversion of decoded frames to RGB arrays, and the limits of pixels, frames and memory.

4:2:0 frames are scaled before their conversion to RGB. They are converted many at a time, stacked into one
tall picture, because one call per small frame costs more than decoding the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from signllm.data.video.frame_folder import MAX_PIXELS
from signllm.data.video.tone_mapping import is_high_dynamic_range, map_tones
from signllm.data.video.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

Fit = Callable[[int, int], tuple[int, int]]
"""Function from the (width, height) of a source to the (width, height) of the scaled frames."""

MAX_FRAMES = 20_000
"""Most frames of a sample: 13 minutes at 25 frames per second, whereas a sentence takes 3 to 20 seconds."""
MAX_DECODED_BYTES = 4 << 30
MAX_SOURCE_PIXELS = 50_000_000_000
"""Most pixels of all frames before scaling: ``MAX_FRAMES`` of 1920 x 1080 and a fifth more.

The limit bounds the decoding time, because a gif of a few kilobytes may contain thousands of large frames."""
_STACKED_PIXELS = ("yuv420p", "yuvj420p")
_STACKED_FRAMES = 32
"""Frames per conversion: enough to amortise the cost of a call, few enough to stay in the cache."""


def check_size(width: int, height: int) -> None:
    """Raise :class:`VideoError` for frames of more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"the frames have {width} x {height} pixels, the limit is {MAX_PIXELS} pixels")


def check_total(frames: int, width: int, height: int) -> None:
    """Raise :class:`VideoError` for more than ``MAX_FRAMES`` frames or ``MAX_DECODED_BYTES``."""
    if frames > MAX_FRAMES:
        raise VideoError(
            f"the video has more than {MAX_FRAMES} frames", remedy="cut the recording into sentences"
        )
    if frames * width * height * 3 > MAX_DECODED_BYTES:
        raise VideoError(
            f"the decoded video takes more than {MAX_DECODED_BYTES >> 30} GiB",
            remedy="cut it, or shrink the frames",
        )


def convert_to_rgb(frames: Iterable[Any], fit: Fit | None) -> Iterator[np.ndarray]:
    """Convert PyAV frames to chunks of RGB frames, uint8 (T, H, W, 3).

    Args:
        frames: decoded frames.
        fit: rule that gives the size of all frames from that of the first; None keeps its size.

    Raises:
        VideoError: the video exceeds the limits.
    """
    from av.video.reformatter import VideoReformatter

    reformatter, target, frame_count, pixel_count = VideoReformatter(), None, 0, 0
    for (*_, pixels), equal_frames in groupby(frames, key=_picture_kind):
        while chunk := list(islice(equal_frames, _STACKED_FRAMES)):
            size = chunk[0].width, chunk[0].height
            target = target or (fit(*size) if fit else size)
            check_size(*target)
            frame_count += len(chunk)
            pixel_count += len(chunk) * size[0] * size[1]
            check_total(frame_count, *target)
            if pixel_count > MAX_SOURCE_PIXELS:
                raise VideoError(
                    f"the video has more than {MAX_SOURCE_PIXELS} pixels", remedy="cut it into sentences"
                )
            is_even = target[0] % 2 == target[1] % 2 == 0
            if pixels in _STACKED_PIXELS and is_even and not is_high_dynamic_range(chunk[0]):
                yield _convert_stacked(
                    [_resize(reformatter, frame, target, pixels) for frame in chunk], like=chunk[0]
                )
            else:
                yield from (scale_to_rgb(reformatter, frame, target)[None] for frame in chunk)


def scale_to_rgb(reformatter: Any, frame: Any, target: tuple[int, int]) -> np.ndarray:
    """Return a PyAV frame scaled to ``target`` (width, height), as RGB of standard range, uint8 (H, W, 3)."""
    if is_high_dynamic_range(frame):
        picture = _resize(reformatter, frame, target, "rgb48le").to_ndarray()
        return map_tones(picture, frame.color_trc, frame.color_primaries)
    return _resize(reformatter, frame, target, "rgb24").to_ndarray()


def _resize(reformatter: Any, frame: Any, target: tuple[int, int], pixels: str) -> Any:
    """Return a PyAV frame scaled to ``target`` (width, height), in the pixel format ``pixels``."""
    import av

    try:  # one thread, because more would compete with other ranks on a shared machine
        return reformatter.reformat(frame, *target, format=pixels, interpolation="BICUBIC", threads=1)
    except av.FFmpegError as error:  # FFmpeg cannot enlarge a picture of a few pixels a thousand times
        sizes = f"{frame.width} x {frame.height} to {target[0]} x {target[1]} pixels"
        raise VideoError(f"FFmpeg cannot scale {sizes}: {error.strerror or error}") from None


def _picture_kind(frame: Any) -> tuple[Any, ...]:
    """Return the properties that frames must share to be converted together; the last is the pixel format."""
    check_size(frame.width, frame.height)
    kind = frame.width, frame.height, frame.colorspace, frame.color_range, is_high_dynamic_range(frame)
    return *kind, frame.format.name


def _convert_stacked(frames: list[Any], *, like: Any) -> np.ndarray:
    """Convert 4:2:0 frames of one kind as one tall picture; return uint8 (T, H, W, 3).

    The heights must be even, so that no chroma sample covers two frames.
    """
    import av
    import numpy as np

    def rows_of(plane: Any) -> np.ndarray:
        return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)

    count, width, height = len(frames), frames[0].width, frames[0].height
    tall = av.VideoFrame(width, height * count, like.format.name)
    tall.colorspace, tall.color_range = like.colorspace, like.color_range
    targets = [rows_of(plane) for plane in tall.planes]
    for number, frame in enumerate(frames):
        for target, plane, shrunk in zip(targets, frame.planes, (1, 2, 2), strict=True):
            rows, columns = height // shrunk, width // shrunk
            written = target[number * rows : (number + 1) * rows, :columns]
            written[:] = rows_of(plane)[:rows, :columns]
    return tall.reformat(format="rgb24", threads=1).to_ndarray().reshape(count, height, width, 3)
