"""Encoding a sample of a dataset as the members of a tar, by one of three ways to store its frames.

``h264`` decodes and re-encodes the video (short groups of pictures, short side reduced), which is small and
fast to read. ``frames`` is lossless: the files of a folder of frames unchanged, the frames of a video as PNG.
``copy`` stores mp4 files and folders of frames byte by byte. The JSON of each sample records how it was made.
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
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from signllm.data.missing_files import describe_missing
from signllm.data.source_samples import LeftOutSample, SourceSample, safe_key
from signllm.data.video.decoding import (
    Fit,
    Video,
    VideoError,
    decode_to_rgb,
    encode_h264,
    read_video,
    shrink_short_side,
)
from signllm.data.video.frame_folder import check_regular_file, encode_png, list_frame_files, read_image_size
from signllm.data.video.frame_rate import USUAL_FPS, Timing
from signllm.data.video.recording import read_time_span
from signllm.data.video.stream import VideoReader, open_video
from signllm.data.video.transcoding import EncodedVideo, transcode
from signllm.errors import UsageError
from signllm.storage import wait_for_storage
from signllm.validation import NonNegativeInt, validated

ENCODINGS = ("h264", "copy", "frames")
_MP4_SUFFIXES = frozenset({".mp4", ".m4v"})


@validated
class EncodeConfig:
    """How the frames of a sample are stored.

    Args:
        encode: ``h264`` (re-encoded), ``copy`` (unchanged mp4 or frame files), or ``frames`` (lossless
            images).
        size: short side in pixels to which larger videos are reduced; None keeps every size. ``copy`` ignores
            it.
        fps: rate in frames per second to resample to. None keeps every frame, except that a video of varying
            rate, as phones and screen recorders write it, gets a constant rate. ``copy`` ignores it. In any
            case a run reads all videos at one rate (``data.fps``).
        crf: constant rate factor of x264 for ``h264``; smaller values give better quality and larger files.
        min_frames: least number of frames of a sample; shorter ones are left out. 13 frames are one clip of
            the encoder, which pads shorter videos.
        language: English name of the spoken language for samples whose annotations state none.
    """

    encode: Literal["h264", "copy", "frames"] = "h264"
    size: Annotated[int, Field(ge=16)] | None = 256
    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    crf: Annotated[int, Field(ge=0, le=51)] = 21
    min_frames: NonNegativeInt = 1
    language: str = "English"


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample that is ready to be written into a tar.

    Attributes:
        key: WebDataset key.
        members: bytes of each member by extension.
        meta: properties of the sample, which its JSON and the index contain.
    """

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _StoredPictures:
    """The encoded frames of a sample with their properties.

    Attributes:
        members: bytes of each member by extension.
        frames: number of frames.
        width: width in pixels.
        height: height in pixels.
        fps: rate in frames per second.
        checksum: sha256 of the source.
        transfer: transfer function of a source with high dynamic range, else "".
    """

    members: dict[str, bytes]
    frames: int
    width: int
    height: int
    fps: float
    checksum: str
    transfer: str = ""


class _ReadResult(NamedTuple):
    """A decoded or transcoded video, with the transfer function of a high dynamic range source, else ""."""

    video: Video | EncodedVideo
    transfer: str


def encode_sample(sample: SourceSample, config: EncodeConfig) -> EncodedSample | LeftOutSample:
    """Read and encode one sample; any error of its video becomes the reason of a :class:`LeftOutSample`.

    Raises:
        StorageError: the storage of the video stayed unavailable, which says nothing about the video.
    """
    try:
        return wait_for_storage(lambda: _encode_once(sample, config), sample.video)
    except UsageError as error:
        reason = error.what
    except OSError as error:
        reason = (
            describe_missing(sample.video)
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror}"
        )
    return LeftOutSample(id=sample.id, split=sample.split, reason=reason)


def _encode_once(sample: SourceSample, config: EncodeConfig) -> EncodedSample:
    """Encode one sample without waiting for storage; raise the reason if it cannot be used."""
    if not sample.text:
        raise UsageError("the text is empty")
    pictures = _encode_folder(sample, config) if os.path.isdir(sample.video) else _encode_file(sample, config)
    if pictures.frames < config.min_frames:
        raise UsageError(
            f"the video has {pictures.frames} frames, fewer than min_frames = {config.min_frames}"
        )
    meta = {
        "id": sample.id,
        "split": sample.split,
        "language": sample.language or config.language,
        "signer": sample.signer,
        "frames": pictures.frames,
        "fps": pictures.fps,
        "width": pictures.width,
        "height": pictures.height,
        "encode": config.encode,
        "source": sample.video.name,
        "source_sha256": pictures.checksum,
    }
    if sample.time_span:
        meta |= {"start_s": sample.start_s, "end_s": sample.end_s}
    if pictures.transfer:
        meta |= {"tone_mapped_from": pictures.transfer}
    meta = dict(sorted(meta.items()))  # the order in which a merge of slices reads them from the JSON
    described = json.dumps(meta, ensure_ascii=False).encode()
    members = {**pictures.members, "txt": sample.text.encode(), "json": described}
    return EncodedSample(key=safe_key(sample.id), members=members, meta={**meta, "text": sample.text})


