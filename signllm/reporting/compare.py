"""Comparison of runs: the settings of each, the size of its language model, and its scores on one split.

Everything is read from the run folders; nothing is translated or scored again. What a run lacks is reported,
and its cells stay empty, so that a sweep of which one job has failed can still be shown as a table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.data.split_names import find_split
from signllm.errors import UsageError
from signllm.metrics.paired_runs import compare_with_baseline
from signllm.metrics.scores import METRICS, metric_titles
from signllm.reporting.run_folder import RunFolder, finite, read_object, read_run
from signllm.reporting.tables import flatten_settings

MAIN_METRIC = "bleu4"
"""The metric whose interval, mean and difference are shown."""
DIFFERENCE_COLUMNS = ("BLEU-4 - first", "p")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        run: run folder.
        llm: folder or name of the language model.
        family: model type of the language model in ``transformers``, ``""`` if it is not known on this
            machine.
        parameters: number of parameters of the language model; None if it is not known on this machine.
        seed: training seed.
        settings: hash of all settings except the seed; runs that differ in the seed only have the same hash.
        scores: metric → score, 0 to 100; empty if the run has not been evaluated.
        interval: half width of the 95 % confidence interval of BLEU-4; None if none was computed.
        samples: number of sentences that were scored.
        signature: signature of the metrics.
        gain: BLEU-4 minus that of the run that was named first, if both translated the same videos.
        p: p-value of that difference (paired bootstrap test).
        differing: dotted name → value of the settings in which the runs differ.
        problem: what is missing, and the remedy.
    """

    run: str
    llm: str
    family: str = ""
    parameters: int | None = None
    seed: int | None = None
    settings: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    interval: float | None = None
    samples: int | None = None
    signature: str = ""
    gain: float | None = None
    p: float | None = None
    differing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""

    @property
    def llm_name(self) -> str:
        """The last part of the language model's name."""
        return Path(self.llm).name


def compare_runs(runs: Sequence[Path], split: str) -> list[ComparedRun]:
    """Read runs for a comparison, sorted by the size of their language model.

    Args:
        runs: run folders; the first one is the baseline of the differences.
        split: split whose scores are compared.

    Raises:
        UsageError: A folder does not exist, or no run has scores of this split.
    """
    folders = [read_run(run) for run in runs]
    split = find_split(split, {name: None for run in folders for name in run.scores}) or split
    compared = [_read_compared_run(run, split) for run in folders]
    if not any(run.scores for run in compared):
        raise UsageError(
            f"no run has scores of the split {split}",
            where=", ".join(map(str, runs)),
            remedy=compared[0].problem.rpartition("remedy: ")[2] if compared else "name one run or more",
        )
    baseline = compared[0]
    for place, differing in enumerate(_find_differing_settings(folders)):
        gain, p = _difference_to_baseline(compared[place], baseline, split)
        compared[place] = dataclasses.replace(compared[place], differing=differing, gain=gain, p=p)
    return sorted(
        compared, key=lambda run: (run.parameters or 0, run.llm, run.settings, run.seed or 0, run.run)
    )


def _read_compared_run(run: RunFolder, split: str) -> ComparedRun:
    config = run.config.get("config")
    settings: dict[str, Any] = json.loads(json.dumps(config)) if isinstance(config, dict) else {}
    model = settings.get("sign_llm", {}).get("language_model", {})
    seed = settings.get("training", {}).pop("seed", None)
    llm = str(model.get("path") or "") if isinstance(model, dict) else ""
    family, parameters = _model_size(llm, run.path)
    scores = run.scores.get(split, {})
    values = {name: value for name in METRICS if (value := finite(scores.get(name))) is not None}
    problem = ""
    if "bleu4" not in values:
        values = {}
        problem = f"{run.path}: {_explain_missing_scores(run, split)}"
    return ComparedRun(
        run=str(run.path),
        llm=llm,
        family=family,
        parameters=parameters,
        seed=seed if isinstance(seed, int) else None,
        settings=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        scores=values,
        interval=_interval_half_width(scores) if values else None,
        samples=scores.get("samples"),
        signature=str(scores.get("signature", "")),
        problem=problem,
    )


def _difference_to_baseline(
    run: ComparedRun, baseline: ComparedRun, split: str
) -> tuple[float | None, float | None]:
    """Return the difference of a run to the baseline and its p-value; None if they are not comparable."""
    if run.run == baseline.run or not run.scores or not baseline.scores:
        return None, None
    try:
        result = compare_with_baseline(Path(run.run), Path(baseline.run), split)
    except (UsageError, ValueError, KeyError):
        return None, None
    return result["difference"], result["p"]


