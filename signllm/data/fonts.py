"""Choosing a font for text in pictures that has all letters of the text, for any script.

A font draws an empty box for a letter that it lacks, which tells a reader nothing. DejaVu Sans from
matplotlib comes first, because it is the same on every machine; then the fonts of the system are searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


def choose_font(text: str, size: int) -> tuple[str, FreeTypeFont]:
    """Return the text to draw and the font to draw it with.

    Args:
        text: one line of text.
        size: size of the letters in pixels.

    Returns:
        The given text if a font has all its letters; else the letters that DejaVu Sans has, with a note that
        states the number of missing letters.
    """
    from PIL import ImageFont

    letters = {ord(letter) for letter in text if not letter.isspace()}
    for path in _list_fonts():
        if letters <= _read_letters(path):
            try:
                return text, ImageFont.truetype(path, size)
            except OSError:
                continue  # fonts with colored letters have only one size
    first = next(_list_fonts())
    kept = "".join(letter for letter in text if letter.isspace() or ord(letter) in _read_letters(first))
    missing = len(text) - len(kept)
    note = f"[{missing} letters that no font of this machine has]"
    return f"{kept.strip()} {note}".strip(), ImageFont.truetype(first, size)


def _list_fonts() -> Iterator[str]:
    """Yield the paths of fonts; those of the system, whose search takes time, are listed only if needed."""
    from matplotlib import get_data_path

    yield str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    yield from _list_system_fonts()


@cache
def _list_system_fonts() -> tuple[str, ...]:
    """Return the paths of the fonts of this machine."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts()))


@cache
def _read_letters(path: str) -> frozenset[int]:
    """Return the code points of the letters that a font has; none if the file cannot be read as a font."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
