"""The videos to translate: files, bytes of a file, folders of frame pictures, or arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from signllm.data.system_files import list_files_recursively
from signllm.data.video.decoding import decode_video
from signllm.data.video.frame_folder import is_image
from signllm.data.video.recording_pieces import CutRule, cut_into_pieces
from signllm.data.video.timed_frames import TimedFrames, join_chunks, read_timed_chunks
from signllm.data.video.video_error import VideoError
from signllm.data.video.video_files import is_video_name
from signllm.errors import UsageError

REMEDY = "give a video file that FFmpeg can read, or a folder of frame pictures"
_TEXT_TEST_BYTES = 4096
"""Number of bytes of standard input that are examined to tell a list of names from a video."""


@dataclass(frozen=True)
class VideoInput:
    """One video that has not been decoded yet.

    Attributes:
        name: name in messages and results.
        source: a video file or a folder of pictures, the bytes of a file, or frames uint8 (T, H, W, 3).
        fps: frame rate of pictures and arrays; by default that of the model that reads them.
    """

    name: str
    source: Path | bytes | np.ndarray
    fps: float | None = None

    def decode_all(self, size: int, at_fps: float | None = None) -> TimedFrames:
        """Decode the complete video.

        Args:
            size: height and width of the decoded frames in pixels.
            at_fps: frame rate of the result; None keeps every frame.

        Raises:
            UsageError: There is no such file, or the video cannot be read.
        """
        hint = "; --pauses or --windows cut it into pieces"
        return self._convert_errors(lambda: join_chunks(self._read_chunks(size, at_fps)), hint)

    def decode_pieces(
        self, size: int, cut: CutRule, longest: int, at_fps: float | None = None
    ) -> Iterator[TimedFrames]:
        """Yield the pieces of a recording, which is cut while it is decoded.

        Args:
            size: height and width of the decoded frames in pixels.
            cut: rule by which the recording is cut.
            longest: largest number of frames of a piece that is cut at pauses.
            at_fps: frame rate of the result; None keeps every frame.

        Raises:
            UsageError: There is no such file, the video cannot be read, or no piece was found.
        """
        pieces, is_empty = cut_into_pieces(self._read_chunks(size, at_fps), cut, longest=longest), True
        while (piece := self._convert_errors(lambda: next(pieces, None))) is not None:
            is_empty = False
            yield piece
        if is_empty:
            raise UsageError(
                "nothing moves in this video, so no piece of it could be cut",
                where=self.name,
                remedy="lower --pause.energy, or cut it by --windows SECONDS",
            )

    def _read_chunks(self, size: int, at_fps: float | None) -> Iterator[TimedFrames]:
        """Yield consecutive frames with their times, a bounded number at a time."""
        source = scale_and_crop(self.source, size) if isinstance(self.source, np.ndarray) else self.source
        return read_timed_chunks(source, size=size, fps=self.fps, at_fps=at_fps)

    def _convert_errors(self, work: Callable[[], Any], remedy_hint: str = "") -> Any:
        """Return the result of ``work``, with decoding errors converted to ``UsageError``."""
        if isinstance(self.source, Path) and not self.source.exists():
            raise UsageError("there is no such video", where=self.name, remedy=REMEDY)
        try:
            return work()
        except VideoError as error:
            remedy = f"{error.remedy}{remedy_hint}" if error.remedy else REMEDY
            raise UsageError(
                f"the video cannot be read: {error.what}", where=self.name, remedy=remedy
            ) from error
        except OSError as error:
            raise UsageError(
                f"the video cannot be read: {error.strerror}", where=self.name, remedy=REMEDY
            ) from error


def as_video_input(video: Any, fps: float | None = None) -> VideoInput:
    """Return the video that a Python caller passed: a path, or frames as an array or tensor.

    Raises:
        UsageError: This is neither, or ``fps`` is not a positive number.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError(f"fps is {fps}", remedy="give frames per second, 25 for instance")
    if isinstance(video, str | os.PathLike):
        return VideoInput(os.fspath(video), Path(video), fps)
    return VideoInput("frames", as_frames(video), fps)


def as_frames(video: Any) -> np.ndarray:
    """Return frames uint8 (T, H, W, 3) of an array or tensor of that shape or of (T, 3, H, W).

    An array (T, 3, H, 3), which could be either, is rejected.

    Raises:
        UsageError: The array has another type or shape.
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


def scale_and_crop(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    """Return frames (T, size, size, 3), scaled and cropped exactly as a decoded video is.

    The frames pass through the decoder as lossless pictures, so that there is only one implementation.
    """
    if frames_THWC.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames_THWC)
    return decode_video(_encode_pictures(frames_THWC), size=size)


def _encode_pictures(frames_THWC: np.ndarray) -> Sequence[bytes]:
    """Return each frame as the bytes of a lossless picture file."""
    from PIL import Image

    pictures = []
    for frame_HWC in frames_THWC:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame_HWC)).save(buffer, format="PNG", compress_level=1)
        pictures.append(buffer.getvalue())
    return pictures


def collect_video_inputs(
    names: Sequence[str], standard_input: Callable[[], bytes], fps: float | None = None
) -> list[VideoInput]:
    """Return the videos that a command line names.

    Args:
        names: files; folders, which contain either the frame pictures of one video or, at any depth, videos;
            or ``-`` for standard input, which contains a list of files and folders, one per line, or the
            bytes of one video.
        standard_input: function that reads standard input.
        fps: frame rate of frame pictures.

    Raises:
        UsageError: No video is named, or a folder contains none.
    """
    videos = []
    for name in names:
        if name == "-":
            videos += _videos_of_standard_input(standard_input(), fps)
        else:
            videos += [VideoInput(str(path), path, fps) for path in _find_videos(Path(name))]
    if not videos:
        raise UsageError(
            "no video is named", where="signllm translate VIDEO...", remedy="name one video file or more"
        )
    return videos


def _videos_of_standard_input(data: bytes, fps: float | None) -> list[VideoInput]:
    """Return the videos that a list names, or the one video that ``data`` contains."""
    if is_text(data):
        lines = [line for line in data.decode().splitlines() if line.strip()]
        return [VideoInput(str(path), path, fps) for line in lines for path in _find_videos(Path(line))]
    return [VideoInput("-", data, fps)]


def is_text(data: bytes) -> bool:
    """Return whether bytes are UTF-8 text without a zero byte; every video has one near its beginning."""
    head = data[:_TEXT_TEST_BYTES]
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end == len(head) < len(data)  # a multi-byte character that ends behind the limit
    return True


def _find_videos(path: Path) -> list[Path]:
    """Return the file itself, or the videos of a folder by name, each folder before its subfolders."""
    if not path.is_dir():
        return [path]
    videos = []
    for folder, names in list_files_recursively(path):
        files = [folder / name for name in names]
        folder_videos = [file for file in files if is_video_name(file)]
        if not folder_videos and any(map(is_image, files)):
            folder_videos = [folder]
        videos += folder_videos
    if not videos:
        raise UsageError("no video and no frame picture in the folder", where=path, remedy=REMEDY)
    return videos
