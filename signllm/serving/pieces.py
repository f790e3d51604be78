"""The pieces of a translated video as HTML: text, token timeline, and alternatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from signllm.cra.word_codebook import WordCodebook
from signllm.data.video.timed_frames import TimedFrames, read_timed_chunks
from signllm.data.video.video_error import VideoError
from signllm.reporting.pages import environment, render_timeline
from signllm.reporting.timeline import lay_out_timeline
from signllm.reporting.video_frames import THUMBNAIL_HEIGHT, VideoFrames
from signllm.reporting.vocabulary import Vocabulary

THUMBNAIL_FPS = 8.0
"""Thumbnails per second that are decoded; a timeline shows at most one for every two characters."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What the page shows of a translated piece.

    Attributes:
        times: begin and end of the piece; ``""`` if the video was not cut.
        text: the translation.
        timeline: the token timeline; None without characters.
        description: sentences about how the translation was made.
        candidates: the alternatives, best first, each with ``text`` and ``score``.
    """

    times: str
    text: str
    timeline: Markup | None
    description: str
    candidates: Sequence[dict[str, Any]]


class Thumbnails:
    """Reads the pictures of a video once, piece after piece, so that a long recording needs little memory.

    Args:
        video: video file.
    """

    def __init__(self, video: Path) -> None:
        self._chunks = read_timed_chunks(video, size=THUMBNAIL_HEIGHT, at_fps=THUMBNAIL_FPS)
        self._frames = np.empty((0, THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT, 3), np.uint8)
        self._begins_s = np.empty(0)

    def read(self, start_s: float, end_s: float, count: int) -> VideoFrames | None:
        """Return ``count`` evenly spaced frames of a piece; None if they cannot be decoded.

        The pieces must be read in the order of their begins.
        """
        while not len(self._begins_s) or self._begins_s[-1] < end_s:
            if (chunk := _next_chunk(self._chunks)) is None:
                break
            is_used = self._begins_s >= start_s - 1 / THUMBNAIL_FPS
            self._frames = np.concatenate([self._frames[is_used], chunk.frames])
            self._begins_s = np.concatenate([self._begins_s[is_used], chunk.edges_s[:-1]])
        if not len(self._begins_s):
            return None
        times_s = start_s + (np.arange(count) + 0.5) / max(count, 1) * (end_s - start_s)
        places = np.searchsorted(self._begins_s, times_s, side="right") - 1
        return VideoFrames(frames=self._frames[np.maximum(places, 0)])


def _next_chunk(chunks: Iterator[TimedFrames]) -> TimedFrames | None:
    try:
        return next(chunks, None)
    except (VideoError, OSError):
        return None  # the translation reports the damage


def build_piece(line: dict[str, Any], words: WordCodebook, thumbnails: Thumbnails, *, is_cut: bool) -> Piece:
    """Return what the page shows of a line of :meth:`signllm.serving.service.Service.translate`."""
    characters, spelled = line["characters"], line["spellings"]
    timeline = None
    if characters:
        frames = thumbnails.read(line["start_s"], line["end_s"], line["frames_read"])
        label = f"Token timeline: {len(characters)} characters, {len(spelled)} words"
        spans = Vocabulary(codebook=words).spans(characters)
        timeline = render_timeline(lay_out_timeline(characters, spans, frames, label))
    description = (
        f"{len(spelled)} sign words from {len(characters)} characters in {line['seconds']:.1f} s; "
        f"mean log probability of a token {line['score']:.2f}."
    )
    if line["frames_read"] < line["frames"]:
        description += (
            f" Only {line['frames_read']} of {line['frames']} frames were read, evenly spread, because the "
            "model was trained on shorter videos. If this is more than a sentence, cut the recording."
        )
    return Piece(
        times=f"{line['start_s']:.1f} s to {line['end_s']:.1f} s" if is_cut else "",
        text=line["text"],
        timeline=timeline,
        description=description,
        candidates=line["candidates"],
    )


def render_pieces(message: str, pieces: Sequence[Piece] = (), *, is_error: bool = False) -> str:
    """Return a message and the pieces as HTML."""
    template = environment("signllm.serving").get_template("pieces.html")
    return template.render(message=message, pieces=pieces, is_error=is_error)


def pieces_style() -> str:
    """Return the style sheet of :func:`render_pieces`."""
    return environment("signllm.serving").get_template("pieces.css").render()
