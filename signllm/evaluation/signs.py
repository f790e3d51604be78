"""Videos → characters with their times: decoded ahead in threads, encoded a few at a time."""

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
from signllm.data.augment import crop_center
from signllm.data.batch import LoadedSample, collate
from signllm.data.prefetch import prefetch
from signllm.data.recording_pieces import CutRule
from signllm.data.timed_frames import TimedFrames
from signllm.errors import UsageError
from signllm.evaluation.footage import Footage
from signllm.training.engine import Ranks

if TYPE_CHECKING:
    from signllm.data.sample_source import DataConfig
    from signllm.models.vq_sign import VQSign

FRAMES_AT_ONCE = 512
"""Frames of the pieces that are encoded together, unless one has more: a bound of memory."""
_THREADS, _WAITING = 2, 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Signs:
    """One piece, or one whole video, as characters.

    Attributes:
        video: number of the video that it is of.
        name: of that video.
        characters: N of them; without a codebook N vectors.
        bounds_s: N + 1 times between which the characters stand, in seconds within the video file.
        start_s: where the piece begins.
        end_s: where it ends.
        frames: that it has.
        frames_read: at most those that training allows.
        seconds: decoding and encoding, on the clock.
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
class _Decoded:
    video: int
    name: str
    timed: TimedFrames | None = None
    frames: int = 0
    seconds: float = 0.0
    problem: UsageError | None = None


def read_signs(
    videos: Sequence[Footage], vq_sign: VQSign, data: DataConfig, cut: CutRule | None, ranks: Ranks
) -> Iterator[Signs | None]:
    """Yield the pieces of videos in order; None for those that belong to another rank.

    Piece k is that of rank k % world. Recordings that are cut are decoded by all ranks, which therefore count
    alike.
    """
    jobs = _wholes(videos, data, ranks) if cut is None else _pieces(videos, data, cut, ranks)
    waiting: list[_Decoded | None] = []
    frames = 0
    for one in prefetch(jobs, threads=_THREADS, waiting=_WAITING):
        more = 0 if one is None or one.timed is None else len(one.timed.frames)
        if frames and frames + more > FRAMES_AT_ONCE:
            yield from _encoded(waiting, vq_sign)
            waiting, frames = [], 0
        waiting.append(one)
        frames += more
    yield from _encoded(waiting, vq_sign)


def _wholes(
    videos: Sequence[Footage], data: DataConfig, ranks: Ranks
) -> Iterator[Callable[[], _Decoded | None]]:
    said = _Once()
    for number, video in enumerate(videos):
        own = number % ranks.world == ranks.rank
        yield partial(_whole, number, video, data, said) if own else _of_another


def _of_another() -> None:
    return None


def _whole(number: int, video: Footage, data: DataConfig, said: _Once) -> _Decoded:
    begun = time.perf_counter()
    try:
        whole = _middle(video.whole(data.augment.compute_decoded_size(data.size), data.fps), data.size)
        timed = _thinned(whole, video.name, data.max_frames, said)
    except UsageError as error:
        return _Decoded(number, video.name, problem=error)
    return _Decoded(number, video.name, timed, len(whole.frames), time.perf_counter() - begun)


def _pieces(
    videos: Sequence[Footage], data: DataConfig, cut: CutRule, ranks: Ranks
) -> Iterator[Callable[[], _Decoded | None]]:
    said, place = _Once(), 0
    for number, video in enumerate(videos):
        for piece in _cut(number, video, data, cut, said):
            yield partial(_same, piece if place % ranks.world == ranks.rank else None)
            place += 1


def _same(piece: _Decoded | None) -> _Decoded | None:
    return piece


def _cut(number: int, video: Footage, data: DataConfig, cut: CutRule, said: _Once) -> Iterator[_Decoded]:
    begun = time.perf_counter()
    try:
        size = data.augment.compute_decoded_size(data.size)
        for timed in video.pieces(size, cut, data.max_frames, data.fps):
            piece = _thinned(_middle(timed, data.size), video.name, data.max_frames, said)
            yield _Decoded(number, video.name, piece, len(timed.frames), time.perf_counter() - begun)
            begun = time.perf_counter()
    except UsageError as error:
        yield _Decoded(number, video.name, problem=error)


def _middle(timed: TimedFrames, size: int) -> TimedFrames:
    return TimedFrames(crop_center(timed.frames, size), timed.edges_s)


class _Once:
    """Remembers that something was said."""

    has_been_said = False


def _thinned(timed: TimedFrames, name: str, most: int, said: _Once) -> TimedFrames:
    """Return at most ``most`` frames, spread evenly as in training; the first time say so."""
    frames = len(timed.frames)
    if frames <= most:
        return timed
    if not said.has_been_said:
        said.has_been_said = True
        log.warning(
            "%s: %d frames from %.1f to %.1f s, and the model was trained on at most %d: they are thinned to "
            "that, and so are those of every such piece\n"
            "  remedy: if it is more than a sentence, cut it: --pauses, or --windows SECONDS",
            *(name, frames, timed.edges_s[0], timed.edges_s[-1], most),
        )
    kept = np.linspace(0, frames - 1, most).round().astype(int)
    return TimedFrames(timed.frames[kept], np.append(timed.edges_s[kept], timed.edges_s[-1]))


def _encoded(pieces: Sequence[_Decoded | None], vq_sign: VQSign) -> Iterator[Signs | None]:
    """Turn pieces into signs, one after the other; those that can be read are encoded together."""
    good = [one for one in pieces if one is not None and one.timed is not None]
    begun = time.perf_counter()
    characters = iter(encode([one.timed.frames for one in good if one.timed is not None], vq_sign))
    share_s = (time.perf_counter() - begun) / max(1, len(good))
    for one in pieces:
        if one is None:
            yield None
        elif one.timed is None:
            assert one.problem is not None
            told = one.problem.what, str(one.problem.where or one.name), one.problem.remedy or ""
            yield Signs(video=one.video, name=one.name, problem=told)
        else:
            read, edges_s = next(characters), one.timed.edges_s
            yield Signs(
                video=one.video,
                name=one.name,
                characters=tuple(read),
                bounds_s=tuple(bounds(len(read), edges_s)),
                start_s=float(edges_s[0]),
                end_s=float(edges_s[-1]),
                frames=one.frames,
                frames_read=len(one.timed.frames),
                seconds=one.seconds + share_s,
            )


@torch.inference_mode()
def encode(videos: Iterable[np.ndarray], vq_sign: VQSign) -> list[list[Any]]:
    """Return the characters of videos (T, S, S, 3), or their vectors where there is no codebook.

    Unlike ``VQSign.encode``, which counts over ranks.
    """
    items = [LoadedSample(id="", text="", language="", frames=frames) for frames in videos]
    if not items:
        return []
    real, positions = [True] * len(items), np.zeros(len(items), np.int64)
    batch = collate(items, is_real=real, positions=positions, epoch=0, seed=0)
    batch = batch.to(vq_sign.quantizer.codebook.device)
    z, counts = vq_sign.encoder(batch.frames, batch.frame_counts)
    return [part.tolist() for part in vq_sign.quantizer.recorded(z).cpu().split(counts.tolist())]


def bounds(characters: int, edges_s: np.ndarray) -> list[float]:
    """Return N + 1 times between which N characters stand, given the edges (T + 1,) of the frames.

    A video of one character is that character from its beginning to its end.
    """
    if characters == 1:
        return [float(edges_s[0]), float(edges_s[-1])]
    frames = np.minimum(interval_start(np.arange(characters + 1)), len(edges_s) - 1)
    return [float(time_s) for time_s in edges_s[frames]]
