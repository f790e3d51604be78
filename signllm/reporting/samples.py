"""The sections about single samples: token timelines of some videos, and many translations with references.

The samples are taken at equal distances in the order of the split, not chosen by score, because the best
cases alone would not be representative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from signllm.reporting.chapter import integers
from signllm.reporting.run_folder import Record
from signllm.reporting.timeline import Timeline, lay_out_timeline
from signllm.reporting.video_frames import VideoFrames
from signllm.reporting.vocabulary import Vocabulary
from signllm.reporting.word_difference import MarkedWords, compare_words

SHOWN_TIMELINES, SHOWN_PAIRS = 4, 40


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A translation and its reference.

    Attributes:
        name: id of the video.
        hypothesis: translation, with marked words that are not in the reference.
        reference: reference, with marked words that are not in the translation.
    """

    name: str
    hypothesis: MarkedWords
    reference: MarkedWords


@dataclass(frozen=True, kw_only=True)
class Sample(Pair):
    """A translated video with its token timeline.

    Attributes:
        description: number of its characters and words.
        timeline: its token timeline.
    """

    description: str
    timeline: Timeline


def choose_evenly(records: Sequence[Record], count: int) -> list[Record]:
    """Return at most ``count`` records at equal distances."""
    if len(records) <= count:
        return list(records)
    return [records[round(place * (len(records) - 1) / max(1, count - 1))] for place in range(count)]


def build_samples(
    records: Sequence[Record], vocabulary: Vocabulary | None, videos: dict[str, VideoFrames]
) -> list[Sample]:
    """Return the samples of the records that have characters; ``videos`` are frames by id."""
    samples = []
    for record in records:
        if not (characters := integers(record.get("characters"))):
            continue
        spans = vocabulary.spans(characters) if vocabulary else []
        composed = sum(span.is_composed for span in spans)
        counts = f"{len(characters)} characters, {len(spans)} words, {composed} of them composed"
        pair = _build_pair(record)
        timeline = lay_out_timeline(
            characters, spans, videos.get(pair.name), f"Token timeline of {pair.name}: {counts}"
        )
        description = counts if spans else f"{len(characters)} characters"
        samples.append(Sample(**vars(pair), description=description, timeline=timeline))
    return samples


def build_pairs(records: Sequence[Record]) -> list[Pair]:
    """Return translations and references of at most ``SHOWN_PAIRS`` records."""
    return [_build_pair(record) for record in choose_evenly(records, SHOWN_PAIRS)]


def _build_pair(record: Record) -> Pair:
    hypothesis, reference = compare_words(str(record.get("hypothesis", "")), str(record.get("reference", "")))
    return Pair(name=str(record.get("id", "")), hypothesis=hypothesis, reference=reference)


def count_exact(records: Sequence[Record]) -> int:
    """Return the number of translations that equal their reference except for case and spaces."""
    return sum(
        str(r.get("hypothesis", "")).lower().split() == str(r.get("reference", "")).lower().split()
        for r in records
    )
