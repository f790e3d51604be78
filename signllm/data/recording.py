"""One clip out of a long recording: seek to the key frame before it, decode from there to its end.

A seek lands where the container's index says, and with B-frames or a coarse index that may lie behind the
wanted instant; then the next attempt starts further back, the last one at the beginning of the file.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from signllm.data.clip import TOLERANCE_S, Cut
from signllm.data.pictures import Fit, rgb_pictures
from signllm.data.video import Video, frame_rate, opened, resampled, upright
from signllm.data.video_error import VideoError

_BACK_S = (0.0, 2.0, 20.0)
"""Seconds before the clip to which successive attempts seek; the last attempt does not seek at all."""
_MICROSECONDS = 1_000_000


class _SeekMissedError(Exception):
    """The seek landed behind the wanted instant, or the container cannot seek."""


def read_cut(
    recording: Path, cut: Cut, *, fit: Fit | None = None, fps: float | None = None
) -> tuple[Video, str]:
    """Decode a part of a recording; ``fit`` and ``fps`` as in :func:`~signllm.data.video.read_video`.

    Times count from the container's start, as ``ffmpeg -ss`` counts them.

    Returns:
        the video, and the sha256 of the packets it was decoded from: reading the whole recording for every
        clip of it would cost more than decoding the clip.

    Raises:
        VideoError: no frame in that part, a recording that ends before half of it, or as ``read_video``.
        OSError: the file cannot be read.
    """
    for seek_s in (cut.start_s - back_s for back_s in _BACK_S if cut.start_s > back_s):
        try:
            return _read(recording, cut, fit, fps, seek_s=seek_s)
        except _SeekMissedError:
            continue
    return _read(recording, cut, fit, fps, seek_s=None)


def _read(
    recording: Path, cut: Cut, fit: Fit | None, fps: float | None, *, seek_s: float | None
) -> tuple[Video, str]:
    import numpy as np

    with opened(recording) as (container, stream):
        part = _Part(container, stream, cut)
        runs = list(rgb_pictures(part.frames(seek_s), fit))
    part.check_end()
    frames_THWC = runs[0] if len(runs) == 1 else np.concatenate(runs)
    video = Video(frames=upright(frames_THWC, part.rotations), fps=part.fps)
    return (
        video if fps is None else resampled(video, np.array(part.times_s), fps),
        part.checksum.hexdigest(),
    )


class _Part:
    """The frames of a cut, and what was noted while they were decoded."""

    def __init__(self, container: Any, stream: Any, cut: Cut) -> None:
        self.container, self.stream, self.cut = container, stream, cut
        self.fps = frame_rate(stream)
        self.checksum = hashlib.sha256()
        self.times_s: list[float] = []
        self.rotations: set[int] = set()
        self._origin_s = (container.start_time or 0) / _MICROSECONDS
        self._last_s = -math.inf

    def frames(self, seek_s: float | None) -> Iterator[Any]:
        """Yield the frames of the cut, decoded from the key frame before ``seek_s`` or from the beginning."""
        decoded = self._decoded(counts=seek_s is None)
        if seek_s is not None:
            self._seek(seek_s)
            first = next(decoded, None)
            if first is None or first[0] > self.cut.start_s + TOLERANCE_S:
                raise _SeekMissedError
            decoded = itertools.chain([first], decoded)
        for time_s, frame in decoded:
            self._last_s = time_s
            if self.cut.is_over(time_s):
                return
            if self.cut.has_begun(time_s):
                self.times_s.append(time_s)
                self.rotations.add(frame.rotation)
                yield frame

    def check_end(self) -> None:
        """Raise :class:`VideoError` where the recording ends before half of the cut."""
        start_s, end_s = self.cut
        ends_s = max(0.0, self._last_s + 1 / self.fps)
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
