"""How many frames a second a video has, and which of them it shows at another rate.

What a container states of its rate is believed where the time stamps agree: browsers write no rate at all,
and FFmpeg then guesses from the unit of time (1000 frames per second).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from signllm.data.pictures import MAX_FRAMES

if TYPE_CHECKING:
    import numpy as np

Picture = TypeVar("Picture")

USUAL_FPS = 25.0
"""Frames per second of what states none: folders of pictures, and files with a single frame."""
SLOWEST_FPS, FASTEST_FPS = 0.01, 1000.0
_FILM_FPS = 23.0
"""A little less than the 23.976 of film, the slowest rate at which video is commonly recorded."""
_AGREE = 0.05
"""A stated rate is believed if it differs from the time stamps' by at most this share.

FFmpeg estimates that of a gif."""
_BURSTS = 1.25
"""Frames that mostly follow each other this much faster than on average come in bursts."""
_EARLY = 0.25
"""A frame counts as begun this share of a frame early: times are rounded, and webcams are not punctual."""


@dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown.

    Attributes:
        fps: frames per second on average.
        steady_fps: another rate, at which the video should be shown, if its frames are not evenly spread:
            some would be shown more than one frame's time from where they belong. None: they are.
    """

    fps: float
    steady_fps: float | None = None


def is_possible_rate(fps: float) -> bool:
    """Return whether a video may have this rate."""
    return SLOWEST_FPS <= fps <= FASTEST_FPS


def estimate_last_duration_s(times_s: Sequence[float], stated_s: float, fps: float) -> float:
    """Return for how many seconds the last frame is shown: as stated, unless that contradicts the others."""
    span_s = max(times_s) - times_s[0]
    mean_s = span_s / (len(times_s) - 1) if span_s > 0 else 1 / fps
    return stated_s if 3 / 4 * mean_s <= stated_s <= 4 * mean_s else mean_s


def measure_timing(times_s: Sequence[float], stated_s: float, stated_fps: float) -> Timing:
    """Return the timing of a video.

    Args:
        times_s: begin of each frame.
        stated_s: how long the last frame is shown as the file says, 0 if it is silent.
        stated_fps: rate that the file states.
    """
    import numpy as np

    begins_s = monotonic_begins_s(np.asarray(times_s, np.float64))
    if len(begins_s) < 2 or begins_s[-1] <= 0:
        return Timing(stated_fps)
    mean_fps = len(begins_s) / (begins_s[-1] + estimate_last_duration_s(times_s, stated_s, stated_fps))
    if not is_possible_rate(mean_fps):
        return Timing(stated_fps)
    fps = stated_fps if abs(stated_fps / mean_fps - 1) <= _AGREE else float(mean_fps)
    is_steady = bool(np.abs(begins_s * fps - np.arange(len(begins_s))).max() <= 1)
    if is_steady:
        return Timing(fps)
    gaps_s = np.diff(begins_s)
    usual_fps = 1 / float(np.median(gaps_s[gaps_s > 0]))
    steady_fps = usual_fps if _BURSTS * fps < usual_fps <= FASTEST_FPS else fps
    if begins_s[-1] * steady_fps > MAX_FRAMES:  # time stamps that jump so far are damaged
        return Timing(stated_fps)
    return Timing(fps, steady_fps)


def monotonic_begins_s(begins_s: np.ndarray) -> np.ndarray:
    """Return the begins of frames counted from the first, none before the one before it."""
    import numpy as np

    return np.maximum.accumulate(begins_s) - begins_s[0]


def begin_tolerance_s(source_fps: float, fps: float) -> float:
    """Return by how many seconds a frame may begin late and still be shown, when one rate becomes another."""
    return _EARLY / max(source_fps, fps)


def count_frames_at_rate(seconds: float, fps: float) -> int:
    """Return how many frames a video of some seconds has at a rate; half a frame counts as one."""
    return max(1, math.floor(seconds * fps + 0.5 + 1e-6))


