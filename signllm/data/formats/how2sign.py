"""Reader of How2Sign: American Sign Language of instructional videos, one tab-separated ``.csv`` per split.

``how2sign_realigned_{train,val,test}.csv`` has the columns ``VIDEO_ID VIDEO_NAME SENTENCE_ID SENTENCE_NAME
START_REALIGNED END_REALIGNED SENTENCE`` and no quoting: a ``"`` is a character of the text. Without the
realigned file ``how2sign_SPLIT.csv`` (``START END``) is used. The official download has one video per
sentence, ``SENTENCE_NAME.mp4``, in ``sentence_level/SPLIT/rgb_front/raw_videos``, and the recordings
``VIDEO_NAME.mp4`` in ``video_level/SPLIT/rgb_front/raw_videos``. Copies differ, so both are searched by name
below the folder. A sentence without a video of its own is cut out of its recording. ``val`` becomes ``dev``,
the name in the other datasets. The signer is the number before ``-rgb_front`` in a name.
"""

from __future__ import annotations

import re
from pathlib import Path

from signllm.data.formats.times import check_span, parse_seconds
from signllm.data.formats.video_tree import VideoTree
from signllm.data.source_samples import Annotations, LeftOutSample, OfficialCounts, SourceSample, tidy_text
from signllm.data.split_names import standardize_split
from signllm.data.system_files import list_files_recursively
from signllm.data.tables import Row, read_table
from signllm.errors import UsageError

OFFICIAL: OfficialCounts = {"test": {"samples": 2_357}}
_TABLE = re.compile(r"how2sign_(realigned_)?(train|val|dev|valid|validation|test)\.(csv|tsv)", re.IGNORECASE)
_FOLDERS = {"train": "train", "dev": "val", "test": "test"}
_VIDEOS = "sentence_level/{}/rgb_front/raw_videos"
_COLUMNS = ("VIDEO_NAME", "SENTENCE_NAME", "SENTENCE")


def read(src: Path) -> Annotations:
    """Read every split whose ``.csv`` file lies anywhere below ``src``.

    Raises:
        UsageError: there is no such file, or it lacks columns of the release.
    """
    paths = _find_tables(src)
    if not paths:
        raise UsageError(
            "this is not How2Sign: there is no how2sign_realigned_SPLIT.csv",
            where=src,
            remedy="give the folder that contains sentence_level/, or the .csv files and the videos",
        )
    tree = VideoTree(src)
    remedy = "use the file of the release as it is, separated by tabs"
    tables = {split: read_table(path, _COLUMNS, remedy=remedy) for split, path in paths.items()}
    entries = [_read_row(row, split, tree) for split, table in tables.items() for row in table.rows]
    return Annotations(
        samples=tuple(entry for entry in entries if isinstance(entry, SourceSample)),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOutSample)),
        official=OFFICIAL,
        notices=(*(notice for table in tables.values() for notice in table.notices), *tree.notices),
    )


def _find_tables(src: Path) -> dict[str, Path]:
    """Return the table of each split: the realigned one if there is one, else the first in path order."""
    paths: dict[str, list[tuple[bool, Path]]] = {"train": [], "dev": [], "test": []}
    for folder, names in list_files_recursively(src):
        for name in names:
            if match := _TABLE.fullmatch(name):
                paths[standardize_split(match[2])].append((match[1] is None, folder / name))
    return {split: min(candidates)[1] for split, candidates in paths.items() if candidates}


def _read_row(row: Row, split: str, tree: VideoTree) -> SourceSample | LeftOutSample:
    """Return the sample of a row, or the reason why it is left out."""
    name = row["SENTENCE_NAME"].strip() or f"line {row.line}"
    if row.problem:
        return LeftOutSample(id=name, split=split, reason=row.problem)
    video, start_s, end_s = tree.find(name, split), None, None
    recording = tree.find(row["VIDEO_NAME"].strip(), split)
    if video is None and recording is not None:
        try:
            start_s = parse_seconds(row["START_REALIGNED"] or row["START"]) or 0.0
            end_s = parse_seconds(row["END_REALIGNED"] or row["END"])
            check_span(start_s, end_s)
        except ValueError as error:
            return LeftOutSample(id=name, split=split, reason=f"line {row.line}: {error}")
        if end_s is None:
            return LeftOutSample(id=name, split=split, reason=f"line {row.line} states no end of the sample")
    signer = re.search(r"-(\d+)-rgb_", name)
    return SourceSample(
        id=name,
        video=video or recording or tree.expected_path(name, tree.root / _VIDEOS.format(_FOLDERS[split])),
        text=tidy_text(row["SENTENCE"]),
        split=split,
        language="English",
        signer=signer[1] if signer else "",
        start_s=start_s,
        end_s=end_s,
    )
