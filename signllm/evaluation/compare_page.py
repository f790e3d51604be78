"""The picture of a comparison, BLEU-4 over the size of the language model, and a page with table and picture.

Families differ in their mark, not in colour; what lies on one size is one model with other settings.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from signllm.errors import UsageError
from signllm.evaluation.compare import Compared, Point, cautions, count_text, points, rows
from signllm.evaluation.report.markup import Markup, tag
from signllm.writing import whole_file, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
KINDS = (".html", ".png", ".svg", ".pdf")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ccc}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}img{max-width:100%;background:white}"
)


def write_comparison(compared: Sequence[Compared], split: str, out: Path) -> None:
    """Write a page (``.html``) or the picture alone (``.png``, ``.svg``, ``.pdf``), whole or not at all.

    Raises:
        UsageError: another kind of file, a full disk, or no size of a language model is known.
    """
    refuse_kind(out)
    figure = draw(points(compared), split)
    if out.suffix != ".html":
        with whole_file(out) as unfinished:
            figure.savefig(unfinished, format=out.suffix[1:], dpi=150)
        return
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(out, str(_page(compared, split, picture.getvalue())))


def refuse_kind(out: Path) -> None:
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


def draw(found: Sequence[Point], split: str) -> Figure:
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
    axes.set_xticks(ticks, [count_text(size) for size in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters of the language model")
    axes.set_ylabel(f"BLEU-4, {split}")
    axes.grid(color="0.85", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_bars(known), fontsize=9, loc="left")
    if len(families) > 1 or families[0]:
        axes.legend(frameon=False)
    return figure


def _family(axes: Axes, found: Sequence[Point], mark: str, name: str) -> None:
    """Draw the points of one family; a line joins them where each size has one."""
    sizes = [point.parameters or 0 for point in found]
    heights = [point.bleu4 for point in found]
    axes.errorbar(
        sizes, heights, yerr=[point.spread or 0.0 for point in found], fmt=mark, label=name,
        color="black", markerfacecolor="white", markersize=7, capsize=3, linewidth=1,
        linestyle="-" if len(set(sizes)) == len(sizes) else "none",
    )  # fmt: skip


def _label(axes: Axes, known: Sequence[Point]) -> None:
    for point in known:
        axes.annotate(
            point.llm, (point.parameters or 0, point.bleu4), (8, -12), textcoords="offset points", fontsize=8
        )


def _bars(known: Sequence[Point]) -> str:
    """Say what the bars are."""
    kinds = []
    if any(point.runs > 1 for point in known):
        kinds.append("mean and standard deviation of runs that differ in the seed")
    if any(point.runs == 1 and point.spread is not None for point in known):
        kinds.append("one run with the 95 % interval over its sentences")
    return "\n".join(kinds)


def _page(compared: Sequence[Compared], split: str, picture: bytes) -> Markup:
    title = f"{len(compared)} runs on {split}"
    head, *body = rows(compared)
    table = tag(
        "table",
        tag("tr", *(tag("th", cell) for cell in head)),
        *(tag("tr", *(tag("td", cell) for cell in row)) for row in body),
    )
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    page = tag(
        "html",
        tag("head", tag("meta", charset="utf-8"), tag("title", title), tag("style", Markup(STYLE))),
        tag(
            "body",
            tag("h1", title),
            tag(
                "img",
                src=source,
                alt="BLEU-4 over the parameters of the language model: the table has the numbers",
            ),
            table,
            *(tag("p", line) for line in cautions(compared)),
            *(tag("p", tag("small", line)) for line in sorted({one.signature for one in compared} - {""})),
        ),
        lang="en",
    )
    return Markup(f"<!doctype html>\n{page}\n")
