"""All ablations side by side: mean and deviation over seeds, and how far each is from the full model.

Read from the run folders; nothing is trained or translated. What is missing is a row that says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signllm.ablation.ablations import ABLATIONS, FULL, title
from signllm.ablation.cells import scores_file
from signllm.data.split_names import standardize_split
from signllm.errors import UsageError
from signllm.evaluation.paired_runs import against
from signllm.evaluation.scores import METRICS, titles


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ablation.

    Attributes:
        name: of it.
        title: what it is without.
        seeds: that have scores.
        mean: of each metric over them, 0 to 100.
        sd: of each metric, n - 1 in the denominator; 0 of one seed.
        gains: BLEU-4 less that of the full model, of each seed that both have.
        p: the largest over these seeds of the paired bootstrap's p-values: how surely the difference is one
            of every seed. None without a seed in common.
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
        """Mean of the gains."""
        return statistics.mean(self.gains.values()) if self.gains else None

    @property
    def gain_sd(self) -> float:
        """Standard deviation of the gains, 0 of one."""
        return _sd([*self.gains.values()])


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows, and how their numbers came about.

    Attributes:
        split: that was translated.
        rows: the full model first.
        samples: sentences of the split.
        signature: of the scores.
    """

    split: str
    rows: tuple[Row, ...]
    samples: int
    signature: str

    @property
    def seeds(self) -> int:
        """Seeds of the row that has most."""
        return max(len(row.seeds) for row in self.rows)


def read_table(out: Path, split: str) -> Table:
    """Read what the ablations in a folder have scored.

    Raises:
        UsageError: there is none, or they were not scored alike.
    """
    cells = _cells(out, split)
    if not cells:
        split = standardize_split(split)
        cells = _cells(out, split)
    if not cells:
        raise UsageError(
            f"no ablation has scores of the split {split}",
            where=out,
            remedy="signllm ablate --data SHARDS --llm LLM --out OUT makes them",
        )
    scored = [scores for of_seeds in cells.values() for scores in of_seeds.values()]
    kinds = {(scores["samples"], scores["signature"]) for scores in scored}
    if len(kinds) > 1:
        raise UsageError(
            f"the ablations were not scored alike: {sorted(kinds)}",
            where=out,
            remedy="translate and score the same split of the same data by one version of the program",
        )
    ((samples, signature),) = kinds
    rows = tuple(_row(out, name, cells, split) for name in _names(out))
    return Table(split=split, rows=rows, samples=samples, signature=signature)


def _names(out: Path) -> list[str]:
    """Return the ablations that were begun, in order; those of no function any more last."""
    begun = {path.name for path in out.iterdir() if any(path.glob("seed-*"))}
    return [name for name in ABLATIONS if name in begun] + sorted(begun - ABLATIONS.keys())


def _cells(out: Path, split: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return ablation → seed → its scores."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(out.glob(f"*/seed-*/finetune/scores.{split}.json")):
        seed = path.parents[1].name.removeprefix("seed-")
        if seed.isdecimal():
            scores = json.loads(path.read_text(encoding="utf-8"))
            cells.setdefault(path.parents[2].name, {})[int(seed)] = scores
    return cells


def _row(out: Path, name: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]], split: str) -> Row:
    own, full = cells.get(name, {}), cells.get(FULL, {})
    if not own:
        return Row(name=name, title=title(name))
    known = [metric for metric in METRICS if all(metric in scores for scores in own.values())]
    columns = {metric: [own[seed][metric] for seed in sorted(own)] for metric in known}
    common = [] if name == FULL else sorted(own.keys() & full.keys())
    runs = {seed: [scores_file(out, one, seed, split).parent for one in (name, FULL)] for seed in common}
    found = {seed: against(run, of_full, split) for seed, (run, of_full) in runs.items()}
    return Row(
        name=name,
        title=title(name),
        seeds=tuple(sorted(own)),
        mean={metric: statistics.mean(values) for metric, values in columns.items()},
        sd={metric: _sd(values) for metric, values in columns.items()},
        gains={seed: one["difference"] for seed, one in found.items()},
        p=max((one["p"] for one in found.values()), default=None),
    )


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def head() -> tuple[str, ...]:
    """Return the names of the columns."""
    return ("ablation", "seeds", *titles(brief=True).values(), "BLEU-4 - full", "p")


def cells_of(row: Row, table: Table) -> tuple[str, ...]:
    """Return a row as text, in the columns of :func:`head`."""
    shown = titles(brief=True)
    if not row.seeds:
        return (row.title, "0", *("-" for _ in shown), "not scored yet", "-")
    seeds = str(len(row.seeds)) if len(row.seeds) == table.seeds else f"{len(row.seeds)} of {table.seeds}"
    spread = len(row.seeds) > 1
    means = {
        name: f"{mean:.1f}" + (f" ± {row.sd[name]:.1f}" if spread else "") for name, mean in row.mean.items()
    }
    scores = [means.get(name, "-") for name in shown]
    if row.gain is None or row.p is None:
        return (row.title, seeds, *scores, "-", "-")
    gain = f"{row.gain:+.1f}" + (f" ± {row.gain_sd:.1f}" if len(row.gains) > 1 else "")
    return (row.title, seeds, *scores, gain, "< 0.01" if row.p < 0.01 else f"{row.p:.2f}")


def about(table: Table) -> list[str]:
    """Return what a reader of the table must know."""
    return [
        f"Split {table.split}, {table.samples} sentences; {table.signature}.",
        "Mean ± standard deviation over seeds of the training. p: paired bootstrap over the sentences, the "
        "largest of all seeds; where the deviation is as large as the difference, it is none.",
    ]
