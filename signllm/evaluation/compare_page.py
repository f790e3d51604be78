"""The picture of a comparison, BLEU-4 over the size of the language model, and a page with table and picture.

Families differ in their mark, not in colour; what lies on one size is one model with other settings.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_file, atomic_write
from signllm.errors import UsageError
from signllm.evaluation.compare import (
    ComparedRun,
    ScorePoint,
    format_count,
    group_over_seeds,
    list_warnings,
    shorten_run_names,
    table_rows,
)
from signllm.evaluation.report.chart import Series, line_chart
from signllm.evaluation.report.markup import Markup, joined, tag
from signllm.evaluation.report.page import named_rows, page
from signllm.evaluation.report.run_folder import finite, read_run
from signllm.evaluation.report.training import KNOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
KINDS = (".html", ".png", ".svg", ".pdf")
CURVES, MOST_CURVES = ("validate/l_sim", "l_sim", "validate/mmd_fixed", "l_mmd", "l_cp", "perplexity"), 3
"""Quantities drawn of several runs in one chart, and of how many runs at most."""
OWN_STYLE = "section img{max-width:100%;background:white}"
DIFFER = "What the runs differ in"


def write_comparison(compared: Sequence[ComparedRun], split: str, out: Path) -> None:
    """Write a page (``.html``) or the picture alone (``.png``, ``.svg``, ``.pdf``), whole or not at all.

    Raises:
        UsageError: another kind of file, a full disk, or no size of a language model is known.
    """
    check_file_kind(out)
    if out.suffix != ".html":
        figure = draw_scores(group_over_seeds(compared), split)
        with atomic_file(out) as unfinished:
            figure.savefig(unfinished, format=out.suffix[1:], dpi=150)
        return
    atomic_write(out, _page(compared, split))


def check_file_kind(out: Path) -> None:
    """Raise where a comparison cannot be written to such a file.

    Raises:
        UsageError: it names none of the kinds.
    """
    if out.suffix not in KINDS:
        raise UsageError(
            f"{out.name} is no kind of file for a comparison",
            where="--out",
            remedy=f"end it in {', '.join(KINDS)}",
        )


def draw_scores(found: Sequence[ScorePoint], split: str) -> Figure:
    """Draw BLEU-4 over the parameters of the language model; bars are intervals, or deviations over seeds.

    Raises:
        UsageError: no size is known.
    """
    from matplotlib.figure import Figure

    known = [point for point in found if point.parameters]
    if not known:
        raise UsageError(
            "the size of no language model is known",
            where="compare",
            remedy="run it where the models' config.json lie, or over runs that have a startup.json",
        )
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    families = list(dict.fromkeys(point.family for point in known))
    for place, family in enumerate(families):
        of_family = [point for point in known if point.family == family]
        _family(axes, of_family, MARKS[place % len(MARKS)], family or "unknown family")
    _label(axes, known)
    axes.set_xscale("log")
    sizes = sorted({point.parameters or 0 for point in known})
    axes.set_xlim(sizes[0] / 1.6, sizes[-1] * 1.6)
    ticks = [size for place, size in enumerate(sizes) if not place or size > 1.3 * sizes[place - 1]]
    axes.set_xticks(ticks, [format_count(size) for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters of the language model")
    axes.set_ylabel(f"BLEU-4, {split}")
    axes.grid(color="0.85", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_bars(known), fontsize=9, loc="left")
    if len(families) > 1 or families[0]:
        axes.legend(frameon=False)
    return figure


def _family(axes: Axes, found: Sequence[ScorePoint], mark: str, name: str) -> None:
    """Draw the points of one family; a line joins them where each size has one."""
    sizes = [point.parameters or 0 for point in found]
    heights = [point.bleu4 for point in found]
    axes.errorbar(
        sizes, heights, yerr=[point.spread or 0.0 for point in found], fmt=mark, label=name,
        color="black", markerfacecolor="white", markersize=7, capsize=3, linewidth=1,
        linestyle="-" if len(set(sizes)) == len(sizes) else "none",
    )  # fmt: skip


def _label(axes: Axes, known: Sequence[ScorePoint]) -> None:
    for point in known:
        axes.annotate(
            point.llm, (point.parameters or 0, point.bleu4), (8, -12), textcoords="offset points", fontsize=8
        )


def _bars(known: Sequence[ScorePoint]) -> str:
    """Say what the bars are."""
    kinds = []
    if any(point.runs > 1 for point in known):
        kinds.append("mean and standard deviation of runs that differ in the seed")
    if any(point.runs == 1 and point.spread is not None for point in known):
        kinds.append("one run with the 95 % interval over its sentences")
    return "\n".join(kinds)


def _page(compared: Sequence[ComparedRun], split: str) -> str:
    title = f"{len(compared)} runs on {split}"
    head, *body = table_rows(compared)
    runs = [one.run for one in compared]
    names = dict(zip(runs, shorten_run_names(runs), strict=True))
    body = [(names.get(row[0], row[0]), *row[1:]) for row in body]
    told = [tag("p", f"{name}: {run}", class_="hint") for run, name in names.items() if name != run]
    told += [tag("p", line) for line in list_warnings(compared)]
    signatures = sorted({one.signature for one in compared} - {""})
    parts = [
        ("Scores", joined((named_rows(head, body, "Scores"), *told))),
        ("BLEU-4 over the size of the language model", _picture(compared, split)),
        (DIFFER, _settings(compared)),
        ("Training", _curves(compared)),
        ("How these were computed", joined(tag("p", tag("code", one)) for one in signatures)),
    ]
    main = tag("main", *(tag("section", tag("h2", name), part) for name, part in parts if part))
    return page(title, tag("header", tag("h1", title)), main, style=OWN_STYLE)


def _picture(compared: Sequence[ComparedRun], split: str) -> Markup | None:
    """Return the picture, if there are sizes to draw it over."""
    found = group_over_seeds(compared)
    if len({point.parameters for point in found if point.parameters}) < 2:
        return None
    picture = io.BytesIO()
    draw_scores(found, split).savefig(picture, format="png", dpi=150)
    source = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    return tag(
        "img", src=source, alt="BLEU-4 over the parameters of the language model: the table has the numbers"
    )


def _settings(compared: Sequence[ComparedRun]) -> Markup | None:
    """Return the settings that differ, a row for each, a column for each run."""
    names = list(dict.fromkeys(name for one in compared for name in one.differing))
    if not names:
        return None
    body = [[name, *(one.differing.get(name, "-") for one in compared)] for name in names]
    return named_rows(["setting", *shorten_run_names([one.run for one in compared])], body, DIFFER)


def _curves(compared: Sequence[ComparedRun]) -> Markup | None:
    """Return charts with a line for each run, over both phases of fine-tuning."""
    shown_runs = [one.run for one in compared[:MOST_CURVES]]
    runs = {
        name: read_run(Path(run)) for name, run in zip(shorten_run_names(shown_runs), shown_runs, strict=True)
    }
    begun = {run.frozen_steps for run in runs.values()}
    mark = (float(begun.pop()), "") if len(begun) == 1 and 0 not in begun else None
    charts = []
    for name in CURVES:
        series = [Series(name=called, points=_points(run.combined_log, name)) for called, run in runs.items()]
        title, note = KNOWN.get(name.rpartition("/")[2], (name, ""))
        held_out = " on held-out videos" if name.startswith("validate/") else ""
        drawn = line_chart(
            f"{title}{held_out}", series, x_label="step", note=note, mark=mark, may_be_logarithmic=True
        )
        charts.append(drawn)
    shown = [chart for chart in charts if chart]
    if not shown:
        return None
    told = [f"The first {MOST_CURVES} of {len(compared)} runs."] if len(compared) > MOST_CURVES else []
    told += ["Dotted: from this step the encoder learns too."] if mark else []
    hint = tag("p", " ".join(told), class_="hint") if told else None
    return joined((hint, tag("div", *shown, class_="charts")))


def _points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    pairs = [(finite(line.get("step")), finite(line.get(name))) for line in log]
    return [(step, value) for step, value in pairs if step is not None and value is not None]
