"""Score files of anybody's output: one system, or several runs of it, against a baseline if there is one.

A human interpreter's sentences are a system like any other.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.evaluation.scores import METRICS, SAMPLES, ScoreConfig, metrics_of, normalised, score
from signllm.evaluation.sentences import paired_with_ids
from signllm.evaluation.significance import Test, differences, over_seeds


def score_files(
    hypotheses: Sequence[Path],
    references: Path,
    config: ScoreConfig | None = None,
    *,
    baseline: Sequence[Path] = (),
    test: Test = "bootstrap",
    bootstrap: int = SAMPLES,
) -> dict[str, Any]:
    """Score files against one of references (:mod:`signllm.evaluation.sentences` says which kinds).

    Args:
        hypotheses: a file of the system, or one of each of its runs (seeds).
        references: what was said.
        config: by which rules.
        baseline: files of another system: one, or as many as those of the system, to be compared one by one.
        test: of the significance of the difference.
        bootstrap: resamples for the intervals and the bootstrap test; 0 leaves the intervals out.

    Returns:
        What :func:`~signllm.evaluation.scores.score` returns; of several files ``runs`` (file → that), with
        ``mean`` and ``sd`` of each metric. With a baseline also its ``baseline`` in the same form, and
        ``against``: file → metric → ``difference`` and ``p``.

    Raises:
        UsageError: a file is missing or not text, ids are missing or repeated, or numbers of lines or files
            differ.
    """
    config = config or ScoreConfig()
    if baseline and len(baseline) not in (1, len(hypotheses)):
        raise UsageError(
            f"{len(baseline)} baselines for {len(hypotheses)} files of hypotheses",
            where="--baseline",
            remedy="give one, or one for each",
        )
    systems = {path: paired_with_ids(path, references) for path in [*hypotheses, *baseline]}
    config = config.for_texts(next(iter(systems.values()))[2])
    result = _of(hypotheses, systems, config, bootstrap)
    if baseline:
        result["baseline"] = _of(baseline, systems, config, bootstrap)
        others = baseline if len(baseline) == len(hypotheses) else [*baseline] * len(hypotheses)
        result["against"] = {
            str(path): _difference(systems[path], systems[other], config, test, bootstrap)
            for path, other in zip(hypotheses, others, strict=True)
        }
    return result


Paired = tuple[list[str], list[str], list[str]]


def _of(
    files: Sequence[Path], systems: Mapping[Path, Paired], config: ScoreConfig, bootstrap: int
) -> dict[str, Any]:
    found = {str(path): score(*systems[path][1:], config, bootstrap=bootstrap) for path in files}
    return next(iter(found.values())) if len(files) == 1 else {"runs": found, **over_seeds([*found.values()])}


def _difference(
    system: Paired, other: Paired, config: ScoreConfig, test: Test, bootstrap: int
) -> dict[str, dict[str, float]]:
    """Compare two systems; both are in the order of the same references."""
    ours, theirs = normalised(system[1], system[2], config)
    baseline, _ = normalised(other[1], other[2], config)
    samples = bootstrap if test == "bootstrap" else 0
    return differences(ours, baseline, theirs, metrics_of(config), test=test, samples=samples)


def score_table(found: Mapping[str, Any]) -> str:
    """Return scores as a text table: a row for each metric, then how they were computed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    runs = found.get("runs", {"": found})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in runs:
        table.add_column(_short(name) or "score", justify="right")
    if "mean" in found:
        table.add_column("mean ± sd", justify="right")
    for name in found.get("against", {}):
        table.add_column(f"{_short(name)} - baseline" if len(runs) > 1 else "- baseline (p)", justify="right")
    for metric in METRICS:
        cells = [_with_interval(record, metric) for record in runs.values()]
        if "mean" in found:
            cells.append(f"{found['mean'][metric]:.2f} ± {found['sd'][metric]:.2f}")
        for one in found.get("against", {}).values():
            cells.append(f"{one[metric]['difference']:+.2f} ({one[metric]['p']:.3f})")
        table.add_row(metric, *cells)
    written = io.StringIO()
    Console(file=written, width=max(80, 34 * (len(table.columns) + 1)), no_color=True).print(table)
    record = next(iter(runs.values()))
    lines = [line.rstrip() for line in textwrap.dedent(written.getvalue()).splitlines() if line.strip()]
    return "\n".join([*lines, f"{record['samples']} sentences, {record['signature']}"])


def _short(name: str) -> str:
    """Return the last two parts of a path: seeds differ in the folder as often as in the file."""
    return "/".join(Path(name).parts[-2:])


def _with_interval(record: Mapping[str, Any], metric: str) -> str:
    if "intervals" not in record:
        return f"{record[metric]:.2f}"
    low, high = record["intervals"][metric]
    return f"{record[metric]:.2f} [{low:.2f}, {high:.2f}]"
