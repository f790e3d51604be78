"""Times of clips as annotations write them: seconds, or ``HH:MM:SS.mmm``."""

from __future__ import annotations

import math
import re

MOST_S = 1e7
"""Longer than any recording: 115 days."""
_DECIMAL_COMMA = re.compile(r"[\d:]*\d,\d+")
"""``12,5`` of a German Excel, ``00:01:02,500`` of subtitles."""
_NO_DAYS = re.compile(r"0 days +(?=\d+:)")
"""What pandas writes before a duration."""


def parse_seconds(written: str | None) -> float | None:
    """Return the seconds that ``12.5``, ``12,5`` or ``00:01:02.500`` says; None where nothing is written.

    Raises:
        ValueError: not a time.
    """
    if written is None or not written.strip():
        return None
    text = _NO_DAYS.sub("", written.strip())
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = [math.nan]
    if len(parts) > 3 or not all(0 <= part <= MOST_S for part in parts):
        raise ValueError(f"{written!r} is not a time in seconds")
    total_s = 0.0
    for part in parts:
        total_s = total_s * 60 + part
    return round(total_s, 6)


def check_span(start_s: float | None, end_s: float | None) -> None:
    """Raise ``ValueError`` for a clip that ends where it starts, or earlier."""
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ValueError(f"the clip ends at {end_s:g} s, but starts at {start_s or 0:g} s")
