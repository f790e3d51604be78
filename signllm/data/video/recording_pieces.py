"""Cutting a long recording into pieces for a model: equal windows, or the signing between pauses.

Both ways read the recording once, from its start, and keep no more than one piece in memory. How pauses are
detected is our own, deliberately simple rule. The picture is averaged to 16 x 16 cells, which removes the
noise of camera and codec. The energy of a frame is the root mean square of the change of the cells since the
previous frame, in grey levels (of 256) per 1/25 s. Signing has energies of 3 and more, a resting signer less
than 1 (``tools/bench_translate --energy`` prints the energies of any videos).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from signllm.data.source_samples import TOLERANCE_S
from signllm.data.video.timed_frames import TimedFrames
from signllm.errors import UsageError
from signllm.validation import NonNegativeFloat, PositiveFloat, validated

CELLS = 16
"""Cells per side of the averaged picture."""
PER_S = 25.0
"""Rate in Hz to which energies are scaled, so that they do not depend on the frame rate."""


@validated
class Windows:
    """Cut a recording into windows of equal length.

    Attributes:
        seconds: length of a window in seconds.
        overlap: length in seconds that a window shares with the previous one, so that every sign is complete
            in some window.
    """

    seconds: PositiveFloat
    overlap: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.overlap >= self.seconds:
            raise UsageError(
                f"windows of {self.seconds:g} s cannot overlap by {self.overlap:g} s",
                where="overlap",
                remedy="give windows longer than 0 s, and an overlap shorter than a window",
            )


@validated
class Pauses:
    """Cut a recording where signing pauses, and omit the pauses.

    Attributes:
        still: shortest time without movement that counts as a pause, in seconds.
        energy: energy below which a frame counts as still; the module's docstring defines it.
        margin: time of a pause that stays at the end of the piece before and at the start of the piece after
            it, in seconds.
        least: shortest movement that counts as signing, in seconds.
    """

    still: PositiveFloat = 0.5
    energy: PositiveFloat = 1.2
    margin: NonNegativeFloat = 0.2
    least: NonNegativeFloat = 0.3

    def __post_init__(self) -> None:
        if self.margin > self.still / 2:
            raise UsageError(
                f"a pause of {self.still:g} s (still) has no room for margins of {self.margin:g} s (margin)",
                where="margin",
                remedy=f"give at most half of still, {self.still / 2:g}",
            )


CutRule = Windows | Pauses


def cut_into_pieces(chunks: Iterable[TimedFrames], cut: CutRule, *, longest: int) -> Iterator[TimedFrames]:
    """Yield the pieces of a recording, each as soon as it is complete.

    Args:
        chunks: the frames of the recording.
        cut: rule by which it is cut.
        longest: largest number of frames of a piece between pauses; longer signing is cut at the frame of
            least energy in the second half of that length.
    """
    if isinstance(cut, Windows):
        yield from _cut_windows(chunks, cut)
    else:
        yield from _cut_at_pauses(chunks, cut, longest)


@dataclass
class _Frame:
    """A frame (S, S, 3) with its begin and end in seconds, and its energy."""

    picture: np.ndarray
    begin_s: float
    end_s: float
    energy: float = 0.0


def _iterate_frames(chunks: Iterable[TimedFrames]) -> Iterator[_Frame]:
    """Yield the single frames of chunks."""
    for chunk in chunks:
        for number, picture in enumerate(chunk.frames):
            yield _Frame(picture, float(chunk.edges_s[number]), float(chunk.edges_s[number + 1]))


def _make_piece(frames: list[_Frame]) -> TimedFrames:
    """Return frames as one piece."""
    pictures = np.stack([frame.picture for frame in frames])
    return TimedFrames(pictures, np.array([*(frame.begin_s for frame in frames), frames[-1].end_s]))


def _cut_windows(chunks: Iterable[TimedFrames], cut: Windows) -> Iterator[TimedFrames]:
    window: list[_Frame] = []
    number, new_frames = 0, 0
    for frame in _iterate_frames(chunks):
        while frame.begin_s >= number * (cut.seconds - cut.overlap) + cut.seconds - TOLERANCE_S:
            if new_frames:  # a window with only frames of the previous window adds nothing
                yield _make_piece(window)
            number, new_frames = number + 1, 0
            begin_s = number * (cut.seconds - cut.overlap) - TOLERANCE_S
            window = [earlier for earlier in window if earlier.begin_s >= begin_s]
        window.append(frame)
        new_frames += 1
    if new_frames:
        yield _make_piece(window)


def _cut_at_pauses(chunks: Iterable[TimedFrames], cut: Pauses, longest: int) -> Iterator[TimedFrames]:
    frames: list[_Frame] = []
    still, still_s = 0, 0.0  # number and duration of the still frames at the end of ``frames``
    for frame in _measure_energies(_iterate_frames(chunks)):
        frames.append(frame)
        is_still, frame_s = frame.energy < cut.energy, frame.end_s - frame.begin_s
        still, still_s = (still + 1, still_s + frame_s) if is_still else (0, 0.0)
        margin_frames = min(still, math.ceil(cut.margin / max(frame_s, 1e-3)))
        if still_s >= cut.still - TOLERANCE_S:
            if piece := _trim_pauses(frames, cut):
                yield _make_piece(piece)
            frames = _last_seconds(frames, cut.margin)
        elif len(frames) - still + margin_frames >= longest:
            energies = [candidate.energy for candidate in frames[longest // 2 : longest]]
            end = longest // 2 + int(np.argmin(energies))
            if piece := _trim_pauses(frames[:end], cut):
                yield _make_piece(piece)
            frames = frames[end:]
    if piece := _trim_pauses(frames, cut):
        yield _make_piece(piece)


def motion_energies(timed: TimedFrames) -> np.ndarray:
    """Return the energy of each frame of a video except the first, (T - 1,)."""
    return np.array([frame.energy for frame in _measure_energies(_iterate_frames([timed]))][1:])


def _measure_energies(frames: Iterable[_Frame]) -> Iterator[_Frame]:
    """Yield the frames with their energies; the first frame has energy 0."""
    previous: np.ndarray | None = None
    for frame in frames:
        cells = mean_grey_cells(frame.picture)
        if previous is not None:
            seconds = max(frame.end_s - frame.begin_s, 1e-3)
            frame.energy = float(np.sqrt(np.square(cells - previous).mean())) / (seconds * PER_S)
        previous = cells
        yield frame


def mean_grey_cells(picture: np.ndarray) -> np.ndarray:
    """Return the mean grey level of each cell of a square picture (S, S, 3), float32 (16, 16)."""
    side = max(1, len(picture) // CELLS)
    cells = len(picture) // side
    grey = picture[: cells * side, : cells * side].mean(axis=2, dtype=np.float32)
    return np.asarray(grey.reshape(cells, side, cells, side).mean(axis=(1, 3)))


def _last_seconds(frames: list[_Frame], seconds: float) -> list[_Frame]:
    """Return the frames of the last seconds of a list of frames."""
    return [frame for frame in frames if frame.begin_s >= frames[-1].end_s - seconds - TOLERANCE_S]


def _trim_pauses(frames: list[_Frame], cut: Pauses) -> list[_Frame]:
    """Return the frames from the first to the last movement with the margins; none if it is too short."""
    moving = [number for number, frame in enumerate(frames) if frame.energy >= cut.energy]
    if not moving or frames[moving[-1]].end_s - frames[moving[0]].begin_s < cut.least:
        return []
    first_s = frames[moving[0]].begin_s - cut.margin - TOLERANCE_S
    last_s = frames[moving[-1]].end_s + cut.margin - TOLERANCE_S
    return [frame for frame in frames if first_s <= frame.begin_s < last_s]
