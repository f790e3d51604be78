"""The tables of a report: the summary of a demo, the scores of every split, times, and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signllm.metrics.scores import metric_titles
from signllm.reporting.run_folder import Record, finite

SYSTEMS = {
    "model": ("This model, from video", "unseen sentences"),
    "oracle": ("True signs instead of video", "the same LLM, with the signs as input"),
    "shuffled": ("Shuffled videos", "the same model, with each video replaced by another one"),
    "untrained": ("Untrained encoder", "the same stages, without the pretraining of VQ-Sign"),
}
ACCURACY = "content_word_accuracy"
COVERED = "covered"
SHARES = (ACCURACY, COVERED)
LONGEST_BAR = 72
"""Width of the longest bar in percent of its cell, which leaves space for the value."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: text, a note below it, and the width of a bar in percent of the cell."""

    text: str
    note: str = ""
    bar: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    cells: list[Cell]
    emphasized: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with at least one row; all rows have bars in the same columns."""

    head: list[str]
    rows: list[Row]


def demo_table(summary: Record) -> Table | None:
    """Return the table of a demo's model and its controls with bars of BLEU-4, None without scores."""
    systems = {"model": summary} | {name: value for name, value in summary.items() if isinstance(value, dict)}
    systems |= {
        name.removesuffix(".bleu4"): {"bleu4": value}
        for name, value in summary.items()
        if name.endswith(".bleu4") and name.removesuffix(".bleu4") not in systems
    }
    bleu4_of = {
        name: bleu4 for name, scores in systems.items() if (bleu4 := finite(scores.get("bleu4"))) is not None
    }
    if "model" not in bleu4_of:
        return None
    columns = {**metric_titles(brief=True), ACCURACY: "Content words correct"}
    main = columns.pop("bleu4")
    others = [name for name in columns if any(name in systems[s] for s in bleu4_of)]
    head = ["", main, *(columns[name] for name in others)]
    ordered = [
        *(name for name in SYSTEMS if name in bleu4_of),
        *(name for name in bleu4_of if name not in SYSTEMS),
    ]
    longest = max(bleu4_of.values())
    rows = [
        _system_row(name, bar(bleu4_of[name], longest, f"{bleu4_of[name]:.1f}"), systems[name], others)
        for name in ordered
    ]
    return Table(head=head, rows=rows)


def bar(value: float, longest: float, label: str) -> Cell:
    """Return a cell with a bar and its value; ``longest`` is the value of the longest bar of the column."""
    return Cell(text=label, bar=LONGEST_BAR * max(0.0, value) / longest if longest > 0 else 0.0)


def _system_row(name: str, bar_cell: Cell, scores: Mapping[str, Any], others: Sequence[str]) -> Row:
    """Return the row of a system: its name, the bar, and other scores."""
    title, note = SYSTEMS.get(name, (name.replace("_", " "), ""))
    cells = [Cell(text=_format_score(scores.get(other), other, digits=1)) for other in others]
    return Row(cells=[Cell(text=title, note=note), bar_cell, *cells], emphasized=name == "model")


def _format_score(value: Any, name: str, *, digits: int = 2) -> str:
    """Return a score, or a share in percent, as text; a dash if there is none."""
    known = finite(value)
    if known is None:
        return "\u2013"
    return f"{100 * known:.1f} %" if name in SHARES else f"{known:.{digits}f}"


def score_table(scores: Mapping[str, Record]) -> Table | None:
    """Return a table with one row for each scored split, None without scores."""
    columns = metric_titles() | (
        {COVERED: "Covered by words"} if any(COVERED in r for r in scores.values()) else {}
    )
    rows = []
    for name, record in scores.items():
        cells = [
            Cell(text=_format_score(record.get(metric), metric), note=_interval(record, metric))
            for metric in columns
        ]
        samples = str(record.get("samples", "\u2013"))
        rows.append(Row(cells=[Cell(text=name), *cells, Cell(text=samples)]))
    return Table(head=["Split", *columns.values(), "Videos"], rows=rows) if rows else None


def score_signatures(scores: Mapping[str, Record]) -> list[str]:
    """Return the signature of the metrics of each split."""
    return [f"{name}: {record['signature']}" for name, record in scores.items() if "signature" in record]


def _interval(record: Record, metric: str) -> str:
    """Return the ends of the 95 % confidence interval of a score, ``""`` if they are not known."""
    intervals = record.get("intervals")
    ends = intervals.get(metric) if isinstance(intervals, dict) else None
    if not isinstance(ends, list) or len(ends) != 2 or None in map(finite, ends):
        return ""
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def seconds_table(summary: Record) -> Table | None:
    """Return the table of the time that each stage took, None if it is not recorded."""
    stages = summary.get("stages")
    if not isinstance(stages, dict):
        return None
    seconds = {name: _seconds(value) for name, value in stages.items()}
    known = {name: value for name, value in seconds.items() if value is not None}
    longest = max(known.values(), default=0.0)
    rows = [
        Row(cells=[Cell(text=name.replace("_", " ")), bar(value, longest, f"{value:.0f} s")])
        for name, value in known.items()
    ]
    return Table(head=["Stage", "Seconds"], rows=rows) if rows else None


def _seconds(value: Any) -> float | None:
    """Return the seconds of a stage, which are recorded as a number or inside an object."""
    return finite(value.get("seconds") if isinstance(value, dict) else value)


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of each of the nested settings."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
