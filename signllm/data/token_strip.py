"""Drawing a video with its sign tokens as one picture: frames, characters, words as brackets, lines of text.

The picture is for TensorBoard, which shows no HTML; the report draws the same as HTML
(:mod:`signllm.reporting.timeline`). It is black on white with numbers, so it can be read without
colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from signllm.clip_geometry import middle_frame
from signllm.data.fonts import choose_font

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

CELL, BAND, LINE, MARGIN = 44, 20, 20, 8
"""Side of a frame, height of a band of characters or words, height of a line, and margin, in pixels."""
CHARACTERS_PER_ROW = 24
"""Number of characters per row."""
BLACK, GREY, LIGHT = (0, 0, 0), (120, 120, 120), (225, 225, 225)


@dataclass(frozen=True)
class WordSpan:
    """A sign word to draw.

    Attributes:
        name: text that is drawn below the bracket.
        start: index of the first character.
        stop: index after the last character.
    """

    name: str
    start: int
    stop: int


def draw_strip(
    frames_THWC: NDArray[np.uint8],
    characters: Sequence[int],
    words: Sequence[WordSpan],
    lines: Sequence[str],
) -> NDArray[np.uint8]:
    """Return the picture of a video with its tokens, uint8 (H, W, 3).

    Args:
        frames_THWC: square frames of the video.
        characters: numbers of the N characters, one for every four frames.
        words: sign words in order; a word of one character gets no bracket.
        lines: lines of text above the frames.
    """
    from PIL import Image, ImageDraw

    rows = [
        range(at, min(at + CHARACTERS_PER_ROW, len(characters)))
        for at in range(0, len(characters), CHARACTERS_PER_ROW)
    ]
    row_height = CELL + 2 * BAND + MARGIN
    height = 2 * MARGIN + LINE * len(lines) + row_height * len(rows)
    picture = Image.new("RGB", (2 * MARGIN + CHARACTERS_PER_ROW * CELL, height), "white")
    draw = ImageDraw.Draw(picture)
    write = partial(_draw_text, draw)
    for number, line in enumerate(lines):
        write(line, (MARGIN, MARGIN + number * LINE), size=14, width=picture.width - 2 * MARGIN)
    for number, row in enumerate(rows):
        top = MARGIN + LINE * len(lines) + number * row_height
        for n in row:
            x = MARGIN + (n - row.start) * CELL
            frame = frames_THWC[min(middle_frame(n), len(frames_THWC) - 1)]
            picture.paste(Image.fromarray(frame).resize((CELL, CELL)), (x, top))
            again = n > 0 and characters[n] == characters[n - 1]
            box = (x, top + CELL, x + CELL - 1, top + CELL + BAND - 1)
            draw.rectangle(box, fill=LIGHT if again else "white", outline=GREY)
            write(str(characters[n]), (x + 4, top + CELL + 3), size=11, width=CELL - 6)
        _draw_brackets(draw, words, row, top + CELL + BAND)
    return np.asarray(picture)


def _draw_brackets(draw: ImageDraw, words: Sequence[WordSpan], row: range, top: int) -> None:
    """Draw the brackets of words of at least two characters in a row; a bracket that continues is open."""
    for word in words:
        start, stop = max(word.start, row.start), min(word.stop, row.stop)
        if start >= stop or word.stop - word.start < 2:
            continue
        left, right = MARGIN + (start - row.start) * CELL + 2, MARGIN + (stop - row.start) * CELL - 3
        draw.line((left, top + 4, right, top + 4), fill=BLACK, width=2)
        for x, ends in ((left, start == word.start), (right, stop == word.stop)):
            if ends:
                draw.line((x, top, x, top + 4), fill=BLACK, width=2)
        _draw_text(draw, word.name, (left + 2, top + 6), size=11, width=right - left)


def _draw_text(draw: ImageDraw, text: str, at: tuple[int, int], *, size: int, width: int) -> None:
    """Draw a line of text, shortened to the width."""
    text, font = choose_font(text, size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(f"{text}…", font=font) > width:
            text = text[:-1]
        text = f"{text}…" if text else ""
    draw.text(at, text, fill=BLACK, font=font)
