"""The frame rate of a video, and the frames that it shows at another rate.

The rate that a container states is used if the time stamps agree with it. Browsers write no rate, and FFmpeg
then guesses one from the unit of time (1000 frames per second).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from signllm.data.video.pictures import MAX_FRAMES

if TYPE_CHECKING:
    import numpy as np

Picture = TypeVar("Picture")

USUAL_FPS = 25.0
"""Assumed rate of videos that state none, such as folders of pictures, in frames per second."""
SLOWEST_FPS, FASTEST_FPS = 0.01, 1000.0
_FILM_FPS = 23.0
"""Slightly less than the 23.976 frames per second of film, the slowest common rate of recordings."""
_RATE_TOLERANCE = 0.05
"""Largest relative difference at which a stated rate counts as agreeing with the time stamps.

FFmpeg, for example, only estimates the rate of a gif."""
_BURST_FACTOR = 1.25
"""If the median distance of frames is shorter than the mean by this factor, frames come in bursts."""
_LATE_SHARE = 0.25
"""Share of a frame by which a frame may begin late, because times are rounded and webcams are irregular."""


@dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown.

    Attributes:
        fps: average rate in frames per second.
        steady_fps: rate to which the video should be resampled, if at the average rate some frame would be
            shown more than one frame's time too early or too late; None if the frames are evenly spread.
    """

    fps: float
    steady_fps: float | None = None


def is_possible_rate(fps: float) -> bool:
    """Return whether a video may have this rate in frames per second."""
    return SLOWEST_FPS <= fps <= FASTEST_FPS


def estimate_last_duration_s(times_s: Sequence[float], stated_s: float, fps: float) -> float:
    """Return the duration of the last frame in seconds: the stated one, unless it contradicts the others.

    Args:
        times_s: begin of each frame in seconds.
        stated_s: duration of the last frame that the file states, in seconds.
        fps: rate in frames per second, which is used if all frames begin at the same time.
    """
    span_s = max(times_s) - times_s[0]
    mean_s = span_s / (len(times_s) - 1) if span_s > 0 else 1 / fps
    return stated_s if 3 / 4 * mean_s <= stated_s <= 4 * mean_s else mean_s


def measure_timing(times_s: Sequence[float], stated_s: float, stated_fps: float) -> Timing:
    """Return the timing of a video.

    Args:
        times_s: begin of each frame in seconds.
        stated_s: duration of the last frame that the file states, in seconds; 0 if it states none.
        stated_fps: rate that the file states, in frames per second.
    """
    import numpy as np

    begins_s = monotonic_begins_s(np.asarray(times_s, np.float64))
    if len(begins_s) < 2 or begins_s[-1] <= 0:
        return Timing(stated_fps)
    mean_fps = len(begins_s) / (begins_s[-1] + estimate_last_duration_s(times_s, stated_s, stated_fps))
    if not is_possible_rate(mean_fps):
        return Timing(stated_fps)
    fps = stated_fps if abs(stated_fps / mean_fps - 1) <= _RATE_TOLERANCE else float(mean_fps)
    is_steady = bool(np.abs(begins_s * fps - np.arange(len(begins_s))).max() <= 1)
    if is_steady:
        return Timing(fps)
    gaps_s = np.diff(begins_s)
    usual_fps = 1 / float(np.median(gaps_s[gaps_s > 0]))
    steady_fps = usual_fps if _BURST_FACTOR * fps < usual_fps <= FASTEST_FPS else fps
    if begins_s[-1] * steady_fps > MAX_FRAMES:  # time stamps that span so many frames are damaged
        return Timing(stated_fps)
    return Timing(fps, steady_fps)


def monotonic_begins_s(begins_s: np.ndarray) -> np.ndarray:
    """Return the begins of frames relative to the first, made monotonic, in seconds, (T,)."""
    import numpy as np

    return np.maximum.accumulate(begins_s) - begins_s[0]


def begin_tolerance_s(source_fps: float, fps: float) -> float:
    """Return by how many seconds a frame may begin late and still be shown when a video is resampled."""
    return _LATE_SHARE / max(source_fps, fps)


def count_frames_at_rate(seconds: float, fps: float) -> int:
    """Return the number of frames of a video of some seconds at a rate; half a frame is rounded up."""
    return max(1, math.floor(seconds * fps + 0.5 + 1e-6))


def frame_numbers_at_rate(begins_s: np.ndarray, source_fps: float, fps: float) -> np.ndarray:
    """Return the numbers of the frames that a video shows at a rate, int64 (n,).

    At each instant of the new rate it is the last frame that has begun.

    Args:
        begins_s: begin of each frame in seconds, (T,); a damaged file may not be in order.
        source_fps: inverse of the duration of the last frame, in frames per second.
        fps: new rate in frames per second.
    """
    import numpy as np

    begins_s = monotonic_begins_s(begins_s)
    instants_s = np.arange(count_frames_at_rate(begins_s[-1] + 1 / source_fps, fps)) / fps
    return np.searchsorted(begins_s, instants_s + begin_tolerance_s(source_fps, fps), side="right") - 1


def count_frames_to_read(frames: np.ndarray, source_fps: np.ndarray, fps: float | None) -> np.ndarray:
    """Return how many frames of each stored video a model reads, int64 (n,), without a limit of frames.

    Args:
        frames: number of frames of each video, int (n,).
        source_fps: rate of each video in frames per second, (n,).
        fps: rate at which the model reads videos; None reads every frame.
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
        frames: number of frames of the video.
        source_fps: rate of the video in frames per second.
        fps: rate at which the model reads videos; None reads every frame.
        most: largest number of frames; of a longer video evenly spread frames are read. None is no limit.
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
    """Return the rate at which to read videos of several rates; it is their own if all have the same.

    Otherwise it is the median rate, weighted by duration. If that is slower than film, the result is 25 or,
    if lower, the fastest rate of the videos, because repeating frames loses nothing and dropping frames does.

    Args:
        seconds: duration of each video in seconds, (n,), n > 0.
        fps: rate of each video in frames per second, (n,).
    """
    import numpy as np

    order = np.argsort(fps, kind="stable")
    cumulative_s = np.cumsum(seconds[order])
    median = float(fps[order][np.searchsorted(cumulative_s, cumulative_s[-1] / 2)])
    return median if median >= _FILM_FPS else min(USUAL_FPS, float(fps.max()))


def resample_pictures(
    timed: Iterable[tuple[float, Picture]], source_fps: float, fps: float
) -> Iterator[Picture]:
    """Yield the pictures that :func:`frame_numbers_at_rate` selects, keeping as few as possible in memory.

    Args:
        timed: pairs of begin in seconds and picture, in order.
        source_fps: inverse of the duration of the last picture, in frames per second.
        fps: new rate in frames per second.
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
