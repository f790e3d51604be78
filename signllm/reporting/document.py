"""The report: one self-contained HTML file of a run folder, or of a demo folder with several runs.

The sections come in the order in which a reader asks for them: scores, the way of some videos to text,
sentences, then training curves and settings. A section whose file is missing is omitted; files that could
not be read are listed at the end.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import signllm
from signllm.atomic_files import atomic_write
from signllm.errors import UsageError
from signllm.reporting.chapter import Chapter, ReportContent
from signllm.reporting.pages import render_page
from signllm.reporting.run_folder import RunFolder, read_object, read_run
from signllm.reporting.sections import STAGE_NAMES, headline_values, sections
from signllm.reporting.vocabulary import load_vocabulary


def write_report(folder: Path, *, shards: Path | str | None = None, out: Path | None = None) -> Path:
    """Write the report of a run folder, or of a demo folder that holds several runs.

    Args:
        folder: a run folder, or a folder with ``summary.json`` and run folders in it.
        shards: folder, address or mixture of the shards with the videos; by default a folder ``shards`` in or
            next to ``folder``, if there is one.
        out: file to write, atomically; by default ``folder/report.html``.

    Returns:
        The path of the file.

    Raises:
        UsageError: The folder does not exist or contains nothing to report.
    """
    content = _collect_content(Path(folder), shards)
    if not content.summary and not content.chapters:
        raise UsageError(
            "there is nothing to report: no config.json, log.jsonl, words.json, hypotheses or scores",
            where=folder,
            remedy="give the --run folder of a stage, or the --out folder of a demo",
        )
    target = Path(out) if out else Path(folder) / "report.html"
    atomic_write(target, _build_page(content))
    return target


def _collect_content(folder: Path, shards: Path | str | None) -> ReportContent:
    """Read the runs: the folder itself, or the subfolders of a demo folder."""
    own = read_run(folder)
    inside = {path.parent for name in ("config.json", "log.jsonl") for path in folder.glob(f"*/{name}")}
    runs = [own] if not own.is_empty() else sorted((read_run(path) for path in inside), key=_stage_order)
    places = (folder / "shards", folder.parent / "shards")
    shards = shards or next((place for place in places if (place / "manifest.json").is_file()), None)
    chapters = [
        Chapter(run=run, vocabulary=load_vocabulary(run), place=place) for place, run in enumerate(runs)
    ]
    return ReportContent(
        folder=folder, chapters=chapters, summary=read_object(folder / "summary.json"), shards=shards
    )


def _stage_order(run: RunFolder) -> tuple[int, str]:
    """Return the sort key of a run: its stage, then its name."""
    stages = list(STAGE_NAMES)
    return (stages.index(run.stage) if run.stage in stages else len(stages), run.path.name)


def _build_page(content: ReportContent) -> str:
    """Return the complete HTML page."""
    folder = content.folder.resolve()
    return render_page(
        "report.html",
        title=f"SignLLM report: {folder.name}",
        sections=list(sections(content)),  # before the headline: reading the sections finds problems of files
        tiles=list(headline_values(content)),
        version=signllm.__version__,
        folder=folder,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
