"""Drawing a contact sheet of finished shards: frames of some videos with their texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from signllm.atomic_files import atomic_file
from signllm.data.fonts import choose_font
from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.sample_table import ShardSample
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.data.video.video_error import VideoError
from signllm.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

_SHOWN_FRAMES = 6
_TILE = 112
_LINE, _LETTERS = 15, 11
"""Distance of the lines and size of the letters in pixels."""


def preview_shards(out: Path | str, png: Path | str, *, samples: int = 12) -> Path:
    """Write a contact sheet with name, text and six frames of some samples of every split; return its path.

    Args:
        out: folder of the shards.
        png: path of the picture, which is written atomically.
        samples: number of samples, spread evenly over the splits.

    Raises:
        UsageError: there are no finished shards, a video cannot be decoded, or the picture cannot be written.
    """
    from PIL import Image

    index = ShardIndex(out)
    splits = [index.split(name) for name in index.splits]
    if not splits:
        raise UsageError("there are no samples to show", where=index.root, remedy="merge the slices first")
    each = max(1, samples // len(splits))
    rows = [_draw_row(split, number) for split in splits for number in _spread_evenly(len(split), each)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    try:
        with atomic_file(Path(png)) as unfinished:
            sheet.save(unfinished, format="PNG")
    except OSError as error:
        raise UsageError(
            f"the picture cannot be written: {error.strerror or error}", where=png, remedy="name another file"
        ) from None
    return Path(png)


def _spread_evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` of the numbers below ``count``, spread evenly."""
    shown = min(count, most)
    return [place * count // shown for place in range(shown)]


def _draw_row(split: Split, number: int) -> Image.Image:
    """Return the row of one sample of the contact sheet."""
    import numpy as np
    from PIL import Image, ImageDraw

    sample = split.samples[number]
    try:
        frames_THWC = decode_stored_frames(split.read(number), size=_TILE)
    except VideoError as error:
        raise VideoError(
            f"{sample.id}: {error.what}",
            where=split.tars[sample.shard],
            remedy="find all damage with `signllm shards verify`",
        ) from None
    shown = frames_THWC[np.linspace(0, len(frames_THWC) - 1, _SHOWN_FRAMES).round().astype(int)]
    row = Image.new("RGB", (_TILE * _SHOWN_FRAMES, _TILE + 32), "white")
    for place, frame_HWC in enumerate(shown):
        row.paste(Image.fromarray(np.ascontiguousarray(frame_HWC)), (place * _TILE, 32))
    draw = ImageDraw.Draw(row)
    for line, caption in enumerate(_make_captions(split, sample)):
        text, font = choose_font(caption, _LETTERS)
        draw.text((4, 2 + line * _LINE), text, fill="black", font=font)
    return row


def _make_captions(split: Split, sample: ShardSample) -> tuple[str, str]:
    """Return the two lines of text above the frames of a sample."""
    described = f"{split.name}/{sample.id}  {sample.frames} frames at {sample.fps:g} fps  {sample.signer}"
    return described[:100], sample.text[:105]
