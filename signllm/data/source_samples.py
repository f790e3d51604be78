"""What a dataset's annotations say, the same for every format: clips, and what was left out with its reason.

A reader (``formats/``) turns a dataset on disk into :class:`Annotations`; the shard writer knows nothing else
about datasets. Names come from strangers: they may hold dots, slashes, colons and leading dashes, none of
which may reach a file name inside a tar, because WebDataset splits member names at the first dot
(:func:`safe_key`).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KEY_LENGTH = 80
"""Longest key: a USTAR member name holds 100 bytes, and ``.0001.jpeg`` comes behind the key."""

TOLERANCE_S = 5e-4
"""Times are compared to half a millisecond, because annotations are rounded to one."""

OfficialCounts = Mapping[str, Mapping[str, int]]
"""Split → ``samples``, ``frames`` or both, as a dataset's publishers count them."""

_SAFE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_SAFE_SPLIT = re.compile(r"[A-Za-z0-9_]{1,40}")


@dataclass(frozen=True, kw_only=True)
class SourceSample:
    """One video with its sentence.

    Args:
        id: the name the dataset gives it, unique within its split.
        video: a video file, or a folder of numbered frames.
        text: the spoken language sentence, outer and repeated spaces removed.
        split: ``train``, ``dev``, ``test`` or any word of the dataset.
        language: name of the spoken language in English, "" where the dataset is silent.
        signer: name of the signer, "" where the dataset is silent.
        fps: frame rate that the dataset states; frame folders carry none of their own.
        start_s: where the clip begins in a longer recording, in seconds from its start; None is there.
        end_s: where it ends: the first instant that is no longer part of it; None is the recording's end.
    """

    id: str
    video: Path
    text: str
    split: str
    language: str = ""
    signer: str = ""
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def cut(self) -> TimeSpan | None:
        """The part of the recording that the clip is, None where it is the whole file."""
        if self.start_s is None and self.end_s is None:
            return None
        return TimeSpan(self.start_s or 0.0, math.inf if self.end_s is None else self.end_s)


class TimeSpan(NamedTuple):
    """A part of a recording in seconds from its start: the frames with start <= time < end."""

    start_s: float
    end_s: float

    def has_begun(self, time_s: float) -> bool:
        """Say whether a frame of this time lies at or behind the start."""
        return time_s >= self.start_s - TOLERANCE_S

    def is_over(self, time_s: float) -> bool:
        """Say whether a frame of this time lies at or behind the end."""
        return time_s >= self.end_s - TOLERANCE_S


@dataclass(frozen=True, kw_only=True)
class LeftOutSample:
    """A clip that was not taken, and why."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a dataset says of its clips.

    Args:
        samples: all samples in the dataset's own order.
        left_out: entries that no clip could be made from.
        official: what its publishers count.
        notices: what was chosen or assumed in reading it, for the person who shards it.
    """

    samples: tuple[SourceSample, ...]
    left_out: tuple[LeftOutSample, ...] = ()
    official: OfficialCounts = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits in order of first appearance."""
        return tuple(dict.fromkeys(clip.split for clip in self.samples))


def tidy_text(text: str) -> str:
    """Return the text without outer spaces, with single inner ones, and in Unicode's normal form C.

    OpenASL has outer, inner and double spaces. A Mac writes ``ü`` as two code points, which a tokenizer would
    take for other words than the usual one (NFC).
    """
    return unicodedata.normalize("NFC", " ".join(text.split()))


def safe_key(name: str) -> str:
    """Return a WebDataset key for any name: itself if harmless, else its harmless part and a checksum.

    A key has no dot, slash, colon or leading dash and at most ``KEY_LENGTH`` characters.
    """
    if _SAFE_KEY.fullmatch(name) and len(name) <= KEY_LENGTH:
        return name
    checksum = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    harmless = re.sub(r"[^A-Za-z0-9_-]+", "_", name).lstrip("-")[: KEY_LENGTH - 13]
    return f"{harmless}-{checksum}" if harmless else checksum


def is_safe_split(split: str) -> bool:
    """Say whether a split's name may become part of a file name."""
    return _SAFE_SPLIT.fullmatch(split) is not None
