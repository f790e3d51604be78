"""Reading tables as pandas, Excel, editors and dataset publishers write them.

A table has a line with the names of its columns, and one row per sample, sentence or sign. Cells are
separated by tabs, commas, semicolons or bars, which the first line decides; a ``.jsonl`` file has one object
per line. Column names may be in upper or lower case and surrounded by spaces.

The meaning of a quote is decided for each cell, because two kinds of files exist. pandas and Excel put a cell
into quotes and double the quotes inside. How2Sign, OpenASL and PHOENIX-2014T never quote, so a ``"`` is part
of the sentence.

- A cell is quoted if it starts with ``"`` and its closing quote is directly before a separator or the end of
  the line. With tabs or bars it must also contain something that requires quotes: a separator, a doubled
  quote, the end of a line, or a comma if no unquoted cell of the file has one; or all column names must be
  quoted.
- A quoted cell may contain several lines, unless these lines are rows themselves. A missing quote therefore
  never hides
  rows.
- Every other ``"`` is a character of the cell. Only at the start of a cell between commas or semicolons it is
  an error,
  and the row is reported with its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signllm.data.text_files import LINE_END, DecodedText, is_undecodable, parse_json, read_text
from signllm.errors import UsageError

DELIMITERS = ("\t", ",", ";", "|")
JSON_LINES = ".jsonl"
UNEVEN = "has another number of fields than the header"
_MISSING = frozenset({"nan", "<na>"})
"""Texts that pandas writes for a missing value that was converted to text."""
_MOST_LINES = 1000
"""Most lines of a quoted cell; beyond them the quote counts as never closed."""
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=.\"?[,;\t|]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""Matches the first line with which Excel states the separator."""
_FILLED_LINE = re.compile(r"[^\r\n]*[^\s][^\r\n]*")
_NAME = re.compile(r"\s*(?=\S*[\d/._-])\S+\s*\Z")
"""Matches a cell that resembles an id or a file name: one word with a digit, a dot or a similar character."""
_LITERAL = {delimiter: re.compile(f"[^{re.escape(delimiter)}\r\n]*") for delimiter in DELIMITERS}
_QUOTED = {
    delimiter: re.compile(f'{spaces}"([^"]*(?:""[^"]*)*)"{spaces}(?=[{re.escape(delimiter)}\r\n]|\\Z)')
    for delimiter, spaces in zip(DELIMITERS, ("", " *", " *", ""), strict=True)
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        line: number of the row's first line, from 1.
        cells: text of each cell, by the name of its column in lower case.
        problem: reason why the row cannot be used, with its line; "" for a valid row.
    """

    line: int
    cells: Mapping[str, str]
    problem: str = ""

    def __getitem__(self, column: str) -> str:
        """Return the text of a cell, "" if the table has no such column."""
        return self.cells.get(column.casefold(), "")

    def text(self, column: str) -> str:
        """Return the text of a cell without outer spaces, "" also for a missing value of pandas."""
        cell = self[column].strip()
        return "" if cell.casefold() in _MISSING else cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """The contents of a table.

    Attributes:
        path: path of the file.
        columns: names of the columns as the file has them.
        rows: rows in order, without empty rows.
        notices: sentences about the file for the user.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notices: tuple[str, ...] = ()

    def has(self, column: str) -> bool:
        """Return whether the table has a column of this name."""
        return column.casefold() in map(normalize_column, self.columns)


def normalize_column(name: str) -> str:
    """Return the name of a column in lower case without surrounding and repeated spaces."""
    return " ".join(name.split()).casefold()


def read_table(path: Path, needed: Collection[str], *, known: Collection[str] = (), remedy: str) -> Table:
    """Read a table that must have certain columns.

    Args:
        path: path of the file.
        needed: names of the required columns.
        known: names of optional columns.
        remedy: advice to the user if a column is missing.

    Raises:
        OSError: the file cannot be read.
        UsageError: a column is missing or occurs twice, no line is a row, or the encoding is unknown.
    """
    table = parse_table(read_text(path), path, known={*needed, *known})
    keys = [normalize_column(name) for name in table.columns]
    if missing := [name for name in needed if name.casefold() not in keys]:
        raise UsageError(
            f"columns are missing: {', '.join(missing)}; the table has: {', '.join(table.columns) or 'none'}",
            where=path,
            remedy=remedy,
        )
    if twice := sorted(name for name in {*needed, *known} if keys.count(name.casefold()) > 1):
        raise UsageError(
            f"two columns have the name {twice[0]}", where=path, remedy="give one of them another name"
        )
    return table


def parse_table(decoded: DecodedText, path: Path, *, known: Collection[str]) -> Table:
    """Return the table in a decoded text.

    Args:
        decoded: text of the file.
        path: path of the file, whose suffix distinguishes JSON lines from other tables.
        known: names of columns, by which the separator is recognised.

    Raises:
        UsageError: no line of a file of JSON lines is an object.
    """
    notices = (f"{path.name}: {decoded.notice}",) if decoded.notice else ()
    if path.suffix.lower() == JSON_LINES:
        columns, rows = _read_json_rows(decoded, path)
    else:
        columns, rows = _read_separated_rows(decoded.text, {name.casefold() for name in known})
    return Table(path=path, columns=columns, rows=rows, notices=notices)


def read_header(text: str, known: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Return the separator of the first line of a text, and the fields of that line.

    It is the separator that gives the most ``known`` column names, then the one that gives the most fields.
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
    """Return the first line of a text that is not empty."""
    line = _FILLED_LINE.search(text)
    return line[0] if line else ""


def _split_line(line: str, delimiter: str, *, quote_all: bool = True) -> list[str]:
    """Return the cells of a single line."""
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
    while len(cells) > len(keys) and not cells[-1].strip():  # Excel adds separators at the end of a line
        cells = cells[:-1]
    if any(map(is_undecodable, cells)):
        problem = "is not UTF-8"
    elif record.has_open_quote:
        problem = "has a cell with a quote that is neither closed nor doubled"
    elif len(cells) != len(keys):
        problem = UNEVEN
    named = dict(zip(keys, cells, strict=False))
    return Row(line=record.line, cells=named, problem=f"line {record.line} {problem}" if problem else "")


class _Parser:
    """Splits a text into records of cells by the rules in the module's docstring.

    Args:
        text: the text.
        delimiter: separator of the cells.
        width: number of columns.
        quote_all: whether all column names are quoted.
        quotes_commas: whether the writer of the file quotes cells with commas.
    """

    def __init__(
        self, text: str, delimiter: str, *, width: int, quote_all: bool, quotes_commas: bool = False
    ) -> None:
        self.text, self.delimiter, self.width = text, delimiter, width
        self.quote_all, self.quotes_commas = quote_all, quotes_commas
        self.is_strict = delimiter in ",;"
        self.has_doubtful_cells = self.has_unquoted_commas = False

    def records(self, line: int) -> Iterator[_Record]:
        """Yield the records that are not empty; ``line`` is the number of the first line."""
        place = 0
        while place < len(self.text):
            record, place, lines = self.record(place, line)
            line += lines
            if any(cell.strip() for cell in record.cells):
                yield record

    def record(self, start: int, line: int) -> tuple[_Record, int, int]:
        """Return the record at position ``start``, the position of the next, and its number of lines."""
        record, place, lines = _Record(line), start, 1
        while True:
            cell, end = self._cell(record, start, place)
            lines += len(LINE_END.findall(cell))
            if end < len(self.text) and self.text[end] == self.delimiter:
                place = end + 1
                continue
            literal = self.text[start:end].split(self.delimiter)
            if not self.is_strict and lines == 1 and len(record.cells) != self.width == len(literal):
                record.cells = literal  # the two quotes belong to different cells
            line_end = LINE_END.match(self.text, end)
            return record, line_end.end() if line_end else len(self.text), lines

    def _cell(self, record: _Record, start: int, place: int) -> tuple[str, int]:
        """Append the cell at ``place`` to the record from ``start``; return its text and its end."""
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
        """Return whether a cell in quotes is a quoted cell, by its content without the quotes."""
        if (
            self.is_strict
            or self.quote_all
            or any(character in content for character in (self.delimiter, '"', "\r", "\n"))
        ):
            return True
        self.has_doubtful_cells |= "," in content
        return self.quotes_commas and "," in content

    def _may_span(self, start: int, quoted: re.Match[str]) -> bool:
        """Return whether a quoted cell has one line, or has lines that are not rows of the table."""
        if self.width < 2 or LINE_END.search(quoted[1]) is None:
            return True
        last = LINE_END.search(self.text, quoted.end())
        lines = LINE_END.split(self.text[start : last.start() if last else len(self.text)])
        if len(lines) > _MOST_LINES:
            return False
        filled = [line for line in lines if line.strip()]
        first, *following = [self._is_row(line) for line in filled]
        if (
            self.is_strict and len(filled) == 2
        ):  # for example, ``1,"Hello`` and ``my friend, you"`` are one row
            following = [following[0] and _NAME.match(filled[1].split(self.delimiter)[0]) is not None]
        return not (first and following and sum(following) * 2 >= len(following))

    def _is_row(self, line: str) -> bool:
        """Return whether a single line has as many cells as the table has columns."""
        if self.quote_all and not all(cell.startswith('"') for cell in line.split(self.delimiter)):
            return False
        return len(_split_line(line, self.delimiter, quote_all=self.quote_all)) == self.width


def _read_json_rows(decoded: DecodedText, path: Path) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Return the columns and the rows of a file of JSON lines."""
    numbered = [(number, line) for number, line in enumerate(decoded.lines, start=1) if line.strip()]
    rows = tuple(_read_json_row(line, number) for number, line in numbered)
    if rows and all(row.problem for row in rows):
        raise UsageError(rows[0].problem, where=path, remedy="give one JSON object per line")
    columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    return columns, rows


def _read_json_row(line: str, number: int) -> Row:
    """Return the row of one JSON line."""
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
    """Return a JSON value as the text of a cell."""
    return "" if value is None else value if isinstance(value, str) else str(value)
