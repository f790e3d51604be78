"""One video stream, opened for decoding in order, and what is noted of its frames on the way.

The decoder gets one thread: parallelism is over clips. What is declared is believed only within limits
(``pictures.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from signllm.data.frame_folder import check_regular
from signllm.data.pictures import check_size
from signllm.data.video_error import VideoError

FRAME_FOLDER_FPS = 25.0
"""Frames per second of a frame folder whose dataset states none, and of a stream that states none."""
SLOWEST_FPS, FASTEST_FPS = 0.01, 1000


class Reading:
    """The frames of a stream, decoded once.

    Attributes:
        fps: frames per second, the average that the stream states.
        declared: frames that the stream says it holds; 0 where it is silent.
        times_s: when each frame decoded so far begins, in seconds.
        rotations: in degrees, of the frames decoded so far.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.fps = _frame_rate(stream)
        self.declared = int(stream.frames)
        self.times_s: list[float] = []
        self.rotations: set[int] = set()

    @property
    def quarter_turns(self) -> int:
        """Quarter turns to the left that set the frames upright: of the largest rotation met so far."""
        return round(max(self.rotations, key=abs, default=0) / 90) % 4

    def frames(self) -> Iterator[Any]:
        """Yield PyAV's frames in order.

        Raises:
            VideoError: at the end, if there were none, or fewer than half of those declared.
        """
        for frame in self.container.decode(self.stream):
            yield self.noted(frame, len(self.times_s) / self.fps if frame.time is None else frame.time)
        if not self.times_s:
            raise VideoError("no frame could be decoded")
        if len(self.times_s) < self.declared / 2:
            raise VideoError(f"truncated: {len(self.times_s)} frames of {self.declared} could be decoded")

    def noted(self, frame: Any, time_s: float) -> Any:
        """Note a frame that begins at ``time_s``, and return it."""
        self.times_s.append(time_s)
        self.rotations.add(frame.rotation)
        return frame


def _frame_rate(stream: Any) -> float:
    """Return the frames per second of a PyAV stream, on average.

    Raises:
        VideoError: a rate that no video has.
    """
    fps = float(stream.average_rate or stream.guessed_rate or FRAME_FOLDER_FPS)
    if not SLOWEST_FPS <= fps <= FASTEST_FPS:
        raise VideoError(f"{fps:g} frames per second; taken are {SLOWEST_FPS} to {FASTEST_FPS}")
    return fps


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
