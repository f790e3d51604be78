"""Scores of files with sentences: of one system or several runs of it, optionally compared with a baseline.

The files may come from any system; the sentences of a human interpreter can be scored as well.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from signllm.errors import UsageError
from signllm.metrics.scores import METRICS, ScoreConfig, build_metrics, normalize_texts, score
from signllm.metrics.sentences import read_pairs_with_ids
from signllm.metrics.significance import RESAMPLES, Test, compute_paired_differences


def score_files(
    hypotheses: Sequence[Path],
    references: Path,
    config: ScoreConfig | None = None,
    *,
    baseline: Sequence[Path] = (),
    test: Test = "bootstrap",
    bootstrap: int = RESAMPLES,
) -> dict[str, Any]:
    """Score files of hypotheses against a file of references (formats: :mod:`signllm.metrics.sentences`).

    Args:
        hypotheses: a file of the system, or one file for each of its runs (seeds).
        references: file of the reference sentences.
        config: rules of scoring.
        baseline: files of another system: either one, or one for each file of the system, compared in order.
        test: significance test of the difference.
        bootstrap: number of resamples for the confidence intervals and the bootstrap test; 0 computes no
            intervals.

    Returns:
        The result of :func:`~signllm.metrics.scores.score`; for several files ``runs`` (file → result),
        with ``mean`` and ``sd`` of each metric. With a baseline also ``baseline`` in the same form, and
        ``against``: file → metric → ``difference`` and ``p``.

    Raises:
        UsageError: A file is missing or is not text, ids are missing or repeated, or the numbers of lines or
            of files differ.
    """
    config = config or ScoreConfig()
    if baseline and len(baseline) not in (1, len(hypotheses)):
        raise UsageError(
            f"{len(baseline)} baselines for {len(hypotheses)} files of hypotheses",
            where="--baseline",
            remedy="give one baseline, or one for each file of hypotheses",
        )
    systems = {path: read_pairs_with_ids(path, references) for path in [*hypotheses, *baseline]}
    config = config.for_texts(next(iter(systems.values()))[2])
    result = _score_system(hypotheses, systems, config, bootstrap)
    if baseline:
        result["baseline"] = _score_system(baseline, systems, config, bootstrap)
        others = baseline if len(baseline) == len(hypotheses) else [*baseline] * len(hypotheses)
        result["against"] = {
            str(path): _compare_systems(systems[path], systems[other], config, test, bootstrap)
            for path, other in zip(hypotheses, others, strict=True)
        }
    return result


Paired = tuple[list[str], list[str], list[str]]
"""Ids, hypotheses and references, in the order of the references."""


def _score_system(
    files: Sequence[Path], systems: Mapping[Path, Paired], config: ScoreConfig, bootstrap: int
) -> dict[str, Any]:
    """Return the scores of one file, or of several files with their mean and deviation."""
    runs = {str(path): score(*systems[path][1:], config, bootstrap=bootstrap) for path in files}
    if len(files) == 1:
        return next(iter(runs.values()))
    return {"runs": runs, **mean_and_deviation([*runs.values()])}


def mean_and_deviation(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return ``mean`` and ``sd`` of each metric over runs; ``sd`` divides by n - 1, and is 0 for one run."""
    columns = {name: [record[name] for record in records] for name in METRICS}
    deviation = stdev if len(records) > 1 else lambda _values: 0.0
    return {
        "mean": {name: mean(values) for name, values in columns.items()},
        "sd": {name: float(deviation(values)) for name, values in columns.items()},
    }


def _compare_systems(
    system: Paired, other: Paired, config: ScoreConfig, test: Test, bootstrap: int
) -> dict[str, dict[str, float]]:
    """Compare two systems whose sentences are in the order of the same references."""
    hypotheses, references = normalize_texts(system[1], system[2], config)
    baseline, _ = normalize_texts(other[1], other[2], config)
    samples = bootstrap if test == "bootstrap" else 0
    return compute_paired_differences(
        hypotheses, baseline, references, build_metrics(config), test=test, samples=samples
    )


def format_score_table(scores: Mapping[str, Any]) -> str:
    """Return the result of :func:`score_files` as a text table: a row for each metric, then the signature."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    runs = scores.get("runs", {"": scores})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in runs:
        table.add_column(_shorten_path(name) or "score", justify="right")
    if "mean" in scores:
        table.add_column("mean ± sd", justify="right")
    for name in scores.get("against", {}):
        table.add_column(
            f"{_shorten_path(name)} - baseline" if len(runs) > 1 else "- baseline (p)", justify="right"
        )
    for metric in METRICS:
        cells = [_format_with_interval(record, metric) for record in runs.values()]
        if "mean" in scores:
            cells.append(f"{scores['mean'][metric]:.2f} ± {scores['sd'][metric]:.2f}")
        for comparison in scores.get("against", {}).values():
            cells.append(f"{comparison[metric]['difference']:+.2f} ({comparison[metric]['p']:.3f})")
        table.add_row(metric, *cells)
    buffer = io.StringIO()
    Console(file=buffer, width=max(80, 34 * (len(table.columns) + 1)), no_color=True).print(table)
    record = next(iter(runs.values()))
    lines = [line.rstrip() for line in textwrap.dedent(buffer.getvalue()).splitlines() if line.strip()]
    return "\n".join([*lines, f"{record['samples']} sentences, {record['signature']}"])


def _shorten_path(name: str) -> str:
    """Return the last two parts of a path, because seeds often differ in the folder, not in the file name."""
    return "/".join(Path(name).parts[-2:])


def _format_with_interval(record: Mapping[str, Any], metric: str) -> str:
    if "intervals" not in record:
        return f"{record[metric]:.2f}"
    low, high = record["intervals"][metric]
    return f"{record[metric]:.2f} [{low:.2f}, {high:.2f}]"
