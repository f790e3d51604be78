"""What can be translated: a file, its bytes, a folder of pictures, an array; and the videos of a folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from signllm.data.frame_folder import is_image
from signllm.data.recording_pieces import CutRule, cut_into_pieces
from signllm.data.system_files import list_files_recursively
from signllm.data.timed_frames import TimedFrames, join_chunks, read_timed_chunks
from signllm.data.video import decode_video
from signllm.data.video_error import VideoError
from signllm.data.video_files import is_video_name
from signllm.errors import UsageError

REMEDY = "give a video file that FFmpeg can read, or a folder of frame pictures"
_PEEKED = 4096


@dataclass(frozen=True)
class Footage:
    """One video, not decoded yet.

    Attributes:
        name: for messages and results.
        source: a file or a folder of pictures, a file's bytes, or frames uint8 (T, H, W, 3).
        fps: of pictures and arrays; by default that of the model that reads them.
    """

    name: str
    source: Path | bytes | np.ndarray
    fps: float | None = None

    def whole(self, size: int, at_fps: float | None = None) -> TimedFrames:
        """Decode all of it, at ``at_fps`` frames per second, or every frame.

        Raises:
            UsageError: no such file, or no readable video.
        """
        with_cut = "; --pauses or --windows cut it"
        return self._told(lambda: join_chunks(self._runs(size, at_fps)), with_cut)

    def pieces(
        self, size: int, cut: CutRule, longest: int, at_fps: float | None = None
    ) -> Iterator[TimedFrames]:
        """Cut it while it is decoded; raises as :meth:`whole`, at the latest at the end."""
        pieces, is_empty = cut_into_pieces(self._runs(size, at_fps), cut, longest=longest), True
        while (piece := self._told(lambda: next(pieces, None))) is not None:
            is_empty = False
            yield piece
        if is_empty:
            raise UsageError(
                "nothing moves in it",
                where=self.name,
                remedy="lower --pause.energy, or cut it by --windows SECONDS",
            )

    def _runs(self, size: int, at_fps: float | None) -> Iterator[TimedFrames]:
        source = fitted(self.source, size) if isinstance(self.source, np.ndarray) else self.source
        return read_timed_chunks(source, size=size, fps=self.fps, at_fps=at_fps)

    def _told(self, work: Callable[[], Any], behind: str = "") -> Any:
        if isinstance(self.source, Path) and not self.source.exists():
            raise UsageError("there is no such video", where=self.name, remedy=REMEDY)
        try:
            return work()
        except VideoError as error:
            remedy = f"{error.remedy}{behind}" if error.remedy else REMEDY
            raise UsageError(
                f"the video cannot be read: {error.what}", where=self.name, remedy=remedy
            ) from error
        except OSError as error:
            raise UsageError(
                f"the video cannot be read: {error.strerror}", where=self.name, remedy=REMEDY
            ) from error


def footage_of(video: Any, fps: float | None = None) -> Footage:
    """Return what somebody gave in Python: a path, or frames as an array or tensor.

    Raises:
        UsageError: anything else, or a rate that is none.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError(f"fps is {fps}", remedy="give frames per second, 25 for instance")
    if isinstance(video, str | os.PathLike):
        return Footage(os.fspath(video), Path(video), fps)
    return Footage("frames", frames_of(video), fps)


def frames_of(video: Any) -> np.ndarray:
    """Return frames uint8 (T, H, W, 3), given so or as (T, 3, H, W), as an array or a tensor.

    Where both readings are possible, (T, 3, H, 3), they are refused.

    Raises:
        UsageError: another type or shape.
    """
    frames = np.asarray(video.cpu() if hasattr(video, "cpu") else video)
    channels = frames.ndim == 4 and (frames.shape[1] == 3, frames.shape[3] == 3)
    if frames.dtype != np.uint8 or channels not in ((True, False), (False, True)) or 0 in frames.shape:
        raise UsageError(
            f"frames are {frames.dtype} of shape {frames.shape}",
            where="Translator.translate",
            remedy="give uint8 of shape (frames, height, width, 3) or (frames, 3, height, width), red first",
        )
    return frames.transpose(0, 2, 3, 1) if channels == (True, False) else frames


def fitted(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    """Scale and crop frames the way decoding does, by the same code: as numbered pictures."""
    if frames_THWC.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames_THWC)
    return decode_video(_pictures(frames_THWC), size=size)


def _pictures(frames_THWC: np.ndarray) -> Sequence[bytes]:
    """Return each frame as a lossless picture file."""
    from PIL import Image

    pictures = []
    for frame_HWC in frames_THWC:
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame_HWC)).save(written, format="PNG", compress_level=1)
        pictures.append(written.getvalue())
    return pictures


def found(
    names: Sequence[str], standard_input: Callable[[], bytes], fps: float | None = None
) -> list[Footage]:
    """Return the videos that a command line names.

    Args:
        names: files; folders, which hold the pictures of one video or, at any depth, videos; ``-`` for
            standard input: a list of files and folders, one a line, or the bytes of a video.
        standard_input: reads it.
        fps: of pictures.

    Raises:
        UsageError: no video, or a folder without one.
    """
    videos = []
    for name in names:
        if name == "-":
            videos += _given(standard_input(), fps)
        else:
            videos += [Footage(str(path), path, fps) for path in _below(Path(name))]
    if not videos:
        raise UsageError("no video", where="signllm translate VIDEO...", remedy="name one video file or more")
    return videos


def _given(data: bytes, fps: float | None) -> list[Footage]:
    if is_text(data):
        listed = [line for line in data.decode().splitlines() if line.strip()]
        return [Footage(str(path), path, fps) for line in listed for path in _below(Path(line))]
    return [Footage("-", data, fps)]


def is_text(data: bytes) -> bool:
    """Say whether bytes are text: UTF-8 without a zero, which every kind of video has near its beginning."""
    head = data[:_PEEKED]
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end == len(head) < len(data)  # a character that the limit cuts
    return True


def _below(path: Path) -> list[Path]:
    """Return a file, or the videos of a folder: each folder before those in it, names in order."""
    if not path.is_dir():
        return [path]
    videos = []
    for folder, names in list_files_recursively(path):
        files = [folder / name for name in names]
        here = [file for file in files if is_video_name(file)]
        if not here and any(map(is_image, files)):
            here = [folder]
        videos += here
    if not videos:
        raise UsageError("no video and no frame picture in the folder", where=path, remedy=REMEDY)
    return videos
