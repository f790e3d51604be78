"""Decoded frames → RGB arrays, within limits of pixels, frames and memory.

4:2:0 frames are scaled as they are, not on the way to RGB, and converted many at a time, stacked into one
tall picture, because per-frame calls on small frames cost more than decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from signllm.data.frame_folder import MAX_PIXELS
from signllm.data.tone_mapping import is_high_dynamic_range, map_tones
from signllm.data.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

Fit = Callable[[int, int], tuple[int, int]]
"""(width, height) of the source → (width, height) of the pictures."""

MAX_FRAMES = 20_000
"""Longest clip: 13 minutes at 25 frames per second; a sentence has 3 to 20 seconds."""
MAX_DECODED_BYTES = 4 << 30
MAX_SOURCE_PIXELS = 50_000_000_000
"""Pixels of all frames before they are scaled: ``MAX_FRAMES`` of 1920 x 1080 and a fifth more. It bounds
time: a gif of a few kilobytes may hold thousands of frames of ``MAX_PIXELS``."""
_STACKED_PIXELS = ("yuv420p", "yuvj420p")
_STACKED_FRAMES = 32
"""Converted at once: enough to spread the cost of a call, few enough to stay in the cache."""


def check_size(width: int, height: int) -> None:
    """Raise :class:`VideoError` for frames of more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"frames of {width} x {height}, limit {MAX_PIXELS} pixels")


def check_total(frames: int, width: int, height: int) -> None:
    """Raise :class:`VideoError` for more than ``MAX_FRAMES`` frames or ``MAX_DECODED_BYTES``."""
    if frames > MAX_FRAMES:
        raise VideoError(f"more than {MAX_FRAMES} frames", remedy="cut the recording into sentences")
    if frames * width * height * 3 > MAX_DECODED_BYTES:
        raise VideoError(
            f"more than {MAX_DECODED_BYTES >> 30} GiB decoded", remedy="cut it, or shrink the frames"
        )


def convert_to_rgb(frames: Iterable[Any], fit: Fit | None) -> Iterator[np.ndarray]:
    """Turn PyAV frames into runs of RGB uint8 (T, H, W, 3), all of the size that ``fit`` gives the first.

    Raises:
        VideoError: beyond the limits.
    """
    from av.video.reformatter import VideoReformatter

    reformatter, wanted, done, seen = VideoReformatter(), None, 0, 0
    for (*_, pixels), alike in groupby(frames, key=_picture_kind):
        while run := list(islice(alike, _STACKED_FRAMES)):
            size = run[0].width, run[0].height
            wanted = wanted or (fit(*size) if fit else size)
            check_size(*wanted)
            done += len(run)
            seen += len(run) * size[0] * size[1]
            check_total(done, *wanted)
            if seen > MAX_SOURCE_PIXELS:
                raise VideoError(f"more than {MAX_SOURCE_PIXELS} pixels", remedy="cut it into sentences")
            is_even = wanted[0] % 2 == wanted[1] % 2 == 0
            if pixels in _STACKED_PIXELS and is_even and not is_high_dynamic_range(run[0]):
                yield _convert_stacked(
                    [_resize(reformatter, frame, wanted, pixels) for frame in run], like=run[0]
                )
            else:
                yield from (scale_to_rgb(reformatter, frame, wanted)[None] for frame in run)


def scale_to_rgb(reformatter: Any, frame: Any, wanted: tuple[int, int]) -> np.ndarray:
    """Scale one PyAV frame to (width, height), as RGB uint8 (H, W, 3) for an ordinary screen."""
    if is_high_dynamic_range(frame):
        picture = _resize(reformatter, frame, wanted, "rgb48le").to_ndarray()
        return map_tones(picture, frame.color_trc, frame.color_primaries)
    return _resize(reformatter, frame, wanted, "rgb24").to_ndarray()


def _resize(reformatter: Any, frame: Any, wanted: tuple[int, int], pixels: str) -> Any:
    import av

    try:  # one thread: more would wait for the other ranks on a shared machine
        return reformatter.reformat(frame, *wanted, format=pixels, interpolation="BICUBIC", threads=1)
    except av.FFmpegError as error:  # it cannot enlarge a picture of a few pixels a thousand times
        sizes = f"{frame.width} x {frame.height} to {wanted[0]} x {wanted[1]} pixels"
        raise VideoError(f"FFmpeg cannot scale {sizes}: {error.strerror or error}") from None


def _picture_kind(frame: Any) -> tuple[Any, ...]:
    check_size(frame.width, frame.height)
    kind = frame.width, frame.height, frame.colorspace, frame.color_range, is_high_dynamic_range(frame)
    return *kind, frame.format.name


def _convert_stacked(frames: list[Any], *, like: Any) -> np.ndarray:
    """Convert equal 4:2:0 frames as one tall picture; with even heights no chroma crosses a border."""
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
