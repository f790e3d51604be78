"""Any dataset as one table: a row per clip with its video file and its text.

``.tsv`` has no quoting (How2Sign's texts hold bare ``"``), ``.csv`` the usual one, ``.jsonl`` an object per
line; a ``.csv`` whose header holds tabs is read as ``.tsv``. Columns ``video`` and ``text`` are needed, ``id
split language signer`` are optional. Videos are named relative to the table's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from signllm.data.clip import Annotations, Clip, LeftOut, tidy_text
from signllm.data.description import parsed
from signllm.data.formats.times import check_span, seconds
from signllm.errors import UsageError

NEEDED = ("video", "text")
OPTIONAL = ("id", "split", "language", "signer", "start_s", "end_s")
_SUFFIXES = (".tsv", ".csv", ".jsonl")


def read(src: Path) -> Annotations:
    """Read the table file ``src``.

    Raises:
        UsageError: no such file, another suffix, not UTF-8, or a needed column missing.
    """
    if not src.is_file() or src.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            "the table is not a .tsv, .csv or .jsonl file" if src.exists() else "there is no such table",
            where=src,
            remedy=f"give a table with the columns {' and '.join(NEEDED)} (optional: {' '.join(OPTIONAL)})",
        )
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    try:
        for line, row in _rows(src):
            entry = _entry(row, line, src.parent)
            (clips if isinstance(entry, Clip) else left_out).append(entry)  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8: {error}", where=src, remedy="save the table as UTF-8") from None
    except csv.Error as error:
        raise UsageError(
            f"not a table: {error}", where=src, remedy="save it as .tsv without quotes"
        ) from None
    return Annotations(clips=tuple(clips), left_out=tuple(left_out))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and row; a row that does not fit the header has a key or a value ``None``."""
    with table.open(encoding="utf-8-sig", newline="") as lines:
        if table.suffix.lower() == ".jsonl":
            yield from _json_rows(table, lines)
            return
        header = lines.readline()
        lines.seek(0)
        if table.suffix.lower() == ".tsv" or ("\t" in header and "," not in header):
            reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.DictReader(lines, strict=True)
        _check_columns(table, reader.fieldnames or ())
        for row in reader:
            yield reader.line_num, row


def _json_rows(table: Path, lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except ValueError as error:
            raise UsageError(
                f"line {number} is not JSON: {error}", where=table, remedy="one object per line"
            ) from None
        if not isinstance(row, dict):
            raise UsageError(f"line {number} is not a JSON object", where=table, remedy="one object per line")
        _check_columns(table, row)
        yield number, {name: value for name, value in row.items() if name in NEEDED or value is not None}


def _check_columns(table: Path, columns: Any) -> None:
    found = list(columns)
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise UsageError(
            f"columns missing: {', '.join(missing)}; found: {', '.join(map(str, found)) or 'none'}",
            where=table,
            remedy=f"needed: {' '.join(NEEDED)}; optional: {' '.join(OPTIONAL)}; in a .tsv separated by tabs",
        )


def _entry(row: dict[str, Any], line: int, folder: Path) -> Clip | LeftOut:
    split = str(row.get("split") or "train")
    name = str(row.get("id") or row.get("video") or f"line {line}")
    if None in row or None in row.values():
        return LeftOut(
            id=name, split=split, reason=f"line {line} has another number of fields than the header"
        )
    if not str(row["video"]).strip():
        return LeftOut(id=name, split=split, reason=f"line {line} names no video")
    try:
        start_s, end_s = seconds(row.get("start_s")), seconds(row.get("end_s"))
        check_span(start_s, end_s)
    except ValueError as error:
        return LeftOut(id=name, split=split, reason=f"line {line}: {error}")
    return Clip(
        id=str(row.get("id") or _name_of(str(row["video"]), start_s, end_s)),
        video=folder / str(row["video"]),
        text=tidy_text(str(row["text"])),
        split=split,
        language=str(row.get("language") or ""),
        signer=str(row.get("signer") or ""),
        start_s=start_s,
        end_s=end_s,
    )


def _name_of(video: str, start_s: float | None, end_s: float | None) -> str:
    """Return the id of a row that gives none: the video without its suffix, and its times if it has some."""
    stem = Path(video).with_suffix("").as_posix()
    if start_s is None and end_s is None:
        return stem
    return f"{stem}-{start_s or 0:.3f}-{'end' if end_s is None else f'{end_s:.3f}'}"
