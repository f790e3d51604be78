"""Encoding of videos and of pieces of recordings into characters with their times.

Videos are decoded in background threads, and the encoder processes several pieces at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from signllm.clip_geometry import interval_start
from signllm.data.loading.augment import crop_center
from signllm.data.loading.batch import LoadedSample, collate
from signllm.data.loading.prefetch import prefetch
from signllm.data.video.recording_pieces import CutRule
from signllm.data.video.timed_frames import TimedFrames
from signllm.distributed.ranks import Ranks
from signllm.errors import UsageError
from signllm.inference.video_input import VideoInput

if TYPE_CHECKING:
    from signllm.data.loading.sample_source import DataConfig
    from signllm.models.vq_sign.vq_sign import VQSign

FRAMES_AT_ONCE = 512
"""Most frames that are encoded together, unless a single piece has more; the limit bounds the memory."""
_DECODING_THREADS, _DECODED_AHEAD = 2, 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodedPiece:
    """One piece of a recording, or one complete video, encoded as characters.

    Attributes:
        video: index of the video.
        name: name of the video.
        characters: (N,) sign codes; without a codebook N feature vectors.
        bounds_s: (N + 1,) begin of each character, and the end of the last one, in seconds within the video
            file.
        start_s: begin of the piece in seconds.
        end_s: end of the piece in seconds.
        frames: number of frames of the piece.
        frames_read: number of frames that were encoded, at most ``data.max_frames``.
        seconds: wall-clock time of decoding and encoding.
        problem: what, where and remedy, if the video cannot be read.
    """

    video: int
    name: str
    characters: tuple[Any, ...] = ()
    bounds_s: tuple[float, ...] = ()
    start_s: float = 0.0
    end_s: float = 0.0
    frames: int = 0
    frames_read: int = 0
    seconds: float = 0.0
    problem: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class _DecodedPiece:
    """The frames of one piece, or the error that prevented decoding it.

    Attributes:
        video: index of the video.
        name: name of the video.
        timed: frames to encode, with their times; None if the video cannot be read.
        frames: number of frames before subsampling.
        seconds: wall-clock time of decoding.
        problem: the error, if the video cannot be read.
    """

    video: int
    name: str
    timed: TimedFrames | None = None
    frames: int = 0
    seconds: float = 0.0
    problem: UsageError | None = None


def encode_pieces(
    videos: Sequence[VideoInput], vq_sign: VQSign, data: DataConfig, cut: CutRule | None, ranks: Ranks
) -> Iterator[EncodedPiece | None]:
    """Yield the encoded pieces of videos in order, and None for each piece that another rank encodes.

    Piece k belongs to rank k % world. Every rank decodes all recordings that are cut, because only then do
    all ranks number the pieces alike.

    Args:
        videos: the videos.
        vq_sign: encoder and quantizer, in evaluation mode.
        data: frame size, frame rate and frame limit of the model.
        cut: rule by which recordings are cut; None encodes each video as one piece.
        ranks: the ranks that share the work.
    """
    jobs = _decoding_jobs(videos, data, ranks) if cut is None else _cutting_jobs(videos, data, cut, ranks)
    waiting: list[_DecodedPiece | None] = []
    frames = 0
    for piece in prefetch(jobs, threads=_DECODING_THREADS, waiting=_DECODED_AHEAD):
        more = 0 if piece is None or piece.timed is None else len(piece.timed.frames)
        if frames and frames + more > FRAMES_AT_ONCE:
            yield from _encode_group(waiting, vq_sign)
            waiting, frames = [], 0
        waiting.append(piece)
        frames += more
    yield from _encode_group(waiting, vq_sign)


def _decoding_jobs(
    videos: Sequence[VideoInput], data: DataConfig, ranks: Ranks
) -> Iterator[Callable[[], _DecodedPiece | None]]:
    """Yield one job for each video: decode it, or return None if it belongs to another rank."""
    warning = _WarnOnce()
    for number, video in enumerate(videos):
        is_own = number % ranks.world == ranks.rank
        yield partial(_decode_complete_video, number, video, data, warning) if is_own else _skip


def _skip() -> None:
    return None


def _decode_complete_video(
    number: int, video: VideoInput, data: DataConfig, warning: _WarnOnce
) -> _DecodedPiece:
    begin = time.perf_counter()
    try:
        decoded = video.decode_all(data.augment.compute_decoded_size(data.size), data.fps)
        timed = _subsample(_crop(decoded, data.size), video.name, data.max_frames, warning)
    except UsageError as error:
        return _DecodedPiece(number, video.name, problem=error)
    return _DecodedPiece(number, video.name, timed, len(decoded.frames), time.perf_counter() - begin)


def _cutting_jobs(
    videos: Sequence[VideoInput], data: DataConfig, cut: CutRule, ranks: Ranks
) -> Iterator[Callable[[], _DecodedPiece | None]]:
    """Yield one job for each piece of the recordings; the iteration itself decodes and cuts them."""
    warning, place = _WarnOnce(), 0
    for number, video in enumerate(videos):
        for piece in _cut_recording(number, video, data, cut, warning):
            yield partial(_return_piece, piece if place % ranks.world == ranks.rank else None)
            place += 1


def _return_piece(piece: _DecodedPiece | None) -> _DecodedPiece | None:
    return piece


def _cut_recording(
    number: int, video: VideoInput, data: DataConfig, cut: CutRule, warning: _WarnOnce
) -> Iterator[_DecodedPiece]:
    begin = time.perf_counter()
    try:
        size = data.augment.compute_decoded_size(data.size)
        for timed in video.decode_pieces(size, cut, data.max_frames, data.fps):
            piece = _subsample(_crop(timed, data.size), video.name, data.max_frames, warning)
            yield _DecodedPiece(number, video.name, piece, len(timed.frames), time.perf_counter() - begin)
            begin = time.perf_counter()
    except UsageError as error:
        yield _DecodedPiece(number, video.name, problem=error)


def _crop(timed: TimedFrames, size: int) -> TimedFrames:
    """Return the center of each frame: decoding leaves a margin if training augments by random crops."""
    return TimedFrames(crop_center(timed.frames, size), timed.edges_s)


class _WarnOnce:
    """Remembers whether the warning about subsampled videos has been logged."""

    is_logged = False


def _subsample(timed: TimedFrames, name: str, most: int, warning: _WarnOnce) -> TimedFrames:
    """Return at most ``most`` frames, evenly spaced as in training; a warning is logged the first time."""
    frames = len(timed.frames)
    if frames <= most:
        return timed
    if not warning.is_logged:
        warning.is_logged = True
        log.warning(
            "%s: this piece has %d frames (%.1f to %.1f s), and the model was trained on at most %d: it is "
            "subsampled to that number, and so is every longer piece\n"
            "  remedy: if it is more than one sentence, cut it: --pauses, or --windows SECONDS",
            *(name, frames, timed.edges_s[0], timed.edges_s[-1], most),
        )
    kept = np.linspace(0, frames - 1, most).round().astype(int)
    return TimedFrames(timed.frames[kept], np.append(timed.edges_s[kept], timed.edges_s[-1]))


def _encode_group(pieces: Sequence[_DecodedPiece | None], vq_sign: VQSign) -> Iterator[EncodedPiece | None]:
    """Encode the readable pieces of a group together, and yield all of them in order."""
    readable = [piece for piece in pieces if piece is not None and piece.timed is not None]
    begin = time.perf_counter()
    frames = [piece.timed.frames for piece in readable if piece.timed is not None]
    sequences = iter(encode(frames, vq_sign))
    share_s = (time.perf_counter() - begin) / max(1, len(readable))
    for piece in pieces:
        if piece is None:
            yield None
        elif piece.timed is None:
            assert piece.problem is not None
            problem = piece.problem.what, str(piece.problem.where or piece.name), piece.problem.remedy or ""
            yield EncodedPiece(video=piece.video, name=piece.name, problem=problem)
        else:
            characters, edges_s = next(sequences), piece.timed.edges_s
            yield EncodedPiece(
                video=piece.video,
                name=piece.name,
                characters=tuple(characters),
                bounds_s=tuple(compute_character_bounds(len(characters), edges_s)),
                start_s=float(edges_s[0]),
                end_s=float(edges_s[-1]),
                frames=piece.frames,
                frames_read=len(piece.timed.frames),
                seconds=piece.seconds + share_s,
            )


@torch.inference_mode()
def encode(videos: Iterable[np.ndarray], vq_sign: VQSign) -> list[list[Any]]:
    """Return the characters of each video (T, S, S, 3), or its feature vectors if there is no codebook.

    In contrast to ``VQSign.encode`` it makes no collective call, so each rank can encode its own videos.
    """
    items = [LoadedSample(id="", text="", language="", frames=frames) for frames in videos]
    if not items:
        return []
    is_real, positions = [True] * len(items), np.zeros(len(items), np.int64)
    batch = collate(items, is_real=is_real, positions=positions, epoch=0, seed=0)
    batch = batch.to(vq_sign.quantizer.codebook.device)
    z, counts = vq_sign.encoder(batch.frames, batch.frame_counts)
    return [part.tolist() for part in vq_sign.quantizer.recorded(z).cpu().split(counts.tolist())]


def compute_character_bounds(characters: int, edges_s: np.ndarray) -> list[float]:
    """Return the begin of each of N characters, and the end of the last one, in seconds.

    A video with a single character is represented by it from its beginning to its end.

    Args:
        characters: number of characters N.
        edges_s: (T + 1,) begin of each frame, and the end of the last one, in seconds.
    """
    if characters == 1:
        return [float(edges_s[0]), float(edges_s[-1])]
    frames = interval_start(np.arange(characters + 1))
    return [float(time_s) for time_s in edges_s[np.minimum(frames, len(edges_s) - 1)]]