def _find_differing_settings(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Return, for each run, the values of the settings that are not equal in all runs."""
    configs = [run.config.get("config") for run in runs]
    settings = [dict(flatten_settings(config)) if isinstance(config, dict) else {} for config in configs]
    names = dict.fromkeys(name for run_settings in settings for name in run_settings)
    differing = [
        name for name in names if len({run_settings.get(name, "-") for run_settings in settings}) > 1
    ]
    return [{name: run_settings.get(name, "-") for name in differing} for run_settings in settings]


def _explain_missing_scores(run: RunFolder, split: str) -> str:
    """Return why a run has no scores of a split, and the remedy."""
    if run.stage != "finetune":
        return f"this is a folder of stage {run.stage}, which has no scores; remedy: name runs of finetune"
    return (
        f"no scores.{split}.json; remedy: run signllm evaluate --run {run.path} --data SHARDS --split {split}"
    )


def _model_size(llm: str, run: Path) -> tuple[str, int | None]:
    """Return model type and number of parameters of a language model.

    They are computed from its ``config.json``; if that is not on this machine, the number is taken from the
    ``startup.json`` of the run.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from signllm.models.language_model.loading import read_configuration

    try:
        config = read_configuration(llm)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
        return str(config.model_type), sum(p.numel() for p in model.parameters())
    except (UsageError, ValueError):
        counts = read_object(run / "startup.json").get("parameters", {}).get("language_model", {})
        return "", counts.get("frozen") or None


def _interval_half_width(scores: Mapping[str, Any]) -> float | None:
    """Return the half width of the confidence interval of BLEU-4, None if there is none."""
    intervals = scores.get("intervals")
    ends = intervals.get("bleu4") if isinstance(intervals, dict) else None
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = map(finite, ends)
    return None if low is None or high is None else (high - low) / 2


@dataclass(frozen=True, kw_only=True)
class ScorePoint:
    """One run, or several runs that differ in the training seed only, as a point of the figure.

    Attributes:
        llm: name of the language model.
        family: model type of the language model.
        parameters: number of its parameters.
        runs: number of runs.
        bleu4: mean BLEU-4 of the runs.
        spread: half width of the confidence interval of a single run; standard deviation of several runs.
    """

    llm: str
    family: str
    parameters: int | None
    runs: int
    bleu4: float
    spread: float | None


def group_over_seeds(compared: Sequence[ComparedRun]) -> list[ScorePoint]:
    """Group the scored runs that differ in the seed only, and return one point for each group."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in compared:
        if run.scores:
            groups.setdefault(run.settings, []).append(run)
    points = []
    for group in groups.values():
        values = [run.scores["bleu4"] for run in group]
        first = group[0]
        points.append(
            ScorePoint(
                llm=first.llm_name,
                family=first.family,
                parameters=first.parameters,
                runs=len(group),
                bleu4=statistics.mean(values),
                spread=statistics.stdev(values) if len(group) > 1 else first.interval,
            )
        )
    return points


def build_table_rows(compared: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """Return the table: titles, one row per run, and one per mean over runs that differ in the seed only."""
    titles = ("run", "language model", "parameters", "seed")
    table: list[tuple[str, ...]] = [(*titles, *_score_cells(metric_titles(), "95 %"), *DIFFERENCE_COLUMNS)]
    for run in compared:
        interval = "-" if run.interval is None else f"± {run.interval:.2f}"
        seed = "-" if run.seed is None else str(run.seed)
        labels = (run.run, run.llm_name or "-", format_count(run.parameters), seed)
        gain = "-" if run.gain is None else f"{run.gain:+.2f}"
        p = "-" if run.p is None else f"{run.p:.3f}"
        scores = {name: f"{value:.2f}" for name, value in run.scores.items()}
        table.append((*labels, *_score_cells(scores, interval), gain, p))
    for point in group_over_seeds(compared):
        if point.runs > 1:
            labels = (f"mean of {point.runs} seeds", point.llm, format_count(point.parameters), "")
            mean = dict.fromkeys(metric_titles(), "") | {MAIN_METRIC: f"{point.bleu4:.2f}"}
            table.append((*labels, *_score_cells(mean, f"sd {point.spread:.2f}"), "", ""))
    return table


def _score_cells(values: Mapping[str, str], uncertainty: str) -> list[str]:
    """Return the cells of the metrics, with ``uncertainty`` after that of the main metric."""
    cells: list[str] = []
    for name in metric_titles(brief=True):
        cells += [values.get(name, "-"), uncertainty] if name == MAIN_METRIC else [values.get(name, "-")]
    return cells


def align_columns(table: Sequence[Sequence[str]], *, names: int) -> list[str]:
    """Return a table as lines of text: ``names`` left-aligned columns, then right-aligned ones."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def shorten_run_names(runs: Sequence[str]) -> list[str]:
    """Return the run folders without the leading and trailing parts that all of them have in common."""
    parts = [Path(run).parts for run in runs]
    least = min(map(len, parts))
    first = next((n for n in range(least) if len({run_parts[n] for run_parts in parts}) > 1), least - 1)
    last = next((n for n in range(least - first) if len({run_parts[-1 - n] for run_parts in parts}) > 1), 0)
    return ["/".join(run_parts[first : len(run_parts) - last]) for run_parts in parts]


def format_count(number: int | None) -> str:
    """Return a number of parameters with its unit, as in papers: ``6.7 B``."""
    if number is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def list_warnings(compared: Sequence[ComparedRun]) -> list[str]:
    """Return warnings for readers of the table: what is missing, and which scores are not comparable."""
    warnings = [run.problem for run in compared if run.problem]
    for name in ("signature", "samples"):
        kinds = {getattr(run, name) for run in compared if run.scores}
        if len(kinds) > 1:
            warnings.append(
                f"these scores are not comparable: they have {len(kinds)} kinds of {name}: {kinds}"
            )
    return warnings
