"""Annotated signs: which sign occurs in which video, from which frame to which, and with which parts.

An annotation table (``.tsv``, ``.csv``) has the columns ``id``, ``sign``, ``start`` and ``end`` (frames of
the stored video; ``end`` is exclusive) and optionally ``parts``: the handshape, location, movement or any
other feature that a lexicon lists, separated by spaces. The ``truth.jsonl`` of a demo can be read too; the
parts of its signs are the units that they are made of.
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
class SignAnnotation:
    """One occurrence of a sign in a video.

    Attributes:
        sign: name of the sign.
        start: first frame of the occurrence.
        end: frame after its last one.
        parts: parts that a lexicon lists for the sign; empty if they are not known.
    """

    sign: str
    start: int
    end: int
    parts: frozenset[str] = frozenset()


def read_sign_annotations(path: Path) -> dict[str, list[SignAnnotation]]:
    """Read an annotation table, or the ``truth.jsonl`` of a demo.

    Returns:
        The annotations of each video, by the id of the video.

    Raises:
        UsageError: The file cannot be read, a column is missing, a row is invalid, or there are no rows.
    """
    annotations: dict[str, list[SignAnnotation]] = {}
    try:
        rows = _read_demo_truth(path) if path.suffix.lower() == ".jsonl" else _read_annotation_table(path)
        for id, annotation in rows:
            annotations.setdefault(id, []).append(annotation)
    except OSError as error:
        raise UsageError(
            f"the sign annotations cannot be read: {error}", where=path, remedy="give a table"
        ) from None
    if not annotations:
        raise UsageError(
            "there are no signs in this file", where=path, remedy="give a table with one row for each sign"
        )
    return annotations


def _read_annotation_table(path: Path) -> Iterator[tuple[str, SignAnnotation]]:
    """Yield the video id and the annotation of each row of a table."""
    table = read_table(path, COLUMNS, known=("parts",), remedy=f"name the columns {', '.join(COLUMNS)}")
    for row in table.rows:
        try:
            start, end = int(row["start"]), int(row["end"])
        except ValueError:
            start = end = -1
        id, sign = row["id"].strip(), row["sign"].strip()
        if row.problem or not (0 <= start < end and id and sign):
            raise UsageError(
                row.problem or f"line {row.line} is not a valid annotation: {dict(row.cells)}",
                where=path,
                remedy="give an id, the name of a sign, and two frame numbers with start < end",
            )
        yield id, SignAnnotation(sign=sign, start=start, end=end, parts=frozenset(row["parts"].split()))


def _read_demo_truth(path: Path) -> Iterator[tuple[str, SignAnnotation]]:
    """Yield the video id and the annotation of each sign in the ``truth.jsonl`` of a demo."""
    try:
        for line in read_text(path).lines:
            yield from _annotations_of_demo_video(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"this is not the truth.jsonl of a demo ({type(error).__name__}: {error})",
            where=path,
            remedy="give demo-out/truth.jsonl, or a .tsv",
        ) from None


def _annotations_of_demo_video(record: Mapping[str, Any]) -> Iterator[tuple[str, SignAnnotation]]:
    """Yield the video id and the annotation of each sign of one demo video."""
    edges = [*record["sign_starts"], record["ends"][-1]]
    units = list(zip(record["starts"], record["units"], strict=True))
    for sign, (start, end) in zip(record["signs"], pairwise(edges), strict=True):
        parts = frozenset(str(unit) for unit_start, unit in units if start <= unit_start < end)
        yield record["id"], SignAnnotation(sign=sign, start=start, end=end, parts=parts)
