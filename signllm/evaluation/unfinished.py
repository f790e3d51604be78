"""Translations of a split that is not finished: kept in the run, so that a stopped evaluation goes on there.

The first line of ``unfinished.SPLIT.jsonl`` says what the others were made with (checkpoint, data, search);
where that has changed they are made anew. The file goes when the scores are written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.evaluation.hypotheses import Hypothesis


class Unfinished:
    """What has been translated so far; only rank 0 reads and writes it.

    Args:
        run: folder of the run.
        split: that is translated.
        made_with: what decides a translation beside its video; made of JSON's types.
    """

    def __init__(self, run: Path, split: str, made_with: Mapping[str, Any]) -> None:
        self.path = run / f"unfinished.{split}.jsonl"
        self.made_with = json.loads(json.dumps(made_with))

    def read(self) -> list[Hypothesis]:
        """Return the translations that were kept and are still valid."""
        try:
            first, *lines = self.path.read_text(encoding="utf-8").splitlines()
            if json.loads(first) != self.made_with:
                return []
            return [Hypothesis(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError):  # not there, or not ours: translated anew
            return []

    def write(self, translations: Sequence[Hypothesis]) -> None:
        """Keep translations; what could not be read is tried again.

        Raises:
            UsageError: the disk is full.
        """
        records = [dataclasses.asdict(one) for one in translations if not one.problem]
        lines = [json.dumps(record, ensure_ascii=False) for record in [self.made_with, *records]]
        atomic_write(self.path, "\n".join(lines) + "\n")

    def remove(self) -> None:
        """Forget them: the split is finished."""
        self.path.unlink(missing_ok=True)
