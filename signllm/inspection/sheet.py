"""The contact sheet of a codebook: entries with the frames they stand for, in a grid, as one PNG.

Every entry shows the same moments of a few clips, one clip below the other: rows that look alike mean one
hand shape, place or movement; rows that do not, a code that means nothing. Labels are black on white and
shares are bars, so that the sheet can be printed in grey. Videos are decoded one at a time, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.atomic_files import atomic_file
from signllm.data.fonts import choose_font
from signllm.evaluation.report.frames import THUMBNAIL_HEIGHT, Film

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
    """The place of a video in its split, and the frames of it to show."""

    video: int
    frames: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A character or a word: its number, its spelling, how often and what share it is, clips of it."""

    name: str
    spelling: str = ""
    count: int
    share: float
    clips: tuple[Clip, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a hint, and entries whose clips show ``frames`` frames each."""

    title: str
    hint: str
    frames: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where an entry stands."""

    x: int
    y: int
    width: int
    entry: Entry
    largest_share: float


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where everything stands: headings by their top, cells, and the size of the picture."""

    headings: tuple[tuple[int, Section], ...]
    cells: tuple[Cell, ...]
    width: int
    height: int


def laid_out(sections: Sequence[Section], *, title_lines: int, thumbnail: int) -> Page:
    """Place entries in as many columns as fit, sections one below the other.

    Args:
        sections: what to show.
        title_lines: lines below the title.
        thumbnail: width of the widest one in pixels.
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
    film: Callable[[int], tuple[str, Film]],
    thumbnail: int,
) -> Page:
    """Draw a contact sheet into a PNG file.

    Args:
        sections: what to show.
        out: the file; whole or absent.
        title: its heading.
        lines: told below it.
        film: gives a video's name and frames by its place; asked once for each video.
        thumbnail: width of the widest one in pixels.

    Returns:
        Where everything stands.
    """
    from PIL import Image, ImageDraw

    page = laid_out(sections, title_lines=len(lines), thumbnail=thumbnail)
    sheet = Image.new("RGB", (page.width, page.height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=BLACK, font=_font(LARGE, is_bold=True))
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + TITLE + number * TITLE_LINE), line, fill=BLACK, font=_font(MEDIUM))
    for y, section in page.headings:
        _write_heading(draw, section, y, page.width)
    shown: dict[int, list[tuple[int, int, Clip]]] = {}
    for cell in page.cells:
        _write_head(draw, cell)
        for row, clip in enumerate(cell.entry.clips):
            y = cell.y + HEAD + row * (THUMBNAIL_HEIGHT + CAPTION)
            shown.setdefault(clip.video, []).append((cell.x, y, clip))
    for video in sorted(shown):
        name, frames = film(video)
        for x, y, clip in shown[video]:
            sheet.paste(frames.picture(clip.frames, gap=GAP), (x, y))
            told = f"{name[-24:]}, frames {clip.frames[0]} to {clip.frames[-1]}"
            text, font = choose_font(told, SMALL)
            draw.text((x, y + THUMBNAIL_HEIGHT + 1), text, fill=GREY, font=font)
    with atomic_file(out) as unfinished:
        sheet.save(unfinished, format="PNG")
    return page


def _write_heading(draw: ImageDraw, section: Section, y: int, width: int) -> None:
    draw.line((MARGIN, y, width - MARGIN, y), fill=BLACK, width=2)
    draw.text((MARGIN, y + 8), section.title, fill=BLACK, font=_font(LARGE, is_bold=True))
    begin = MARGIN + draw.textlength(section.title, font=_font(LARGE, is_bold=True)) + 20
    draw.text((begin, y + 14), section.hint, fill=GREY, font=_font(MEDIUM))


def _write_head(draw: ImageDraw, cell: Cell) -> None:
    """Write name and spelling on the left, count and share with its bar on the right."""
    entry, right = cell.entry, cell.x + cell.width
    told = f"× {entry.count:,}   {entry.share:.2%}"
    bar = cell.y + HEAD - 10
    draw.rectangle((right - BAR, bar, right, bar + 5), fill=LIGHT)
    draw.rectangle((right - round(BAR * entry.share / cell.largest_share), bar, right, bar + 5), fill=BLACK)
    draw.text((right, cell.y + 8), told, fill=BLACK, font=_font(MEDIUM), anchor="ra")
    draw.text((cell.x, cell.y + 6), entry.name, fill=BLACK, font=_font(LARGE, is_bold=True))
    begin = cell.x + draw.textlength(entry.name, font=_font(LARGE, is_bold=True)) + 12
    room = right - draw.textlength(told, font=_font(MEDIUM)) - 12 - begin
    spelling = entry.spelling
    while spelling and draw.textlength(spelling, font=_font(MEDIUM)) > room:
        spelling = spelling.rstrip("…")[:-1] + "…" if len(spelling) > 1 else ""
    draw.text((begin, cell.y + 12), spelling, fill=BLACK, font=_font(MEDIUM))


@cache
def _font(size: int, *, is_bold: bool = False) -> FreeTypeFont:
    """Return DejaVu Sans out of matplotlib, which is the same on every machine and knows s₀."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)
