"""Pictures in and out: any video file, frame folder or list of encoded frames → one uint8 array; frames → h264.

PyAV carries its own FFmpeg, so this runs wherever pip does. The decoder gets one thread: parallelism is over clips.
Small frames are converted to RGB many at a time, stacked into one tall picture, because per-frame calls cost more than
decoding: 150 frames of 48 x 48 take 4.2 ms (the bare decoder 2.8 ms, ``to_ndarray`` on each frame 29 ms).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.data.frame_folder import MAX_PIXELS, decode_image, frame_files
from signllm.data.video_error import VideoError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Source", "Video", "VideoError", "decode", "encode_h264", "fit_short_side", "read_video"]

Source = Path | bytes | Sequence[bytes]
"""A video file or frame folder, a video's bytes, or the encoded frames of a video."""

Fit = Callable[[int, int], tuple[int, int]]
"""(width, height) of the source → (width, height) wanted."""

MAX_FRAMES = 20_000
"""Longest clip: 13 minutes at 25 frames per second; a sentence has 3 to 20 seconds."""
MAX_DECODED_BYTES = 4 << 30
FRAME_FOLDER_FPS = 25.0
_STACKED_PIXELS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Video:
    """A decoded video: frames uint8 (T, H, W, 3), upright, and frames per second (an average where it varies)."""

    frames: np.ndarray
    fps: float


def decode(source: Source, *, size: int | None = None) -> np.ndarray:
    """Decode all frames, in order.

    Args:
        source: where the video is.
        size: scale the short side to this and crop the centre square; None keeps the video's own size.

    Returns:
        uint8 (T, H, W, 3), RGB, rotated as the file asks.

    Raises:
        VideoError: no video stream, damaged, or beyond the limits of pixels, frames and memory.
        OSError: the file cannot be read.
    """
    if size is None:
        return read_video(source).frames
    frames_THWC = read_video(source, fit=lambda width, height: _scaled(width, height, size)).frames
    top, left = (frames_THWC.shape[1] - size) // 2, (frames_THWC.shape[2] - size) // 2
    return frames_THWC[:, top : top + size, left : left + size]


def read_video(source: Source, *, fit: Fit | None = None, fps: float | None = None) -> Video:
    """Decode a video, scaled as ``fit`` says and, if ``fps`` is given, resampled in time to that rate.

    Resampling shows at each new instant the last frame that had begun by then, so it copes with a varying rate and with a
    first time stamp that is not 0. Raises as :func:`decode`.
    """
    if isinstance(source, Path) and source.is_dir():
        source = [path.read_bytes() for path in frame_files(source)]
    if isinstance(source, (bytes, Path)):
        video, times_s = _decode_stream(source, fit)
    else:
        video, times_s = _decode_images(source, fit)
    return video if fps is None else _resample(video, times_s, fps)


def fit_short_side(short_side: int) -> Fit:
    """Return a fit that shrinks the short side to ``short_side`` and never enlarges."""

    def fit(width: int, height: int) -> tuple[int, int]:
        return (width, height) if min(width, height) <= short_side else _scaled(width, height, short_side)

    return fit


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    short = min(width, height)
    return max(short_side, round(width * short_side / short)), max(short_side, round(height * short_side / short))


def _resample(video: Video, times_s: np.ndarray, fps: float) -> Video:
    import numpy as np

    begun_s = times_s - times_s[0]
    wanted = max(1, round((begun_s[-1] + 1 / video.fps) * fps))
    shown = np.searchsorted(begun_s, np.arange(wanted) / fps + 1e-6, side="right") - 1
    return Video(frames=video.frames[shown], fps=fps)


def _decode_images(images: Sequence[bytes], fit: Fit | None) -> tuple[Video, np.ndarray]:
    import av
    import numpy as np
    from av.video.reformatter import VideoReformatter

    if not images:
        raise VideoError("no frames")
    frames, reformatter, wanted = [], VideoReformatter(), None
    for data in images:
        frame_HWC = decode_image(data)
        height, width = frame_HWC.shape[:2]
        wanted = wanted or (fit(width, height) if fit else (width, height))
        if (width, height) != wanted:
            frame_HWC = _pixels(reformatter, av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"), wanted)
        frames.append(frame_HWC)
        _check_total(len(frames), *wanted)
    return Video(frames=np.stack(frames), fps=FRAME_FOLDER_FPS), np.arange(len(frames)) / FRAME_FOLDER_FPS


def _decode_stream(source: Path | bytes, fit: Fit | None) -> tuple[Video, np.ndarray]:
    import numpy as np

    with _opened(source) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or FRAME_FOLDER_FPS)
        times_s: list[float] = []
        rotation = 0

        def kept(frames: Iterable[Any]) -> Iterator[Any]:
            nonlocal rotation
            for frame in frames:
                _check_size(frame.width, frame.height)
                rotation = rotation or frame.rotation
                times_s.append(len(times_s) / fps if frame.time is None else frame.time)
                yield frame

        parts = list(_pictures(kept(container.decode(stream)), fit))
        declared = stream.frames
    if not parts:
        raise VideoError("no frame could be decoded")
    if len(times_s) < declared / 2:
        raise VideoError(f"truncated: {len(times_s)} frames of {declared} could be decoded")
    frames_THWC = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if rotation % 360:
        frames_THWC = np.rot90(frames_THWC, k=round(rotation / 90), axes=(1, 2))
    return Video(frames=frames_THWC, fps=fps), np.array(times_s)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """Open a video's main stream for decoding with one thread; FFmpeg's errors become :class:`VideoError`.

    A playlist posing as a video may name other files or hosts: only the file itself may be opened.
    """
    import av

    if isinstance(source, Path) and source.stat().st_size == 0:
        raise VideoError("the file has zero bytes")
    # "file:" because a name such as x-00:00:05.333 would be taken for a protocol
    target = f"file:{source}" if isinstance(source, Path) else io.BytesIO(source)
    protocols = "file" if isinstance(source, Path) else "none"
    try:
        with av.open(target, options={"protocol_whitelist": protocols}) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError("no video stream in the file")
            _check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, EOFError) as error:
        if isinstance(error, OSError) and isinstance(source, Path) and isinstance(error, (PermissionError, FileNotFoundError)):
            raise
        raise VideoError(f"not a video that FFmpeg can decode: {error.strerror or error}") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise VideoError(f"frames of {width} x {height}, limit {MAX_PIXELS} pixels")


