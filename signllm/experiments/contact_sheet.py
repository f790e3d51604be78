"""The contact sheet of a codebook: a PNG with a grid of characters or words and the frames of example videos.

Each entry shows the same moments of a few videos, one video below the other. If the rows of an entry are
similar, the code represents one hand shape, place or movement; if they differ, it represents nothing
specific. Labels are black on white and shares are drawn as bars, so that the sheet can be printed in grey.
Videos are decoded one at a time, each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.atomic_files import atomic_file
from signllm.data.fonts import choose_font
from signllm.reporting.video_frames import THUMBNAIL_HEIGHT, VideoFrames

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

PAGE, MARGIN, GUTTER = 1900, 24, 26
HEAD, CAPTION, TITLE, TITLE_LINE, SECTION = 44, 17, 44, 24, 70
LARGE, MEDIUM, SMALL = 24, 17, 12
BLACK, GREY, LIGHT = "#000000", "#505050", "#d8d8d8"
BAR = 60
GAP = 3
"""White pixels between the frames of a clip."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Some frames of one video.

    Attributes:
        video: index of the video in its split.
        frames: indices of the frames to show.
    """

    video: int
    frames: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A character or a word with example clips.

    Attributes:
        name: number of the character or word.
        spelling: characters of a word.
        count: number of its occurrences.
        share: its share of all characters or words, between 0 and 1.
        clips: example occurrences, each from another video.
    """

    name: str
    spelling: str = ""
    count: int
    share: float
    clips: tuple[Clip, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the sheet with its own heading.

    Attributes:
        title: heading.
        hint: explanation next to the heading.
        frames: number of frames of each clip.
        entries: the characters or words to show.
    """

    title: str
    hint: str
    frames: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The position of an entry on the sheet, in pixels.

    Attributes:
        x: left edge.
        y: top edge.
        width: width of the entry.
        entry: the character or word.
        largest_share: share whose bar has the full length.
    """

    x: int
    y: int
    width: int
    entry: Entry
    largest_share: float


@dataclass(frozen=True, kw_only=True)
class Page:
    """The layout of a sheet, in pixels.

    Attributes:
        headings: top edge of each section, and the section.
        cells: positions of all entries.
        width: width of the sheet.
        height: height of the sheet.
    """

    headings: tuple[tuple[int, Section], ...]
    cells: tuple[Cell, ...]
    width: int
    height: int


def lay_out_page(sections: Sequence[Section], *, title_lines: int, thumbnail: int) -> Page:
    """Arrange sections one below the other, and the entries of each in as many columns as fit.

    Args:
        sections: sections of the sheet.
        title_lines: number of lines below the title.
        thumbnail: width of the widest thumbnail in pixels.
    """
    cells: list[Cell] = []
    headings = []
    widest = max((_clip_width(section, thumbnail) for section in sections), default=0)
    page = max(PAGE, widest + 2 * MARGIN)
    y = MARGIN + TITLE + title_lines * TITLE_LINE
    for section in sections:
        headings.append((y, section))
        y += SECTION
        width = _clip_width(section, thumbnail)
        columns = (page - 2 * MARGIN + GUTTER) // (width + GUTTER)
        step = (page - 2 * MARGIN + GUTTER) // columns
        rows = max((len(entry.clips) for entry in section.entries), default=0)
        cell_height = HEAD + rows * (THUMBNAIL_HEIGHT + CAPTION) + GUTTER
        largest = max((entry.share for entry in section.entries), default=1.0)
        for number, entry in enumerate(section.entries):
            row, column = divmod(number, columns)
            x, top = MARGIN + column * step, y + row * cell_height
            cells.append(Cell(x=x, y=top, width=width, entry=entry, largest_share=largest))
        y += -(-len(section.entries) // columns) * cell_height
    return Page(headings=tuple(headings), cells=tuple(cells), width=page, height=y + MARGIN)


def _clip_width(section: Section, thumbnail: int) -> int:
    return section.frames * (thumbnail + GAP) - GAP


def draw_sheet(
    sections: Sequence[Section],
    out: Path,
    *,
    title: str,
    lines: Sequence[str],
    decode: Callable[[int], tuple[str, VideoFrames]],
    thumbnail: int,
) -> Page:
    """Draw a contact sheet into a PNG file.

    Args:
        sections: sections of the sheet.
        out: PNG file; it is written atomically.
        title: heading of the sheet.
        lines: lines of text below the heading.
        decode: returns the name and the frames of the video with a given index; called once for each video.
        thumbnail: width of the widest thumbnail in pixels.

    Returns:
        The layout of the sheet.
    """
    from PIL import Image, ImageDraw

    page = lay_out_page(sections, title_lines=len(lines), thumbnail=thumbnail)
    sheet = Image.new("RGB", (page.width, page.height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=BLACK, font=_font(LARGE, is_bold=True))
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + TITLE + number * TITLE_LINE), line, fill=BLACK, font=_font(MEDIUM))
    for y, section in page.headings:
        _write_heading(draw, section, y, page.width)
    clips_of_video: dict[int, list[tuple[int, int, Clip]]] = {}
    for cell in page.cells:
        _write_label(draw, cell)
        for row, clip in enumerate(cell.entry.clips):
            y = cell.y + HEAD + row * (THUMBNAIL_HEIGHT + CAPTION)
            clips_of_video.setdefault(clip.video, []).append((cell.x, y, clip))
    for video in sorted(clips_of_video):
        name, frames = decode(video)
        for x, y, clip in clips_of_video[video]:
            sheet.paste(frames.picture(clip.frames, gap=GAP), (x, y))
            caption = f"{name[-24:]}, frames {clip.frames[0]} to {clip.frames[-1]}"
            text, font = choose_font(caption, SMALL)
            draw.text((x, y + THUMBNAIL_HEIGHT + 1), text, fill=GREY, font=font)
    with atomic_file(out) as unfinished:
        sheet.save(unfinished, format="PNG")
    return page


def _write_heading(draw: ImageDraw, section: Section, y: int, width: int) -> None:
    """Write a line, the title and the hint of a section."""
    draw.line((MARGIN, y, width - MARGIN, y), fill=BLACK, width=2)
    draw.text((MARGIN, y + 8), section.title, fill=BLACK, font=_font(LARGE, is_bold=True))
    begin = MARGIN + draw.textlength(section.title, font=_font(LARGE, is_bold=True)) + 20
    draw.text((begin, y + 14), section.hint, fill=GREY, font=_font(MEDIUM))


def _write_label(draw: ImageDraw, cell: Cell) -> None:
    """Write name and spelling of an entry on the left, its count and share with a bar on the right."""
    entry, right = cell.entry, cell.x + cell.width
    usage = f"× {entry.count:,}   {entry.share:.2%}"
    bar = cell.y + HEAD - 10
    draw.rectangle((right - BAR, bar, right, bar + 5), fill=LIGHT)
    draw.rectangle((right - round(BAR * entry.share / cell.largest_share), bar, right, bar + 5), fill=BLACK)
    draw.text((right, cell.y + 8), usage, fill=BLACK, font=_font(MEDIUM), anchor="ra")
    draw.text((cell.x, cell.y + 6), entry.name, fill=BLACK, font=_font(LARGE, is_bold=True))
    begin = cell.x + draw.textlength(entry.name, font=_font(LARGE, is_bold=True)) + 12
    room = right - draw.textlength(usage, font=_font(MEDIUM)) - 12 - begin
    spelling = entry.spelling
    while spelling and draw.textlength(spelling, font=_font(MEDIUM)) > room:
        spelling = spelling.rstrip("…")[:-1] + "…" if len(spelling) > 1 else ""
    draw.text((begin, cell.y + 12), spelling, fill=BLACK, font=_font(MEDIUM))


@cache
def _font(size: int, *, is_bold: bool = False) -> FreeTypeFont:
    """Return the DejaVu Sans of matplotlib: it is the same on every machine and has the glyph of s₀."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)
