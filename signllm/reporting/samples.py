"""The sections about single samples: token timelines of some videos, and many translations with references.

The samples are taken at equal distances in the order of the split, not chosen by score, because the best
cases alone would not be representative.
"""

from __future__ import annotations

from collections.abc import Sequence

from signllm.reporting.chapter import integers
from signllm.reporting.markup import Markup, join_markup, tag
from signllm.reporting.run_folder import Record
from signllm.reporting.timeline import timeline
from signllm.reporting.video_frames import VideoFrames
from signllm.reporting.vocabulary import Vocabulary
from signllm.reporting.word_difference import compare_words, mark_words

SHOWN_TIMELINES, SHOWN_PAIRS = 4, 40


def choose_evenly(records: Sequence[Record], count: int) -> list[Record]:
    """Return at most ``count`` records at equal distances."""
    if len(records) <= count:
        return list(records)
    return [records[round(place * (len(records) - 1) / max(1, count - 1))] for place in range(count)]


def legend() -> Markup:
    """Return the explanation of the marks in sentences."""
    return tag(
        "p",
        "Marks: ", tag("del", "struck out"), " words are not in the reference, ",
        tag("ins", "underlined"), " words of the reference are missing from the translation.",
        class_="hint",
    )  # fmt: skip


def timelines(
    records: Sequence[Record], vocabulary: Vocabulary | None, videos: dict[str, VideoFrames]
) -> Markup | None:
    """Draw frames, characters, words and sentences of samples; None if no sample has characters."""
    drawable = [record for record in records if integers(record.get("characters"))]
    if not drawable:
        return None
    return join_markup(_sample(record, vocabulary, videos.get(str(record.get("id")))) for record in drawable)


def _sample(record: Record, vocabulary: Vocabulary | None, frames: VideoFrames | None) -> Markup:
    characters = integers(record["characters"])
    spans = vocabulary.spans(characters) if vocabulary else []
    composed = sum(span.is_composed for span in spans)
    label = f"{len(characters)} characters, {len(spans)} words, {composed} of them composed"
    name = str(record.get("id", ""))
    return tag(
        "div",
        tag("h3", name, " \u00b7 ", label if spans else f"{len(characters)} characters"),
        timeline(characters, spans, frames, f"Token timeline of {name}: {label}"),
        _pair(record),
        class_="sample",
    )


def _pair(record: Record) -> Markup:
    hypothesis, reference = compare_words(str(record.get("hypothesis", "")), str(record.get("reference", "")))
    return tag(
        "dl",
        tag("dt", "Translation"), tag("dd", mark_words(hypothesis, "del")),
        tag("dt", "Reference"), tag("dd", mark_words(reference, "ins")),
        class_="pair",
    )  # fmt: skip


def pairs(records: Sequence[Record]) -> Markup | None:
    """Return a table of translations and references in which differing words are marked."""
    if not records:
        return None
    rows = []
    for record in choose_evenly(records, SHOWN_PAIRS):
        hypothesis, reference = compare_words(
            str(record.get("hypothesis", "")), str(record.get("reference", ""))
        )
        cells = (record.get("id", ""), mark_words(hypothesis, "del"), mark_words(reference, "ins"))
        rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("Video", "Translation", "Reference")))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="pairs")
    return tag("div", table, class_="scroll")


def count_exact(records: Sequence[Record]) -> int:
    """Return the number of translations that equal their reference except for case and spaces."""
    return sum(
        str(r.get("hypothesis", "")).lower().split() == str(r.get("reference", "")).lower().split()
        for r in records
    )
