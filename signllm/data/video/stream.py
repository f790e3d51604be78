"""Opening a video stream for decoding, and the rules by which its frames are shown.

All code that reads videos uses this module. The frames are those that no edit list hides. Their times are
their own time stamps (``frame_rate.py``). They are rotated and mirrored as the file states, with square
pixels (``display.py``). Interlaced video is shown as it is coded, both fields of a frame at once, as FFmpeg
does.

The decoder gets one thread, because different videos are decoded in parallel. Sizes and counts that a file
declares are accepted only within limits (``pictures.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from signllm.data.video.display import (
    Orientation,
    read_orientation,
    read_pixel_aspect,
    size_with_square_pixels,
)
from signllm.data.video.frame_folder import check_regular_file
from signllm.data.video.frame_rate import (
    USUAL_FPS,
    Timing,
    estimate_last_duration_s,
    is_possible_rate,
    measure_timing,
)
from signllm.data.video.pictures import Fit, check_size
from signllm.data.video.tone_mapping import TRANSFER_NAMES
from signllm.data.video.video_error import VideoError
from signllm.storage import WaitingFile

_LIKELY_FPS = 240.0
"""A higher stated rate is a guess of FFmpeg from the unit of time, not the rate of a camera."""


class VideoReader:
    """Decodes the frames of a stream once, and records what they state about their display.

    Args:
        container: the open PyAV container.
        stream: its video stream.

    Attributes:
        fps: average rate that the stream states, in frames per second; 25 if it states none.
        times_s: begin of each frame that has been decoded so far, in seconds.
        transfer: transfer function of a first frame with high dynamic range, "" for standard range.
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
        """Number of shown frames that the stream declares, 0 if unknown; slow for long recordings."""
        return _count_declared_frames(self.stream)

    @cached_property
    def orientation(self) -> Orientation:
        """Orientation that the first of the frames decoded so far states, upright if none states one."""
        return self._stated_orientation or Orientation()

    @cached_property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel divided by its height."""
        return read_pixel_aspect(self.stream)

    def with_square_pixels(self, fit: Fit | None) -> Fit:
        """Return the fit for coded frames: it converts a size to square pixels and then applies ``fit``.

        The sizes are those before the frame is turned upright.
        """

        def fit_square_pixels(width: int, height: int) -> tuple[int, int]:
            size = size_with_square_pixels(width, height, self.pixel_aspect)
            return fit(*size) if fit else size

        return fit_square_pixels

    @property
    def timing(self) -> Timing:
        """Timing of the frames that have been decoded so far."""
        return (
            measure_timing(self.times_s, self._last_duration_s, self.fps)
            if self.times_s
            else Timing(self.fps)
        )

    @property
    def last_duration_s(self) -> float:
        """Duration in seconds of the last frame that has been decoded so far."""
        return estimate_last_duration_s(self.times_s, self._last_duration_s, self.fps)

    def frames(self) -> Iterator[Any]:
        """Yield the PyAV frames in order.

        Raises:
            VideoError: at the end, if there were no frames, or fewer than half of the declared number.
        """
        for frame in self.container.decode(self.stream):
            yield self.record_frame(frame, len(self.times_s) / self.fps if frame.time is None else frame.time)
        if not self.times_s:
            raise VideoError("no frame could be decoded")
        if len(self.times_s) < self.declared_frames / 2:
            raise VideoError(
                f"the video is truncated: {len(self.times_s)} of {self.declared_frames} frames can be decoded"
            )

    def record_frame(self, frame: Any, time_s: float) -> Any:
        """Record the time and the display properties of a frame, and return the frame."""
        if not self.times_s:
            self.transfer = TRANSFER_NAMES.get(frame.color_trc, "")
        self.times_s.append(time_s)
        self._last_duration_s = float((frame.duration or 0) * (frame.time_base or 0))
        self.record_orientation(frame)
        return frame

    def record_orientation(self, frame: Any) -> None:
        """Record the orientation that a frame states; later frames may omit it."""
        self._stated_orientation = self._stated_orientation or read_orientation(frame)


def _read_stated_rate(stream: Any) -> float:
    """Return the average rate in frames per second that a PyAV stream states, else 25."""
    for stated in (stream.average_rate, stream.guessed_rate):
        if stated and is_possible_rate(float(stated)) and stated <= _LIKELY_FPS:
            return float(stated)
    return USUAL_FPS


def _count_declared_frames(stream: Any) -> int:
    """Return the number of shown frames that a PyAV stream declares, 0 if it declares none.

    An mp4 header counts all frames, including those that an edit list hides; FFmpeg's index marks the latter.
    """
    entries = stream.index_entries if stream.frames else ()
    shown = sum(not entry.is_discard for entry in entries) if "mp4" in stream.container.format.name else 0
    return min(shown, int(stream.frames)) if shown else int(stream.frames)


@contextmanager
def open_video(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """Open the main video stream of a file for decoding with one thread; yield the container and the stream.

    A playlist with the name of a video may refer to other files or hosts, so FFmpeg may open only the file
    itself.

    Raises:
        VideoError: FFmpeg cannot decode the file. It replaces FFmpeg's own errors, some of which are also
            OSErrors, such as PermissionError for a damaged gif.
        OSError: the file cannot be read, which is checked before FFmpeg opens it.
        StorageError: the storage of the file stayed unavailable.
    """
    import av

    if isinstance(source, Path):
        check_readable(source)
    # FFmpeg would take a failed read of unavailable storage for damage of the file.
    target = WaitingFile(source) if isinstance(source, Path) else io.BytesIO(source)
    try:
        with (
            closing(target),
            av.open(target, options={"protocol_whitelist": "none"}, metadata_errors="replace") as container,
        ):
            stream: Any = container.streams.best("video")
            if stream is None:
                raise VideoError("there is no video stream in the file")
            if stream.codec_context is None:
                raise VideoError("the video stream has a codec that FFmpeg does not know")
            check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"not a video that FFmpeg can decode: {error.strerror or error}") from None


def check_readable(path: Path) -> None:
    """Check that a file can be opened and read.

    Raises:
        VideoError: the path is not a regular file, or the file has zero bytes.
        OSError: the file does not exist or cannot be read.
    """
    if check_regular_file(path) == 0:
        raise VideoError("the file has zero bytes")
    with path.open("rb") as file:
        file.read(1)
