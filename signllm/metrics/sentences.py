"""Files of sentences: plain lines, or sentences with ids, which are paired by id in any order.

    plain      one sentence per line
    id|text    one pair per line; in a ``.tsv`` file, id and text are separated by a tab
    table      ``.csv``, ``.tsv`` or any text whose first line names a column of ids and one of texts, such as
               the csv files of PHOENIX-2014T and How2Sign; without a column of ids, its rows are plain
               sentences
    .jsonl     one object per line with an id and a text, like the ``hypotheses.S.jsonl`` of a run

Tables and encodings are read as in all of SignLLM (:mod:`signllm.data.tables`). A shifted line or a missing
id would give a plausible but wrong score. Therefore nothing is guessed or left out: either both files have
ids or neither, the ids must match one to one, and a row that cannot be read is an error. Ids are compared in
Unicode normal form C, because macOS writes file names in another form.
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
"""Names of columns of ids; the first one that a table has is used."""
TEXTS = ("text", "translation", "sentence", "raw-text", "transcript", "transcription", "char")
"""Names of columns of sentences, used if no column has a name of :data:`SIDES`."""
SIDES: dict[Side, tuple[str, ...]] = {
    "hypothesis": ("hypothesis", "hypotheses", "hyp", "prediction", "predictions", "pred", "output"),
    "reference": ("reference", "references", "ref", "target", "gold", "ground_truth", "label"),
}
"""Names of columns of hypotheses and of references."""
_ID_AND_TEXT = re.compile(r"^\s*[^\s|]+\s*\|")
_IDS_IN_MESSAGES = 5
_log = logging.getLogger(__name__)


def read_pairs_with_ids(hypotheses: Path, references: Path) -> tuple[list[str], list[str], list[str]]:
    """Read two files; return ids (or line numbers), hypotheses and references in the order of the references.

    Raises:
        UsageError: A file is missing, empty or in an unknown encoding, only one file has ids, or the ids or
            the numbers of lines differ.
    """
    hypothesis_texts, reference_texts = (
        read_sentences(hypotheses, "hypothesis"),
        read_sentences(references, "reference"),
    )
    if isinstance(hypothesis_texts, dict) != isinstance(reference_texts, dict):
        keyed, plain = (
            (hypotheses, references) if isinstance(hypothesis_texts, dict) else (references, hypotheses)
        )
        raise UsageError(
            "one file has ids, and the other has plain lines",
            where=f"{keyed} has ids, {plain} has none",
            remedy="give both files ids, or neither",
        )
    if isinstance(hypothesis_texts, dict) and isinstance(reference_texts, dict):
        _check_ids(hypothesis_texts, reference_texts, hypotheses, references)
        return (
            list(reference_texts),
            [hypothesis_texts[name] for name in reference_texts],
            list(reference_texts.values()),
        )
    if len(hypothesis_texts) != len(reference_texts):
        raise UsageError(
            f"{len(hypothesis_texts)} hypotheses but {len(reference_texts)} references",
            where=f"{hypotheses}, {references}",
            remedy="give one line per sentence in both files (an empty line is an empty hypothesis)",
        )
    return (
        [str(number) for number in range(1, len(reference_texts) + 1)],
        list(hypothesis_texts),
        list(reference_texts),
    )


def read_sentences(path: Path, side: Side) -> list[str] | dict[str, str]:
    """Read the sentences of a file: a list in order, or a dictionary by id if the file has ids.

    Args:
        path: the file; its format follows from the suffix ``.jsonl``, ``.tsv`` or ``.csv``, otherwise from
            its first line.
        side: whether hypotheses or references are read, for files that contain both.

    Raises:
        UsageError: The file is missing, empty or in an unknown encoding, an id occurs twice, a line has
            another format than the others, or it is not clear which columns are meant.
    """
    decoded = _read_decoded(path)
    suffix = path.suffix.lower()
    known = {*IDS, *TEXTS, *SIDES["hypothesis"], *SIDES["reference"]}
    if suffix == JSON_LINES:
        return _sentences_of_records(parse_table(decoded, path, known=known), side)
    delimiter, header = read_header(decoded.text, known)
    keys = [normalize_column(name) for name in header]
    ids, texts = _columns(keys, side)
    if texts and (ids or suffix in (".csv", ".tsv")):
        return _sentences_of_table(parse_table(decoded, path, known=known), ids, texts, side)
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
            remedy=f"name the columns id and {side}, or remove the line",
        )
    first = next(line for line in decoded.lines if line.strip())
    if suffix != ".tsv" and _ID_AND_TEXT.match(first) is None:
        return decoded.lines
    separator = "\t" if suffix == ".tsv" else "|"
    return _index_by_id(
        [_split_pair(line, separator, number, path) for number, line in _number_lines(decoded.lines)], path
    )


def _read_decoded(path: Path) -> DecodedText:
    """Return the text of a file, which must contain a sentence; a notice about its encoding is logged."""
    try:
        decoded = read_text(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the file: {error.strerror}", where=path, remedy="check the path"
        ) from error
    if not decoded.text.strip():
        raise UsageError(
            "the file contains no sentence", where=path, remedy="give one sentence, or id|text, per line"
        )
    for number, line in enumerate(decoded.lines, start=1):
        if is_undecodable(line):
            raise UsageError(
                "the line is not UTF-8", where=f"{path}, line {number}", remedy="repair the line"
            )
    if decoded.notice:
        _log.warning("%s: %s", path, decoded.notice)
    return decoded


def _columns(keys: Sequence[str], side: Side) -> tuple[str | None, list[str]]:
    """Return the column of ids or None, and the columns that may contain the sentences."""
    own = [name for name in SIDES[side] if name in keys]
    texts = own or [name for name in TEXTS if name in keys]
    return next((name for name in IDS if name in keys and name not in texts), None), texts


def _sentences_of_table(
    table: Table, ids: str | None, texts: Sequence[str], side: Side
) -> list[str] | dict[str, str]:
    """Return the sentences of a table, by id if it has a column of ids."""
    keys = [normalize_column(name) for name in table.columns]
    if len(texts) > 1 or keys.count(texts[0]) > 1:
        raise UsageError(
            f"several columns may contain the sentences: {', '.join(name for name in keys if name in texts)}",
            where=table.path,
            remedy=f"rename the one that is meant to {side}",
        )
    for row in table.rows:
        if row.problem:
            number, problem = str(row.line), row.problem.removeprefix(f"line {row.line} ")
            raise UsageError(
                f"a row {problem}", where=f"{table.path}, line {number}", remedy="repair the line"
            )
    others = [name for name in keys if name not in (ids, *texts, "", "unnamed: 0")]
    if ids is None and others:
        raise UsageError(
            f"there is no column of ids among {', '.join(table.columns)}",
            where=table.path,
            remedy="rename it to id; a table without ids may only have the column of sentences",
        )
    if ids is None:
        return [row[texts[0]].strip() for row in table.rows]
    return _index_by_id([(row[ids].strip(), row[texts[0]], row.line) for row in table.rows], table.path)


def _sentences_of_records(table: Table, side: Side) -> dict[str, str]:
    """Return the sentences of JSON lines by id; every line must have an id and a text."""
    records: list[IdentifiedText] = []
    for row in table.rows:
        ids, texts = _columns(list(row.cells), side)
        if row.problem or ids is None or not texts:
            raise UsageError(
                f"this is no JSON object with an id and a {side}",
                where=f"{table.path}, line {row.line}",
                remedy=f'give lines like {{"id": "a", "{side}": "es regnet"}} (the key may also be `text`)',
            )
        records.append((row[ids], row[texts[0]], row.line))
    return _index_by_id(records, table.path)


def _number_lines(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """Yield the number and the text of each line that is not empty."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


