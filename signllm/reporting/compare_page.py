"""The figure of a comparison (BLEU-4 over the size of the language model), and its HTML page.

Model families differ in their marker, not in colour, so that the figure can be printed in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_file, atomic_write
from signllm.errors import UsageError
from signllm.reporting.charts import COLOURS, Chart, Series, embed_figure, line_chart
from signllm.reporting.compare import (
    ComparedRun,
    ScorePoint,
    build_table_rows,
    format_count,
    group_over_seeds,
    list_warnings,
    shorten_run_names,
)
from signllm.reporting.pages import render_page
from signllm.reporting.run_folder import finite, read_run
from signllm.reporting.training import KNOWN

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FILE_KINDS = (".html", ".png", ".svg", ".pdf")
CURVES, MOST_RUNS = ("validate/l_sim", "l_sim", "validate/mmd_fixed", "l_mmd", "l_cp", "perplexity"), 3
"""Logged quantities that get a chart, and the largest number of runs in a chart."""


def write_comparison(compared: Sequence[ComparedRun], split: str, out: Path) -> None:
    """Write the page (``.html``) or only the figure (``.png``, ``.svg``, ``.pdf``), atomically.

    Raises:
        UsageError: The file is of another type, the disk is full, or the size of no language model is known.
    """
    check_file_kind(out)
    if out.suffix != ".html":
        figure = draw_scores(group_over_seeds(compared), split)
        with atomic_file(out) as unfinished:
            figure.savefig(unfinished, format=out.suffix[1:], dpi=150)
        return
    atomic_write(out, _page(compared, split))


def check_file_kind(out: Path) -> None:
    """Check that a comparison can be written to a file of this type.

    Raises:
        UsageError: The suffix is none of ``FILE_KINDS``.
    """
    if out.suffix not in FILE_KINDS:
        raise UsageError(
            f"a comparison cannot be written to {out.name}",
            where="--out",
            remedy=f"give a name that ends in {', '.join(FILE_KINDS)}",
        )


def draw_scores(points: Sequence[ScorePoint], split: str) -> Figure:
    """Draw BLEU-4 over the number of parameters of the language model.

    Error bars are confidence intervals of single runs, or standard deviations over seeds.

    Raises:
        UsageError: The size of no language model is known.
    """
    from matplotlib.figure import Figure

    known = [point for point in points if point.parameters]
    if not known:
        raise UsageError(
            "the size of no language model is known",
            where="compare",
            remedy="run it where the models' config.json files are, or on runs that have a startup.json",
        )
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    families = list(dict.fromkeys(point.family for point in known))
    for place, family in enumerate(families):
        members = [point for point in known if point.family == family]
        _draw_family(axes, members, MARKERS[place % len(MARKERS)], family or "unknown family")
    _label_points(axes, known)
    axes.set_xscale("log")
    sizes = sorted({point.parameters or 0 for point in known})
    axes.set_xlim(sizes[0] / 1.6, sizes[-1] * 1.6)
    ticks = [size for place, size in enumerate(sizes) if not place or size > 1.3 * sizes[place - 1]]
    axes.set_xticks(ticks, [format_count(size) for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters of the language model")
    axes.set_ylabel(f"BLEU-4, {split}")
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_explain_error_bars(known), fontsize=9, loc="left")
    if len(families) > 1 or families[0]:
        axes.legend(frameon=False)
    return figure


def _draw_family(axes: Axes, points: Sequence[ScorePoint], marker: str, name: str) -> None:
    """Draw the points of one model family; they are connected by a line if no two have the same size."""
    sizes = [point.parameters or 0 for point in points]
    heights = [point.bleu4 for point in points]
    axes.errorbar(
        sizes, heights, yerr=[point.spread or 0.0 for point in points], fmt=marker, label=name,
        color=COLOURS["ink"], markerfacecolor=COLOURS["card"], markersize=7, capsize=3, linewidth=1,
        linestyle="-" if len(set(sizes)) == len(sizes) else "none",
    )  # fmt: skip


def _label_points(axes: Axes, points: Sequence[ScorePoint]) -> None:
    """Write the name of the language model next to each point."""
    for point in points:
        axes.annotate(
            point.llm, (point.parameters or 0, point.bleu4), (8, -12), textcoords="offset points", fontsize=8
        )


def _explain_error_bars(points: Sequence[ScorePoint]) -> str:
    """Return a line about each meaning that the error bars have."""
    kinds = []
    if any(point.runs > 1 for point in points):
        kinds.append("mean and standard deviation of runs that differ in the seed only")
    if any(point.runs == 1 and point.spread is not None for point in points):
        kinds.append("single run with the 95 % confidence interval over its sentences")
    return "\n".join(kinds)


def _page(compared: Sequence[ComparedRun], split: str) -> str:
    head, *body = build_table_rows(compared)
    runs = [run.run for run in compared]
    names = dict(zip(runs, shorten_run_names(runs), strict=True))
    settings = dict.fromkeys(name for run in compared for name in run.differing)
    charts, notes = _training_charts(compared)
    return render_page(
        "comparison.html",
        title=f"{len(compared)} runs on {split}",
        scores=[head, *((names.get(row[0], row[0]), *row[1:]) for row in body)],
        paths=[(name, run) for run, name in names.items() if name != run],
        warnings=list_warnings(compared),
        figure=_figure(compared, split),
        names=list(names.values()),
        differing=[[name, *(run.differing.get(name, "-") for run in compared)] for name in settings],
        charts=charts,
        notes=notes,
        signatures=sorted({run.signature for run in compared} - {""}),
    )


def _figure(compared: Sequence[ComparedRun], split: str) -> Markup | None:
    """Return the figure, or None if fewer than two sizes of language models are known."""
    points = group_over_seeds(compared)
    if len({point.parameters for point in points if point.parameters}) < 2:
        return None
    label = "BLEU-4 over the parameters of the language model; the table has the values"
    return embed_figure(draw_scores(points, split), label)


def _training_charts(compared: Sequence[ComparedRun]) -> tuple[list[Chart], list[str]]:
    """Return training charts with a line for each run, over both phases of fine-tuning, and their notes."""
    paths = [run.run for run in compared[:MOST_RUNS]]
    runs = {name: read_run(Path(run)) for name, run in zip(shorten_run_names(paths), paths, strict=True)}
    joint_starts = {run.frozen_steps for run in runs.values()}
    mark = (float(joint_starts.pop()), "") if len(joint_starts) == 1 and 0 not in joint_starts else None
    charts = []
    for name in CURVES:
        series = [
            Series(name=label, points=_read_points(run.combined_log, name)) for label, run in runs.items()
        ]
        title, note = KNOWN.get(name.rpartition("/")[2], (name, ""))
        held_out = " on held-out videos" if name.startswith("validate/") else ""
        chart = line_chart(
            f"{title}{held_out}", series, x_label="step", note=note, mark=mark, may_be_logarithmic=True
        )
        charts += [chart] if chart else []
    notes = []
    if len(compared) > MOST_RUNS:
        notes.append(f"Only the first {MOST_RUNS} of {len(compared)} runs are shown.")
    notes += ["Dotted line: from this step the encoder is trained too."] if mark else []
    return charts, notes


def _read_points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    pairs = [(finite(line.get("step")), finite(line.get(name))) for line in log]
    return [(step, value) for step, value in pairs if step is not None and value is not None]
