"""Frames with their times, a few at a time: a recording of hours passes through without being held.

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

from signllm.data.frame_folder import list_frame_files
from signllm.data.frame_rate import USUAL_FPS, begin_tolerance_s, count_frames_at_rate
from signllm.data.packed_frames import PackedFrames
from signllm.data.pictures import MAX_FRAMES, check_total
from signllm.data.stream import VideoReader, open_video
from signllm.data.video import (
    crop_center_square,
    decode_image_chunks,
    decode_upright_chunks,
    scale_short_side,
)
from signllm.data.video_error import VideoError

_AT_A_TIME = 512
"""Frames after which the limits of ``pictures.py``, which are for one clip, begin anew."""
_PICTURES_READ = 64
_MICROSECONDS = 1_000_000


class TimedFrames(NamedTuple):
    """Frames uint8 (T, S, S, 3) and T + 1 edges in seconds: each frame's begin, and the end of the last."""

    frames: np.ndarray
    edges_s: np.ndarray


def read_timed_chunks(
    source: Path | bytes | np.ndarray, *, size: int, fps: float | None = None, at_fps: float | None = None
) -> Iterator[TimedFrames]:
    """Yield a video in runs of some frames, the same pictures as :func:`signllm.data.video.decode_video`.

    Args:
        source: a video file, its bytes, a folder of frame pictures, or frames (T, size, size, 3).
        size: side of the square that is cut from the centre.
        fps: of a folder or of frames; by default ``at_fps``, or else 25. A file states its own.
        at_fps: frames per second to show the video at; None shows every frame.

    Raises:
        VideoError: as :func:`signllm.data.video.decode_video`, but a recording of any length is read.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes) or (isinstance(source, Path) and not source.is_dir()):
        yield from _read_file_chunks(source, size, at_fps)
        return
    pictures = _read_picture_chunks(source, size) if isinstance(source, Path) else iter([source])
    rate = fps or at_fps or USUAL_FPS
    runs = _add_steady_times(pictures, rate)
    yield from runs if at_fps is None else _resample_chunks(runs, rate, at_fps)


def join_chunks(runs: Iterator[TimedFrames]) -> TimedFrames:
    """Return all of a clip at once.

    Raises:
        VideoError: more than the limits of ``pictures.py``, or what ``runs`` raises.
    """
    packed, edges = PackedFrames(), [np.zeros(1)]
    for run in runs:
        packed.extend([run.frames])
        edges[-1:] = [edges[-1][:-1], run.edges_s]
        check_total(len(packed), run.frames.shape[2], run.frames.shape[1])
    return TimedFrames(packed.all(), np.concatenate(edges))


def _read_file_chunks(source: Path | bytes, size: int, at_fps: float | None) -> Iterator[TimedFrames]:
    with open_video(source) as (container, stream):
        reading = VideoReader(container, stream)
        runs = _read_stream_chunks(reading, size)
        yield from runs if at_fps is None else _resample_chunks(runs, reading.fps, at_fps)


def _read_stream_chunks(reading: VideoReader, size: int) -> Iterator[TimedFrames]:
    """Let a frame end where the next begins, and the last of all after the length of a frame."""
    frames, fit, done, latest_s = reading.frames(), partial(scale_short_side, short_side=size), 0, 0.0
    origin_s = (reading.container.start_time or 0) / _MICROSECONDS
    waiting: tuple[np.ndarray, np.ndarray] | None = None
    for first in frames:
        for run in decode_upright_chunks(reading, fit, chain([first], islice(frames, _AT_A_TIME - 1))):
            begins_s = np.array(reading.times_s[done : done + len(run)]) - origin_s
            begins_s = np.maximum(np.maximum.accumulate(begins_s), latest_s)  # a damaged file may step back
            done, latest_s = done + len(run), float(begins_s[-1])
            if waiting is not None:
                yield TimedFrames(waiting[0], np.append(waiting[1], begins_s[0]))
            waiting = crop_center_square(run, size).copy(), begins_s  # the next run may use its memory
    if waiting is not None:
        yield TimedFrames(waiting[0], np.append(waiting[1], latest_s + reading.last_duration_s))


def _add_steady_times(pictures: Iterator[np.ndarray], fps: float) -> Iterator[TimedFrames]:
    done = 0
    for run in pictures:
        yield TimedFrames(run, np.arange(done, done + len(run) + 1) / fps)
        done += len(run)


def _resample_chunks(runs: Iterator[TimedFrames], source_fps: float, fps: float) -> Iterator[TimedFrames]:
    """Show a video at another rate: the frames of :func:`signllm.data.frame_rate.frame_numbers_at_rate`."""
    tolerance_s, shown, first_s = begin_tolerance_s(source_fps, fps), 0, None
    run = next(runs, None)
    while run is not None:
        following = next(runs, None)
        first_s = float(run.edges_s[0]) if first_s is None else first_s
        edges_s = run.edges_s - first_s
        if following is None:
            end = count_frames_at_rate(float(edges_s[-1]), fps)
        else:  # instants before the next run begins are of this one
            end = max(shown, math.ceil((edges_s[-1] - tolerance_s) * fps))
        if end - shown > MAX_FRAMES:
            raise VideoError(f"damaged: a picture is shown for {edges_s[-1] - shown / fps:.0f} seconds")
        instants = np.arange(shown, end)
        places = np.searchsorted(edges_s[:-1], instants / fps + tolerance_s, side="right") - 1
        if len(places):
            yield TimedFrames(run.frames[np.maximum(places, 0)], first_s + np.arange(shown, end + 1) / fps)
        run, shown = following, max(shown, end)


def _read_picture_chunks(folder: Path, size: int) -> Iterator[np.ndarray]:
    files, fit = list_frame_files(folder), partial(scale_short_side, short_side=size)
    for at in range(0, len(files), _PICTURES_READ):
        read = [path.read_bytes() for path in files[at : at + _PICTURES_READ]]
        for run in decode_image_chunks(read, fit):
            yield crop_center_square(run, size)
