"""Runs side by side: what each was made with, how large its language model is, and its scores on one split.

Everything is read from the run folders, nothing is computed anew. What a run lacks is said and leaves its
places empty: a sweep of which one job failed is still a table.
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
from signllm.evaluation.paired_runs import compare_with_baseline
from signllm.evaluation.report.run_folder import RunFolder, finite, read_object, read_run
from signllm.evaluation.report.tables import flattened
from signllm.evaluation.scores import METRICS, metric_titles

MAIN = "bleu4"
"""The metric whose interval, mean and difference are told."""
AGAINST = ("BLEU-4 - first", "p")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        run: its folder.
        llm: folder or name of its language model.
        family: what ``transformers`` calls the model's kind, ``""`` where that is not known here.
        parameters: of the language model; None: not known here.
        seed: of training.
        settings: a hash of all else that it was made with: the same where runs differ in the seed alone.
        scores: by name, 0 to 100; empty without an evaluation.
        interval: half width of BLEU-4's 95 % interval over the sentences; None if it was scored without one.
        samples: sentences that were scored.
        signature: of the scores.
        gain: BLEU-4 less that of the run that was named first, where both translated the same videos.
        p: of the paired bootstrap: how often chance alone would give so much.
        differing: the settings in which the runs differ, by their dotted names.
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
    """Read the runs, the smallest language model first; the first one named is what others are held against.

    Raises:
        UsageError: a folder is not there, or no run has scores of this split.
    """
    folders = [read_run(run) for run in runs]
    split = find_split(split, {name: None for run in folders for name in run.scores}) or split
    found = [_compared(run, split) for run in folders]
    if not any(one.scores for one in found):
        raise UsageError(
            f"no run has scores of the split {split}",
            where=", ".join(map(str, runs)),
            remedy=found[0].problem.rpartition("remedy: ")[2] if found else "name one run or more",
        )
    for place, differing in enumerate(_differing(folders)):
        gain, p = _gain(found[place], found[0], split)
        found[place] = dataclasses.replace(found[place], differing=differing, gain=gain, p=p)
    return sorted(found, key=lambda one: (one.parameters or 0, one.llm, one.settings, one.seed or 0, one.run))


def _compared(run: RunFolder, split: str) -> ComparedRun:
    config = run.config.get("config")
    settings: dict[str, Any] = json.loads(json.dumps(config)) if isinstance(config, dict) else {}
    model = settings.get("sign_llm", {}).get("language_model", {})
    seed = settings.get("training", {}).pop("seed", None)
    llm = str(model.get("path") or "") if isinstance(model, dict) else ""
    family, parameters = _size(llm, run.path)
    scores = run.scores.get(split, {})
    values = {name: value for name in METRICS if (value := finite(scores.get(name))) is not None}
    problem = ""
    if "bleu4" not in values:
        values = {}
        problem = f"{run.path}: {_lacks(run, split)}"
    return ComparedRun(
        run=str(run.path),
        llm=llm,
        family=family,
        parameters=parameters,
        seed=seed if isinstance(seed, int) else None,
        settings=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        scores=values,
        interval=_interval(scores) if values else None,
        samples=scores.get("samples"),
        signature=str(scores.get("signature", "")),
        problem=problem,
    )


def _gain(one: ComparedRun, first: ComparedRun, split: str) -> tuple[float | None, float | None]:
    """Return how far a run is from the first, and p, if they can be held against each other."""
    if one.run == first.run or not one.scores or not first.scores:
        return None, None
    try:
        found = compare_with_baseline(Path(one.run), Path(first.run), split)
    except (UsageError, ValueError, KeyError):
        return None, None
    return found["difference"], found["p"]


def _differing(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Return of each run the settings that are not the same in all of them."""
    configs = [run.config.get("config") for run in runs]
    settings = [dict(flattened(config)) if isinstance(config, dict) else {} for config in configs]
    names = dict.fromkeys(name for one in settings for name in one)
    differ = [name for name in names if len({one.get(name, "-") for one in settings}) > 1]
    return [{name: one.get(name, "-") for name in differ} for one in settings]


def _lacks(run: RunFolder, split: str) -> str:
    """Say why there are no scores, and what to do."""
    if run.stage != "finetune":
        return f"this is a folder of {run.stage}; remedy: name runs of stage 3"
    return f"no scores.{split}.json; remedy: signllm evaluate --run {run.path} --data SHARDS --split {split}"


