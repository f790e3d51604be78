"""What a report is made of: one chapter for each run, and what they share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from signllm.data.characters import load_split_characters
from signllm.errors import UsageError
from signllm.evaluation.report.run_folder import Record, RunFolder
from signllm.evaluation.report.vocabulary import Vocabulary
from signllm.languages import language_code

PREFERRED_SPLITS = ("test", "dev")
TRAIN = "train"
MOST_READ = 2000
"""Recorded videos that are looked at: enough to see what is used."""


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
    def plain_split(self) -> str:
        """The name that shards have for that split; that of training where nothing is translated."""
        return (self.split or TRAIN).removesuffix(".shuffled").partition("@")[0]

    @property
    def language(self) -> str | None:
        """The ISO 639-1 code of the language that the run writes, if that is known."""
        config = self.run.config.get("config")
        generation = config.get("generation") if isinstance(config, dict) else None
        name = generation.get("language") if isinstance(generation, dict) else None
        return language_code(name) if isinstance(name, str) and name else None

    @property
    def records(self) -> list[Record]:
        """The translations of that split."""
        return self.run.hypotheses[self.split] if self.split else []

    @cached_property
    def read(self) -> list[tuple[str, list[int]]]:
        """Id and characters of each of those videos; before stage 3 of those that ``compose`` recorded."""
        if self.records or self.run.stage == "finetune":
            found = ((str(r.get("id")), integers(r.get("characters"))) for r in self.records)
            return [(id, characters) for id, characters in found if characters]
        try:
            recorded, _ = load_split_characters(self.run.path, TRAIN)
        except UsageError:
            return []  # not composed yet
        plain = [(id, one.tolist()) for id, one in islice(recorded.items(), MOST_READ) if one.ndim == 1]
        return [(id, characters) for id, characters in plain if characters]

    @property
    def sequences(self) -> list[list[int]]:
        """The characters alone."""
        return [characters for _, characters in self.read]


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
