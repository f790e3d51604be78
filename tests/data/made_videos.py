"""Small videos like those of cameras, browsers and broadcasters, made with PyAV."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np

ORIENTATIONS = [
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, -1, 0),
    (0, -1, 1, 0),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]
"""(a, b, c, d): the pixel in column x and row y is shown in column ax + cy and row bx + dy."""


def numbered(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Return frames (T, H, W, 3) whose grey levels encode their numbers: tens above, ones below."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[: height // 2], frame[height // 2 :] = 20 + 20 * (number // 10), 20 + 20 * (number % 10)
    return frames


def numbers_of(frames: np.ndarray) -> list[int]:
    """Return the number that each frame of :func:`numbered` encodes."""
    quarter = frames.shape[1] // 4
    tens, ones = frames[:, :quarter].mean((1, 2, 3)), frames[:, -quarter:].mean((1, 2, 3))
    return [
        10 * round((ten - 20) / 20) + round((item - 20) / 20) for ten, item in zip(tens, ones, strict=True)
    ]


def video(
    frames: Iterable[np.ndarray],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: Fraction | int = 25,
    times: list[int] | None = None,
    tick: Fraction | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    **coder: Any,
) -> bytes:
    """Encode frames (H, W, 3); ``times`` are their begins in units of ``tick``."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream: Any = None
        for number, frame_HWC in enumerate(frames):
            if stream is None:
                stream = file.add_stream(codec, rate=fps)
                stream.height, stream.width = frame_HWC.shape[:2]
                stream.pix_fmt, stream.options = pixels, options or {"crf": "4"} if "x26" in codec else {}
                stream.codec_context.thread_count = 1
                if tick:
                    stream.codec_context.time_base = tick
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
                for name, value in coder.items():
                    setattr(stream.codec_context, name, value)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[number], tick
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return target.getvalue()


def shifted(data: bytes, seconds: float, stop_s: float = float("inf")) -> bytes:
    """Remux an mp4 with shifted times up to ``stop_s``; frames before time 0 are hidden."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="mp4") as file:
        stream = source.streams.video[0]
        copied = file.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None or float(packet.pts * packet.time_base) >= stop_s:
                continue
            moved = round(seconds / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + moved, packet.dts + moved, copied
            file.mux(packet)
    return target.getvalue()


def hidden_start(count: int = 100, start_s: float = 2.8, stop_s: float = 4.0) -> bytes:
    """Return a video cut without re-encoding, with one key frame; frames before ``start_s`` are hidden."""
    one_key_frame = {"g": "1000", "keyint_min": "1000", "sc_threshold": "0", "crf": "4"}
    return shifted(video(numbered(count), options=one_key_frame), -start_s, stop_s)


def shown_for(data: bytes, share: float) -> bytes:
    """Shorten the only edit of an mp4, so that the frames after this share of it are hidden."""
    at = data.index(b"elst") + 12
    (duration,) = struct.unpack_from(">I", data, at)
    return data[:at] + struct.pack(">I", int(duration * share)) + data[at + 4 :]


def oriented(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Write the 2 x 2 part (a, b, c, d) of the display matrix into an mp4 (ISO 14496-12, 8.3.2)."""
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def browser_webm(times_ms: list[int]) -> bytes:
    """Return a VP8 WebM without frame durations, as browsers record it."""
    data = video(
        numbered(len(times_ms)),
        container="webm",
        codec="libvpx",
        fps=30,
        times=times_ms,
        tick=Fraction(1, 1000),
    )
    assert b"\x23\xe3\x83" in data
    return data.replace(b"\x23\xe3\x83", b"\x23\xe3\x80", 1)


def webcam_times_ms(count: int = 60, jitter_ms: float = 12, seed: int = 0) -> list[int]:
    """Return times that are 33.3 ms apart, more or less."""
    chance, time_ms, times_ms = random.Random(seed), 0.0, []
    for _ in range(count):
        times_ms.append(round(time_ms))
        time_ms += 33.3 + chance.uniform(-jitter_ms, jitter_ms)
    return times_ms


def disc(height: int = 576, width: int = 720, aspect: Fraction = Fraction(64, 45)) -> np.ndarray:
    """Return a picture (H, W, 3) of a disc that is round with pixels of this aspect ratio."""
    rows, columns = np.mgrid[:height, :width]
    radius = 0.35 * min(height, width * float(aspect))
    is_inside = (rows - height / 2) ** 2 + ((columns - width / 2) * float(aspect)) ** 2 < radius**2
    return np.where(is_inside[..., None], np.uint8(230), np.uint8(20)).repeat(3, axis=2)


def roundness(frame: np.ndarray) -> float:
    """Return the width of the bright area of a picture (H, W, 3) over its height."""
    bright = frame.mean(axis=2) > 125
    return float(bright.any(axis=0).sum() / bright.any(axis=1).sum())
