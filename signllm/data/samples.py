"""A clip → one sample: the members that go into the tar, by one of three ways of keeping the pictures.

``h264`` decodes and re-encodes (short groups, short side shrunk): small and fast to read. ``frames`` keeps
every picture lossless: a frame folder's files as they are, a video's frames as PNG. ``copy`` passes mp4 files
and frame folders through byte for byte. What was done is in each sample's json.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from signllm.data.clip import Clip, LeftOut, safe_key
from signllm.data.frame_folder import check_regular, encode_png, frame_files, image_size
from signllm.data.frame_rate import USUAL_FPS, Timing
from signllm.data.missing_files import describe_missing
from signllm.data.recording import read_cut
from signllm.data.stream import Reading, opened
from signllm.data.transcoding import Transcoded, transcoded
from signllm.data.video import (
    Fit,
    Video,
    VideoError,
    encode_h264,
    fit_short_side,
    read_video,
    rgb_video,
)
from signllm.errors import UsageError
from signllm.storage import wait_for_storage

ENCODINGS = ("h264", "copy", "frames")
_MP4_SUFFIXES = frozenset({".mp4", ".m4v"})


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How the pictures of a clip are kept.

    Args:
        encode: ``h264`` (re-encoded), ``copy`` (mp4 bytes or frame files as they are), ``frames`` (lossless
            pictures).
        size: the short side in pixels, to which larger videos are shrunk; None keeps every size. Not used by
            ``copy``.
        fps: frames per second to resample to. None keeps every frame; only a video whose rate varies, as
            phones and screen recorders write it, gets a steady one. Not used by ``copy``. Whatever it is, a
            run reads all videos at one rate (``data.fps``).
        crf: quality of ``h264``, x264's constant rate factor: smaller is better and larger.
        min_frames: shorter clips are left out (13 is one window of the encoder, which pads shorter ones).
        language: name of the spoken language where the annotations are silent.
    """

    encode: Literal["h264", "copy", "frames"] = "h264"
    size: int | None = 256
    fps: float | None = None
    crf: int = 21
    min_frames: int = 1
    language: str = "English"

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` for a value that cannot work."""
        if self.encode not in ENCODINGS:
            raise UsageError(f"encode = {self.encode!r}", remedy=f"one of: {', '.join(ENCODINGS)}")
        if self.size is not None and self.size < 16:
            raise UsageError(
                f"size = {self.size}", remedy="a short side of at least 16 pixels, or none to keep it"
            )
        if self.fps is not None and not 0 < self.fps <= 240:
            raise UsageError(
                f"fps = {self.fps}", remedy="above 0 and at most 240, or none to keep every frame"
            )
        if not 0 <= self.crf <= 51:
            raise UsageError(f"crf = {self.crf}", remedy="0 (lossless) to 51 (worst); 21 is the default")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip ready to be written: its key, the bytes of each member by extension, and its description."""

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    members: dict[str, bytes]
    frames: int
    width: int
    height: int
    fps: float
    checksum: str
    transfer: str = ""


class _Read(NamedTuple):
    """What was read, and the name of the source's high dynamic range."""

    video: Video | Transcoded
    transfer: str


def make_sample(clip: Clip, config: EncodeConfig) -> Sample | LeftOut:
    """Read and encode one clip; whatever is wrong with it becomes the reason of a :class:`LeftOut`.

    Raises:
        StorageError: the storage of the video stayed away, which says nothing about the video.
    """
    try:
        return wait_for_storage(lambda: _make_sample(clip, config), clip.video)
    except UsageError as error:
        reason = error.what
    except OSError as error:
        reason = (
            describe_missing(clip.video)
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror}"
        )
    return LeftOut(id=clip.id, split=clip.split, reason=reason)


def _make_sample(clip: Clip, config: EncodeConfig) -> Sample:
    if not clip.text:
        raise UsageError("the text is empty")
    pictures = _folder(clip, config) if os.path.isdir(clip.video) else _file(clip, config)
    if pictures.frames < config.min_frames:
        raise UsageError(f"{pictures.frames} frames, fewer than min_frames = {config.min_frames}")
    meta = {
        "id": clip.id,
        "split": clip.split,
        "language": clip.language or config.language,
        "signer": clip.signer,
        "frames": pictures.frames,
        "fps": pictures.fps,
        "width": pictures.width,
        "height": pictures.height,
        "encode": config.encode,
        "source": clip.video.name,
        "source_sha256": pictures.checksum,
    }
    if clip.cut:
        meta |= {"start_s": clip.start_s, "end_s": clip.end_s}
    if pictures.transfer:
        meta |= {"tone_mapped_from": pictures.transfer}
    meta = dict(sorted(meta.items()))  # the order of a sample that a merge of slices reads back
    described = json.dumps(meta, ensure_ascii=False).encode()
    members = {**pictures.members, "txt": clip.text.encode(), "json": described}
    return Sample(key=safe_key(clip.id), members=members, meta={**meta, "text": clip.text})


def _file(clip: Clip, config: EncodeConfig) -> _Pictures:
    if clip.cut:
        if config.encode == "copy":
            raise VideoError("a clip cannot be cut out of a recording by encode copy; use h264 or frames")
        cut = clip.cut
        return _kept(*_read_steadily(lambda use: read_cut(clip.video, cut, use), config), config)
    check_regular(clip.video)
    data = clip.video.read_bytes()
    if not data:
        raise VideoError("the file has zero bytes")
    checksum = hashlib.sha256(data).hexdigest()
    if config.encode == "copy":
        if clip.video.suffix.lower() not in _MP4_SUFFIXES:
            raise VideoError(
                f"{clip.video.suffix} cannot be copied: only mp4 files and frame folders; use encode h264"
            )
        with opened(data) as (container, stream):
            reading = Reading(container, stream)
            video = rgb_video(reading, fit=None, fps=None)
        return replace(_described(video, {"mp4": data}, checksum), transfer=reading.transfer)

    def read(use: Callable[[Reading], _Read]) -> tuple[_Read, str]:
        with opened(data) as (container, stream):
            return use(Reading(container, stream)), checksum

    return _kept(*_read_steadily(read, config), config)


def _read_steadily(
    read: Callable[[Callable[[Reading], _Read]], tuple[_Read, str]], config: EncodeConfig
) -> tuple[_Read, str]:
    """Read a video at a steady rate, which is what a stored sample has.

    Its time stamps are known when it has been decoded. If they contradict the rate that the file states, or
    no steady rate fits them (phones slow down in the dark), it is read once more, as they say.

    Args:
        read: opens the video, hands it to its argument, and returns what that returned with a checksum.
        config: how the pictures are kept.
    """
    encode: Callable[..., Video | Transcoded] = (
        partial(rgb_video, fit=_fit(config))
        if config.encode == "frames"
        else partial(transcoded, fit=_fit(config), crf=config.crf)
    )
    timing: Timing | None = None

    def as_stated(reading: Reading) -> _Read:
        nonlocal timing
        stated_fps = reading.fps
        video = encode(reading, fps=config.fps)
        measured = reading.timing
        is_unsteady = config.fps is None and measured.steady_fps is not None
        timing = measured if is_unsteady or measured.fps != stated_fps else None
        return _Read(video, reading.transfer)

    def as_measured(reading: Reading) -> _Read:
        assert timing is not None
        reading.fps = timing.fps
        return _Read(encode(reading, fps=config.fps or timing.steady_fps), reading.transfer)

    result = read(as_stated)
    return result if timing is None else read(as_measured)


def _kept(read: _Read, checksum: str, config: EncodeConfig) -> _Pictures:
    video = read.video
    if isinstance(video, Video):
        return replace(_encoded(video, config, checksum), transfer=read.transfer)
    return _Pictures(
        members={"mp4": video.mp4},
        frames=video.frames,
        width=video.width,
        height=video.height,
        fps=_stated(video.fps),
        checksum=checksum,
        transfer=read.transfer,
    )


def _folder(clip: Clip, config: EncodeConfig) -> _Pictures:
    files = _cut_out(frame_files(clip.video), clip)
    frames = [path.read_bytes() for path in files]
    checksum = _checksum_of_frames(files, frames)
    if config.encode == "copy" or (config.encode == "frames" and _pass_as_they_are(frames, clip, config)):
        members = _numbered(
            [(path.suffix.lower()[1:], data) for path, data in zip(files, frames, strict=True)]
        )
        return _described(read_video(frames, fps_of_frames=clip.fps), members, checksum)
    return _encoded(
        read_video(frames, fit=_fit(config), fps=config.fps, fps_of_frames=clip.fps), config, checksum
    )


def _cut_out(files: list[Path], clip: Clip) -> list[Path]:
    """Return the frame files of a clip: all, or those whose times are within its cut."""
    if clip.cut is None:
        return files
    times_s = [number / (clip.fps or USUAL_FPS) for number in range(len(files))]
    kept = [
        path
        for path, time_s in zip(files, times_s, strict=True)
        if clip.cut.has_begun(time_s) and not clip.cut.is_over(time_s)
    ]
    if not kept:
        raise VideoError(
            f"no frame from {clip.cut.start_s:g} to {clip.cut.end_s:g} s; {len(files)} frames there"
        )
    return kept


def _pass_as_they_are(frames: list[bytes], clip: Clip, config: EncodeConfig) -> bool:
    fits = config.size is None or max(min(image_size(frame)) for frame in frames) <= config.size
    return fits and config.fps in (None, clip.fps)


def _fit(config: EncodeConfig) -> Fit | None:
    return None if config.size is None else fit_short_side(config.size)


def _encoded(video: Video, config: EncodeConfig, checksum: str) -> _Pictures:
    if config.encode == "frames":
        members = _numbered([("png", encode_png(frame_HWC)) for frame_HWC in video.frames])
        return _described(video, members, checksum)
    height, width = (side - side % 2 for side in video.frames.shape[1:3])
    if min(height, width) < 2:
        raise VideoError(f"frames of {width} x {height}, too small for h264")
    even = Video(frames=video.frames[:, :height, :width], fps=video.fps)
    return _described(even, {"mp4": encode_h264(even.frames, even.fps, crf=config.crf)}, checksum)


def _described(video: Video, members: dict[str, bytes], checksum: str) -> _Pictures:
    frames, height, width = video.frames.shape[:3]
    return _Pictures(
        members=members, frames=frames, width=width, height=height, fps=_stated(video.fps), checksum=checksum
    )


def _stated(fps: float) -> float:
    return round(float(Fraction(fps).limit_denominator(1001)), 6)


def _numbered(frames: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Name frames 0001.png, 0002.png, ...: wide enough that the order of names is the order of frames."""
    digits = max(4, len(str(len(frames))))
    return {f"{number:0{digits}d}.{suffix}": data for number, (suffix, data) in enumerate(frames, start=1)}


def _checksum_of_frames(files: list[Path], frames: list[bytes]) -> str:
    whole = hashlib.sha256()
    for path, data in zip(files, frames, strict=True):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(data).digest())
    return whole.hexdigest()
