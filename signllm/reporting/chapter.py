"""The content of a report: one chapter for each run, and what the chapters share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from signllm.data.loading.characters import load_split_characters
from signllm.errors import UsageError
from signllm.languages import language_code
from signllm.reporting.run_folder import Record, RunFolder
from signllm.reporting.vocabulary import Vocabulary

PREFERRED_SPLITS = ("test", "dev")
TRAIN = "train"
MOST_RECORDED = 2000
"""Largest number of recorded videos from which the usage of codes and words is computed."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One run within a report.

    Attributes:
        run: contents of the run folder.
        vocabulary: word codebook of the run, if it has one.
        place: index of the chapter in the report.
    """

    run: RunFolder
    vocabulary: Vocabulary | None
    place: int

    @property
    def split(self) -> str | None:
        """The split whose translations are shown: test, else dev, else the first; a control only if alone."""
        names = [name for name, records in self.run.hypotheses.items() if records]
        plain = [name for name in names if "shuffled" not in name] or names
        return next((name for name in PREFERRED_SPLITS if name in plain), plain[0] if plain else None)

    @property
    def plain_split(self) -> str:
        """The name of that split in the shards; ``train`` if there are no translations."""
        return (self.split or TRAIN).removesuffix(".shuffled").partition("@")[0]

    @property
    def language(self) -> str | None:
        """The ISO 639-1 code of the target language, None if it is not known."""
        config = self.run.config.get("config")
        generation = config.get("generation") if isinstance(config, dict) else None
        name = generation.get("language") if isinstance(generation, dict) else None
        return language_code(name) if isinstance(name, str) and name else None

    @property
    def records(self) -> list[Record]:
        """The translations of :attr:`split`."""
        return self.run.hypotheses[self.split] if self.split else []

    @cached_property
    def encoded_videos(self) -> list[tuple[str, list[int]]]:
        """Id and characters of each translated video; before stage 3, of those that ``compose`` recorded."""
        if self.records or self.run.stage == "finetune":
            translated = (
                (str(record.get("id")), integers(record.get("characters"))) for record in self.records
            )
            return [(id, characters) for id, characters in translated if characters]
        try:
            recorded, _ = load_split_characters(self.run.path, TRAIN)
        except UsageError:
            return []  # the words have not been composed yet
        pairs = [
            (id, sequence.tolist())
            for id, sequence in islice(recorded.items(), MOST_RECORDED)
            if sequence.ndim == 1  # without a codebook, feature vectors are recorded
        ]
        return [(id, characters) for id, characters in pairs if characters]

    @property
    def sequences(self) -> list[list[int]]:
        """The characters of each of :attr:`encoded_videos`."""
        return [characters for _, characters in self.encoded_videos]


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that a report shows.

    Attributes:
        folder: run folder or demo folder.
        chapters: one chapter for each run.
        summary: contents of the ``summary.json`` of a demo, else empty.
        shards: folder or address of the shards with the videos, if it is known.
    """

    folder: Path
    chapters: list[Chapter]
    summary: Record
    shards: Path | str | None


def integers(value: Any) -> list[int]:
    """Return the value if it is a list of non-negative integers, else an empty list."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return []
