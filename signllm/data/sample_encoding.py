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

from signllm.data.frame_folder import check_regular_file, encode_png, list_frame_files, read_image_size
from signllm.data.frame_rate import USUAL_FPS, Timing
from signllm.data.missing_files import describe_missing
from signllm.data.recording import read_time_span
from signllm.data.source_samples import LeftOutSample, SourceSample, safe_key
from signllm.data.stream import VideoReader, open_video
from signllm.data.transcoding import EncodedVideo, transcode
from signllm.data.video import (
    Fit,
    Video,
    VideoError,
    decode_to_rgb,
    encode_h264,
    read_video,
    shrink_short_side,
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
class EncodedSample:
    """A clip ready to be written: its key, the bytes of each member by extension, and its description."""

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _StoredPictures:
    members: dict[str, bytes]
    frames: int
    width: int
    height: int
    fps: float
    checksum: str
    transfer: str = ""


class _ReadResult(NamedTuple):
    """What was read, and the name of the source's high dynamic range."""

    video: Video | EncodedVideo
    transfer: str


def encode_sample(clip: SourceSample, config: EncodeConfig) -> EncodedSample | LeftOutSample:
    """Read and encode one clip; whatever is wrong with it becomes the reason of a :class:`LeftOutSample`.

    Raises:
        StorageError: the storage of the video stayed away, which says nothing about the video.
    """
    try:
        return wait_for_storage(lambda: _encode_once(clip, config), clip.video)
    except UsageError as error:
        reason = error.what
    except OSError as error:
        reason = (
            describe_missing(clip.video)
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror}"
        )
    return LeftOutSample(id=clip.id, split=clip.split, reason=reason)


def _encode_once(clip: SourceSample, config: EncodeConfig) -> EncodedSample:
    if not clip.text:
        raise UsageError("the text is empty")
    pictures = _encode_folder(clip, config) if os.path.isdir(clip.video) else _encode_file(clip, config)
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
    if clip.time_span:
        meta |= {"start_s": clip.start_s, "end_s": clip.end_s}
    if pictures.transfer:
        meta |= {"tone_mapped_from": pictures.transfer}
    meta = dict(sorted(meta.items()))  # the order of a sample that a merge of slices reads back
    described = json.dumps(meta, ensure_ascii=False).encode()
    members = {**pictures.members, "txt": clip.text.encode(), "json": described}
    return EncodedSample(key=safe_key(clip.id), members=members, meta={**meta, "text": clip.text})


def _encode_file(clip: SourceSample, config: EncodeConfig) -> _StoredPictures:
    if clip.time_span:
        if config.encode == "copy":
            raise VideoError("a clip cannot be cut out of a recording by encode copy; use h264 or frames")
        cut = clip.time_span
        return _to_stored_pictures(
            *_read_at_steady_rate(lambda use: read_time_span(clip.video, cut, use), config), config
        )
    check_regular_file(clip.video)
    data = clip.video.read_bytes()
    if not data:
        raise VideoError("the file has zero bytes")
    checksum = hashlib.sha256(data).hexdigest()
    if config.encode == "copy":
        if clip.video.suffix.lower() not in _MP4_SUFFIXES:
            raise VideoError(
                f"{clip.video.suffix} cannot be copied: only mp4 files and frame folders; use encode h264"
            )
        with open_video(data) as (container, stream):
            reader = VideoReader(container, stream)
            video = decode_to_rgb(reader, fit=None, fps=None)
        return replace(_describe_pictures(video, {"mp4": data}, checksum), transfer=reader.transfer)

    def read(use: Callable[[VideoReader], _ReadResult]) -> tuple[_ReadResult, str]:
        with open_video(data) as (container, stream):
            return use(VideoReader(container, stream)), checksum

    return _to_stored_pictures(*_read_at_steady_rate(read, config), config)


