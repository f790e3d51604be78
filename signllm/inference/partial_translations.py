"""Translations of an interrupted evaluation, kept in the run folder so that it can be resumed.

The first line of ``unfinished.SPLIT.jsonl`` records what the translations were made with (checkpoint, data,
search settings). If that has changed, the translations are discarded. The file is removed when the scores
are written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.metrics.hypotheses import Hypothesis


class PartialTranslations:
    """The translations of a split so far; only rank 0 reads and writes the file.

    Args:
        run: run folder.
        split: label of the split.
        made_with: everything except the video that a translation depends on, as JSON-compatible values.
    """

    def __init__(self, run: Path, split: str, made_with: Mapping[str, Any]) -> None:
        self.path = run / f"unfinished.{split}.jsonl"
        self.made_with = json.loads(json.dumps(made_with))

    def read(self) -> list[Hypothesis]:
        """Return the translations of the file if they are still valid, else an empty list."""
        try:
            first, *lines = self.path.read_text(encoding="utf-8").splitlines()
            if json.loads(first) != self.made_with:
                return []
            return [Hypothesis(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError):  # no file, or a damaged one: translate everything
            return []

    def write(self, translations: Sequence[Hypothesis]) -> None:
        """Write translations, except for unreadable videos, which are tried again.

        Raises:
            UsageError: The disk is full.
        """
        records = [dataclasses.asdict(translation) for translation in translations if not translation.problem]
        lines = [json.dumps(record, ensure_ascii=False) for record in [self.made_with, *records]]
        atomic_write(self.path, "\n".join(lines) + "\n")

    def remove(self) -> None:
        """Remove the file, because the split is complete."""
        self.path.unlink(missing_ok=True)
