"""Tables as pandas, Excel, editors and dataset publishers write them: one reader for all.

A table has a line that names its columns, and one row per clip, sentence or sign. Cells are separated by
tabs, commas, semicolons or bars, as the first line says; a ``.jsonl`` file has an object per line. Names of
columns may be in upper or lower case, with spaces around them.

What a quote means is decided cell by cell, because files of both kinds exist: pandas and Excel put a cell
into quotes and double those inside, while How2Sign, OpenASL and PHOENIX-2014T never quote, and a ``"`` is
part of the sentence.

- A cell is quoted if it begins with ``"`` and its closing quote stands directly before a separator or the end
  of the line. Between tabs or bars it must also hold what a writer of quotes would quote: a separator, a
  doubled quote, the end of a line, or a comma where no unquoted cell of the file has one; or all names of
  columns are quoted.
- A quoted cell may span lines, unless these lines are rows themselves. So a lost quote never swallows rows.
- Every other ``"`` is a character of the cell. Only at the beginning of a cell between commas or semicolons
  it is an error, and the row is reported by its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signllm.data.shard_json import parse_json
from signllm.data.text_files import LINE_END, DecodedText, is_undecodable, read_text
from signllm.errors import UsageError

DELIMITERS = ("\t", ",", ";", "|")
JSON_LINES = ".jsonl"
UNEVEN = "has another number of fields than the header"
_MISSING = frozenset({"nan", "<na>"})
"""How pandas writes a missing value that was turned into text."""
_MOST_LINES = 1000
"""A cell that spans more lines than this is a quote that was never closed."""
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=.\"?[,;\t|]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""Excel's own first line, which names the separator."""
_FILLED_LINE = re.compile(r"[^\r\n]*[^\s][^\r\n]*")
_NAME = re.compile(r"\s*(?=\S*[\d/._-])\S+\s*\Z")
"""A cell that is like an id or a file: one word with a digit, a dot or the like."""
_LITERAL = {delimiter: re.compile(f"[^{re.escape(delimiter)}\r\n]*") for delimiter in DELIMITERS}
_QUOTED = {
    delimiter: re.compile(f'{spaces}"([^"]*(?:""[^"]*)*)"{spaces}(?=[{re.escape(delimiter)}\r\n]|\\Z)')
    for delimiter, spaces in zip(DELIMITERS, ("", " *", " *", ""), strict=True)
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        line: number of its first line, from 1.
        cells: text by the name of the column in lower case.
        problem: why the row cannot be used, with its line; "" for a good one.
    """

    line: int
    cells: Mapping[str, str]
    problem: str = ""

    def __getitem__(self, column: str) -> str:
        """Return a cell, "" where the table has no such column."""
        return self.cells.get(column.casefold(), "")

    def text(self, column: str) -> str:
        """Return a cell without outer spaces, "" also for what pandas writes for a missing value."""
        cell = self[column].strip()
        return "" if cell.casefold() in _MISSING else cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that was read.

    Attributes:
        path: the file.
        columns: names of the columns as they are written.
        rows: the rows in order, without empty ones.
        notices: what the user should know about the file.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notices: tuple[str, ...] = ()

    def has(self, column: str) -> bool:
        """Return whether there is a column of this name."""
        return column.casefold() in map(normalize_column, self.columns)


def normalize_column(name: str) -> str:
    """Return the name of a column without what may differ: spaces around it, its case."""
    return " ".join(name.split()).casefold()


def read_table(path: Path, needed: Collection[str], *, known: Collection[str] = (), remedy: str) -> Table:
    """Read a table that must have certain columns.

    Args:
        path: the file.
        needed: columns that must be there.
        known: further columns that are used where they are there.
        remedy: what to do about a missing column.

    Raises:
        OSError: the file cannot be read.
        UsageError: a column is missing or there twice, no line is a row, or the encoding is unknown.
    """
    table = parse_table(read_text(path), path, known={*needed, *known})
    keys = [normalize_column(name) for name in table.columns]
    if missing := [name for name in needed if name.casefold() not in keys]:
        raise UsageError(
            f"columns missing: {', '.join(missing)}; found: {', '.join(table.columns) or 'none'}",
            where=path,
            remedy=remedy,
        )
    if twice := sorted(name for name in {*needed, *known} if keys.count(name.casefold()) > 1):
        raise UsageError(
            f"two columns have the name {twice[0]}", where=path, remedy="give one of them another name"
        )
    return table


def parse_table(decoded: DecodedText, path: Path, *, known: Collection[str]) -> Table:
    """Return the table that a text holds; ``known`` names of columns tell how its first line is separated.

    Raises:
        UsageError: a file of JSON lines of which no line is an object.
    """
    notices = (f"{path.name}: {decoded.notice}",) if decoded.notice else ()
    if path.suffix.lower() == JSON_LINES:
        columns, rows = _read_json_rows(decoded, path)
    else:
        columns, rows = _read_separated_rows(decoded.text, {name.casefold() for name in known})
    return Table(path=path, columns=columns, rows=rows, notices=notices)


def read_header(text: str, known: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return the separator of a text's first line and the fields of that line.

    Of several separators it is the one by which most ``known`` names of columns appear, then the one of most
    fields.
    """
    names = {name.casefold() for name in known}
    line = _first_line(text)
    return max(
        (
            (delimiter, tuple(cell.strip() for cell in _split_line(line, delimiter)))
            for delimiter in DELIMITERS
        ),
        key=lambda header: (len(names & {normalize_column(name) for name in header[1]}), len(header[1])),
    )


def _first_line(text: str) -> str:
    line = _FILLED_LINE.search(text)
    return line[0] if line else ""


def _split_line(line: str, delimiter: str, *, quote_all: bool = True) -> list[str]:
    """Return the cells of a line that is taken alone."""
    return _Parser(line, delimiter, width=0, quote_all=quote_all).record(0, 1)[0].cells


def _read_separated_rows(text: str, known: set[str]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    first_line, skipped = 1, _SEPARATOR_LINE.match(text)
    if skipped:
        first_line, text = 2, text[skipped.end() :]
    delimiter, columns = read_header(text, known)
    while columns and not columns[-1]:
        columns = columns[:-1]
    if not columns:
        return (), ()
    quote_all = all(cell.strip().startswith('"') for cell in _first_line(text).split(delimiter))
    parser = _Parser(text, delimiter, width=len(columns), quote_all=quote_all)
    records = list(parser.records(first_line))
    if parser.has_doubtful_cells and not parser.has_unquoted_commas:
        parser = _Parser(text, delimiter, width=len(columns), quote_all=quote_all, quotes_commas=True)
        records = list(parser.records(first_line))
    keys = [normalize_column(name) for name in columns]
    return columns, tuple(_make_row(record, keys) for record in records[1:])


@dataclass
class _Record:
    line: int
    cells: list[str] = field(default_factory=list)
    has_open_quote: bool = False


def _make_row(record: _Record, keys: list[str]) -> Row:
    cells, problem = record.cells, ""
    while len(cells) > len(keys) and not cells[-1].strip():  # separators that Excel leaves at the end
        cells = cells[:-1]
    if any(map(is_undecodable, cells)):
        problem = "is not UTF-8"
    elif record.has_open_quote:
        problem = "has a cell with a quote that is not closed, or not doubled"
    elif len(cells) != len(keys):
        problem = UNEVEN
    named = dict(zip(keys, cells, strict=False))
    return Row(line=record.line, cells=named, problem=f"line {record.line} {problem}" if problem else "")


class _Parser:
    """Cuts a text into records of cells; the rules are those at the head of the module."""

    def __init__(
        self, text: str, delimiter: str, *, width: int, quote_all: bool, quotes_commas: bool = False
    ) -> None:
        self.text, self.delimiter, self.width = text, delimiter, width
        self.quote_all, self.quotes_commas = quote_all, quotes_commas
        self.is_strict = delimiter in ",;"
        self.has_doubtful_cells = self.has_unquoted_commas = False

    def records(self, line: int) -> Iterator[_Record]:
        """Yield the records that are not empty; the text begins with the line of this number."""
        place = 0
        while place < len(self.text):
            record, place, lines = self.record(place, line)
            line += lines
            if any(cell.strip() for cell in record.cells):
                yield record

    def record(self, start: int, line: int) -> tuple[_Record, int, int]:
        """Return the record that begins at ``start``, where the next one begins, and the lines it spans."""
        record, place, lines = _Record(line), start, 1
        while True:
            cell, end = self._cell(record, start, place)
            lines += len(LINE_END.findall(cell))
            if end < len(self.text) and self.text[end] == self.delimiter:
                place = end + 1
                continue
            literal = self.text[start:end].split(self.delimiter)
            if not self.is_strict and lines == 1 and len(record.cells) != self.width == len(literal):
                record.cells = literal  # two quotes that belong to different cells
            line_end = LINE_END.match(self.text, end)
            return record, line_end.end() if line_end else len(self.text), lines

    def _cell(self, record: _Record, start: int, place: int) -> tuple[str, int]:
        """Add the cell at ``place`` to the record that begins at ``start``; return it and where it ends."""
        quoted = _QUOTED[self.delimiter].match(self.text, place)
        if quoted and self._is_quoted(quoted[1]) and self._may_span(start, quoted):
            cell, end = quoted[1].replace('""', '"'), quoted.end()
            record.cells.append(cell)
            return quoted[1], end
        literal = _LITERAL[self.delimiter].match(self.text, place)
        assert literal is not None  # it matches the empty text
        cell = literal[0]
        record.has_open_quote |= self.is_strict and cell.lstrip(" ").startswith('"')
        self.has_unquoted_commas |= "," in cell and not quoted
        record.cells.append(cell)
        return cell, literal.end()

    def _is_quoted(self, content: str) -> bool:
        if (
            self.is_strict
            or self.quote_all
            or any(one in content for one in (self.delimiter, '"', "\r", "\n"))
        ):
            return True
        self.has_doubtful_cells |= "," in content
        return self.quotes_commas and "," in content

    def _may_span(self, start: int, quoted: re.Match[str]) -> bool:
        """Return whether a quoted cell is one line, or its lines are no rows of the table themselves."""
        if self.width < 2 or LINE_END.search(quoted[1]) is None:
            return True
        last = LINE_END.search(self.text, quoted.end())
        lines = LINE_END.split(self.text[start : last.start() if last else len(self.text)])
        if len(lines) > _MOST_LINES:
            return False
        filled = [line for line in lines if line.strip()]
        first, *following = [self._is_row(line) for line in filled]
        if self.is_strict and len(filled) == 2:  # ``1,"Hello`` and ``my friend, you"`` are one row
            following = [following[0] and _NAME.match(filled[1].split(self.delimiter)[0]) is not None]
        return not (first and following and sum(following) * 2 >= len(following))

    def _is_row(self, line: str) -> bool:
        """Return whether a line that is taken alone has as many cells as the table has columns."""
        if self.quote_all and not all(cell.startswith('"') for cell in line.split(self.delimiter)):
            return False
        return len(_split_line(line, self.delimiter, quote_all=self.quote_all)) == self.width


def _read_json_rows(decoded: DecodedText, path: Path) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    numbered = [(number, line) for number, line in enumerate(decoded.lines, start=1) if line.strip()]
    rows = tuple(_read_json_row(line, number) for number, line in numbered)
    if rows and all(row.problem for row in rows):
        raise UsageError(rows[0].problem, where=path, remedy="give one JSON object per line")
    columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    return columns, rows


def _read_json_row(line: str, number: int) -> Row:
    if is_undecodable(line):
        return Row(line=number, cells={}, problem=f"line {number} is not UTF-8")
    try:
        record = parse_json(line)
    except ValueError as error:
        return Row(line=number, cells={}, problem=f"line {number} is not JSON: {error}")
    if not isinstance(record, dict):
        return Row(line=number, cells={}, problem=f"line {number} is not a JSON object")
    return Row(line=number, cells={normalize_column(name): _to_text(value) for name, value in record.items()})


def _to_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)
