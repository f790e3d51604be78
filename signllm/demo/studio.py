"""Filming the demo's dataset: sentences are signed, encoded as real mp4 files, and listed in a table.

``videos/table.tsv`` is what a dataset's owner would have: file, text, split, language, signer.
``truth.jsonl`` keeps what nobody has, for analysis and the oracle alone: signs, units and their frames. Test
sentences are in no other split and their signer in no other video; dev has a signer of its own as well, so
that choosing on dev is choosing for somebody unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.demo.language import LEVELS, Sentence, first_units, lexicon, sentences, units
from signllm.demo.signer import Signer, make_signer, record
from signllm.distributed.local_ranks import end_with_parent
from signllm.errors import UsageError
from signllm.progress import progress
from signllm.validation import NonNegativeInt, PositiveInt, validated

FPS = 25
TABLE = "table.tsv"
TRUTH = "truth.jsonl"
MOST_VIDEOS = 20_000  # of the grammar's 32,886 sentences; drawing the last ones would take ever longer
_COLUMNS = ("id", "video", "text", "split", "language", "signer")


@dataclass(frozen=True, kw_only=True)
class Take:
    """One video to be filmed: a sentence, who signs it, and the chance that makes every take different."""

    id: str
    split: str
    sentence: Sentence
    signer: Signer
    level: str
    seed: int


@validated
class StudioConfig:
    """How much is filmed: videos per split, at which level of the language, from which seed."""

    train: PositiveInt = 800
    dev: PositiveInt = 60
    test: PositiveInt = 100
    level: str = "easy"
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            names = ", ".join(LEVELS)
            raise UsageError(f"there is no level {self.level!r}", where="level", remedy=f"one of {names}")
        if self.train + self.dev + self.test > MOST_VIDEOS:
            raise UsageError(
                f"{self.train}, {self.dev} and {self.test} videos in train, dev and test",
                where="train",
                remedy=f"give at most {MOST_VIDEOS} in all: no sentence occurs twice",
            )


def split_sentences(config: StudioConfig) -> dict[str, list[Sentence]]:
    """Return the sentences of each split; no text occurs twice, within a split or between two."""
    source = sentences(config.seed)
    return {
        "test": list(islice(source, config.test)),
        "dev": list(islice(source, config.dev)),
        "train": list(islice(source, config.train)),
    }


def takes(config: StudioConfig) -> Iterator[Take]:
    """Plan every video: train signers take turns, dev and test have one of their own each."""
    level = LEVELS[config.level]
    cast = {
        "train": [
            make_signer(f"signer{n:02d}", 1000 * config.seed + n, level) for n in range(level.train_signers)
        ],
        "dev": [make_signer("devsigner", 1000 * config.seed + 501, level)],
        "test": [make_signer("testsigner", 1000 * config.seed + 502, level)],
    }
    for place, (split, spoken) in enumerate(split_sentences(config).items()):
        for number, sentence in enumerate(spoken):
            yield Take(
                id=f"{split}-{number:04d}",
                split=split,
                sentence=sentence,
                signer=cast[split][number % len(cast[split])],
                level=config.level,
                seed=(config.seed * 3 + place) * 1_000_000 + number,
            )


def film(folder: Path, config: StudioConfig, *, workers: int) -> None:
    """Film every take into ``folder/videos`` and write the table and the truth.

    The same settings give the same files. The table comes last: with it, everything is there.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    (videos / TABLE).unlink(missing_ok=True)
    planned = list(takes(config))
    rows, truths = [], []
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as studio,
        progress(len(planned), "filming", unit="videos") as bar,
    ):
        for take, truth in zip(planned, studio.map(_Camera(videos), planned, chunksize=8), strict=True):
            cells = (take.id, f"{take.id}.mp4", take.sentence.text, take.split, "English", take.signer.name)
            rows.append("\t".join(cells))
            truths.append(json.dumps(truth))
            bar.advance()
    atomic_write(folder / TRUTH, ("\n".join(truths) + "\n").encode())
    atomic_write(videos / TABLE, ("\n".join(["\t".join(_COLUMNS), *rows]) + "\n").encode())


def read_truth(folder: Path) -> list[dict[str, Any]]:
    """Read what was really signed.

    Returns:
        one record per video with ``id``, ``split``, ``signs``, ``units``, ``starts``, ``ends`` (of the
        units, in frames) and ``sign_starts``, which follow from the lexicon where an older file lacks them.
    """
    records = [json.loads(line) for line in (folder / TRUTH).read_text(encoding="utf-8").splitlines()]
    for truth in records:
        if "sign_starts" not in truth:
            truth["sign_starts"] = _sign_starts(truth)
    return records


def _sign_starts(truth: dict[str, Any]) -> list[int]:
    return [truth["starts"][place] for place in first_units(truth["signs"], truth["units"])]


@dataclass(frozen=True)
class _Camera:
    """Films one take into a folder, in a worker process."""

    videos: Path

    def __call__(self, take: Take) -> dict[str, Any]:
        from signllm.data.video.decoding import encode_h264

        signs = lexicon(take.level)
        sequence = [unit for gloss in take.sentence.signs for unit in signs[gloss]]
        recording = record(take.signer, sequence, units(take.level), LEVELS[take.level], take.seed)
        (self.videos / f"{take.id}.mp4").write_bytes(encode_h264(recording.frames, FPS, preset="ultrafast"))
        truth = {
            "id": take.id,
            "split": take.split,
            "signs": take.sentence.signs,
            "units": recording.units,
            "starts": recording.starts,
            "ends": recording.ends,
        }
        return truth | {"sign_starts": _sign_starts(truth)}
