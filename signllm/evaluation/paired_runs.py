"""One run against another, sentence by sentence: by how much it is better, and whether that is chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.evaluation.scores import METRICS, ScoreConfig, normalised
from signllm.evaluation.significance import differences


def against(run: Path, baseline: Path, split: str, metric: str = "bleu4") -> Mapping[str, float]:
    """Return ``difference`` and ``p`` (paired bootstrap) of a run's translations of a split to another run's.

    Raises:
        UsageError: one has no translations, or they are of other videos, or were scored otherwise.
    """
    ours, theirs = (_sentences(one, split) for one in (run, baseline))
    conventions = {_convention(one, split) for one in (run, baseline)}
    if ours.keys() != theirs.keys() or len(conventions) > 1:
        raise UsageError(
            "these runs translated other videos, or were scored by other rules",
            where=f"{run}, {baseline}: {split}",
            remedy="evaluate both on the same data, by one version of the program",
        )
    references = [reference for _, reference in theirs.values()]
    rules = ScoreConfig(convention=conventions.pop()).for_texts(references)
    system, said = normalised([ours[id][0] for id in theirs], references, rules)
    other, _ = normalised([text for text, _ in theirs.values()], references, rules)
    return differences(system, other, said, {metric: METRICS[metric].build(rules)})[metric]


def _sentences(run: Path, split: str) -> dict[str, tuple[str, str]]:
    """Return id → hypothesis and reference."""
    lines = _read(run / f"hypotheses.{split}.jsonl").splitlines()
    records = [json.loads(line) for line in lines]
    return {line["id"]: (line["hypothesis"], line["reference"]) for line in records}


def _convention(run: Path, split: str) -> Any:
    return json.loads(_read(run / f"scores.{split}.json")).get("convention")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=path, remedy="signllm evaluate writes it"
        ) from None
