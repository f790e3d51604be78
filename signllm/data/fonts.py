"""Letters of any script in pictures: a font that has them, or a note that no font of this machine does.

A font without a glyph draws a box, and a row of boxes says nothing. DejaVu Sans out of matplotlib comes
first, because it is the same on every machine; then the system's fonts are asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


def choose_font(text: str, size: int) -> tuple[str, FreeTypeFont]:
    """Return what to draw and the font to draw it with.

    Args:
        text: one line.
        size: of the letters in pixels.

    Returns:
        The text itself where one font has all its letters; else what DejaVu Sans has of it, and how many
        letters that leaves out.
    """
    from PIL import ImageFont

    wanted = {ord(letter) for letter in text if not letter.isspace()}
    for path in _list_fonts():
        if wanted <= _read_letters(path):
            try:
                return text, ImageFont.truetype(path, size)
            except OSError:
                continue  # of one size only, as coloured ones are
    first = next(_list_fonts())
    kept = "".join(letter for letter in text if letter.isspace() or ord(letter) in _read_letters(first))
    missing = len(text) - len(kept)
    note = f"[{missing} letters that no font of this machine has]"
    return f"{kept.strip()} {note}".strip(), ImageFont.truetype(first, size)


def _list_fonts() -> Iterator[str]:
    """Yield the paths of fonts, the system's only if somebody asks on: looking for them takes time."""
    from matplotlib import get_data_path

    yield str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    yield from _list_system_fonts()


@cache
def _list_system_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts()))


@cache
def _read_letters(path: str) -> frozenset[int]:
    """Return the code points that a font has; none of a file that cannot be read as one."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