def _read_at_steady_rate(
    read: Callable[[Callable[[VideoReader], _ReadResult]], tuple[_ReadResult, str]], config: EncodeConfig
) -> tuple[_ReadResult, str]:
    """Read a video at a steady rate, which is what a stored sample has.

    Its time stamps are known when it has been decoded. If they contradict the rate that the file states, or
    no steady rate fits them (phones slow down in the dark), it is read once more, as they say.

    Args:
        read: opens the video, hands it to its argument, and returns what that returned with a checksum.
        config: how the pictures are kept.
    """
    encode: Callable[..., Video | EncodedVideo] = (
        partial(decode_to_rgb, fit=_size_rule(config))
        if config.encode == "frames"
        else partial(transcode, fit=_size_rule(config), crf=config.crf)
    )
    timing: Timing | None = None

    def as_stated(reader: VideoReader) -> _ReadResult:
        nonlocal timing
        stated_fps = reader.fps
        video = encode(reader, fps=config.fps)
        measured = reader.timing
        is_unsteady = config.fps is None and measured.steady_fps is not None
        timing = measured if is_unsteady or measured.fps != stated_fps else None
        return _ReadResult(video, reader.transfer)

    def as_measured(reader: VideoReader) -> _ReadResult:
        assert timing is not None
        reader.fps = timing.fps
        return _ReadResult(encode(reader, fps=config.fps or timing.steady_fps), reader.transfer)

    result = read(as_stated)
    return result if timing is None else read(as_measured)


def _to_stored_pictures(read: _ReadResult, checksum: str, config: EncodeConfig) -> _StoredPictures:
    video = read.video
    if isinstance(video, Video):
        return replace(_encode_video(video, config, checksum), transfer=read.transfer)
    return _StoredPictures(
        members={"mp4": video.mp4},
        frames=video.frames,
        width=video.width,
        height=video.height,
        fps=_round_rate(video.fps),
        checksum=checksum,
        transfer=read.transfer,
    )


def _encode_folder(clip: SourceSample, config: EncodeConfig) -> _StoredPictures:
    files = _select_time_span(list_frame_files(clip.video), clip)
    frames = [path.read_bytes() for path in files]
    checksum = _hash_frames(files, frames)
    if config.encode == "copy" or (config.encode == "frames" and _need_no_change(frames, clip, config)):
        members = _number_frames(
            [(path.suffix.lower()[1:], data) for path, data in zip(files, frames, strict=True)]
        )
        return _describe_pictures(read_video(frames, fps_of_frames=clip.fps), members, checksum)
    return _encode_video(
        read_video(frames, fit=_size_rule(config), fps=config.fps, fps_of_frames=clip.fps), config, checksum
    )


def _select_time_span(files: list[Path], clip: SourceSample) -> list[Path]:
    """Return the frame files of a clip: all, or those whose times are within its cut."""
    if clip.time_span is None:
        return files
    times_s = [number / (clip.fps or USUAL_FPS) for number in range(len(files))]
    kept = [
        path
        for path, time_s in zip(files, times_s, strict=True)
        if clip.time_span.starts_by(time_s) and not clip.time_span.ends_by(time_s)
    ]
    if not kept:
        raise VideoError(
            f"none of {len(files)} frames lies from {clip.time_span.start_s:g} to {clip.time_span.end_s:g} s"
        )
    return kept


def _need_no_change(frames: list[bytes], clip: SourceSample, config: EncodeConfig) -> bool:
    fits = config.size is None or max(min(read_image_size(frame)) for frame in frames) <= config.size
    return fits and config.fps in (None, clip.fps)


def _size_rule(config: EncodeConfig) -> Fit | None:
    return None if config.size is None else shrink_short_side(config.size)


def _encode_video(video: Video, config: EncodeConfig, checksum: str) -> _StoredPictures:
    if config.encode == "frames":
        members = _number_frames([("png", encode_png(frame_HWC)) for frame_HWC in video.frames])
        return _describe_pictures(video, members, checksum)
    height, width = (side - side % 2 for side in video.frames.shape[1:3])
    if min(height, width) < 2:
        raise VideoError(f"frames of {width} x {height}, too small for h264")
    even = Video(frames=video.frames[:, :height, :width], fps=video.fps)
    return _describe_pictures(even, {"mp4": encode_h264(even.frames, even.fps, crf=config.crf)}, checksum)


def _describe_pictures(video: Video, members: dict[str, bytes], checksum: str) -> _StoredPictures:
    frames, height, width = video.frames.shape[:3]
    return _StoredPictures(
        members=members,
        frames=frames,
        width=width,
        height=height,
        fps=_round_rate(video.fps),
        checksum=checksum,
    )


def _round_rate(fps: float) -> float:
    return round(float(Fraction(fps).limit_denominator(1001)), 6)


def _number_frames(frames: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Name frames 0001.png, 0002.png, ...: wide enough that the order of names is the order of frames."""
    digits = max(4, len(str(len(frames))))
    return {f"{number:0{digits}d}.{suffix}": data for number, (suffix, data) in enumerate(frames, start=1)}


def _hash_frames(files: list[Path], frames: list[bytes]) -> str:
    whole = hashlib.sha256()
    for path, data in zip(files, frames, strict=True):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(data).digest())
    return whole.hexdigest()
