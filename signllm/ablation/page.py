"""The table and the figure of the ablations as files: ``ablations.html``, ``.md``, ``.json`` and ``.png``."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.ablation.table import Table, about, cells_of, head
from signllm.atomic_files import atomic_file, atomic_write
from signllm.evaluation.compare import aligned
from signllm.evaluation.report.markup import tag
from signllm.evaluation.report.page import named_rows, page
from signllm.plain import to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "ablations"
OWN_STYLE = "section img{max-width:100%;background:white}main>p{margin:12px 0;overflow-wrap:anywhere}"


def write_table(table: Table, out: Path) -> Path:
    """Write table and figure into a folder, each file whole or not at all; return the page.

    Raises:
        UsageError: the disk is full.
    """
    picture = io.BytesIO()
    draw(table).savefig(picture, format="png", dpi=150)
    with atomic_file(out / f"{NAME}.png") as unfinished:
        unfinished.write_bytes(picture.getvalue())
    atomic_write(out / f"{NAME}.md", markdown(table) + "\n")
    atomic_write(out / f"{NAME}.json", json.dumps(to_plain(table), indent=1) + "\n")
    atomic_write(out / f"{NAME}.html", _page(table, picture.getvalue()))
    return out / f"{NAME}.html"


def markdown(table: Table) -> str:
    """Return the table as README shows it."""
    rows = [head(), ("---",) * len(head()), *(cells_of(row, table) for row in table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *about(table)])


def text(table: Table) -> str:
    """Return the table for a terminal."""
    rows = [head(), *(cells_of(row, table) for row in table.rows)]
    return "\n".join([*aligned(rows, names=1), *about(table)])


def draw(table: Table) -> Figure:
    """Draw how far each ablation is from the full model: seeds as rings, their mean as a bar."""
    from matplotlib.figure import Figure

    shown = [row for row in table.rows if row.gains]
    figure = Figure(figsize=(7.5, 1.3 + 0.36 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        axes.barh(place, row.gain or 0.0, height=0.55, color="0.8", edgecolor="0.35", linewidth=0.8)
        axes.plot(
            [*row.gains.values()], [place] * len(row.gains), "o", color="black", markerfacecolor="white",
            markersize=5, markeredgewidth=1,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [row.title for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel(f"BLEU-4 less that of the full model, {table.split}")
    axes.set_title("bars: mean; rings: seeds", fontsize=9, loc="left")
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _page(table: Table, picture: bytes) -> str:
    title = f"Ablations on {table.split}"
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    numbers = named_rows(head(), [cells_of(row, table) for row in table.rows], title)
    figure = tag("img", src=source, alt="The differences of the table's column BLEU-4 - full, as bars")
    told = (tag("p", line) for line in about(table))
    main = tag("main", tag("section", numbers), *told, tag("section", figure))
    return page(title, tag("header", tag("h1", title)), main, style=OWN_STYLE)
