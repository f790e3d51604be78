"""Reader of any dataset that is described by one table with a row per sample.

The columns ``video`` and ``text`` are required, ``id split language signer start_s end_s`` are optional.
Paths of videos are relative to the folder of the table. :mod:`signllm.data.tables` documents the syntax of
tables.
"""

from __future__ import annotations

from pathlib import Path

from signllm.data.formats.times import check_span, parse_seconds
from signllm.data.missing_files import find_path_by_spelling
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, tidy_text
from signllm.data.tables import Row, read_table
from signllm.errors import UsageError

NEEDED = ("video", "text")
OPTIONAL = ("id", "split", "language", "signer", "start_s", "end_s")
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".txt", ".tab")


def read(src: Path) -> Annotations:
    """Read the table file ``src``.

    Raises:
        UsageError: the file does not exist, or has another suffix, an unknown encoding, or a missing column.
    """
    if not src.is_file() or src.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            "the table is not a .tsv, .csv or .jsonl file" if src.exists() else "there is no such table",
            where=src,
            remedy=f"give a table with the columns {' and '.join(NEEDED)} (optional: {' '.join(OPTIONAL)}); "
            "a spreadsheet can be saved as CSV UTF-8",
        )
    remedy = f"needed: {' '.join(NEEDED)}; optional: {' '.join(OPTIONAL)}; in a .tsv separated by tabs"
    table = read_table(src, NEEDED, known=OPTIONAL, remedy=remedy)
    entries = [_read_row(row, src.parent) for row in table.rows]
    return Annotations(
        samples=tuple(entry for entry in entries if isinstance(entry, SourceSample)),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOutSample)),
        notices=table.notices,
    )


def _read_row(row: Row, folder: Path) -> SourceSample | LeftOutSample:
    """Return the sample of a row, or the reason why it is left out."""
    video, id, split = row.text("video"), row.text("id"), row.text("split") or "train"
    name = id or video or f"line {row.line}"
    if row.problem:
        return LeftOutSample(id=name, split=split, reason=row.problem)
    if not video:
        return LeftOutSample(id=name, split=split, reason=f"line {row.line} names no video")
    try:
        start_s, end_s = parse_seconds(row["start_s"]), parse_seconds(row["end_s"])
        check_span(start_s, end_s)
    except ValueError as error:
        return LeftOutSample(id=name, split=split, reason=f"line {row.line}: {error}")
    return SourceSample(
        id=id or _make_id(video, start_s, end_s),
        video=find_path_by_spelling(folder, video),
        text=tidy_text(row.text("text")),
        split=split,
        language=row.text("language"),
        signer=row.text("signer"),
        start_s=start_s,
        end_s=end_s,
    )


def _make_id(video: str, start_s: float | None, end_s: float | None) -> str:
    """Return the id of a row without one: the path of the video without suffix, and the times if stated."""
    stem = Path(video).with_suffix("").as_posix()
    if start_s is None and end_s is None:
        return stem
    return f"{stem}-{start_s or 0:.3f}-{'end' if end_s is None else f'{end_s:.3f}'}"
