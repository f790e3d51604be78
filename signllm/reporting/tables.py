"""The tables of a report: the summary of a demo, the scores of every split, times, and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from signllm.metrics.scores import metric_titles
from signllm.reporting.markup import Markup, join_markup, tag
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


def demo_table(summary: Record) -> Markup | None:
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
    rows = []
    for name in ordered:
        bar_cell = bar(bleu4_of[name], max(bleu4_of.values()), f"{bleu4_of[name]:.1f}")
        rows.append(_system_row(name, bar_cell, systems[name], others))
    return table(head, rows)


def bar(value: float, longest: float, label: str) -> Markup:
    """Return a cell with a bar and its value; the longest bar leaves space for the value."""
    width = 72 * max(0.0, value) / longest if longest > 0 else 0.0
    return tag("td", tag("span", class_="bar", style=f"width:{width:.1f}%"), label, class_="barred")


def _system_row(name: str, bar_cell: Markup, scores: Mapping[str, Any], others: Sequence[str]) -> Markup:
    """Return the row of a system: its name, the bar, and other scores."""
    title, note = SYSTEMS.get(name, (name.replace("_", " "), ""))
    return tag(
        "tr",
        tag("td", title, tag("small", note) if note else None),
        bar_cell,
        *(tag("td", _format_score(scores.get(other), other, digits=1)) for other in others),
        class_="ours" if name == "model" else None,
    )


def _format_score(value: Any, name: str, *, digits: int = 2) -> str:
    """Return a score, or a share in percent, as text; a dash if there is none."""
    known = finite(value)
    if known is None:
        return "\u2013"
    return f"{100 * known:.1f} %" if name in SHARES else f"{known:.{digits}f}"


def score_table(scores: Mapping[str, Record]) -> Markup | None:
    """Return a table with one row for each scored split, and the signatures of the metrics below it."""
    rows, signatures = [], []
    columns = metric_titles() | (
        {COVERED: "Covered by words"} if any(COVERED in r for r in scores.values()) else {}
    )
    for name, record in scores.items():
        cells = [
            tag("td", _format_score(record.get(metric), metric), _interval(record, metric))
            for metric in columns
        ]
        samples = record.get("samples", "\u2013")
        rows.append(tag("tr", tag("td", name), *cells, tag("td", samples)))
        if "signature" in record:
            signatures.append(tag("p", tag("code", f"{name}: {record['signature']}"), class_="hint"))
    if not rows:
        return None
    scored = table(["Split", *columns.values(), "Videos"], rows)
    return join_markup((scored, tag("details", tag("summary", "How the scores were computed"), *signatures)))


def _interval(record: Record, metric: str) -> Markup | None:
    """Return the ends of the 95 % confidence interval of a score, None if they are not known."""
    intervals = record.get("intervals")
    ends = intervals.get(metric) if isinstance(intervals, dict) else None
    if not isinstance(ends, list) or len(ends) != 2 or None in map(finite, ends):
        return None
    return tag("small", f"{ends[0]:.1f} to {ends[1]:.1f}")


def seconds_table(summary: Record) -> Markup | None:
    """Return the table of the time that each stage took, None if it is not recorded."""
    stages = summary.get("stages")
    if not isinstance(stages, dict):
        return None
    seconds = {name: _seconds(value) for name, value in stages.items()}
    known = {name: value for name, value in seconds.items() if value is not None}
    if not known:
        return None
    longest = max(known.values())
    rows = [
        tag("tr", tag("td", name.replace("_", " ")), bar(value, longest, f"{value:.0f} s"))
        for name, value in known.items()
    ]
    return table(["Stage", "Seconds"], rows)


def _seconds(value: Any) -> float | None:
    """Return the seconds of a stage, which are recorded as a number or inside an object."""
    return finite(value.get("seconds") if isinstance(value, dict) else value)


def settings_table(config: Record) -> Markup | None:
    """Return the complete configuration with dotted names, collapsed by default."""
    rows = [
        tag("tr", tag("td", tag("code", name)), tag("td", tag("code", value)))
        for name, value in flatten_settings(config)
    ]
    if not rows:
        return None
    listed = tag("table", tag("tbody", *rows), class_="settings")
    return tag(
        "details", tag("summary", f"Configuration: {len(rows)} settings"), tag("div", listed, class_="scroll")
    )


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of each of the nested settings."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def table(head: Sequence[str], rows: Sequence[Markup]) -> Markup:
    """Return a table that scrolls separately on narrow screens; titles of bar columns are left-aligned."""
    bar_columns = ("BLEU-4" if "" in head else None, "Seconds", "Word error rate", "Missed words")
    names = tag(
        "tr",
        *(tag("th", name, scope="col", class_="barred" if name in bar_columns else None) for name in head),
    )
    return tag("div", tag("table", tag("thead", names), tag("tbody", *rows)), class_="scroll")
