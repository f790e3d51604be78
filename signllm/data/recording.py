"""One clip out of a long recording: seek to the key frame before it, decode from there to its end.

A seek lands where the container's index says, and with B-frames or a coarse index that may lie behind the
wanted instant; then the next attempt starts further back, the last one at the beginning of the file.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from signllm.data.source_samples import TOLERANCE_S, TimeSpan
from signllm.data.stream import VideoReader, open_video
from signllm.data.video_error import VideoError

Result = TypeVar("Result")

_BACK_S = (0.0, 2.0, 20.0)
"""Seconds before the clip to which successive attempts seek; the last attempt does not seek at all."""
_MICROSECONDS = 1_000_000


class _SeekMissedError(Exception):
    """The seek landed behind the wanted instant, or the container cannot seek."""


def read_time_span(
    recording: Path, cut: TimeSpan, use: Callable[[VideoReader], Result]
) -> tuple[Result, str]:
    """Read a part of a recording; times count from the container's start, as ``ffmpeg -ss`` counts them.

    Args:
        recording: a video file.
        cut: the part.
        use: is handed the part and consumes its frames; after a missed seek once more, from the beginning.

    Returns:
        what ``use`` returned, and the sha256 of the packets it was decoded from: reading the whole recording
        for every clip of it would cost more than decoding the clip.

    Raises:
        VideoError: no frame in that part, a recording that ends before half of it, or what ``use`` raises.
        OSError: the file cannot be read.
    """
    for seek_s in (cut.start_s - back_s for back_s in _BACK_S if cut.start_s > back_s):
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
    """The frames of a cut, decoded from the key frame before ``seek_s`` or, if None, from the beginning."""

    def __init__(self, container: Any, stream: Any, cut: TimeSpan, seek_s: float | None) -> None:
        super().__init__(container, stream)
        self.cut, self.declared_frames, self._seek_s = cut, 0, seek_s
        self.checksum = hashlib.sha256()
        self._origin_s = (container.start_time or 0) / _MICROSECONDS
        self._last_s = -math.inf

    def frames(self) -> Iterator[Any]:
        """Yield the frames of the cut.

        Raises:
            VideoError: at the end, if the recording ended before half of the cut.
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
                f"the clip lies from {start_s:g} to {end_s:g} s, the recording ends at {ends_s:.2f} s"
            )

    def _seek(self, seek_s: float) -> None:
        import av

        try:
            self.container.seek(int((seek_s + self._origin_s) / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            raise _SeekMissedError from None

    def _decoded(self, *, counts: bool) -> Iterator[tuple[float, Any]]:
        """Yield (seconds from the start, frame); frames without a time stamp are counted from the start."""
        number = 0
        for packet in self.container.demux(self.stream):
            self.checksum.update(bytes(packet))
            for frame in packet.decode():
                if frame.time is None and not counts:
                    raise _SeekMissedError
                yield (number / self.fps if frame.time is None else frame.time - self._origin_s), frame
                number += 1
