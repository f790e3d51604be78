"""The table of ablations: mean and standard deviation over seeds, and the difference to the full model.

It is read from the run folders; nothing is trained or translated. An ablation without scores is a row too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signllm.data.split_names import standardize_split
from signllm.errors import UsageError
from signllm.experiments.ablation_cells import scores_path
from signllm.experiments.ablations import ABLATIONS, FULL, ablation_title
from signllm.metrics.paired_runs import compare_with_baseline
from signllm.metrics.scores import METRICS, metric_titles


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """The results of one ablation.

    Attributes:
        name: name of the ablation.
        title: what the ablation changes.
        seeds: seeds that have been scored.
        mean: mean of each metric over the seeds, 0 to 100.
        sd: standard deviation of each metric, with n - 1 in the denominator; 0 for a single seed.
        gains: seed → BLEU-4 minus that of the full model, for the seeds that both have.
        p: the largest of the p-values of the paired bootstrap tests of these seeds, which is small only if
            the difference is significant for every seed. None if there is no common seed.
    """

    name: str
    title: str
    seeds: tuple[int, ...] = ()
    mean: Mapping[str, float] = field(default_factory=dict)
    sd: Mapping[str, float] = field(default_factory=dict)
    gains: Mapping[int, float] = field(default_factory=dict)
    p: float | None = None

    @property
    def gain(self) -> float | None:
        """Mean of the gains, None without a common seed."""
        return statistics.mean(self.gains.values()) if self.gains else None

    @property
    def gain_sd(self) -> float:
        """Standard deviation of the gains, 0 for a single one."""
        return _deviation([*self.gains.values()])


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """The rows of the table, and how they were scored.

    Attributes:
        split: name of the split that was translated.
        rows: results of the ablations, the full model first.
        samples: number of sentences of the split.
        signature: signature of the metrics.
    """

    split: str
    rows: tuple[AblationRow, ...]
    samples: int
    signature: str

    @property
    def seeds(self) -> int:
        """Largest number of seeds of a row."""
        return max(len(row.seeds) for row in self.rows)


def read_ablation_table(out: Path, split: str) -> AblationTable:
    """Read the scores of all ablations in the folder of a study.

    Raises:
        UsageError: There are no scores of this split, or the ablations were scored by different rules.
    """
    cells = _read_cells(out, split)
    if not cells:
        split = standardize_split(split)
        cells = _read_cells(out, split)
    if not cells:
        raise UsageError(
            f"no ablation has scores of the split {split}",
            where=out,
            remedy="signllm ablate --data SHARDS --llm LLM --out OUT makes them",
        )
    scored = [scores for by_seed in cells.values() for scores in by_seed.values()]
    kinds = {(scores["samples"], scores["signature"]) for scores in scored}
    if len(kinds) > 1:
        raise UsageError(
            f"the ablations were scored by different rules or on different videos: {sorted(kinds)}",
            where=out,
            remedy="translate and score the same split of the same data by one version of the program",
        )
    ((samples, signature),) = kinds
    rows = tuple(_build_row(out, name, cells, split) for name in _find_ablations(out))
    return AblationTable(split=split, rows=rows, samples=samples, signature=signature)


def _find_ablations(out: Path) -> list[str]:
    """Return the ablations that were begun, in the order of the table; folders of unknown ones come last."""
    begun = {path.name for path in out.iterdir() if any(path.glob("seed-*"))}
    return [name for name in ABLATIONS if name in begun] + sorted(begun - ABLATIONS.keys())


def _read_cells(out: Path, split: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return ablation → seed → its scores."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(out.glob(f"*/seed-*/finetune/scores.{split}.json")):
        seed = path.parents[1].name.removeprefix("seed-")
        if seed.isdecimal():
            scores = json.loads(path.read_text(encoding="utf-8"))
            cells.setdefault(path.parents[2].name, {})[int(seed)] = scores
    return cells


def _build_row(
    out: Path, name: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]], split: str
) -> AblationRow:
    own, full = cells.get(name, {}), cells.get(FULL, {})
    if not own:
        return AblationRow(name=name, title=ablation_title(name))
    known = [metric for metric in METRICS if all(metric in scores for scores in own.values())]
    columns = {metric: [own[seed][metric] for seed in sorted(own)] for metric in known}
    common = [] if name == FULL else sorted(own.keys() & full.keys())
    runs = {
        seed: [scores_path(out, ablation, seed, split).parent for ablation in (name, FULL)] for seed in common
    }
    differences = {
        seed: compare_with_baseline(run, full_run, split) for seed, (run, full_run) in runs.items()
    }
    return AblationRow(
        name=name,
        title=ablation_title(name),
        seeds=tuple(sorted(own)),
        mean={metric: statistics.mean(values) for metric, values in columns.items()},
        sd={metric: _deviation(values) for metric, values in columns.items()},
        gains={seed: result["difference"] for seed, result in differences.items()},
        p=max((result["p"] for result in differences.values()), default=None),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def column_titles() -> tuple[str, ...]:
    """Return the titles of the columns."""
    return ("ablation", "seeds", *metric_titles(brief=True).values(), "BLEU-4 - full", "p")


def format_row(row: AblationRow, table: AblationTable) -> tuple[str, ...]:
    """Return a row as text, one cell for each of :func:`column_titles`."""
    metrics = metric_titles(brief=True)
    if not row.seeds:
        return (row.title, "0", *("-" for _ in metrics), "not scored yet", "-")
    seeds = str(len(row.seeds)) if len(row.seeds) == table.seeds else f"{len(row.seeds)} of {table.seeds}"
    has_deviation = len(row.seeds) > 1
    means = {
        name: f"{mean:.1f}" + (f" ± {row.sd[name]:.1f}" if has_deviation else "")
        for name, mean in row.mean.items()
    }
    scores = [means.get(name, "-") for name in metrics]
    if row.gain is None or row.p is None:
        return (row.title, seeds, *scores, "-", "-")
    gain = f"{row.gain:+.1f}" + (f" ± {row.gain_sd:.1f}" if len(row.gains) > 1 else "")
    return (row.title, seeds, *scores, gain, "< 0.01" if row.p < 0.01 else f"{row.p:.2f}")


def table_notes(table: AblationTable) -> list[str]:
    """Return the sentences below the table: how it was scored and how to read it."""
    return [
        f"Split {table.split}, {table.samples} sentences; {table.signature}.",
        "Mean ± standard deviation over the training seeds. p: p-value of the paired bootstrap test over the "
        "sentences, the largest of all seeds. A difference no larger than its standard deviation over the "
        "seeds is not a finding.",
    ]
