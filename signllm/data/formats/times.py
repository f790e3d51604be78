"""Parsing the start and end times of annotations: seconds, or ``HH:MM:SS.mmm``."""

from __future__ import annotations

import math
import re

MOST_S = 1e7
"""Largest accepted time: 115 days, longer than any recording."""
_DECIMAL_COMMA = re.compile(r"[\d:]*\d,\d+")
"""Matches ``12,5`` as a German Excel writes it, and ``00:01:02,500`` as subtitles have it."""
_NO_DAYS = re.compile(r"0 days +(?=\d+:)")
"""Matches the prefix that pandas writes before a duration."""


def parse_seconds(written: str | None) -> float | None:
    """Return the seconds of a time such as ``12.5``, ``12,5`` or ``00:01:02.500``; None for an empty text.

    Raises:
        ValueError: the text is not a time.
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
    """Raise ``ValueError`` if a sample ends where it starts, or earlier."""
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ValueError(f"the sample ends at {end_s:g} s, but starts at {start_s or 0:g} s")
