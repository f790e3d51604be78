"""The tables of numbers: the demo's summary, the scores of every split, the settings of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from signllm.evaluation.report.markup import Markup, joined, tag
from signllm.evaluation.report.run_folder import Record, finite
from signllm.evaluation.scores import metric_titles

SYSTEMS = {
    "model": ("This model, from video", "unseen sentences"),
    "oracle": ("True signs instead of video", "the same LLM, told what was signed"),
    "shuffled": ("Shuffled videos", "the same model, each video replaced by another one"),
    "untrained": ("Untrained encoder", "the same path, VQ-Sign never trained"),
}
ACCURACY = "content_word_accuracy"
COVERED = "covered"
SHARES = (ACCURACY, COVERED)


def demo_table(summary: Record) -> Markup | None:
    """Compare the model with its controls; bars are BLEU-4."""
    systems = {"model": summary} | {name: value for name, value in summary.items() if isinstance(value, dict)}
    systems |= {
        name.removesuffix(".bleu4"): {"bleu4": value}
        for name, value in summary.items()
        if name.endswith(".bleu4") and name.removesuffix(".bleu4") not in systems
    }
    reached = {
        name: bleu4 for name, one in systems.items() if (bleu4 := finite(one.get("bleu4"))) is not None
    }
    if "model" not in reached:
        return None
    columns = {**metric_titles(brief=True), ACCURACY: "Content words right"}
    main = columns.pop("bleu4")
    others = [name for name in columns if any(name in systems[s] for s in reached)]
    head = ["", main, *(columns[name] for name in others)]
    ordered = [
        *(name for name in SYSTEMS if name in reached),
        *(name for name in reached if name not in SYSTEMS),
    ]
    rows = []
    for name in ordered:
        drawn = bar(reached[name], max(reached.values()), f"{reached[name]:.1f}")
        rows.append(_system(name, drawn, systems[name], others))
    return table(head, rows)


def bar(value: float, longest: float, shown: str) -> Markup:
    """Return a cell with a bar and its value; the longest bar leaves room for the number."""
    width = 72 * max(0.0, value) / longest if longest > 0 else 0.0
    return tag("td", tag("span", class_="bar", style=f"width:{width:.1f}%"), shown, class_="barred")


def _system(name: str, drawn: Markup, scores: Mapping[str, Any], others: Sequence[str]) -> Markup:
    """Return a row: what it is, a bar, further scores."""
    title, note = SYSTEMS.get(name, (name.replace("_", " "), ""))
    return tag(
        "tr",
        tag("td", title, tag("small", note) if note else None),
        drawn,
        *(tag("td", _score(scores.get(other), other, digits=1)) for other in others),
        class_="ours" if name == "model" else None,
    )


def _score(value: Any, name: str, *, digits: int = 2) -> str:
    """Return a score or a share to read, a dash where there is none."""
    found = finite(value)
    if found is None:
        return "\u2013"
    return f"{100 * found:.1f} %" if name in SHARES else f"{found:.{digits}f}"


def score_table(scores: Mapping[str, Record]) -> Markup | None:
    """Return one row for each scored file, and the signatures below."""
    rows, signatures = [], []
    columns = metric_titles() | (
        {COVERED: "Covered by words"} if any(COVERED in r for r in scores.values()) else {}
    )
    for name, record in scores.items():
        cells = [
            tag("td", _score(record.get(metric), metric), _interval(record, metric)) for metric in columns
        ]
        samples = record.get("samples", "\u2013")
        rows.append(tag("tr", tag("td", name), *cells, tag("td", samples)))
        if "signature" in record:
            signatures.append(tag("p", tag("code", f"{name}: {record['signature']}"), class_="hint"))
    if not rows:
        return None
    drawn = table(["Split", *columns.values(), "Videos"], rows)
    return joined((drawn, tag("details", tag("summary", "How these were computed"), *signatures)))


def _interval(record: Record, metric: str) -> Markup | None:
    """Return the ends of a score's 95 % interval, if they are known."""
    intervals = record.get("intervals")
    ends = intervals.get(metric) if isinstance(intervals, dict) else None
    if not isinstance(ends, list) or len(ends) != 2 or None in map(finite, ends):
        return None
    return tag("small", f"{ends[0]:.1f} to {ends[1]:.1f}")


def seconds_table(summary: Record) -> Markup | None:
    """Show where the time went."""
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
    """Return a stage's seconds, given as a number or inside a record."""
    return finite(value.get("seconds") if isinstance(value, dict) else value)


def settings(config: Record) -> Markup | None:
    """Return the resolved configuration as dotted names, folded away."""
    rows = [
        tag("tr", tag("td", tag("code", name)), tag("td", tag("code", value)))
        for name, value in flattened(config)
    ]
    if not rows:
        return None
    listed = tag("table", tag("tbody", *rows), class_="settings")
    return tag(
        "details", tag("summary", f"Configuration: {len(rows)} settings"), tag("div", listed, class_="scroll")
    )


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values of nested settings."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def table(head: Sequence[str], rows: Sequence[Markup]) -> Markup:
    """Return a table that scrolls by itself on a narrow screen; a column of bars is named at its left."""
    barred = ("BLEU-4" if "" in head else None, "Seconds", "Word error", "Missed words")
    names = tag(
        "tr", *(tag("th", name, scope="col", class_="barred" if name in barred else None) for name in head)
    )
    return tag("div", tag("table", tag("thead", names), tag("tbody", *rows)), class_="scroll")