IdentifiedText = tuple[str, str, int]
"""An id, its text, and the number of its line."""


def _index_by_id(records: Iterable[IdentifiedText], path: Path) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for name, text, number in records:
        name = unicodedata.normalize("NFC", name)
        if name in sentences:
            raise UsageError(
                f"the id {name!r} occurs twice", where=f"{path}, line {number}", remedy="keep one of them"
            )
        sentences[name] = text.strip()
    return sentences


def _split_pair(line: str, delimiter: str, number: int, path: Path) -> IdentifiedText:
    fields = line.split(delimiter)
    if len(fields) != 2:
        raise UsageError(
            f"{len(fields)} fields where {'id<TAB>text' if delimiter != '|' else 'id|text'} has 2",
            where=f"{path}, line {number}",
            remedy="keep only id and text, or begin with a line that names the columns, `id` and `text`",
        )
    return fields[0].strip(), fields[1], number


def _check_ids(
    hypothesis_ids: Iterable[str], reference_ids: Iterable[str], hypotheses: Path, references: Path
) -> None:
    """Raise a ``UsageError`` if only one of the files has some ids."""
    missing, extra = set(reference_ids) - set(hypothesis_ids), set(hypothesis_ids) - set(reference_ids)
    if missing:
        raise UsageError(
            f"{len(missing)} ids have no hypothesis: {_first_ids(missing)}",
            where=hypotheses,
            remedy=f"translate them too, or remove them from {references}",
        )
    if extra:
        raise UsageError(
            f"{len(extra)} ids have no reference: {_first_ids(extra)}",
            where=hypotheses,
            remedy=f"remove them, or add them to {references}",
        )


def _first_ids(ids: set[str]) -> str:
    """Return the first few ids as text."""
    text = ", ".join(sorted(ids)[:_IDS_IN_MESSAGES])
    return f"{text}, ..." if len(ids) > _IDS_IN_MESSAGES else text
