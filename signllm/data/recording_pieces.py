"""A long recording → pieces that a model reads one by one: equal windows, or what lies between pauses.

Both read the recording once, from its beginning, and hold no more than a piece. Where signing pauses is our
own rule, simple on purpose: the picture is averaged to 16 x 16 cells, which removes the noise of camera and
codec, and the energy of a frame is the root mean square of the change of the cells since the frame before,
in grey levels (of 256) per 1/25 s. Signing has energies of 3 and more, a resting signer less than 1
(``tools/bench_translate --energy`` prints those of any videos).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from signllm.data.source_samples import TOLERANCE_S
from signllm.data.timed_frames import TimedFrames
from signllm.errors import UsageError

CELLS = 16
PER_S = 25.0


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Cut every so many seconds.

    Attributes:
        seconds: length of a window.
        overlap: seconds that a window shares with the one before, so that no sign is cut in all windows.
    """

    seconds: float
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.seconds < float("inf"):
            raise UsageError(
                f"windows of {self.seconds:g} s that overlap by {self.overlap:g} s",
                where="windows",
                remedy="give windows more than 0 s, and an overlap shorter than them",
            )


@dataclass(frozen=True, kw_only=True)
class Pauses:
    """Cut where signing pauses, and leave the pauses out.

    Attributes:
        still: seconds without movement that are a pause.
        energy: movement below this is none; see the module's head.
        margin: seconds of a pause that stay with the piece before it, and with the one behind it.
        least: movement shorter than this many seconds is no signing.
    """

    still: float = 0.5
    energy: float = 1.2
    margin: float = 0.2
    least: float = 0.3

    def __post_init__(self) -> None:
        if not (
            self.still > 0 and self.energy > 0 and 0 <= self.margin <= self.still / 2 and self.least >= 0
        ):
            raise UsageError(
                f"pauses of {self.still:g} s below {self.energy:g}, margin {self.margin:g} s, "
                f"least {self.least:g} s",
                where="pauses",
                remedy="give more than 0, and a margin of at most half a pause",
            )


CutRule = Windows | Pauses


def cut_into_pieces(runs: Iterable[TimedFrames], cut: CutRule, *, longest: int) -> Iterator[TimedFrames]:
    """Yield the pieces of a recording, as soon as each is whole.

    Args:
        runs: the recording.
        cut: where.
        longest: frames of the longest piece between pauses; signing that goes on longer is cut in the second
            half of these, where it moves least.
    """
    if isinstance(cut, Windows):
        yield from _cut_windows(runs, cut)
    else:
        yield from _cut_at_pauses(runs, cut, longest)


@dataclass
class _Frame:
    picture: np.ndarray
    begin_s: float
    end_s: float
    energy: float = 0.0


def _iterate_frames(runs: Iterable[TimedFrames]) -> Iterator[_Frame]:
    for run in runs:
        for place, picture in enumerate(run.frames):
            yield _Frame(picture, float(run.edges_s[place]), float(run.edges_s[place + 1]))


def _make_piece(frames: list[_Frame]) -> TimedFrames:
    pictures = np.stack([frame.picture for frame in frames])
    return TimedFrames(pictures, np.array([*(frame.begin_s for frame in frames), frames[-1].end_s]))


def _cut_windows(runs: Iterable[TimedFrames], cut: Windows) -> Iterator[TimedFrames]:
    held: list[_Frame] = []
    number, unseen = 0, 0
    for frame in _iterate_frames(runs):
        while frame.begin_s >= number * (cut.seconds - cut.overlap) + cut.seconds - TOLERANCE_S:
            if unseen:
                yield _make_piece(held)
            number, unseen = number + 1, 0
            begin_s = number * (cut.seconds - cut.overlap) - TOLERANCE_S
            held = [one for one in held if one.begin_s >= begin_s]
        held.append(frame)
        unseen += 1
    if unseen:
        yield _make_piece(held)


def _cut_at_pauses(runs: Iterable[TimedFrames], cut: Pauses, longest: int) -> Iterator[TimedFrames]:
    held: list[_Frame] = []
    still, still_s = 0, 0.0
    for frame in _measure_energies(_iterate_frames(runs)):
        held.append(frame)
        is_still, frame_s = frame.energy < cut.energy, frame.end_s - frame.begin_s
        still, still_s = (still + 1, still_s + frame_s) if is_still else (0, 0.0)
        behind = min(still, math.ceil(cut.margin / max(frame_s, 1e-3)))
        if still_s >= cut.still - TOLERANCE_S:
            if piece := _trim_pauses(held, cut):
                yield _make_piece(piece)
            held = _last_seconds(held, cut.margin)
        elif len(held) - still + behind >= longest:
            at = longest // 2 + int(np.argmin([one.energy for one in held[longest // 2 : longest]]))
            if piece := _trim_pauses(held[:at], cut):
                yield _make_piece(piece)
            held = held[at:]
    if piece := _trim_pauses(held, cut):
        yield _make_piece(piece)


def motion_energies(timed: TimedFrames) -> np.ndarray:
    """Return the energies (T - 1,) of the frames of a video but the first."""
    return np.array([frame.energy for frame in _measure_energies(_iterate_frames([timed]))][1:])


def _measure_energies(frames: Iterable[_Frame]) -> Iterator[_Frame]:
    """Give each frame its energy; the first has none."""
    before: np.ndarray | None = None
    for frame in frames:
        cells = mean_grey_cells(frame.picture)
        if before is not None:
            seconds = max(frame.end_s - frame.begin_s, 1e-3)
            frame.energy = float(np.sqrt(np.square(cells - before).mean())) / (seconds * PER_S)
        before = cells
        yield frame


def mean_grey_cells(picture: np.ndarray) -> np.ndarray:
    """Return the mean grey (16, 16) of the cells of a square picture (S, S, 3)."""
    side = max(1, len(picture) // CELLS)
    cells = len(picture) // side
    grey = picture[: cells * side, : cells * side].mean(axis=2, dtype=np.float32)
    return np.asarray(grey.reshape(cells, side, cells, side).mean(axis=(1, 3)))


def _last_seconds(frames: list[_Frame], seconds: float) -> list[_Frame]:
    return [one for one in frames if one.begin_s >= frames[-1].end_s - seconds - TOLERANCE_S]


def _trim_pauses(frames: list[_Frame], cut: Pauses) -> list[_Frame]:
    """Return the frames from the first movement to the last, with the margins; nothing if it is too short."""
    moving = [place for place, one in enumerate(frames) if one.energy >= cut.energy]
    if not moving or frames[moving[-1]].end_s - frames[moving[0]].begin_s < cut.least:
        return []
    first_s = frames[moving[0]].begin_s - cut.margin - TOLERANCE_S
    last_s = frames[moving[-1]].end_s + cut.margin - TOLERANCE_S
    return [one for one in frames if first_s <= one.begin_s < last_s]
