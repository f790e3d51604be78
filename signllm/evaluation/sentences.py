"""Files of sentences: plain lines, or with ids, and then paired by id whatever their order.

    plain      one sentence per line
    id|text    one per line; in a ``.tsv`` id and text are separated by a tab
    table      ``.csv``, ``.tsv`` or any text whose first line names a column of ids and one of texts, such as
               PHOENIX-2014T's csv and How2Sign's; without a column of ids its rows are plain sentences
    .jsonl     an object per line with an id and a text, like the ``hypotheses.S.jsonl`` of a run

Tables and encodings are read as everywhere (:mod:`signllm.data.tables`). A shifted line or a lost id gives a
plausible, wrong score. So nothing is guessed or left out: both files have ids or neither has, ids must match
one to one, and a row that cannot be read is an error. Ids are compared in Unicode's normal form C, because a
Mac writes the names of files otherwise.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from signllm.data.tables import JSON_LINES, Table, normalize_column, parse_table, read_header
from signllm.data.text_files import DecodedText, is_undecodable, read_text
from signllm.errors import UsageError

Side = Literal["hypothesis", "reference"]
IDS = ("id", "name", "sentence_name", "vid", "video_id", "sample_id", "clip_id", "key", "uid")
"""Columns of ids; the first that a table has is taken."""
TEXTS = ("text", "translation", "sentence", "raw-text", "transcript", "transcription", "char")
"""Columns that hold a sentence, where none is called as its side is."""
SIDES: dict[Side, tuple[str, ...]] = {
    "hypothesis": ("hypothesis", "hypotheses", "hyp", "prediction", "predictions", "pred", "output"),
    "reference": ("reference", "references", "ref", "target", "gold", "ground_truth", "label"),
}
_KEYED = re.compile(r"^\s*[^\s|]+\s*\|")
_SHOWN = 5
_log = logging.getLogger(__name__)


def paired(hypotheses: Path, references: Path) -> tuple[list[str], list[str]]:
    """Read two files and return their sentences in the order of the references.

    Raises:
        UsageError: a file is missing, empty or of an unknown encoding; only one has ids; ids or line counts
            differ.
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
        path: the file; ``.jsonl``, ``.tsv`` and ``.csv`` say what is in it, else its first line does.
        side: which of a record's texts is meant, where it has both.

    Raises:
        UsageError: it is missing, empty or of an unknown encoding, an id stands twice, a line is not like
            the others, or it is not clear which columns are meant.
    """
    decoded = _decoded(path)
    suffix = path.suffix.lower()
    known = {*IDS, *TEXTS, *SIDES["hypothesis"], *SIDES["reference"]}
    if suffix == JSON_LINES:
        return _of_records(parse_table(decoded, path, known=known), side)
    delimiter, header = read_header(decoded.text, known)
    keys = [normalize_column(name) for name in header]
    ids, texts = _columns(keys, side)
    if texts and (ids or suffix in (".csv", ".tsv")):
        return _of_table(parse_table(decoded, path, known=known), ids, texts, side)
    if suffix == ".csv" and delimiter != "|":
        raise UsageError(
            f"the first line names no column of sentences: {', '.join(header)}",
            where=path,
            remedy=f"name the columns id and {side} in the first line, or call a file of plain lines .txt",
        )
    if len(keys) == 2 and (keys[0] in IDS or texts):
        raise UsageError(
            f"it is not clear whether the first line names columns: {', '.join(header)}",
            where=path,
            remedy=f"call the columns id and {side}, or take the line out",
        )
    first = next(line for line in decoded.lines if line.strip())
    if suffix != ".tsv" and _KEYED.match(first) is None:
        return decoded.lines
    separator = "\t" if suffix == ".tsv" else "|"
    return _by_id([_pair(line, separator, number, path) for number, line in _filled(decoded.lines)], path)


def _decoded(path: Path) -> DecodedText:
    """Return the content of a file that holds a sentence; a notice about its encoding is logged."""
    try:
        decoded = read_text(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the file: {error.strerror}", where=path, remedy="check the path"
        ) from error
    if not decoded.text.strip():
        raise UsageError(
            "the file holds no sentence", where=path, remedy="give one sentence, or id|text, per line"
        )
    for number, line in enumerate(decoded.lines, start=1):
        if is_undecodable(line):
            raise UsageError("not UTF-8", where=f"{path}, line {number}", remedy="repair the line")
    if decoded.notice:
        _log.warning("%s: %s", path, decoded.notice)
    return decoded


def _columns(keys: Sequence[str], side: Side) -> tuple[str | None, list[str]]:
    """Return the column of ids, None without one, and the columns that may be meant as sentences."""
    own = [name for name in SIDES[side] if name in keys]
    texts = own or [name for name in TEXTS if name in keys]
    return next((name for name in IDS if name in keys and name not in texts), None), texts


def _of_table(table: Table, ids: str | None, texts: Sequence[str], side: Side) -> list[str] | dict[str, str]:
    """Return the sentences of a table by its columns."""
    keys = [normalize_column(name) for name in table.columns]
    if len(texts) > 1 or keys.count(texts[0]) > 1:
        raise UsageError(
            f"several columns may hold the sentences: {', '.join(name for name in keys if name in texts)}",
            where=table.path,
            remedy=f"call the one that is meant {side}",
        )
    for row in table.rows:
        if row.problem:
            number, what = str(row.line), row.problem.removeprefix(f"line {row.line} ")
            raise UsageError(f"a row {what}", where=f"{table.path}, line {number}", remedy="repair the line")
    others = [name for name in keys if name not in (ids, *texts, "", "unnamed: 0")]
    if ids is None and others:
        raise UsageError(
            f"there is no column of ids among {', '.join(table.columns)}",
            where=table.path,
            remedy="call it id; a table without ids has no other column than its sentences",
        )
    if ids is None:
        return [row[texts[0]].strip() for row in table.rows]
    return _by_id([(row[ids].strip(), row[texts[0]], row.line) for row in table.rows], table.path)


def _of_records(table: Table, side: Side) -> dict[str, str]:
    """Return the sentences of JSON lines, each of which has an id and a text."""
    named: list[Named] = []
    for row in table.rows:
        ids, texts = _columns(list(row.cells), side)
        if row.problem or ids is None or not texts:
            raise UsageError(
                f"this is no JSON object with an id and a {side}",
                where=f"{table.path}, line {row.line}",
                remedy=f'give lines like {{"id": "a", "{side}": "es regnet"}} (`text` will do as well)',
            )
        named.append((row[ids], row[texts[0]], row.line))
    return _by_id(named, table.path)


def _filled(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """Return numbers and lines, without empty ones."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


Named = tuple[str, str, int]
"""An id, its text, the number of its line."""


def _by_id(records: Iterable[Named], path: Path) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for name, text, number in records:
        name = unicodedata.normalize("NFC", name)
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


def _check_ids(ours: Iterable[str], theirs: Iterable[str], hypotheses: Path, references: Path) -> None:
    """Refuse ids that only one of the files has."""
    missing, extra = set(theirs) - set(ours), set(ours) - set(theirs)
    if missing:
        raise UsageError(
            f"{len(missing)} ids have no hypothesis: {_first_ids(missing)}",
            where=hypotheses,
            remedy=f"translate them too, or take them out of {references}",
        )
    if extra:
        raise UsageError(
            f"{len(extra)} ids have no reference: {_first_ids(extra)}",
            where=hypotheses,
            remedy=f"take them out, or add them to {references}",
        )


def _first_ids(ids: set[str]) -> str:
    """Return the first few ids."""
    shown = ", ".join(sorted(ids)[:_SHOWN])
    return f"{shown}, ..." if len(ids) > _SHOWN else shown
