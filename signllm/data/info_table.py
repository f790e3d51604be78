"""Formatting the output of ``signllm shards info``: a column per split, then overlaps and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MOST_NAMES = 3
"""Largest number of languages or signers that are listed by name; more are counted."""


def format_info_table(info: Mapping[str, Any]) -> str:
    """Return the result of :func:`~signllm.data.shard_inspection.summarize_shards` as lines of text."""
    splits = info["splits"]
    rows = [("", [*splits])]
    for name in dict.fromkeys(name for split in splits.values() for name in split):
        cell = _format_rates if name == "frame_rates" else _format_cell
        rows.append((name.replace("_", " "), [cell(split.get(name, "")) for split in splits.values()]))
    width = max(len(name) for name, _ in rows)
    cells = [max(len(row[place]) for _, row in rows) for place in range(len(splits))]
    lines = [
        "  ".join([f"{name:<{width}}", *(f"{cell:>{size}}" for cell, size in zip(row, cells, strict=True))])
        for name, row in rows
    ]
    return "\n".join([str(info["root"]), *lines, *_format_notes(info)])


def _format_cell(value: Any) -> str:
    """Return a value as the text of a cell; long lists of names are counted."""
    if isinstance(value, dict):
        known = [name for name in value if name != "unknown"]
        return ", ".join(known) if 0 < len(known) <= _MOST_NAMES else str(len(known) or "unknown")
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _format_rates(counts: Any) -> str:
    """Return the frame rates as text, with the number of videos of each if there are several."""
    if len(counts) > _MOST_NAMES:
        return f"{min(counts, key=float)} to {max(counts, key=float)}"
    return ", ".join(f"{rate} ({count:,})" if len(counts) > 1 else rate for rate, count in counts.items())


def _format_notes(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table."""
    for pair, shared in info["overlap"].items():
        first, second = pair.split("-")
        yield (
            f"{shared['texts']} samples of {second} have a text of {first}; "
            f"{shared['signers']} signers are in both"
        )
    made = ", ".join(f"{name} {value}" for name, value in info["made"].items() if value is not None)
    yield f"made by: {made}"
    yield f"samples in the source: {info['clips_in_source']:,}, left out: {len(info['left_out']):,}"
    yield from (f"warning: {line}" for line in info["warnings"])