def _check_total(frames: int, width: int, height: int) -> None:
    if frames > MAX_FRAMES:
        raise VideoError(f"more than {MAX_FRAMES} frames", remedy="cut the recording into sentences")
    if frames * width * height * 3 > MAX_DECODED_BYTES:
        raise VideoError(f"more than {MAX_DECODED_BYTES >> 30} GiB decoded", remedy="cut the recording, or shrink the frames")


def _pictures(frames: Iterator[Any], fit: Fit | None) -> Iterator[np.ndarray]:
    """Turn decoded frames into runs of pictures (T, H, W, 3): stacked where no scaling is needed, else one by one."""
    from av.video.reformatter import VideoReformatter

    reformatter, stack, wanted, done = VideoReformatter(), [], None, 0
    for frame in frames:
        wanted = wanted or (fit(frame.width, frame.height) if fit else (frame.width, frame.height))
        done += 1
        _check_total(done, *wanted)
        if _can_be_stacked(frame, wanted) and (not stack or _alike(frame, stack[0])):
            stack.append(frame)
            if len(stack) * wanted[0] * wanted[1] >= _STACKED_PIXELS:
                yield _unstack(stack)
                stack = []
            continue
        if stack:
            yield _unstack(stack)
            stack = []
        yield _pixels(reformatter, frame, wanted)[None]
    if stack:
        yield _unstack(stack)


def _can_be_stacked(frame: Any, wanted: tuple[int, int]) -> bool:
    even = frame.width % 2 == 0 and frame.height % 2 == 0
    return even and (frame.width, frame.height) == wanted and frame.format.name == "yuv420p"


def _alike(frame: Any, other: Any) -> bool:
    return frame.colorspace == other.colorspace and frame.color_range == other.color_range


def _unstack(frames: list[Any]) -> np.ndarray:
    """Convert equal yuv420p frames to RGB (T, H, W, 3) as one tall picture; chroma never crosses an even border."""
    import av
    import numpy as np

    count, width, height = len(frames), frames[0].width, frames[0].height
    tall = av.VideoFrame(width, height * count, "yuv420p")
    tall.colorspace, tall.color_range = frames[0].colorspace, frames[0].color_range
    planes = [frame.planes for frame in frames]
    for number, target in enumerate(tall.planes):
        shrunk = 1 if number == 0 else 2
        rows = np.frombuffer(b"".join([plane[number] for plane in planes]), np.uint8)
        rows = rows.reshape(count, -1, planes[0][number].line_size)[:, : height // shrunk, : width // shrunk]
        written = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        written[: rows.shape[0] * rows.shape[1], : rows.shape[2]] = rows.reshape(-1, rows.shape[2])
    return tall.reformat(format="rgb24").to_ndarray().reshape(count, height, width, 3)


def _pixels(reformatter: Any, frame: Any, wanted: tuple[int, int]) -> np.ndarray:
    return reformatter.reformat(frame, *wanted, format="rgb24", interpolation="BICUBIC").to_ndarray()


def encode_h264(
    frames: Iterable[np.ndarray], fps: float, *, crf: int = 21, group: int = 12, preset: str = "veryfast"
) -> bytes:
    """Encode frames as an mp4 file, the same bytes for the same frames every time.

    Args:
        frames: uint8 (H, W, 3) each, RGB, all of one size; an odd last row or column is dropped (4:2:0 needs even).
        fps: frames per second.
        crf: x264's constant rate factor; 21 keeps an average difference of about 2 of 255 on drawn frames.
        group: frames from one key frame to the next; short, so that a damaged one spoils little.
        preset: x264's speed against size.

    Raises:
        ValueError: no frames, or frames below 2 x 2.
    """
    import av
    import numpy as np

    target, stream = io.BytesIO(), None
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        for frame_HWC in frames:
            height, width = (side - side % 2 for side in frame_HWC.shape[:2])
            if stream is None:
                if min(height, width) < 2:
                    raise ValueError(f"frames of {width} x {height}; h264 needs at least 2 x 2")
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.thread_count = 1
                # mbtree reads memory that nobody wrote at small sizes: 7 different files in 25 runs at 48 x 48
                stream.options = {"crf": str(crf), "preset": preset, "g": str(group), "x264-params": "mbtree=0"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("no frames to encode")
        container.mux(stream.encode(None))
    return target.getvalue()