def frame_numbers_at_rate(begins_s: np.ndarray, source_fps: float, fps: float) -> np.ndarray:
    """Return which frames are shown at a rate, int64: at each instant the last that had begun.

    Args:
        begins_s: begin of each frame, (T,), in any order that a damaged file gives.
        source_fps: how long the last frame is shown, as frames per second.
        fps: the new rate.
    """
    import numpy as np

    begins_s = monotonic_begins_s(begins_s)
    instants_s = np.arange(count_frames_at_rate(begins_s[-1] + 1 / source_fps, fps)) / fps
    return np.searchsorted(begins_s, instants_s + begin_tolerance_s(source_fps, fps), side="right") - 1


def count_frames_to_read(frames: np.ndarray, source_fps: np.ndarray, fps: float | None) -> np.ndarray:
    """Return how many frames of stored videos a model reads, int64 (n,), before long ones are thinned.

    Args:
        frames: of each video, int (n,).
        source_fps: rate of each, (n,).
        fps: rate at which the model reads them; None takes every frame.
    """
    import numpy as np

    if fps is None:
        return np.asarray(frames, np.int64)
    counts = np.floor(frames / np.clip(source_fps, SLOWEST_FPS, FASTEST_FPS) * fps + 0.5 + 1e-6)
    return np.maximum(1, counts).astype(np.int64)


def frame_numbers_to_read(frames: int, source_fps: float, fps: float | None, most: int | None) -> np.ndarray:
    """Return the numbers of the frames of a stored video that a model reads, int64 (n,).

    They are those of :func:`frame_numbers_at_rate` for a video of constant rate.

    Args:
        frames: that the video has.
        source_fps: its rate.
        fps: rate at which the model reads it; None takes every frame.
        most: frames to which a longer video is thinned, spread evenly; None is no limit.
    """
    import numpy as np

    count = int(count_frames_to_read(np.array(frames), np.array(source_fps), fps))
    numbers = np.arange(count)
    if most is not None and count > most:
        numbers = np.linspace(0, count - 1, most).round().astype(np.int64)
    if fps is None:
        return numbers
    source_fps = min(max(source_fps, SLOWEST_FPS), FASTEST_FPS)
    places = np.floor((numbers / fps + begin_tolerance_s(source_fps, fps)) * source_fps)
    return np.minimum(places, frames - 1).astype(np.int64)


def choose_common_rate(seconds: np.ndarray, fps: np.ndarray) -> float:
    """Return the rate at which some videos are best read: their own, if all have the same.

    Otherwise it is that of the middle second of all. Where that is slower than film, it is 25, or the fastest
    of them: showing a picture twice loses nothing, and leaving pictures out does.

    Args:
        seconds: length of each video, (n,), n > 0.
        fps: rate of each.
    """
    import numpy as np

    order = np.argsort(fps, kind="stable")
    before = np.cumsum(seconds[order])
    middle = float(fps[order][np.searchsorted(before, before[-1] / 2)])
    return middle if middle >= _FILM_FPS else min(USUAL_FPS, float(fps.max()))


def resample_pictures(
    timed: Iterable[tuple[float, Picture]], source_fps: float, fps: float
) -> Iterator[Picture]:
    """Yield the pictures of :func:`frame_numbers_at_rate`, holding no more of them than must be.

    Args:
        timed: (begin in seconds, picture), in order.
        source_fps: how long the last picture is shown, as frames per second.
        fps: the rate wanted.
    """
    waiting: list[tuple[float, Picture]] = []
    first_s, latest_s, shown, count = None, 0.0, 0, 0
    tolerance_s = begin_tolerance_s(source_fps, fps)

    def at_next_instant() -> Picture:
        while len(waiting) > 1 and waiting[1][0] <= shown / fps + tolerance_s:
            waiting.pop(0)
        return waiting[0][1]

    for time_s, picture in timed:
        first_s = time_s if first_s is None else first_s
        latest_s = max(latest_s, time_s - first_s)
        waiting.append((latest_s, picture))
        count = count_frames_at_rate(latest_s + 1 / source_fps, fps)
        while shown < count and shown / fps + tolerance_s < latest_s:
            yield at_next_instant()
            shown += 1
    while shown < count:
        yield at_next_instant()
        shown += 1
