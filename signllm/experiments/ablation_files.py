"""The table and the figure of the ablations as files: ``ablations.html``, ``.md``, ``.json`` and ``.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.atomic_files import atomic_file, atomic_write
from signllm.experiments.ablation_table import AblationTable, column_titles, format_row, table_notes
from signllm.reporting.charts import COLOURS, embed_figure
from signllm.reporting.compare import align_columns
from signllm.reporting.pages import render_page
from signllm.validation import to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "ablations"


def write_table_files(table: AblationTable, out: Path) -> Path:
    """Write the table and the figure into a folder, each file atomically, and return the HTML page.

    Raises:
        UsageError: The disk is full.
    """
    with atomic_file(out / f"{NAME}.png") as unfinished:
        draw_figure(table).savefig(unfinished, format="png", dpi=150)
    atomic_write(out / f"{NAME}.md", format_markdown(table) + "\n")
    atomic_write(out / f"{NAME}.json", json.dumps(to_plain(table), indent=1) + "\n")
    atomic_write(out / f"{NAME}.html", _page(table))
    return out / f"{NAME}.html"


def format_markdown(table: AblationTable) -> str:
    """Return the table in Markdown, as signllm/experiments/README.md shows it."""
    rows = [column_titles(), ("---",) * len(column_titles()), *(format_row(row, table) for row in table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *table_notes(table)])


def format_table(table: AblationTable) -> str:
    """Return the table as text for a terminal."""
    rows = [column_titles(), *(format_row(row, table) for row in table.rows)]
    return "\n".join([*align_columns(rows, names=1), *table_notes(table)])


def draw_figure(table: AblationTable) -> Figure:
    """Draw the difference of each ablation to the full model: one ring per seed, and a bar for their mean."""
    from matplotlib.figure import Figure

    rows = [row for row in table.rows if row.gains]
    figure = Figure(figsize=(7.5, 1.3 + 0.36 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row.gain or 0.0, height=0.55, color=COLOURS["pale-bar"])
        axes.plot(
            [*row.gains.values()], [place] * len(row.gains), "o", color=COLOURS["ink"],
            markerfacecolor=COLOURS["card"], markersize=5, markeredgewidth=1,
        )  # fmt: skip
    axes.axvline(0, color=COLOURS["ink"], linewidth=1)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"difference to the BLEU-4 of the full model, {table.split}")
    axes.set_title("bars: mean over seeds; rings: single seeds", fontsize=9, loc="left")
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _page(table: AblationTable) -> str:
    return render_page(
        "ablations.html",
        title=f"Ablations on {table.split}",
        head=column_titles(),
        rows=[format_row(row, table) for row in table.rows],
        notes=table_notes(table),
        figure=embed_figure(draw_figure(table), "Bar chart of the table's column BLEU-4 - full"),
    )
