"""Translations of a split as records: gathered from the ranks, shuffled for a control, and written."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_write
from signllm.distributed.agreement import gather_objects
from signllm.errors import UsageError

if TYPE_CHECKING:
    from signllm.distributed.ranks import Ranks

FIELDS = ("id", "hypothesis", "reference", "characters", "words")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """The translation of one video of a split.

    Attributes:
        place: index of the video in its split.
        id: id of the video in its dataset.
        hypothesis: the generated sentence.
        reference: the reference sentence.
        characters: sign codes of the video.
        words: ids of the sign words that the language model read.
        problem: why the video could not be read, else empty.
        language: language of the reference.
    """

    place: int
    id: str
    hypothesis: str
    reference: str
    characters: list[int]
    words: list[int]
    problem: str = ""
    language: str = ""


def gather_hypotheses(own: Sequence[Hypothesis], ranks: Ranks) -> list[Hypothesis]:
    """Return the translations of all ranks, in the order of the split (collective).

    If several ranks translated a video, that of the lowest rank is taken.
    """
    parts = gather_objects(list(own), ranks)
    by_place: dict[int, Hypothesis] = {}
    for hypothesis in (hypothesis for part in parts for hypothesis in part):
        by_place.setdefault(hypothesis.place, hypothesis)
    return [by_place[place] for place in sorted(by_place)]


def exchange_translations(hypotheses: Sequence[Hypothesis], seed: int = 0) -> list[Hypothesis]:
    """Pair every reference with the translation of another video, as if the videos had been exchanged.

    The exchange is a single cycle through all videos (Sattolo's algorithm), so no video keeps its own
    translation. In a split of several languages, a translation stays in the language of the video that it
    was made from.

    Raises:
        UsageError: There are fewer than two videos.
    """
    if len(hypotheses) < 2:
        raise UsageError(
            f"the shuffled control needs two videos, and the split has {len(hypotheses)}",
            where="shuffled",
            remedy="evaluate a split of two or more videos, or leave out --shuffled",
        )
    partners = draw_derangement(len(hypotheses), seed)
    return [
        dataclasses.replace(
            hypothesis,
            hypothesis=hypotheses[partner].hypothesis,
            characters=hypotheses[partner].characters,
            words=hypotheses[partner].words,
        )
        for hypothesis, partner in zip(hypotheses, partners, strict=True)
    ]


def draw_derangement(count: int, seed: int = 0) -> list[int]:
    """Return a permutation that is a single cycle, so that it has no fixed point; equal for equal seeds."""
    rng, order = random.Random(seed), list(range(count))
    for place in range(count - 1, 0, -1):
        other = rng.randrange(place)
        order[place], order[other] = order[other], order[place]
    return order


def write_hypotheses_and_scores(
    run: Path, name: str, hypotheses: Sequence[Hypothesis], scores: dict[str, Any]
) -> None:
    """Write ``hypotheses.NAME.jsonl`` and ``scores.NAME.json``.

    Old scores are removed first, so that an interruption never leaves scores of other translations.
    """
    target = run / f"scores.{name}.json"
    target.unlink(missing_ok=True)
    lines = [{field: getattr(hypothesis, field) for field in FIELDS} for hypothesis in hypotheses]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    atomic_write(run / f"hypotheses.{name}.jsonl", text)
    atomic_write(target, json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
