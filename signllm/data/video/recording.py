"""Reading a part of a long recording: seek to the key frame before it, and decode from there to its end.

A seek ends at a position from the container's index. With B-frames or a coarse index that position may lie
after the requested time; then the next attempt seeks further back, and the last one decodes from the start of
the file.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from signllm.data.source_samples import TOLERANCE_S, TimeSpan
from signllm.data.video.stream import VideoReader, open_video
from signllm.data.video.video_error import VideoError

Result = TypeVar("Result")

_SEEK_MARGINS_S = (0.0, 2.0, 20.0)
"""Seconds before the part to which successive attempts seek; the last attempt does not seek at all."""
_MICROSECONDS = 1_000_000


class _SeekMissedError(Exception):
    """The seek ended after the requested time, or the container cannot seek."""


def read_time_span(
    recording: Path, cut: TimeSpan, use: Callable[[VideoReader], Result]
) -> tuple[Result, str]:
    """Read a part of a recording; times count from the container's start, as ``ffmpeg -ss`` counts them.

    Args:
        recording: path of a video file.
        cut: the part to read.
        use: function that consumes the frames of the part; after a missed seek it is called again with a new
            reader.

    Returns:
        The result of ``use``, and the sha256 of the packets that were decoded. The checksum does not cover
        the complete recording, because reading that for every sample would cost more than decoding the
        sample.

    Raises:
        VideoError: no frame lies in the part, the recording ends before half of it, or ``use`` raises it.
        OSError: the file cannot be read.
    """
    for seek_s in (cut.start_s - back_s for back_s in _SEEK_MARGINS_S if cut.start_s > back_s):
        try:
            return _read_after_seek(recording, cut, use, seek_s=seek_s)
        except _SeekMissedError:
            continue
    return _read_after_seek(recording, cut, use, seek_s=None)


def _read_after_seek(
    recording: Path, cut: TimeSpan, use: Callable[[VideoReader], Result], *, seek_s: float | None
) -> tuple[Result, str]:
    with open_video(recording) as (container, stream):
        part = _TimeSpanReader(container, stream, cut, seek_s)
        return use(part), part.checksum.hexdigest()


class _TimeSpanReader(VideoReader):
    """Reader of the frames of a time span.

    Args:
        container: the open PyAV container.
        stream: its video stream.
        cut: the time span.
        seek_s: time in seconds to seek to; None decodes from the start.
    """

    def __init__(self, container: Any, stream: Any, cut: TimeSpan, seek_s: float | None) -> None:
        super().__init__(container, stream)
        self.cut, self.declared_frames, self._seek_s = cut, 0, seek_s
        self.checksum = hashlib.sha256()
        self._origin_s = (container.start_time or 0) / _MICROSECONDS
        self._last_s = -math.inf

    def frames(self) -> Iterator[Any]:
        """Yield the frames of the time span.

        Raises:
            VideoError: at the end, if the recording ended before half of the time span.
        """
        decoded = self._decoded(counts=self._seek_s is None)
        if self._seek_s is not None:
            self._seek(self._seek_s)
            first = next(decoded, None)
            if first is None or first[0] > self.cut.start_s + TOLERANCE_S:
                raise _SeekMissedError
            decoded = itertools.chain([first], decoded)
        for time_s, frame in decoded:
            self._last_s = time_s
            self.record_orientation(frame)
            if self.cut.ends_by(time_s):
                break
            if self.cut.starts_by(time_s):
                yield self.record_frame(frame, time_s)
        self._check_end()

    def _check_end(self) -> None:
        start_s, end_s = self.cut
        ends_s = max(0.0, self._last_s + (self.last_duration_s if self.times_s else 1 / self.fps))
        if not self.times_s or (end_s < math.inf and ends_s < (start_s + end_s) / 2):
            raise VideoError(
                f"the sample lies from {start_s:g} to {end_s:g} s, the recording ends at {ends_s:.2f} s"
            )

    def _seek(self, seek_s: float) -> None:
        """Seek to the key frame before a time in seconds."""
        import av

        try:
            self.container.seek(int((seek_s + self._origin_s) / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            raise _SeekMissedError from None

    def _decoded(self, *, counts: bool) -> Iterator[tuple[float, Any]]:
        """Yield the time of each decoded frame in seconds from the start, and the frame.

        Args:
            counts: True computes the time of a frame without time stamp from its number, which is possible
                only when decoding from the start.
        """
        number = 0
        for packet in self.container.demux(self.stream):
            self.checksum.update(bytes(packet))
            for frame in packet.decode():
                if frame.time is None and not counts:
                    raise _SeekMissedError
                yield (number / self.fps if frame.time is None else frame.time - self._origin_s), frame
                number += 1
