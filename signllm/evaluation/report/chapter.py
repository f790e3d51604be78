"""What a report is made of: one chapter for each run, and what they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signllm.evaluation.report.run_folder import Record, RunFolder
from signllm.evaluation.report.vocabulary import Vocabulary

PREFERRED_SPLITS = ("test", "dev")


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One run within a report.

    Attributes:
        run: its files.
        vocabulary: its words, if it has any.
        place: its number on the page.
    """

    run: RunFolder
    vocabulary: Vocabulary | None
    place: int

    @property
    def split(self) -> str | None:
        """The split whose translations are shown: test, else dev, else the first; controls only if alone."""
        names = [name for name, records in self.run.hypotheses.items() if records]
        plain = [name for name in names if "shuffled" not in name] or names
        return next((name for name in PREFERRED_SPLITS if name in plain), plain[0] if plain else None)

    @property
    def records(self) -> list[Record]:
        """The translations of that split."""
        return self.run.hypotheses[self.split] if self.split else []

    @property
    def sequences(self) -> list[list[int]]:
        """The characters of each of those videos, as far as they were recorded."""
        return [found for record in self.records if (found := integers(record.get("characters")))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything on one page."""

    folder: Path
    chapters: list[Chapter]
    summary: Record
    shards: Path | str | None


def integers(value: Any) -> list[int]:
    """Return a list of non-negative integers, or an empty list for anything else."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return []
