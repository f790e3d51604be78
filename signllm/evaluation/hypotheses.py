"""Translations of a split as records: collected from the ranks, paired wrongly on purpose, written."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signllm.atomic_files import atomic_write
from signllm.errors import UsageError

if TYPE_CHECKING:
    from signllm.training.engine import Ranks

FIELDS = ("id", "hypothesis", "reference", "characters", "words")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One video's translation.

    Attributes:
        place: of the video in its split.
        id: the dataset's name of the video.
        hypothesis: what the model wrote.
        reference: what was said.
        characters: codes of the video.
        words: word ids that the language model read.
        problem: why the video could not be read, else empty.
        language: of the reference.
    """

    place: int
    id: str
    hypothesis: str
    reference: str
    characters: list[int]
    words: list[int]
    problem: str = ""
    language: str = ""


def gathered(own: Sequence[Hypothesis], ranks: Ranks) -> list[Hypothesis]:
    """Return the translations of all ranks in the split's order, each once: the lowest rank's (all ranks).

    They travel as JSON bytes: ``all_gather_object`` would pickle them.
    """
    if ranks.world == 1:
        parts = [list(own)]
    else:
        texts = all_bytes(json.dumps([dataclasses.asdict(one) for one in own]).encode(), ranks)
        parts = [[Hypothesis(**fields) for fields in json.loads(text)] for text in texts]
    by_place: dict[int, Hypothesis] = {}
    for one in (one for part in parts for one in part):
        by_place.setdefault(one.place, one)
    return [by_place[place] for place in sorted(by_place)]


def all_bytes(own: bytes, ranks: Ranks) -> list[bytes]:
    """Return every rank's bytes, in the order of the ranks."""
    import torch
    import torch.distributed as dist

    sizes = [torch.zeros(1, dtype=torch.int64, device=ranks.device) for _ in range(ranks.world)]
    dist.all_gather(sizes, torch.tensor([len(own)], device=ranks.device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    parts = [torch.zeros(longest, dtype=torch.uint8, device=ranks.device) for _ in range(ranks.world)]
    dist.all_gather(parts, padded.to(ranks.device))
    return [bytes(part[: int(size)].cpu().numpy()) for part, size in zip(parts, sizes, strict=True)]


def shuffled(hypotheses: Sequence[Hypothesis], seed: int = 0) -> list[Hypothesis]:
    """Give every video another one's translation, as if their frames had been exchanged beforehand.

    One cycle through all videos (Sattolo), so none keeps its own. Where languages differ, a translation keeps
    that of the video it was made from.

    Raises:
        UsageError: fewer than two videos.
    """
    if len(hypotheses) < 2:
        raise UsageError(
            f"{len(hypotheses)} video cannot be exchanged with another",
            where="shuffled",
            remedy="evaluate a split of two videos and more, or without --shuffled",
        )
    given = deranged(len(hypotheses), seed)
    return [
        dataclasses.replace(
            one,
            hypothesis=hypotheses[other].hypothesis,
            characters=hypotheses[other].characters,
            words=hypotheses[other].words,
        )
        for one, other in zip(hypotheses, given, strict=True)
    ]


def deranged(count: int, seed: int = 0) -> list[int]:
    """Return a permutation without a fixed point: a single cycle, the same for the same seed."""
    drawn, order = random.Random(seed), list(range(count))
    for place in range(count - 1, 0, -1):
        other = drawn.randrange(place)
        order[place], order[other] = order[other], order[place]
    return order


def write_scored(run: Path, name: str, hypotheses: Sequence[Hypothesis], scores: dict[str, Any]) -> None:
    """Write ``hypotheses.NAME.jsonl``, then ``scores.NAME.json``: never scores beside other translations."""
    target = run / f"scores.{name}.json"
    target.unlink(missing_ok=True)
    lines = [{field: getattr(one, field) for field in FIELDS} for one in hypotheses]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    atomic_write(run / f"hypotheses.{name}.jsonl", text)
    atomic_write(target, json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
