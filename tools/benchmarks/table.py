"""Rows as a table: rich on a terminal, aligned columns in a file or pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.contender import Row

HEADERS = ("who", "best", "median", "runs", "x ours", "extra memory", "error", "note")
LEGEND = """\
x ours: its best time as a multiple of ours (above 1: ours is faster); >= where the time limit came before it
was as exact as ours. extra memory: peak, inputs not counted. bound: the work that nobody can leave out."""


def show(rows: Sequence[Row]) -> None:
    """Print one case: a title, a line per contender."""
    title = f"{rows[0].operator} {rows[0].case} (error: {rows[0].error_is})"
    cells = [_cells(row) for row in rows]
    if sys.stdout.isatty() and _with_rich(title, rows, cells):
        return
    widths = [max(map(len, column)) for column in zip(HEADERS, *cells, strict=True)]
    print(f"\n{title}")
    for line in (HEADERS, *cells):
        aligned = [
            text.ljust(width) if column in (0, len(HEADERS) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())
    sys.stdout.flush()


def _with_rich(title: str, rows: Sequence[Row], cells: list[tuple[str, ...]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        return False
    table = Table(title=title, title_justify="left")
    for column, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if column in (0, len(HEADERS) - 1) else "right")
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*line, style={"ours": "bold", "bound": "dim"}.get(row.role))
    Console().print(table)
    return True


def _cells(row: Row) -> tuple[str, ...]:
    who = f"{row.contender} (bound)" if row.role == "bound" else row.contender
    note = ", ".join(filter(None, ("" if row.status == "ok" else _status(row), row.note)))
    if row.best_s is None or row.median_s is None:
        return (who, "-", "-", "0", "-", "-", "-", row.status)
    ratio = "-" if row.times_ours is None else f"{'>= ' if row.status == 'limit' else ''}{row.times_ours:.2f}"
    memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.1f} MiB"
    error = "-" if row.error is None else f"{row.error:.1e}" if row.error else "0"
    return (who, _time(row.best_s), _time(row.median_s), str(row.runs), ratio, memory, error, note)


def _status(row: Row) -> str:
    return "less exact than ours at the time limit" if row.status == "limit" else row.status


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
