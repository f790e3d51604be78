"""Rows of the tables that the official releases ship: a header, a separator, never a quote."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

from signllm.data.annotations import LeftOut
from signllm.errors import UsageError

Row = dict[str, str | None]


def rows_of(
    table: Path, columns: Collection[str], *, delimiter: str, written: str
) -> Iterator[tuple[int, Row]]:
    """Yield the number of the line and its fields by column.

    Args:
        table: the file.
        columns: that must be there.
        delimiter: between fields.
        written: how the release writes the table, for the error.

    Raises:
        UsageError: columns are missing.
    """
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise UsageError(
                f"columns missing: {', '.join(sorted(missing))}; found: {', '.join(reader.fieldnames or ())}",
                where=table,
                remedy=f"use the file of the release as it is, {written}",
            )
        for row in reader:
            yield reader.line_num, row


def uneven(row: Row, line: int, *, id: str, split: str) -> LeftOut | None:
    """Return why a row with more or fewer fields than the header is left out; None for any other."""
    if None in row or None in row.values():
        return LeftOut(id=id, split=split, reason=f"line {line} has another number of fields than the header")
    return None
