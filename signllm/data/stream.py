"""One video stream, opened for decoding, and what its file shows: the only place that decides it.

Which frames: those that an edit list does not hide. When: by the frames' own time stamps (``frame_rate.py``).
How: turned and mirrored as the file asks, with square pixels (``display.py``). Everything that reads videos
goes through here. Interlaced video is shown as it is coded, both fields of a frame at once, as FFmpeg does.

The decoder gets one thread: parallelism is over clips. What is declared is believed only within limits
(``pictures.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from signllm.data.display import Orientation, read_orientation, read_pixel_aspect, size_with_square_pixels
from signllm.data.frame_folder import check_regular_file
from signllm.data.frame_rate import (
    USUAL_FPS,
    Timing,
    estimate_last_duration_s,
    is_possible_rate,
    measure_timing,
)
from signllm.data.pictures import Fit, check_size
from signllm.data.tone_mapping import TRANSFER_NAMES
from signllm.data.video_error import VideoError
from signllm.storage import WaitingFile

_LIKELY_FPS = 240.0
"""A rate above it is a guess of FFmpeg's from the unit of time, not one that a camera states."""


class VideoReader:
    """The frames of a stream, decoded once.

    Attributes:
        fps: frames per second that the stream states on average; 25 if it states none.
        times_s: when each frame decoded so far begins, in seconds.
        transfer: name of the first frame's high dynamic range, "" for an ordinary picture.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.fps = _read_stated_rate(stream)
        self.times_s: list[float] = []
        self.transfer = ""
        self._stated_orientation: Orientation | None = None
        self._last_duration_s = 0.0

    @cached_property
    def declared_frames(self) -> int:
        """Frames that the stream says it shows; 0 where it is silent. Long recordings take time to count."""
        return _count_declared_frames(self.stream)

    @cached_property
    def orientation(self) -> Orientation:
        """How the pictures lie: as stated by the first frame that states it, of those decoded by now."""
        return self._stated_orientation or Orientation()

    @cached_property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel over its height."""
        return read_pixel_aspect(self.stream)

    def square(self, fit: Fit | None) -> Fit:
        """Return a fit that is given the size of square pixels, before the picture is turned upright."""

        def fitted(width: int, height: int) -> tuple[int, int]:
            size = size_with_square_pixels(width, height, self.pixel_aspect)
            return fit(*size) if fit else size

        return fitted

    @property
    def timing(self) -> Timing:
        """When the frames decoded so far are shown."""
        return (
            measure_timing(self.times_s, self._last_duration_s, self.fps)
            if self.times_s
            else Timing(self.fps)
        )

    @property
    def last_duration_s(self) -> float:
        """For how many seconds the last frame decoded so far is shown."""
        return estimate_last_duration_s(self.times_s, self._last_duration_s, self.fps)

    def frames(self) -> Iterator[Any]:
        """Yield PyAV's frames in order.

        Raises:
            VideoError: at the end, if there were none, or fewer than half of those declared.
        """
        for frame in self.container.decode(self.stream):
            yield self.record_frame(frame, len(self.times_s) / self.fps if frame.time is None else frame.time)
        if not self.times_s:
            raise VideoError("no frame could be decoded")
        if len(self.times_s) < self.declared_frames / 2:
            raise VideoError(
                f"truncated: {len(self.times_s)} frames of {self.declared_frames} could be decoded"
            )

    def record_frame(self, frame: Any, time_s: float) -> Any:
        """Note a frame that begins at ``time_s``, and return it."""
        if not self.times_s:
            self.transfer = TRANSFER_NAMES.get(frame.color_trc, "")
        self.times_s.append(time_s)
        self._last_duration_s = float((frame.duration or 0) * (frame.time_base or 0))
        self.record_orientation(frame)
        return frame

    def record_orientation(self, frame: Any) -> None:
        """Note what a frame states of its orientation, which the frames behind it may leave out."""
        self._stated_orientation = self._stated_orientation or read_orientation(frame)


def _read_stated_rate(stream: Any) -> float:
    """Return the frames per second that a PyAV stream states on average, or a usual one."""
    for stated in (stream.average_rate, stream.guessed_rate):
        if stated and is_possible_rate(float(stated)) and stated <= _LIKELY_FPS:
            return float(stated)
    return USUAL_FPS


def _count_declared_frames(stream: Any) -> int:
    """Return how many frames a PyAV stream says it shows; 0 if it is silent.

    An mp4 header counts all frames, also those that an edit list hides; FFmpeg's index marks these.
    """
    entries = stream.index_entries if stream.frames else ()
    shown = sum(not entry.is_discard for entry in entries) if "mp4" in stream.container.format.name else 0
    return min(shown, int(stream.frames)) if shown else int(stream.frames)


@contextmanager
def open_video(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """Open a video's main stream for decoding with one thread; FFmpeg's errors become :class:`VideoError`.

    A playlist posing as a video may name other files or hosts: only the file itself may be opened.

    Raises:
        VideoError: what FFmpeg cannot decode. Some of its errors are also Python's, such as PermissionError
            for a damaged gif.
        OSError: the file cannot be read, which is tried before FFmpeg is.
        StorageError: the storage of the file stayed away.
    """
    import av

    if isinstance(source, Path):
        check_readable(source)
    # FFmpeg itself would take a failed read of storage that is away for damage
    target = WaitingFile(source) if isinstance(source, Path) else io.BytesIO(source)
    try:
        with (
            closing(target),
            av.open(target, options={"protocol_whitelist": "none"}, metadata_errors="replace") as container,
        ):
            stream: Any = container.streams.best("video")
            if stream is None:
                raise VideoError("no video stream in the file")
            if stream.codec_context is None:
                raise VideoError("the video stream has a codec that FFmpeg does not know")
            check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"not a video that FFmpeg can decode: {error.strerror or error}") from None


def is_shown_as_coded(source: Path | bytes) -> bool:
    """Return whether a decoder that knows nothing of edit lists, orientation and aspect shows a video right.

    Raises:
        VideoError: as :func:`open_video`.
        OSError: as :func:`open_video`.
    """
    with open_video(source) as (container, stream):
        reading = VideoReader(container, stream)
        next(reading.frames())
        is_plain = reading.orientation.is_upright and reading.pixel_aspect == 1 and not reading.transfer
        return is_plain and reading.declared_frames == stream.frames


def check_readable(path: Path) -> None:
    """Check that a file can be opened and read.

    Raises:
        VideoError: no regular file, or one of zero bytes.
        OSError: it is not there, or may not be read.
    """
    if check_regular_file(path) == 0:
        raise VideoError("the file has zero bytes")
    with path.open("rb") as file:
        file.read(1)
