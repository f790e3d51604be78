"""The token timeline of a video: frames, characters as coloured blocks, and words as brackets above them.

Character n is read from frames 4n to 4n + 12. Its block is drawn below the four middle frames, so that the
blocks of consecutive characters are adjacent. Each code has a colour (golden-angle hues) and shows its
number, because 256 colours cannot be distinguished, and some readers see no colours. This module computes the
positions; ``templates/timeline.html`` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from signllm.clip_geometry import CLIP_STRIDE, interval_start

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


@dataclass(frozen=True, kw_only=True)
class Block:
    """The block of one character: its code, and its position."""

    code: int
    x: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The bracket of a word in one row; ``spelling`` is empty for a word of a single character."""

    word: int
    spelling: tuple[int, ...]
    left: float
    right: float


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A frame number on the axis; ``anchor`` is the side of the text that is at ``x``."""

    frame: int
    x: float
    anchor: str


@dataclass(frozen=True, kw_only=True)
class TimelineRow:
    """One row of a timeline; vertical positions are relative to ``top``, except in ``Timeline``.

    Attributes:
        top: position of the row in the timeline.
        left: left end of the blocks.
        right: right end of the blocks.
        strip: thumbnails as a ``data:`` address; ``""`` without frames.
        strip_height: height of the thumbnails.
        brackets: brackets of the words.
        bracket_base: lower end of the brackets.
        blocks: blocks of the characters.
        block_top: upper end of the blocks.
        block_height: height of the blocks.
        ticks: frame numbers on the axis below the blocks.
    """

    top: int
    left: float
    right: float
    strip: str
    strip_height: int
    brackets: list[Bracket]
    bracket_base: int
    blocks: list[Block]
    block_top: int
    block_height: int
    ticks: list[Tick]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The drawing of one video's tokens: its text for screen readers, its size and its rows."""

    label: str
    width: int
    height: int
    rows: list[TimelineRow]


def lay_out_timeline(
    characters: Sequence[int], spans: Sequence[Span], frames: VideoFrames | None, label: str
) -> Timeline:
    """Compute the timeline of one video, in rows of at most ``ROW_CHARACTERS`` characters.

    Args:
        characters: sign codes, one for every 4 frames.
        spans: words; empty for a run without words.
        frames: frames of the video, if it is available.
        label: text for screen readers.
    """
    rows: list[TimelineRow] = []
    top = 0
    for start, stop in pairwise(_edges(len(characters), ROW_CHARACTERS)):
        row = _lay_out_row(characters, range(start, stop), spans, frames, top)
        rows.append(row)
        top += row.block_top + row.block_height + AXIS
    return Timeline(label=label, width=WIDTH, height=top, rows=rows)


def _edges(count: int, most: int) -> list[int]:
    """Return the boundaries of equally long rows of at most ``most`` characters."""
    rows = max(1, -(-count // most))
    return [round(count * place / rows) for place in range(rows + 1)]


def _lay_out_row(
    characters: Sequence[int], places: range, spans: Sequence[Span], frames: VideoFrames | None, top: int
) -> TimelineRow:
    step = (WIDTH - LEFT - RIGHT) / max(len(places), 12)
    strip, strip_height = _draw_frames(frames, places, step) if frames is not None else ("", 0)
    bracket_top = strip_height + 8 if strip else 0
    brackets = []
    for span in spans:
        start, stop = max(span.start, places.start) - places.start, min(span.stop, places.stop) - places.start
        if start < stop:
            spelling = span.spelling if span.is_composed else ()
            left, right = LEFT + start * step + 1.5, LEFT + stop * step - 1.5
            brackets.append(Bracket(word=span.word, spelling=spelling, left=left, right=right))
    return TimelineRow(
        top=top,
        left=LEFT,
        right=LEFT + len(places) * step,
        strip=strip,
        strip_height=strip_height,
        brackets=brackets,
        bracket_base=bracket_top + BRACKET - 3,
        blocks=[
            Block(code=characters[place], x=LEFT + (place - places.start) * step + 0.5, width=step - 1)
            for place in places
        ],
        block_top=bracket_top + (BRACKET if spans else 0),
        block_height=BLOCK,
        ticks=_axis_ticks(places, step),
    )


def _axis_ticks(places: range, step: float) -> list[Tick]:
    """Return round frame numbers, about 120 units apart; the block of character n begins at frame 4n + 4."""
    from matplotlib.ticker import MaxNLocator

    first, last = interval_start(places.start), interval_start(places.stop)
    count = max(1, round(len(places) * step / 120))
    frames = MaxNLocator(count, steps=[1, 2, 5, 10], integer=True).tick_values(first, last)
    ticks = []
    for frame in (int(frame) for frame in frames if first <= frame <= last):
        x = LEFT + (frame - first) * step / CLIP_STRIDE
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        ticks.append(Tick(frame=frame, x=x, anchor=anchor))
    return ticks


def _draw_frames(frames: VideoFrames, places: range, step: float) -> tuple[str, int]:
    """Return thumbnails side by side, each of the frame at its middle, and their height in the drawing."""
    width = len(places) * step
    count = math.ceil(width / frames.width)
    height = round(width / count * frames.height / frames.width)
    first = interval_start(places.start)
    numbers = [int(first + (place + 0.5) * len(places) * CLIP_STRIDE / count) for place in range(count)]
    return frames.strip(numbers), height
