"""Signs that somebody has told: which, in which video, from which frame to which, and perhaps of which parts.

A table (``.tsv``, ``.csv``) has the columns ``id``, ``sign``, ``start``, ``end`` (frames of the stored video,
the end not included) and, if known, ``parts``: handshape, location, movement or whatever a lexicon says,
separated by spaces. The truth of the demo (``truth.jsonl``) is read as it is; its parts are its units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from signllm.data.tables import read_table
from signllm.data.text_files import read_text
from signllm.errors import UsageError

COLUMNS = ("id", "sign", "start", "end")


@dataclass(frozen=True, kw_only=True)
class KnownSign:
    """A sign in a video, from frame ``start`` up to, not including, ``end``; ``parts`` of a lexicon."""

    sign: str
    start: int
    end: int
    parts: frozenset[str] = frozenset()


def read_known_signs(path: Path) -> dict[str, list[KnownSign]]:
    """Return the signs of each video by its id.

    Raises:
        UsageError: no such file, a column is missing, or a row makes no sense.
    """
    signs: dict[str, list[KnownSign]] = {}
    try:
        rows = _of_truth(path) if path.suffix.lower() == ".jsonl" else _of_table(path)
        for id, sign in rows:
            signs.setdefault(id, []).append(sign)
    except OSError as error:
        raise UsageError(f"the signs cannot be read: {error}", where=path, remedy="give a table") from None
    if not signs:
        raise UsageError("there are no signs", where=path, remedy="give a table with a row for each")
    return signs


def _of_table(path: Path) -> Iterator[tuple[str, KnownSign]]:
    table = read_table(path, COLUMNS, known=("parts",), remedy=f"name the columns {', '.join(COLUMNS)}")
    for row in table.rows:
        try:
            start, end = int(row["start"]), int(row["end"])
        except ValueError:
            start = end = -1
        id, sign = row["id"].strip(), row["sign"].strip()
        if row.problem or not (0 <= start < end and id and sign):
            raise UsageError(
                row.problem or f"line {row.line} is no sign: {dict(row.cells)}",
                where=path,
                remedy="id and sign are names, start and end frames, the end behind the start",
            )
        yield id, KnownSign(sign=sign, start=start, end=end, parts=frozenset(row["parts"].split()))


def _of_truth(path: Path) -> Iterator[tuple[str, KnownSign]]:
    try:
        for line in read_text(path).lines:
            yield from _of_record(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"this is no truth of a demo ({type(error).__name__}: {error})",
            where=path,
            remedy="give demo-out/truth.jsonl, or a .tsv",
        ) from None


def _of_record(record: Mapping[str, Any]) -> Iterator[tuple[str, KnownSign]]:
    """Yield the signs of one video of the demo."""
    edges = [*record["sign_starts"], record["ends"][-1]]
    units = list(zip(record["starts"], record["units"], strict=True))
    for sign, (start, end) in zip(record["signs"], pairwise(edges), strict=True):
        parts = frozenset(str(unit) for at, unit in units if start <= at < end)
        yield record["id"], KnownSign(sign=sign, start=start, end=end, parts=parts)
