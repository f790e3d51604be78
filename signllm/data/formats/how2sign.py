"""How2Sign: American Sign Language of instructional videos, one tab-separated ``.csv`` per split.

``how2sign_realigned_{train,val,test}.csv`` has the columns ``VIDEO_ID VIDEO_NAME SENTENCE_ID SENTENCE_NAME
START_REALIGNED END_REALIGNED SENTENCE`` and no quoting: a ``"`` is a character of the text. Without the
realigned file ``how2sign_SPLIT.csv`` (``START END``) is taken. The official download has the clips
``SENTENCE_NAME.mp4`` in ``sentence_level/SPLIT/rgb_front/raw_videos``, the recordings ``VIDEO_NAME.mp4`` in
``video_level/SPLIT/rgb_front/raw_videos``; copies differ, so both are looked for by name below the folder. A
clip that is not there is cut out of its recording. ``val`` becomes ``dev``, the name of the other datasets.
The signer is the number in a name before ``-rgb_front``.
"""

from __future__ import annotations

import re
from pathlib import Path

from signllm.data.clip import Annotations, Clip, LeftOut, OfficialCounts, tidy_text
from signllm.data.formats.rows import Row, rows_of, uneven
from signllm.data.formats.times import check_span, seconds
from signllm.data.formats.video_tree import VideoTree
from signllm.errors import UsageError

OFFICIAL: OfficialCounts = {"test": {"samples": 2_357}}
SPLITS = {"train": "train", "val": "dev", "test": "test"}
_COLUMNS = ("VIDEO_NAME", "SENTENCE_NAME", "SENTENCE")


def read(src: Path) -> Annotations:
    """Read every split whose ``.csv`` lies anywhere below ``src``.

    Raises:
        UsageError: no such file, or one without the release's columns.
    """
    tables = {name: table for name in SPLITS if (table := _table(src, name))}
    if not tables:
        raise UsageError(
            "this is not How2Sign: there is no how2sign_realigned_SPLIT.csv",
            where=src,
            remedy="give the folder that holds sentence_level/, or the .csv files and the videos",
        )
    tree = VideoTree(src)
    entries = [entry for name, table in tables.items() for entry in _rows(table, name, tree)]
    return Annotations(
        clips=tuple(entry for entry in entries if isinstance(entry, Clip)),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOut)),
        official=OFFICIAL,
    )


def _table(src: Path, split: str) -> Path | None:
    for name in (f"how2sign_realigned_{split}.csv", f"how2sign_{split}.csv"):
        if found := sorted(path for path in src.rglob(name) if path.is_file()):
            return found[0]
    return None


def _rows(table: Path, split: str, tree: VideoTree) -> list[Clip | LeftOut]:
    rows = rows_of(table, _COLUMNS, delimiter="\t", written="separated by tabs")
    return [_entry(row, line, split, tree) for line, row in rows]


def _entry(row: Row, line: int, split: str, tree: VideoTree) -> Clip | LeftOut:
    name = row["SENTENCE_NAME"] or f"line {line}"
    if left_out := uneven(row, line, id=name, split=SPLITS[split]):
        return left_out
    video, start_s, end_s = tree.find(name, split), None, None
    recording = tree.find(row["VIDEO_NAME"] or "", split)
    if video is None and recording is not None:
        try:
            start_s = seconds(row.get("START_REALIGNED") or row.get("START")) or 0.0
            end_s = seconds(row.get("END_REALIGNED") or row.get("END"))
            check_span(start_s, end_s)
        except ValueError as error:
            return LeftOut(id=name, split=SPLITS[split], reason=f"line {line}: {error}")
        if end_s is None:
            return LeftOut(id=name, split=SPLITS[split], reason=f"line {line} says no end of the clip")
    signer = re.search(r"-(\d+)-rgb_", name)
    return Clip(
        id=name,
        video=video or recording or tree.root / f"{name}.mp4",
        text=tidy_text(row["SENTENCE"] or ""),
        split=SPLITS[split],
        language="English",
        signer=signer[1] if signer else "",
        start_s=start_s,
        end_s=end_s,
    )
