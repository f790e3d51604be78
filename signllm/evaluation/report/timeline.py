"""A video as the model reads it: frames, characters as coloured blocks, words as brackets over them.

Character n sees frames 4n .. 4n+12 (design 2.1); its block is drawn over the four frames in the middle of
those, so that blocks tile the axis. A code has one colour (golden-angle hues) and its number: colours of 256
codes cannot all be told apart, and some readers see none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from signllm.clip_geometry import CLIP_STRIDE, interval_start
from signllm.evaluation.report.chart import round_ticks
from signllm.evaluation.report.markup import Markup, joined, tag

if TYPE_CHECKING:
    from signllm.evaluation.report.video_frames import VideoFrames

WIDTH, LEFT, RIGHT = 1000, 6, 6
ROW_CHARACTERS = 32
BLOCK, BRACKET, AXIS = 30, 30, 34
GOLDEN_ANGLE = 137.508


@dataclass(frozen=True, kw_only=True)
class Span:
    """A word's place among the characters: from ``start`` up to, not including, ``stop``."""

    word: int
    start: int
    stop: int
    spelling: tuple[int, ...] = ()

    @property
    def is_composed(self) -> bool:
        """Tell whether the word stands for more than one character."""
        return len(self.spelling) > 1


def spans_of(
    words: Sequence[int], slots: Sequence[int], spellings: Sequence[Sequence[int]] | None = None
) -> list[Span]:
    """Turn each character's word place into spans.

    Args:
        words: the sample's words in order.
        slots: for each character the place of its word in ``words``; never falls.
        spellings: each word's characters, in the order of ``words``.
    """
    spans: list[Span] = []
    start = 0
    for slot, members in groupby(slots):
        stop = start + len(list(members))
        spelling = tuple(spellings[slot]) if spellings else ()
        spans.append(Span(word=words[slot], start=start, stop=stop, spelling=spelling))
        start = stop
    return spans


def colour(code: int) -> str:
    """Return a code's colour: neighbouring numbers are far apart in hue, three lightnesses take turns."""
    return f"hsl({code * GOLDEN_ANGLE % 360:.0f} {58 + 12 * (code % 2)}% {68 + 6 * (code % 3)}%)"


def swatch(code: int) -> Markup:
    """Return a code's number on its colour, for use in running text."""
    return tag("span", code, class_="code", style=f"background:{colour(code)}")


def timeline(
    characters: Sequence[int], spans: Sequence[Span], film: VideoFrames | None, label: str
) -> Markup:
    """Draw one video, in rows of at most ``ROW_CHARACTERS`` characters.

    Args:
        characters: the codes, one for each 4 frames.
        spans: words over them; may be empty (a run without words).
        film: thumbnails by frame number, if the video is at hand.
        label: what a screen reader says.
    """
    rows = [
        _row(characters, range(start, stop), spans, film)
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
    """CutRule a count into equally long rows of at most ``most``."""
    rows = max(1, -(-count // most))
    return [round(count * place / rows) for place in range(rows + 1)]


def _row(
    characters: Sequence[int], places: range, spans: Sequence[Span], film: VideoFrames | None
) -> tuple[Markup, int]:
    """Draw frames, brackets, blocks and axis of some characters; return the height too."""
    step = (WIDTH - LEFT - RIGHT) / max(len(places), 12)
    parts: list[Markup] = []
    bracket_top = 0
    if film is not None:
        shown, bracket_top = _film(film, places, step)
        parts.append(shown)
    block_top = bracket_top + (BRACKET if spans else 0)
    for span in spans:
        start, stop = max(span.start, places.start), min(span.stop, places.stop)
        if start < stop:
            parts.append(_bracket(span, start - places.start, stop - places.start, step, bracket_top))
    parts += [
        _block(characters[place], LEFT + (place - places.start) * step, step, block_top) for place in places
    ]
    parts.append(_axis(places, step, block_top + BLOCK))
    return joined(parts), block_top + BLOCK + AXIS


def _block(code: int, x: float, step: float, top: float) -> Markup:
    """Draw one character."""
    box = tag("rect", x=x + 0.5, y=top, width=step - 1, height=BLOCK, rx=3, fill=colour(code))
    number = tag("text", code, x=x + step / 2, y=top + BLOCK / 2 + 4, text_anchor="middle", class_="code")
    return joined((box, number))


def _bracket(span: Span, start: int, stop: int, step: float, top: float) -> Markup:
    """Draw a word over its characters: a bracket with its number, or a thin one for a single character."""
    left, right = LEFT + start * step + 1.5, LEFT + stop * step - 1.5
    middle, base = (left + right) / 2, top + BRACKET - 3
    if not span.is_composed:
        return tag("path", d=f"M{left:.1f} {base}V{base - 4}H{right:.1f}V{base}", class_="single")
    spelled = " ".join(map(str, span.spelling))
    line = tag("path", d=f"M{left:.1f} {base}V{base - 8}H{right:.1f}V{base}", class_="bracket")
    name = tag("text", f"w{span.word}", x=middle, y=base - 13, text_anchor="middle", class_="word")
    return tag("g", tag("title", f"word {span.word} = {spelled}"), line, name)


def _axis(places: range, step: float, top: float) -> Markup:
    """Label frames below the blocks; character n's block begins at frame 4n + 4."""
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
    return joined(parts)


def _film(film: VideoFrames, places: range, step: float) -> tuple[Markup, int]:
    """Lay thumbnails side by side, each showing the frame below its middle; return the room it takes."""
    width = len(places) * step
    count = math.ceil(width / film.width)
    shown_width = width / count
    height = round(shown_width * film.height / film.width)
    first = interval_start(places.start)
    wanted = [int(first + (place + 0.5) * len(places) * CLIP_STRIDE / count) for place in range(count)]
    image = tag("image", href=film.strip(wanted), x=LEFT, y=0, width=width, height=height)
    return image, height + 8
