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

from signllm.data.frame_folder import frame_files
from signllm.data.frame_rate import USUAL_FPS, early_s, shown_count
from signllm.data.packed_frames import PackedFrames
from signllm.data.pictures import MAX_FRAMES, check_total
from signllm.data.stream import Reading, opened
from signllm.data.video import image_runs, scaled_to, square, upright_runs
from signllm.data.video_error import VideoError

_AT_A_TIME = 512
"""Frames after which the limits of ``pictures.py``, which are for one clip, begin anew."""
_PICTURES_READ = 64
_MICROSECONDS = 1_000_000


class Timed(NamedTuple):
    """Frames uint8 (T, S, S, 3) and T + 1 edges in seconds: each frame's begin, and the end of the last."""

    frames: np.ndarray
    edges_s: np.ndarray


def timed_runs(
    source: Path | bytes | np.ndarray, *, size: int, fps: float | None = None, at_fps: float | None = None
) -> Iterator[Timed]:
    """Yield a video in runs of some frames, the same pictures as :func:`signllm.data.video.decode`.

    Args:
        source: a video file, its bytes, a folder of frame pictures, or frames (T, size, size, 3).
        size: side of the square that is cut from the centre.
        fps: of a folder or of frames; by default ``at_fps``, or else 25. A file states its own.
        at_fps: frames per second to show the video at; None shows every frame.

    Raises:
        VideoError: as :func:`signllm.data.video.decode`, but a recording of any length is read.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes) or (isinstance(source, Path) and not source.is_dir()):
        yield from _streamed(source, size, at_fps)
        return
    pictures = _pictured(source, size) if isinstance(source, Path) else iter([source])
    rate = fps or at_fps or USUAL_FPS
    runs = _at_steady_rate(pictures, rate)
    yield from runs if at_fps is None else _resampled(runs, rate, at_fps)


def whole_video(runs: Iterator[Timed]) -> Timed:
    """Return all of a clip at once.

    Raises:
        VideoError: more than the limits of ``pictures.py``, or what ``runs`` raises.
    """
    packed, edges = PackedFrames(), [np.zeros(1)]
    for run in runs:
        packed.extend([run.frames])
        edges[-1:] = [edges[-1][:-1], run.edges_s]
        check_total(len(packed), run.frames.shape[2], run.frames.shape[1])
    return Timed(packed.all(), np.concatenate(edges))


def _streamed(source: Path | bytes, size: int, at_fps: float | None) -> Iterator[Timed]:
    with opened(source) as (container, stream):
        reading = Reading(container, stream)
        runs = _stream_runs(reading, size)
        yield from runs if at_fps is None else _resampled(runs, reading.fps, at_fps)


def _stream_runs(reading: Reading, size: int) -> Iterator[Timed]:
    """Let a frame end where the next begins, and the last of all after the length of a frame."""
    frames, fit, done, latest_s = reading.frames(), partial(scaled_to, short_side=size), 0, 0.0
    origin_s = (reading.container.start_time or 0) / _MICROSECONDS
    waiting: tuple[np.ndarray, np.ndarray] | None = None
    for first in frames:
        for run in upright_runs(reading, fit, chain([first], islice(frames, _AT_A_TIME - 1))):
            begins_s = np.array(reading.times_s[done : done + len(run)]) - origin_s
            begins_s = np.maximum(np.maximum.accumulate(begins_s), latest_s)  # a damaged file may step back
            done, latest_s = done + len(run), float(begins_s[-1])
            if waiting is not None:
                yield Timed(waiting[0], np.append(waiting[1], begins_s[0]))
            waiting = square(run, size).copy(), begins_s  # the next run may use its memory
    if waiting is not None:
        yield Timed(waiting[0], np.append(waiting[1], latest_s + reading.last_frame_s))


def _at_steady_rate(pictures: Iterator[np.ndarray], fps: float) -> Iterator[Timed]:
    done = 0
    for run in pictures:
        yield Timed(run, np.arange(done, done + len(run) + 1) / fps)
        done += len(run)


def _resampled(runs: Iterator[Timed], source_fps: float, fps: float) -> Iterator[Timed]:
    """Show a video at another rate: the frames of :func:`signllm.data.frame_rate.shown_places`."""
    tolerance_s, shown, first_s = early_s(source_fps, fps), 0, None
    run = next(runs, None)
    while run is not None:
        following = next(runs, None)
        first_s = float(run.edges_s[0]) if first_s is None else first_s
        edges_s = run.edges_s - first_s
        if following is None:
            end = shown_count(float(edges_s[-1]), fps)
        else:  # instants before the next run begins are of this one
            end = max(shown, math.ceil((edges_s[-1] - tolerance_s) * fps))
        if end - shown > MAX_FRAMES:
            raise VideoError(f"damaged: a picture is shown for {edges_s[-1] - shown / fps:.0f} seconds")
        instants = np.arange(shown, end)
        places = np.searchsorted(edges_s[:-1], instants / fps + tolerance_s, side="right") - 1
        if len(places):
            yield Timed(run.frames[np.maximum(places, 0)], first_s + np.arange(shown, end + 1) / fps)
        run, shown = following, max(shown, end)


def _pictured(folder: Path, size: int) -> Iterator[np.ndarray]:
    files, fit = frame_files(folder), partial(scaled_to, short_side=size)
    for at in range(0, len(files), _PICTURES_READ):
        read = [path.read_bytes() for path in files[at : at + _PICTURES_READ]]
        for run in image_runs(read, fit):
            yield square(run, size)
