"""Files of sentences: plain lines, or with ids, and then paired by id whatever their order.

    plain      one sentence per line
    id|text    one per line; or a table with a head that names its columns, like PHOENIX-2014T's csv
    .tsv       id and text between tabs, or a table with a head
    .jsonl     an object per line with an id and a text, like the ``hypotheses.S.jsonl`` of a run

A shifted line or a lost id gives a plausible, wrong score. So nothing is guessed or left out: both files have
ids or neither has, and ids must match one to one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from signllm.errors import UsageError

Side = Literal["hypothesis", "reference"]
IDS = ("id", "name")
TEXTS = ("text", "translation", "sentence")
"""Columns that hold a sentence, after the one that is called as its side is."""
_KEYED = re.compile(r"^\s*[^\s|]+\s*\|")
_SHOWN = 5


def paired(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    """Read two files and return their sentences in the order of the references.

    Raises:
        UsageError: a file is missing, empty or not UTF-8; only one has ids; ids or line counts differ.
    """
    _, ours, theirs = paired_with_ids(hypotheses, references)
    return ours, theirs


def paired_with_ids(hypotheses: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Like :func:`paired`, after the ids; without ids the numbers of the lines."""
    ours, theirs = read(hypotheses, "hypothesis"), read(references, "reference")
    if isinstance(ours, dict) != isinstance(theirs, dict):
        keyed, plain = (hypotheses, references) if isinstance(ours, dict) else (references, hypotheses)
        raise UsageError(
            "one file has ids, the other plain lines",
            where=f"{keyed} has ids, {plain} has not",
            remedy="give both files ids, or neither",
        )
    if isinstance(ours, dict) and isinstance(theirs, dict):
        _check_ids(ours, theirs, hypotheses, references)
        return list(theirs), [ours[name] for name in theirs], list(theirs.values())
    if len(ours) != len(theirs):
        raise UsageError(
            f"{len(ours)} hypotheses but {len(theirs)} references",
            where=f"{hypotheses}, {references}",
            remedy="give one line per sentence in both files (an empty line is an empty hypothesis)",
        )
    return [str(number) for number in range(1, len(theirs) + 1)], list(ours), list(theirs)


def read(path: Path, side: Side) -> list[str] | dict[str, str]:
    """Read the sentences of a file: in order, or by id where it has ids.

    Args:
        path: of it; ``.jsonl`` and ``.tsv`` say what is in it, else its first line does.
        side: which of a record's texts is meant, where it has both.

    Raises:
        UsageError: it is missing, empty, not UTF-8, an id stands twice, or a line is not like the others.
    """
    lines = _lines(path)
    if path.suffix == ".jsonl":
        return _by_id([_record(line, number, path, side) for number, line in _filled(lines)], path)
    first = next(line for line in lines if line.strip())
    delimiter = "\t" if path.suffix == ".tsv" else "|"
    if columns := _columns(first.split(delimiter), side):
        return _by_id(_rows(lines, delimiter, columns, path), path)
    if path.suffix != ".tsv" and _KEYED.match(first) is None:
        return lines
    return _by_id([_pair(line, delimiter, number, path) for number, line in _filled(lines)], path)


def _lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file; a line break at the end starts no further line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read the file: {error.strerror}", where=path, remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            "the file is not UTF-8 text", where=path, remedy="convert it: iconv -t UTF-8"
        ) from error
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if not any(line.strip() for line in lines):
        raise UsageError(
            "the file holds no sentence", where=path, remedy="give one sentence, or id|text, per line"
        )
    return lines


def _filled(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """Return numbers and lines, without empty ones."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


Named = tuple[str, str, int]
"""An id, its text, the number of its line."""


def _by_id(records: Iterable[Named], path: Path) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for name, text, number in records:
        if name in sentences:
            raise UsageError(
                f"the id {name!r} is there twice", where=f"{path}, line {number}", remedy="keep one of them"
            )
        sentences[name] = text.strip()
    return sentences


def _pair(line: str, delimiter: str, number: int, path: Path) -> Named:
    fields = line.split(delimiter)
    if len(fields) != 2:
        raise UsageError(
            f"{len(fields)} fields where {'id<TAB>text' if delimiter != '|' else 'id|text'} has 2",
            where=f"{path}, line {number}",
            remedy="keep id and text only, or begin with a line that names the columns, `id` and `text`",
        )
    return fields[0].strip(), fields[1], number


def _columns(head: Sequence[str], side: Side) -> tuple[int, int] | None:
    """Return the places of id and text in a table's head, None if the line is no head."""
    names = [name.strip().lower() for name in head]
    found = [next((names.index(n) for n in wanted if n in names), None) for wanted in (IDS, (side, *TEXTS))]
    return None if None in found else (found[0], found[1])  # type: ignore[return-value]


def _rows(lines: Sequence[str], delimiter: str, columns: tuple[int, int], path: Path) -> list[Named]:
    """Return the rows of a table under its head; quotes are text, as PHOENIX-2014T has them."""
    wanted = None
    rows = []
    for number, line in _filled(lines):
        (fields,) = csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE)
        wanted = wanted or len(fields)
        if len(fields) != wanted:
            raise UsageError(
                f"{len(fields)} fields where the head of the table has {wanted}",
                where=f"{path}, line {number}",
                remedy="repair the line",
            )
        rows.append((fields[columns[0]].strip(), fields[columns[1]], number))
    return rows[1:]


def _record(line: str, number: int, path: Path, side: Side) -> Named:
    try:
        record = json.loads(line)
        name = next(record[field] for field in IDS if field in record)
        text = next(record[field] for field in (side, *TEXTS) if field in record)
    except (ValueError, TypeError, StopIteration):
        raise UsageError(
            f"this is no JSON object with an id and a {side}",
            where=f"{path}, line {number}",
            remedy=f'give lines like {{"id": "a", "{side}": "es regnet"}} (`text` will do as well)',
        ) from None
    return str(name), str(text), number


def _check_ids(ours: Iterable[str], theirs: Iterable[str], hypotheses: Path, references: Path) -> None:
    """Refuse ids that only one of the files has."""
    missing, extra = set(theirs) - set(ours), set(ours) - set(theirs)
    if missing:
        raise UsageError(
            f"{len(missing)} ids have no hypothesis: {_some(missing)}",
            where=hypotheses,
            remedy=f"translate them too, or take them out of {references}",
        )
    if extra:
        raise UsageError(
            f"{len(extra)} ids have no reference: {_some(extra)}",
            where=hypotheses,
            remedy=f"take them out, or add them to {references}",
        )


def _some(ids: set[str]) -> str:
    """Return the first few ids."""
    shown = ", ".join(sorted(ids)[:_SHOWN])
    return f"{shown}, ..." if len(ids) > _SHOWN else shown
