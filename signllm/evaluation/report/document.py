"""The report: one self-contained HTML file of a run folder, or of a demo folder with several runs.

Reading order is a reader's: what was reached, what a video became, sentences, then how training went and with
which settings. A part whose file is missing is left out; what could not be read is listed at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import signllm
from signllm.atomic_files import atomic_write
from signllm.errors import UsageError
from signllm.evaluation.report.chapter import Chapter, Source
from signllm.evaluation.report.markup import Markup, tag
from signllm.evaluation.report.page import page
from signllm.evaluation.report.run_folder import RunFolder, read_object, read_run
from signllm.evaluation.report.sections import STAGE_NAMES, Section, headline, sections
from signllm.evaluation.report.vocabulary import vocabulary_of

LEAD = (
    "Sign language video into text, through sign tokens learnt from video alone and a frozen language model."
)


def write_report(folder: Path, *, shards: Path | str | None = None, out: Path | None = None) -> Path:
    """Write the report of a run folder, or of a demo folder that holds several runs.

    Args:
        folder: a run folder, or a folder with ``summary.json`` and run folders in it.
        shards: where the videos are: folder, address or mixture; by default a folder ``shards`` in or
            beside ``folder``, if there is one.
        out: the file to write; by default ``folder/report.html``.

    Returns:
        The file, written whole or not at all.

    Raises:
        UsageError: the folder is not there or holds nothing to report.
    """
    source = _source(Path(folder), shards)
    if not source.summary and not source.chapters:
        raise UsageError(
            "there is nothing to report: no config.json, log.jsonl, words.json, hypotheses or scores",
            where=folder,
            remedy="give the --run folder of a stage, or the --out folder of a demo",
        )
    target = Path(out) if out else Path(folder) / "report.html"
    atomic_write(target, _page(source))
    return target


def _source(folder: Path, shards: Path | str | None) -> Source:
    """Find the runs: the folder itself, or its subfolders when it is a demo's."""
    own = read_run(folder)
    inside = {path.parent for name in ("config.json", "log.jsonl") for path in folder.glob(f"*/{name}")}
    runs = [own] if not own.is_empty() else sorted((read_run(path) for path in inside), key=_stage_order)
    places = (folder / "shards", folder.parent / "shards")
    found = shards or next((place for place in places if (place / "manifest.json").is_file()), None)
    chapters = [
        Chapter(run=run, vocabulary=vocabulary_of(run), place=place) for place, run in enumerate(runs)
    ]
    return Source(
        folder=folder, chapters=chapters, summary=read_object(folder / "summary.json"), shards=found
    )


def _stage_order(run: RunFolder) -> tuple[int, str]:
    """Sort by stage, then by name."""
    stages = list(STAGE_NAMES)
    return (stages.index(run.stage) if run.stage in stages else len(stages), run.path.name)


def _page(source: Source) -> str:
    """Put the page together."""
    title = f"SignLLM report: {source.folder.resolve().name}"
    shown = list(sections(source))
    links = (tag("a", one.title, href=f"#{one.key}") for one in shown)
    header = tag("header", tag("h1", title), tag("p", LEAD, class_="lead"), tag("nav", *links))
    return page(title, header, tag("main", headline(source), *_cards(shown)), _footer(source))


def _cards(shown: Iterable[Section]) -> Iterable[Markup]:
    return (tag("section", tag("h2", one.title), one.body, id=one.key) for one in shown)


def _footer(source: Source) -> Markup:
    """Say what made the page, from what, and when."""
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = f"SignLLM {signllm.__version__}, {source.folder.resolve()}, {when}."
    return tag("footer", tag("p", made, " This file needs nothing from the network and runs no script."))