def _size(llm: str, run: Path) -> tuple[str, int | None]:
    """Return the family and the parameters of a language model, from its configuration or the run's start."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from signllm.models.language_model_loading import read_configuration

    try:
        config = read_configuration(llm)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
        return str(config.model_type), sum(p.numel() for p in model.parameters())
    except (UsageError, ValueError):
        counts = read_object(run / "startup.json").get("parameters", {}).get("language_model", {})
        return "", counts.get("frozen") or None


def _interval(scores: Mapping[str, Any]) -> float | None:
    """Return the half width of BLEU-4's interval, if it was scored with one."""
    intervals = scores.get("intervals")
    ends = intervals.get("bleu4") if isinstance(intervals, dict) else None
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = map(finite, ends)
    return None if low is None or high is None else (high - low) / 2


@dataclass(frozen=True, kw_only=True)
class ScorePoint:
    """Runs that differ in the seed alone: BLEU-4 of one, or mean and standard deviation of several."""

    llm: str
    family: str
    parameters: int | None
    runs: int
    bleu4: float
    spread: float | None


def group_over_seeds(compared: Sequence[ComparedRun]) -> list[ScorePoint]:
    """Return the scored runs as points; ``spread`` is the interval of one run, the deviation of several."""
    groups: dict[str, list[ComparedRun]] = {}
    for one in compared:
        if one.scores:
            groups.setdefault(one.settings, []).append(one)
    found = []
    for group in groups.values():
        values = [one.scores["bleu4"] for one in group]
        first = group[0]
        found.append(
            ScorePoint(
                llm=first.llm_name,
                family=first.family,
                parameters=first.parameters,
                runs=len(group),
                bleu4=statistics.mean(values),
                spread=statistics.stdev(values) if len(group) > 1 else first.interval,
            )
        )
    return found


def table_rows(compared: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """Return the table: a row for each run, then one for the mean of runs that differ in the seed alone."""
    head = ("run", "language model", "parameters", "seed")
    table: list[tuple[str, ...]] = [(*head, *_scored(metric_titles(), "95 %"), *AGAINST)]
    for one in compared:
        half = "-" if one.interval is None else f"± {one.interval:.2f}"
        seed = "-" if one.seed is None else str(one.seed)
        known = (one.run, one.llm_name or "-", format_count(one.parameters), seed)
        gain = "-" if one.gain is None else f"{one.gain:+.2f}"
        p = "-" if one.p is None else f"{one.p:.3f}"
        scores = {name: f"{value:.2f}" for name, value in one.scores.items()}
        table.append((*known, *_scored(scores, half), gain, p))
    for point in group_over_seeds(compared):
        if point.runs > 1:
            known = (f"mean of {point.runs} seeds", point.llm, format_count(point.parameters), "")
            mean = dict.fromkeys(metric_titles(), "") | {MAIN: f"{point.bleu4:.2f}"}
            table.append((*known, *_scored(mean, f"sd {point.spread:.2f}"), "", ""))
    return table


def _scored(values: Mapping[str, str], beside: str) -> list[str]:
    """Return the cells of the metrics shown, and ``beside`` behind the main one's."""
    cells: list[str] = []
    for name in metric_titles(brief=True):
        cells += [values.get(name, "-"), beside] if name == MAIN else [values.get(name, "-")]
    return cells


def align_columns(table: Sequence[Sequence[str]], *, names: int) -> list[str]:
    """Return the lines of a table as text: the first ``names`` columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def shorten_run_names(runs: Sequence[str]) -> list[str]:
    """Return the folders' names without what all begin and end with."""
    parts = [Path(run).parts for run in runs]
    least = min(map(len, parts))
    first = next((n for n in range(least) if len({one[n] for one in parts}) > 1), least - 1)
    last = next((n for n in range(least - first) if len({one[-1 - n] for one in parts}) > 1), 0)
    return ["/".join(one[first : len(one) - last]) for one in parts]


def format_count(number: int | None) -> str:
    """Return a number of parameters as papers write it: ``6.7 B``."""
    if number is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def list_warnings(compared: Sequence[ComparedRun]) -> list[str]:
    """Return what a reader of the table must know: what is missing, what cannot be compared."""
    told = [one.problem for one in compared if one.problem]
    for name in ("signature", "samples"):
        kinds = {getattr(one, name) for one in compared if one.scores}
        if len(kinds) > 1:
            told.append(f"not to be compared: the scores have {len(kinds)} kinds of {name}: {kinds}")
    return told
