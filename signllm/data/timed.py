"""Frames with their times, a few at a time: a recording of hours passes through without being held.

Times count from the start of the file, as players and ``ffmpeg -ss`` count them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from signllm.data.frame_folder import frame_files
from signllm.data.packed_frames import PackedFrames
from signllm.data.pictures import check_total, rgb_pictures
from signllm.data.stream import FRAME_FOLDER_FPS, Reading, opened
from signllm.data.video import image_runs, scaled_to, square

_AT_A_TIME = 512
"""Frames after which the limits of ``pictures.py``, which are for one clip, begin anew."""
_PICTURES_READ = 64
_MICROSECONDS = 1_000_000


class Timed(NamedTuple):
    """Frames uint8 (T, S, S, 3) and T + 1 edges in seconds: each frame's begin, and the end of the last."""

    frames: np.ndarray
    edges_s: np.ndarray


def timed_runs(source: Path | bytes | np.ndarray, *, size: int, fps: float | None = None) -> Iterator[Timed]:
    """Yield a video in runs of some frames, the same pictures as :func:`signllm.data.video.decode`.

    Args:
        source: a video file, its bytes, a folder of frame pictures, or frames (T, size, size, 3).
        size: side of the square that is cut from the centre.
        fps: of a folder or of frames; 25 by default. A file states its own.

    Raises:
        VideoError: as :func:`signllm.data.video.decode`, but a recording of any length is read.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes) or (isinstance(source, Path) and not source.is_dir()):
        yield from _with_ends(_streamed(source, size))
        return
    runs = _pictured(source, size) if isinstance(source, Path) else iter([source])
    rate, done = fps or FRAME_FOLDER_FPS, 0
    for run in runs:
        yield Timed(run, np.arange(done, done + len(run) + 1) / rate)
        done += len(run)


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


def _streamed(source: Path | bytes, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield runs, the begins of their frames, and the length of a frame."""
    fit = partial(scaled_to, short_side=size)
    with opened(source) as (container, stream):
        reading = Reading(container, stream)
        frames, done, quarters = reading.frames(), 0, None
        origin_s = (container.start_time or 0) / _MICROSECONDS
        for first in frames:
            for run in rgb_pictures(chain([first], islice(frames, _AT_A_TIME - 1)), fit):
                quarters = reading.quarter_turns if quarters is None else quarters
                begins_s = np.array(reading.times_s[done : done + len(run)]) - origin_s
                done += len(run)
                yield square(np.rot90(run, k=quarters, axes=(1, 2)), size), begins_s, 1 / reading.fps


def _with_ends(runs: Iterator[tuple[np.ndarray, np.ndarray, float]]) -> Iterator[Timed]:
    """Let a frame end where the next begins, and the last of all after the length of a frame."""
    held: tuple[np.ndarray, np.ndarray, float] | None = None
    latest_s = 0.0
    for run in runs:
        begins_s = np.maximum(np.maximum.accumulate(run[1]), latest_s)  # a damaged file may step back
        latest_s = float(begins_s[-1])
        if held is not None:
            yield Timed(held[0], np.append(held[1], begins_s[0]))
        held = run[0].copy(), begins_s, run[2]  # the next run may use its memory
    if held is not None:
        yield Timed(held[0], np.append(held[1], held[1][-1] + held[2]))


def _pictured(folder: Path, size: int) -> Iterator[np.ndarray]:
    files, fit = frame_files(folder), partial(scaled_to, short_side=size)
    for at in range(0, len(files), _PICTURES_READ):
        read = [path.read_bytes() for path in files[at : at + _PICTURES_READ]]
        for run in image_runs(read, fit):
            yield square(run, size)
