"""The annotations of a dataset, the same for every format: its samples, and the entries that were left out.

A reader (``formats/``) converts a dataset on disk to :class:`Annotations`, which are all that the shard
writer knows about datasets. Names in datasets may contain dots, slashes, colons and leading dashes. None of
these may occur in a file name inside a tar, because WebDataset splits member names at the first dot
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
"""Longest key: a USTAR member name has at most 100 bytes, and ``.0001.jpeg`` follows the key."""

TOLERANCE_S = 5e-4
"""Tolerance of comparisons of times in seconds: half of the millisecond to which annotations are rounded."""

OfficialCounts = Mapping[str, Mapping[str, int]]
"""Number of ``samples``, ``frames`` or both of each split, as the publishers of a dataset state them."""

_SAFE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_SAFE_SPLIT = re.compile(r"[A-Za-z0-9_]{1,40}")


@dataclass(frozen=True, kw_only=True)
class SourceSample:
    """One sample of a dataset: a video, or a part of a recording, with its sentence.

    Args:
        id: name that the dataset gives the sample, unique within its split.
        video: path of a video file, or of a folder of numbered frames.
        text: sentence in the spoken language, without outer and repeated spaces.
        split: name of the split in the dataset, such as ``train``, ``dev`` or ``test``.
        language: English name of the spoken language, "" if the dataset does not state it.
        signer: name of the signer, "" if the dataset does not state it.
        fps: frame rate that the dataset states, in frames per second; folders of frames have none of their
            own.
        start_s: start of the sample in a longer recording in seconds; None is the start of the recording.
        end_s: end of the sample in seconds, exclusive; None is the end of the recording.
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
    def time_span(self) -> TimeSpan | None:
        """Part of the recording that the sample consists of, None if it is the complete file."""
        if self.start_s is None and self.end_s is None:
            return None
        return TimeSpan(self.start_s or 0.0, math.inf if self.end_s is None else self.end_s)


class TimeSpan(NamedTuple):
    """A part of a recording in seconds from its start: all frames with start <= time < end."""

    start_s: float
    end_s: float

    def starts_by(self, time_s: float) -> bool:
        """Return whether the span starts at or before a time."""
        return time_s >= self.start_s - TOLERANCE_S

    def ends_by(self, time_s: float) -> bool:
        """Return whether the span ends at or before a time."""
        return time_s >= self.end_s - TOLERANCE_S


@dataclass(frozen=True, kw_only=True)
class LeftOutSample:
    """An entry of a dataset that does not become a sample, with the reason."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The annotations of a dataset.

    Args:
        samples: all samples in the order of the dataset.
        left_out: entries that could not be read as samples.
        official: counts that the publishers of the dataset state.
        notices: sentences about choices and assumptions of the reader, for the user.
    """

    samples: tuple[SourceSample, ...]
    left_out: tuple[LeftOutSample, ...] = ()
    official: OfficialCounts = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits in order of first appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples))


def tidy_text(text: str) -> str:
    """Return the text without outer and repeated spaces, in Unicode form NFC.

    OpenASL has outer and double spaces. A Mac writes ``ü`` as two code points, of which a tokenizer would
    make other tokens than of the usual single code point.
    """
    return unicodedata.normalize("NFC", " ".join(text.split()))


def safe_key(name: str) -> str:
    """Return a WebDataset key for a name: the name if it is valid, else its valid part and a checksum.

    A key has no dot, slash, colon or leading dash and at most ``KEY_LENGTH`` characters.
    """
    if _SAFE_KEY.fullmatch(name) and len(name) <= KEY_LENGTH:
        return name
    checksum = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    valid = re.sub(r"[^A-Za-z0-9_-]+", "_", name).lstrip("-")[: KEY_LENGTH - 13]
    return f"{valid}-{checksum}" if valid else checksum


def is_safe_split(split: str) -> bool:
    """Return whether the name of a split may become part of a file name."""
    return _SAFE_SPLIT.fullmatch(split) is not None
