"""Where translations err: a table for each breakdown of ``scores.SPLIT.json``, with bars of the error."""

from __future__ import annotations

from typing import Any

from signllm.evaluation.report.markup import Markup, joined, tag
from signllm.evaluation.report.run_folder import Record, finite
from signllm.evaluation.report.tables import bar, table

TITLES = {
    "characters": ("By length of the sign sequence", "Characters"),
    "sign_words": ("By number of sign words", "Sign words"),
    "reference_words": ("By length of the sentence", "Words"),
    "signer": ("By signer", "Signer"),
    "frequency": ("By frequency of the words in training", "Times in training"),
}
ERROR, MISSED = "Word error", "Missed words"


def breakdown_tables(record: Record) -> Markup | None:
    """Return the breakdowns of a split's scores; None where there are none."""
    found = record.get("breakdowns")
    parts = []
    for name, groups in found.items() if isinstance(found, dict) else ():
        rows = [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
        if drawn := _drawn(name, rows):
            title, _ = TITLES.get(name, (name.replace("_", " "), ""))
            parts += [tag("h3", title), drawn]
    return joined(parts) if parts else None


def _drawn(name: str, groups: list[Record]) -> Markup | None:
    """Return one breakdown; bars of all its groups share a scale."""
    key, head = ("missed", MISSED) if name == "frequency" else ("wer", ERROR)
    known = [(group, error) for group in groups if (error := finite(group.get(key))) is not None]
    if not known:
        return None
    longest = max(error for _, error in known)
    counted, others = ("words", []) if name == "frequency" else ("samples", ["BLEU-4"])
    rows = [
        tag(
            "tr",
            tag("td", _text(group.get("group"))),
            bar(error, longest, f"{error:.1f} %"),
            *(tag("td", _text(finite(group.get("bleu4")))) for _ in others),
            tag("td", _text(group.get(counted))),
        )
        for group, error in known
    ]
    _, column = TITLES.get(name, ("", name.replace("_", " ")))
    return table([column, head, *others, "Videos" if counted == "samples" else "Words asked"], rows)


def _text(value: Any) -> str:
    if value is None:
        return "\u2013"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
