"""OpenASL: American Sign Language from the web, one ``openasl-v1.0.tsv`` and videos that one downloads.

The release (github.com/chevalierNoir/OpenASL, ``data/``) has the columns ``vid yid start end raw-text
tokenized-text gloss split``, times as ``HH:MM:SS.mmm``; ``raw-text`` is taken, with its outer and double
spaces removed. Its ``prep/download.py`` fetches recordings ``YID.mp4``; ``prep/crop_video.py`` makes clips of
them, cropped to the signer, as ``VID.mp4`` with ``%`` in place of every ``:``. Both are looked for by name
below the folder. A clip that is not there is cut out of its recording, then without the crop. ``valid``
becomes ``dev``. The release names no signers.
"""

from __future__ import annotations

from pathlib import Path

from signllm.data.clip import Annotations, Clip, LeftOut, OfficialCounts, tidy_text
from signllm.data.formats.rows import Row, rows_of, uneven
from signllm.data.formats.times import check_span, seconds
from signllm.data.formats.video_tree import VideoTree
from signllm.errors import UsageError

OFFICIAL: OfficialCounts = {"dev": {"samples": 967}, "test": {"samples": 976}}
SPLITS = {"valid": "dev", "val": "dev"}
_COLUMNS = ("vid", "yid", "start", "end", "raw-text", "split")


def read(src: Path) -> Annotations:
    """Read the release's table and find its videos below ``src``.

    Raises:
        UsageError: no such table, or one without the release's columns.
    """
    table = next(iter(sorted(path for path in src.rglob("openasl-v*.tsv") if path.is_file())), None)
    if table is None:
        raise UsageError(
            "this is not OpenASL: there is no openasl-v1.0.tsv",
            where=src,
            remedy="give the folder that holds data/openasl-v1.0.tsv and the videos",
        )
    tree = VideoTree(src)
    rows = rows_of(table, _COLUMNS, delimiter="\t", written="separated by tabs")
    entries = [_entry(row, line, tree) for line, row in rows]
    return Annotations(
        clips=tuple(entry for entry in entries if isinstance(entry, Clip)),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOut)),
        official=OFFICIAL,
    )


def _entry(row: Row, line: int, tree: VideoTree) -> Clip | LeftOut:
    name, split = row["vid"] or f"line {line}", row["split"] or "train"
    split = SPLITS.get(split, split)
    if left_out := uneven(row, line, id=name, split=split):
        return left_out
    video, start_s, end_s = tree.find(name.replace(":", "%")) or tree.find(name), None, None
    recording = tree.find(row["yid"] or "")
    if video is None and recording is not None:
        try:
            start_s, end_s = seconds(row["start"]) or 0.0, seconds(row["end"])
            check_span(start_s, end_s)
        except ValueError as error:
            return LeftOut(id=name, split=split, reason=f"line {line}: {error}")
        if end_s is None:
            return LeftOut(id=name, split=split, reason=f"line {line} says no end of the clip")
    return Clip(
        id=name,
        video=video or recording or tree.root / f"{name}.mp4",
        text=tidy_text(row["raw-text"] or ""),
        split=split,
        language="English",
        start_s=start_s,
        end_s=end_s,
    )
