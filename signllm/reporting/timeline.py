"""The token timeline of a video: frames, characters as coloured blocks, and words as brackets above them.

Character n is read from frames 4n to 4n + 12. Its block is drawn below the four middle frames, so that the
blocks of consecutive characters are adjacent. Each code has a colour (golden-angle hues) and shows its
number, because 256 colours cannot be distinguished, and some readers see no colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from signllm.clip_geometry import CLIP_STRIDE, interval_start
from signllm.reporting.chart import round_ticks
from signllm.reporting.markup import Markup, join_markup, tag

if TYPE_CHECKING:
    from signllm.reporting.video_frames import VideoFrames

WIDTH, LEFT, RIGHT = 1000, 6, 6
ROW_CHARACTERS = 32
BLOCK, BRACKET, AXIS = 30, 30, 34
GOLDEN_ANGLE = 137.508


@dataclass(frozen=True, kw_only=True)
class Span:
    """The position of a word in the sequence of characters.

    Attributes:
        word: id of the word.
        start: index of its first character.
        stop: index after its last character.
        spelling: characters of the word in the codebook.
    """

    word: int
    start: int
    stop: int
    spelling: tuple[int, ...] = ()

    @property
    def is_composed(self) -> bool:
        """Return whether the word has more than one character."""
        return len(self.spelling) > 1


def build_spans(
    words: Sequence[int], slots: Sequence[int], spellings: Sequence[Sequence[int]] | None = None
) -> list[Span]:
    """Return the span of each word.

    Args:
        words: ids of the words of a video, in order.
        slots: index in ``words`` of the word of each character, in non-decreasing order.
        spellings: characters of each word, in the order of ``words``.
    """
    spans: list[Span] = []
    start = 0
    for slot, members in groupby(slots):
        stop = start + len(list(members))
        spelling = tuple(spellings[slot]) if spellings else ()
        spans.append(Span(word=words[slot], start=start, stop=stop, spelling=spelling))
        start = stop
    return spans


def code_colour(code: int) -> str:
    """Return the colour of a code: consecutive codes differ strongly in hue, and also in lightness."""
    return f"hsl({code * GOLDEN_ANGLE % 360:.0f} {58 + 12 * (code % 2)}% {68 + 6 * (code % 3)}%)"


def swatch(code: int) -> Markup:
    """Return the number of a code on its colour, for use in running text."""
    return tag("span", code, class_="code", style=f"background:{code_colour(code)}")


def timeline(
    characters: Sequence[int], spans: Sequence[Span], frames: VideoFrames | None, label: str
) -> Markup:
    """Draw the timeline of one video, in rows of at most ``ROW_CHARACTERS`` characters.

    Args:
        characters: sign codes, one for every 4 frames.
        spans: words; empty for a run without words.
        frames: frames of the video, if it is available.
        label: text for screen readers.
    """
    rows = [
        _row(characters, range(start, stop), spans, frames)
        for start, stop in pairwise(_edges(len(characters), ROW_CHARACTERS))
    ]
    height = sum(height for _, height in rows)
    parts, top = [], 0
    for row, row_height in rows:
        parts.append(tag("g", row, transform=f"translate(0 {top})"))
        top += row_height
    picture = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)
    return tag("div", picture, class_="timeline", tabindex=0)


def _edges(count: int, most: int) -> list[int]:
    """Return the boundaries of equally long rows of at most ``most`` characters."""
    rows = max(1, -(-count // most))
    return [round(count * place / rows) for place in range(rows + 1)]


def _row(
    characters: Sequence[int], places: range, spans: Sequence[Span], frames: VideoFrames | None
) -> tuple[Markup, int]:
    """Draw frames, brackets, blocks and axis of one row; return the drawing and its height."""
    step = (WIDTH - LEFT - RIGHT) / max(len(places), 12)
    parts: list[Markup] = []
    bracket_top = 0
    if frames is not None:
        strip, bracket_top = _draw_frames(frames, places, step)
        parts.append(strip)
    block_top = bracket_top + (BRACKET if spans else 0)
    for span in spans:
        start, stop = max(span.start, places.start), min(span.stop, places.stop)
        if start < stop:
            parts.append(_bracket(span, start - places.start, stop - places.start, step, bracket_top))
    parts += [
        _block(characters[place], LEFT + (place - places.start) * step, step, block_top) for place in places
    ]
    parts.append(_axis(places, step, block_top + BLOCK))
    return join_markup(parts), block_top + BLOCK + AXIS


def _block(code: int, x: float, step: float, top: float) -> Markup:
    """Draw the block of one character."""
    box = tag("rect", x=x + 0.5, y=top, width=step - 1, height=BLOCK, rx=3, fill=code_colour(code))
    number = tag("text", code, x=x + step / 2, y=top + BLOCK / 2 + 4, text_anchor="middle", class_="code")
    return join_markup((box, number))


def _bracket(span: Span, start: int, stop: int, step: float, top: float) -> Markup:
    """Draw the bracket of a word, with its number; a thin one for a word of a single character."""
    left, right = LEFT + start * step + 1.5, LEFT + stop * step - 1.5
    middle, base = (left + right) / 2, top + BRACKET - 3
    if not span.is_composed:
        return tag("path", d=f"M{left:.1f} {base}V{base - 4}H{right:.1f}V{base}", class_="single")
    spelling = " ".join(map(str, span.spelling))
    line = tag("path", d=f"M{left:.1f} {base}V{base - 8}H{right:.1f}V{base}", class_="bracket")
    name = tag("text", f"w{span.word}", x=middle, y=base - 13, text_anchor="middle", class_="word")
    return tag("g", tag("title", f"word {span.word} = {spelling}"), line, name)


def _axis(places: range, step: float, top: float) -> Markup:
    """Draw the axis of frame numbers below the blocks; the block of character n begins at frame 4n + 4."""
    first, last = interval_start(places.start), interval_start(places.stop)
    per_frame = step / CLIP_STRIDE
    parts = [tag("line", x1=LEFT, x2=LEFT + len(places) * step, y1=top + 4, y2=top + 4, class_="axis")]
    ticks = round_ticks(first, last, max(1, round(len(places) * step / 120)))
    for frame in ticks:
        x = LEFT + (frame - first) * per_frame
        parts.append(tag("line", x1=x, x2=x, y1=top + 4, y2=top + 8, class_="axis"))
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        name = f"frame {frame:.0f}" if frame == ticks[0] else f"{frame:.0f}"
        parts.append(tag("text", name, x=x, y=top + 20, text_anchor=anchor))
    return join_markup(parts)


def _draw_frames(frames: VideoFrames, places: range, step: float) -> tuple[Markup, int]:
    """Draw thumbnails side by side, each of the frame at its middle; return the drawing and its height."""
    width = len(places) * step
    count = math.ceil(width / frames.width)
    shown_width = width / count
    height = round(shown_width * frames.height / frames.width)
    first = interval_start(places.start)
    numbers = [int(first + (place + 0.5) * len(places) * CLIP_STRIDE / count) for place in range(count)]
    image = tag("image", href=frames.strip(numbers), x=LEFT, y=0, width=width, height=height)
    return image, height + 8
