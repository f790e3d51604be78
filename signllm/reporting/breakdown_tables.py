"""The section of error breakdowns: one table for each breakdown of ``scores.SPLIT.json``, with bars."""

from __future__ import annotations

from typing import Any

from signllm.reporting.run_folder import Record, finite
from signllm.reporting.tables import Cell, Row, Table, bar

TITLES = {
    "characters": ("By length of the sign sequence", "Characters"),
    "sign_words": ("By number of sign words", "Sign words"),
    "reference_words": ("By length of the sentence", "Words"),
    "signer": ("By signer", "Signer"),
    "frequency": ("By frequency of the words in training", "Times in training"),
}
ERROR, MISSED = "Word error rate", "Missed words"


def breakdown_tables(record: Record) -> list[tuple[str, Table]]:
    """Return the breakdowns in the scores of a split: title and table of each."""
    breakdowns = record.get("breakdowns")
    tables = []
    for name, groups in breakdowns.items() if isinstance(breakdowns, dict) else ():
        rows = [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
        if table := _build_breakdown(name, rows):
            title, _ = TITLES.get(name, (name.replace("_", " "), ""))
            tables.append((title, table))
    return tables


def _build_breakdown(name: str, groups: list[Record]) -> Table | None:
    """Return the table of one breakdown; the bars of all groups have the same scale."""
    key, head = ("missed", MISSED) if name == "frequency" else ("wer", ERROR)
    known = [(group, error) for group in groups if (error := finite(group.get(key))) is not None]
    if not known:
        return None
    longest = max(error for _, error in known)
    count_key, others = ("words", []) if name == "frequency" else ("samples", ["BLEU-4"])
    rows = [
        Row(
            cells=[
                Cell(text=_format_value(group.get("group"))),
                bar(error, longest, f"{error:.1f} %"),
                *(Cell(text=_format_value(finite(group.get("bleu4")))) for _ in others),
                Cell(text=_format_value(group.get(count_key))),
            ]
        )
        for group, error in known
    ]
    _, column = TITLES.get(name, ("", name.replace("_", " ")))
    counted = "Videos" if count_key == "samples" else "Words in references"
    return Table(head=[column, head, *others, counted], rows=rows)


def _format_value(value: Any) -> str:
    if value is None:
        return "\u2013"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
