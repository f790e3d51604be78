"""A stream → h264 as it is decoded: frame by frame, scaled in its own colours, without a detour over RGB.

Only one frame is held at a time, and the coded values change no more than scaling asks for. Colours keep
their matrix, which the new file names, and full range becomes limited range, which every reader expects.
Rotated and odd-sized pictures take the way over RGB, because 4:2:0 cannot hold an odd row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from signllm.data.h264 import encode_pictures
from signllm.data.pictures import Fit, check_size, check_total, scaled
from signllm.data.stream import Reading
from signllm.data.video_error import VideoError

Picture = TypeVar("Picture")
_EARLY_S = 1e-6
"""By how much a frame may begin late and still be shown; times are rounded."""


@dataclass(frozen=True, kw_only=True)
class Transcoded:
    """An mp4 file, how many frames it holds, their size, and frames per second."""

    mp4: bytes
    frames: int
    width: int
    height: int
    fps: float


def transcoded(reading: Reading, *, fit: Fit | None, fps: float | None, crf: int) -> Transcoded:
    """Decode an opened stream and encode it as mp4, scaled and resampled in time as ``read_video`` does.

    Raises:
        VideoError: damaged, too small, or beyond the limits of pixels, frames and memory.
    """
    last: Any = None
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal last, count
        timed = ((reading.times_s[-1], picture) for picture in _even_pictures(reading, fit))
        for picture in at_rate(timed, reading.fps, fps) if fps else (picture for _, picture in timed):
            last, count = picture, count + 1
            check_total(count, picture.width, picture.height)
            yield picture

    mp4 = encode_pictures(counted(), fps or reading.fps, crf=crf)
    return Transcoded(mp4=mp4, frames=count, width=last.width, height=last.height, fps=fps or reading.fps)


def at_rate(timed: Iterable[tuple[float, Picture]], source_fps: float, fps: float) -> Iterator[Picture]:
    """Yield at each instant of the rate ``fps`` the last picture that had begun by then.

    The same choice as :func:`~signllm.data.video.resampled`, holding no more pictures than it must.

    Args:
        timed: (begin in seconds, picture), in order.
        source_fps: how long the last picture is shown, as frames per second.
        fps: the rate wanted.
    """
    held: list[tuple[float, Picture]] = []
    first_s, shown, wanted = None, 0, 0

    def at_next_instant() -> Picture:
        while len(held) > 1 and held[1][0] <= shown / fps + _EARLY_S:
            held.pop(0)
        return held[0][1]

    for time_s, picture in timed:
        first_s = time_s if first_s is None else first_s
        held.append((time_s - first_s, picture))
        wanted = max(1, round((held[-1][0] + 1 / source_fps) * fps))
        while shown < wanted and shown / fps + _EARLY_S < held[-1][0]:
            yield at_next_instant()
            shown += 1
    while shown < wanted:
        yield at_next_instant()
        shown += 1


def _even_pictures(reading: Reading, fit: Fit | None) -> Iterator[Any]:
    """Yield PyAV frames for the encoder, upright, with even sides, all of the size that the first gets."""
    from av.video.reformatter import VideoReformatter

    reformatter, wanted, quarters = VideoReformatter(), (0, 0), 0
    for number, frame in enumerate(reading.frames(), start=1):
        check_size(frame.width, frame.height)
        if number == 1:
            wanted = fit(frame.width, frame.height) if fit else (frame.width, frame.height)
            quarters = reading.quarter_turns
            if min(wanted) < 2:
                raise VideoError(f"frames of {wanted[0]} x {wanted[1]}, too small for h264")
        check_total(number, *wanted)
        if quarters or wanted[0] % 2 or wanted[1] % 2:
            yield _over_rgb(scaled(reformatter, frame, wanted), quarters)
            continue
        picture = reformatter.reformat(
            frame,
            *wanted,
            format="yuv420p",
            interpolation="BICUBIC",
            dst_color_range="MPEG",
            threads=1,
        )
        picture.pict_type = 0  # the encoder would copy the source's key frames
        yield picture


def _over_rgb(frame_HWC: Any, quarters: int) -> Any:
    import av
    import numpy as np

    upright_HWC = np.rot90(frame_HWC, k=quarters)
    height, width = (side - side % 2 for side in upright_HWC.shape[:2])
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(upright_HWC[:height, :width]), format="rgb24")
