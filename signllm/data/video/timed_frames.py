"""Reading a video in chunks of frames with their times, so that a recording of hours needs little memory.

Times count from the start of the file, as players and ``ffmpeg -ss`` count them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from signllm.data.video.decoding import (
    crop_center_square,
    decode_image_chunks,
    decode_upright_chunks,
    scale_short_side,
)
from signllm.data.video.frame_folder import list_frame_files
from signllm.data.video.frame_rate import USUAL_FPS, begin_tolerance_s, count_frames_at_rate
from signllm.data.video.packed_frames import PackedFrames
from signllm.data.video.pictures import MAX_FRAMES, check_total
from signllm.data.video.stream import VideoReader, open_video
from signllm.data.video.video_error import VideoError

_CHUNK_FRAMES = 512
"""Number of frames after which the limits of ``pictures.py``, which apply to one sample, start again."""
_CHUNK_PICTURES = 64
_MICROSECONDS = 1_000_000


class TimedFrames(NamedTuple):
    """Frames with their times.

    Attributes:
        frames: uint8 (T, S, S, 3).
        edges_s: begin of each frame, and the end of the last, in seconds, (T + 1,).
    """

    frames: np.ndarray
    edges_s: np.ndarray


def read_timed_chunks(
    source: Path | bytes | np.ndarray, *, size: int, fps: float | None = None, at_fps: float | None = None
) -> Iterator[TimedFrames]:
    """Yield a video in chunks; the frames equal those of :func:`signllm.data.video.decoding.decode_video`.

    Args:
        source: path of a video file or folder of frames, the bytes of a video, or frames (T, size, size, 3).
        size: side in pixels of the square that is cropped from the center.
        fps: rate of a folder or of frames, in frames per second; by default ``at_fps``, or else 25. A video
            file states its own rate.
        at_fps: rate in frames per second to resample to; None keeps every frame.

    Raises:
        VideoError: as :func:`signllm.data.video.decoding.decode_video`, but without a limit of the length.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes) or (isinstance(source, Path) and not source.is_dir()):
        yield from _read_file_chunks(source, size, at_fps)
        return
    pictures = _read_picture_chunks(source, size) if isinstance(source, Path) else iter([source])
    rate = fps or at_fps or USUAL_FPS
    chunks = _add_steady_times(pictures, rate)
    yield from chunks if at_fps is None else _resample_chunks(chunks, rate, at_fps)


def join_chunks(chunks: Iterator[TimedFrames]) -> TimedFrames:
    """Return all frames of a video as one array.

    Raises:
        VideoError: the video exceeds the limits of ``pictures.py``, or reading a chunk raises it.
    """
    packed, edges = PackedFrames(), [np.zeros(1)]
    for chunk in chunks:
        packed.extend([chunk.frames])
        edges[-1:] = [edges[-1][:-1], chunk.edges_s]
        check_total(len(packed), chunk.frames.shape[2], chunk.frames.shape[1])
    return TimedFrames(packed.all(), np.concatenate(edges))


def _read_file_chunks(source: Path | bytes, size: int, at_fps: float | None) -> Iterator[TimedFrames]:
    """Yield the chunks of a video file."""
    with open_video(source) as (container, stream):
        reader = VideoReader(container, stream)
        chunks = _read_stream_chunks(reader, size)
        yield from chunks if at_fps is None else _resample_chunks(chunks, reader.fps, at_fps)


def _read_stream_chunks(reader: VideoReader, size: int) -> Iterator[TimedFrames]:
    """Yield the chunks of a stream; each frame ends where the next begins, the last after its duration."""
    frames, fit, done, latest_s = reader.frames(), partial(scale_short_side, short_side=size), 0, 0.0
    origin_s = (reader.container.start_time or 0) / _MICROSECONDS
    waiting: tuple[np.ndarray, np.ndarray] | None = None
    for first in frames:
        for chunk in decode_upright_chunks(reader, fit, chain([first], islice(frames, _CHUNK_FRAMES - 1))):
            begins_s = np.array(reader.times_s[done : done + len(chunk)]) - origin_s
            # The times in a damaged file may decrease.
            begins_s = np.maximum(np.maximum.accumulate(begins_s), latest_s)
            done, latest_s = done + len(chunk), float(begins_s[-1])
            if waiting is not None:
                yield TimedFrames(waiting[0], np.append(waiting[1], begins_s[0]))
            waiting = crop_center_square(chunk, size).copy(), begins_s  # the next chunk may reuse the memory
    if waiting is not None:
        yield TimedFrames(waiting[0], np.append(waiting[1], latest_s + reader.last_duration_s))


def _add_steady_times(pictures: Iterator[np.ndarray], fps: float) -> Iterator[TimedFrames]:
    """Yield chunks with the times of a constant rate."""
    done = 0
    for chunk in pictures:
        yield TimedFrames(chunk, np.arange(done, done + len(chunk) + 1) / fps)
        done += len(chunk)


def _resample_chunks(chunks: Iterator[TimedFrames], source_fps: float, fps: float) -> Iterator[TimedFrames]:
    """Resample chunks to another rate by the rule of ``frame_rate.frame_numbers_at_rate``."""
    tolerance_s, shown, first_s = begin_tolerance_s(source_fps, fps), 0, None
    chunk = next(chunks, None)
    while chunk is not None:
        following = next(chunks, None)
        first_s = float(chunk.edges_s[0]) if first_s is None else first_s
        edges_s = chunk.edges_s - first_s
        if following is None:
            end = count_frames_at_rate(float(edges_s[-1]), fps)
        else:  # the instants before the next chunk begins belong to this one
            end = max(shown, math.ceil((edges_s[-1] - tolerance_s) * fps))
        if end - shown > MAX_FRAMES:
            raise VideoError(
                f"the video is damaged: a frame is shown for {edges_s[-1] - shown / fps:.0f} seconds"
            )
        instants = np.arange(shown, end)
        places = np.searchsorted(edges_s[:-1], instants / fps + tolerance_s, side="right") - 1
        if len(places):
            yield TimedFrames(chunk.frames[np.maximum(places, 0)], first_s + np.arange(shown, end + 1) / fps)
        chunk, shown = following, max(shown, end)


def _read_picture_chunks(folder: Path, size: int) -> Iterator[np.ndarray]:
    """Yield the frames of a folder in chunks."""
    files, fit = list_frame_files(folder), partial(scale_short_side, short_side=size)
    for at in range(0, len(files), _CHUNK_PICTURES):
        read = [path.read_bytes() for path in files[at : at + _CHUNK_PICTURES]]
        for chunk in decode_image_chunks(read, fit):
            yield crop_center_square(chunk, size)
