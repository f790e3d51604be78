"""Comparison of two runs on the same sentences: the difference of a metric, and whether it is significant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.metrics.scores import METRICS, ScoreConfig, normalize_texts
from signllm.metrics.significance import compute_paired_differences


def compare_with_baseline(
    run: Path, baseline: Path, split: str, metric: str = "bleu4"
) -> Mapping[str, float]:
    """Compare the translations of a split by two runs.

    Returns:
        ``difference`` of the metric (run minus baseline), and ``p``, the p-value of the paired bootstrap
        test.

    Raises:
        UsageError: A run has no translations, or the runs translated different videos or were scored by
            different rules.
    """
    sentences, baseline_sentences = (_read_sentences(folder, split) for folder in (run, baseline))
    conventions = {_read_convention(folder, split) for folder in (run, baseline)}
    if sentences.keys() != baseline_sentences.keys() or len(conventions) > 1:
        raise UsageError(
            "these runs translated different videos, or were scored by different rules",
            where=f"{run}, {baseline}: {split}",
            remedy="evaluate both on the same data, by one version of the program",
        )
    references = [reference for _, reference in baseline_sentences.values()]
    rules = ScoreConfig(convention=conventions.pop()).for_texts(references)
    system, normalized_references = normalize_texts(
        [sentences[id][0] for id in baseline_sentences], references, rules
    )
    other, _ = normalize_texts([text for text, _ in baseline_sentences.values()], references, rules)
    return compute_paired_differences(
        system, other, normalized_references, {metric: METRICS[metric].build(rules)}
    )[metric]


def _read_sentences(run: Path, split: str) -> dict[str, tuple[str, str]]:
    """Return video id → hypothesis and reference."""
    lines = _read(run / f"hypotheses.{split}.jsonl").splitlines()
    records = [json.loads(line) for line in lines]
    return {line["id"]: (line["hypothesis"], line["reference"]) for line in records}


def _read_convention(run: Path, split: str) -> Any:
    return json.loads(_read(run / f"scores.{split}.json")).get("convention")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}",
            where=path,
            remedy="run signllm evaluate, which writes it",
        ) from None