def _encode_file(sample: SourceSample, config: EncodeConfig) -> _StoredPictures:
    """Encode the video file of a sample, or the time span of it that the sample consists of."""
    if sample.time_span:
        if config.encode == "copy":
            raise VideoError("encode copy cannot cut a sample out of a recording; use h264 or frames")
        cut = sample.time_span
        return _to_stored_pictures(
            *_read_at_steady_rate(lambda use: read_time_span(sample.video, cut, use), config), config
        )
    check_regular_file(sample.video)
    data = sample.video.read_bytes()
    if not data:
        raise VideoError("the file has zero bytes")
    checksum = hashlib.sha256(data).hexdigest()
    if config.encode == "copy":
        if sample.video.suffix.lower() not in _MP4_SUFFIXES:
            raise VideoError(
                f"{sample.video.suffix} cannot be copied: only mp4 files and frame folders; use encode h264"
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
    """Read a video at a constant rate, as a stored sample must have it.

    All time stamps are known only after the video has been decoded. If they contradict the rate that the file
    states, or no constant rate fits them (phones slow down in the dark), the video is read again at the
    measured rate.

    Args:
        read: function that opens the video, passes a reader to its argument, and returns the latter's result
            with a checksum.
        config: how the frames are stored.
    """
    encode: Callable[..., Video | EncodedVideo] = (
        partial(decode_to_rgb, fit=_size_rule(config))
        if config.encode == "frames"
        else partial(transcode, fit=_size_rule(config), crf=config.crf)
    )
    timing: Timing | None = None

    def read_at_stated_rate(reader: VideoReader) -> _ReadResult:
        nonlocal timing
        stated_fps = reader.fps
        video = encode(reader, fps=config.fps)
        measured = reader.timing
        is_unsteady = config.fps is None and measured.steady_fps is not None
        timing = measured if is_unsteady or measured.fps != stated_fps else None
        return _ReadResult(video, reader.transfer)

    def read_at_measured_rate(reader: VideoReader) -> _ReadResult:
        assert timing is not None
        reader.fps = timing.fps
        return _ReadResult(encode(reader, fps=config.fps or timing.steady_fps), reader.transfer)

    result = read(read_at_stated_rate)
    return result if timing is None else read(read_at_measured_rate)


def _to_stored_pictures(read: _ReadResult, checksum: str, config: EncodeConfig) -> _StoredPictures:
    """Return the stored frames of a video that was read from a file."""
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


def _encode_folder(sample: SourceSample, config: EncodeConfig) -> _StoredPictures:
    """Encode the folder of frames of a sample."""
    files = _select_time_span(list_frame_files(sample.video), sample)
    frames = [path.read_bytes() for path in files]
    checksum = _hash_frames(files, frames)
    if config.encode == "copy" or (config.encode == "frames" and _need_no_change(frames, sample, config)):
        members = _number_frames(
            [(path.suffix.lower()[1:], data) for path, data in zip(files, frames, strict=True)]
        )
        return _describe_pictures(read_video(frames, fps_of_frames=sample.fps), members, checksum)
    return _encode_video(
        read_video(frames, fit=_size_rule(config), fps=config.fps, fps_of_frames=sample.fps), config, checksum
    )


def _select_time_span(files: list[Path], sample: SourceSample) -> list[Path]:
    """Return the frame files of a sample: all of them, or those within its time span."""
    if sample.time_span is None:
        return files
    times_s = [number / (sample.fps or USUAL_FPS) for number in range(len(files))]
    kept = [
        path
        for path, time_s in zip(files, times_s, strict=True)
        if sample.time_span.starts_by(time_s) and not sample.time_span.ends_by(time_s)
    ]
    if not kept:
        raise VideoError(
            f"none of {len(files)} frames is between {sample.time_span.start_s:g} s and "
            f"{sample.time_span.end_s:g} s"
        )
    return kept


def _need_no_change(frames: list[bytes], sample: SourceSample, config: EncodeConfig) -> bool:
    """Return whether frame files already have the configured size and rate."""
    fits = config.size is None or max(min(read_image_size(frame)) for frame in frames) <= config.size
    return fits and config.fps in (None, sample.fps)


def _size_rule(config: EncodeConfig) -> Fit | None:
    """Return the rule by which frames are reduced to the configured size."""
    return None if config.size is None else shrink_short_side(config.size)


def _encode_video(video: Video, config: EncodeConfig, checksum: str) -> _StoredPictures:
    """Encode the frames of a decoded video as ``h264`` or as single images."""
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
    """Return a frame rate as the closest usual fraction, such as 30000/1001, rounded to six digits."""
    return round(float(Fraction(fps).limit_denominator(1001)), 6)


def _number_frames(frames: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Return frames by the names 0001.png, 0002.png, ... with enough digits to sort by name."""
    digits = max(4, len(str(len(frames))))
    return {f"{number:0{digits}d}.{suffix}": data for number, (suffix, data) in enumerate(frames, start=1)}


def _hash_frames(files: list[Path], frames: list[bytes]) -> str:
    """Return a sha256 over the names and the contents of frame files."""
    checksum = hashlib.sha256()
    for path, data in zip(files, frames, strict=True):
        checksum.update(path.name.encode() + b"\0" + hashlib.sha256(data).digest())
    return checksum.hexdigest()
