"""The sections of a report in reading order, each with a title and its content.

``templates/sections.html`` draws them: the macro of a section has the name of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from signllm.reporting.breakdown_tables import breakdown_tables
from signllm.reporting.chapter import Chapter, ReportContent
from signllm.reporting.charts import number
from signllm.reporting.conditions import format_duration, training_conditions
from signllm.reporting.run_folder import finite
from signllm.reporting.samples import (
    SHOWN_TIMELINES,
    build_pairs,
    build_samples,
    choose_evenly,
    count_exact,
)
from signllm.reporting.tables import (
    ACCURACY,
    demo_table,
    flatten_settings,
    score_signatures,
    score_table,
    seconds_table,
)
from signllm.reporting.training import training_phases
from signllm.reporting.video_frames import VideoFrames, load_videos
from signllm.reporting.vocabulary import describe_usage, measure_usage, videos_of_gallery, word_charts
from signllm.stages.alarms import alarms_of_log, alarms_of_scores

STAGE_NAMES = {
    "pretrain": "Stage 1: VQ-Sign learns characters",
    "compose": "Stage 2: CRA composes characters into words",
    "finetune": "Stage 3: alignment with the frozen LLM",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
        key: anchor of the section.
        title: heading of the section.
        kind: macro that draws the section.
        content: argument of that macro.
    """

    key: str
    title: str
    kind: str
    content: Any


def sections(content: ReportContent) -> Iterator[Section]:
    """Yield the sections of a report that have content."""
    table = demo_table(content.summary)
    if table:
        yield Section(key="result", title="Result", kind="result", content=table)
    for key, build in (
        ("alarms", _alarms),
        ("videos", _videos),
        ("sentences", _sentences),
        ("scores", _scores),
        ("stages", _stages),
    ):
        yield from _sections_of_runs(key, build, content)
    details = _details(content)
    if any(details.values()):
        yield Section(key="details", title="Time and settings", kind="details", content=details)


SectionParts = list[tuple[str, str, Any]]
"""Title, kind and content of sections."""


def _sections_of_runs(
    key: str, build: Callable[[Chapter, ReportContent], SectionParts], content: ReportContent
) -> Iterator[Section]:
    """Yield the sections of one kind for every run; the titles name the run if several runs have them."""
    parts = [(chapter, *part) for chapter in content.chapters for part in build(chapter, content)]
    titles = Counter(title for _, title, _, _ in parts)
    for place, (chapter, title, kind, body) in enumerate(parts):
        run_name = f" ({chapter.run.path.name})" if titles[title] > 1 else ""
        yield Section(key=f"{key}-{place}", title=title + run_name, kind=kind, content=body)


def _alarms(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return the alarms of a run with their remedies."""
    scores, split = chapter.run.scores, chapter.split or ""
    alarms = alarms_of_log([*chapter.run.frozen_log, *chapter.run.log])
    alarms += alarms_of_scores(scores.get(split, {}), scores.get(f"{split}.shuffled"))
    return [("Alarms", "alarms", alarms)] if alarms else []


def _videos(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return the token timelines of some translated videos."""
    chosen = choose_evenly(chapter.records, SHOWN_TIMELINES)
    ids = [str(record.get("id")) for record in chosen]
    run = chapter.run
    videos = load_videos(
        content.shards, chapter.plain_split, ids, run.problems, most=run.most_frames, fps=run.fps
    )
    samples = build_samples(chosen, chapter.vocabulary, videos)
    return [("From video to text", "videos", samples)] if samples else []


def _sentences(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return the table of translations with their references."""
    if not chapter.records:
        return []
    body = {
        "pairs": build_pairs(chapter.records),
        "exact": count_exact(chapter.records),
        "count": len(chapter.records),
        "language": chapter.language,
    }
    return [("Translations", "sentences", body)]


def _scores(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return the table of scores and the breakdowns of the errors."""
    scores = chapter.run.scores
    parts: SectionParts = []
    if table := score_table(scores):
        parts.append(("Scores", "scores", {"table": table, "signatures": score_signatures(scores)}))
    if breakdowns := breakdown_tables(scores.get(chapter.split or "", {})):
        parts.append(("Error breakdowns", "breakdowns", breakdowns))
    return parts


def _stages(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return training curves and words of a run; words come before the fine-tuning that uses them."""
    phases = training_phases(chapter.run)
    title = STAGE_NAMES.get(chapter.run.stage, "Training")
    training: SectionParts = [(title, "training", phases)] if phases else []
    words = _words(chapter, content)
    return words + training if chapter.run.stage == "finetune" else training + words


def _words(chapter: Chapter, content: ReportContent) -> SectionParts:
    """Return how the number of words was chosen, and which words the videos use.

    A fine-tuned run contains a copy of its words; of several equal codebooks, only the last one is shown.
    """
    words = chapter.vocabulary
    later = [other.vocabulary for other in content.chapters[chapter.place + 1 :]]
    if words is None or words in later:
        return []
    uses = words.find_uses(chapter.sequences)
    videos = {}
    if content.shards is not None:
        videos = _load_sequence_videos(chapter, content, videos_of_gallery(uses))
    body = {
        "usage": describe_usage(chapter.sequences, words.codebook.codes, f"the split {chapter.plain_split}"),
        "charts": word_charts(words.codebook),
        "gallery": words.gallery(uses, videos),
        "has_frames": bool(videos),
    }
    if not any(body.values()):
        return []
    return [(STAGE_NAMES["compose"], "words", body | {"summary": words.summary()})]


def _load_sequence_videos(
    chapter: Chapter, content: ReportContent, places: Sequence[int]
) -> dict[int, VideoFrames]:
    """Return index in ``chapter.sequences`` → frames, for some of the videos."""
    ids = {place: chapter.encoded_videos[place][0] for place in places}
    videos = load_videos(
        content.shards,
        chapter.plain_split,
        [*ids.values()],
        chapter.run.problems,
        most=chapter.run.most_frames,
        fps=chapter.run.fps,
    )
    return {place: videos[id] for place, id in ids.items() if id in videos}


def _details(content: ReportContent) -> dict[str, Any]:
    """Return the times of the stages, the settings, and the files that could not be read."""
    runs = [
        {
            "name": chapter.run.path.name,
            "conditions": training_conditions(chapter.run),
            "settings": list(flatten_settings(chapter.run.config)),
        }
        for chapter in content.chapters
    ]
    return {
        "seconds": seconds_table(content.summary),
        "runs": [run for run in runs if run["conditions"] or run["settings"]],
        "problems": [f"{c.run.path.name}: {problem}" for c in content.chapters for problem in c.run.problems],
    }


def headline_values(content: ReportContent) -> Iterator[tuple[str, str]]:
    """Yield values and their names: scores, codes, words, time, each of the last run that has it."""
    chapter = next((c for c in reversed(content.chapters) if c.run.scores), None)
    scores = content.summary
    if finite(scores.get("bleu4")) is None and chapter:
        scores = chapter.run.scores.get(chapter.split or "", {}) or next(iter(chapter.run.scores.values()))
    for key, name in (("bleu4", "BLEU-4"), ("rouge_l", "ROUGE-L")):
        if (value := finite(scores.get(key))) is not None:
            by = (scores.get("split"), scores.get("convention"))
            yield f"{value:.1f}", ", ".join([name, *(str(part) for part in by if part)])
    if (accuracy := finite(content.summary.get(ACCURACY))) is not None:
        yield f"{100 * accuracy:.0f} %", "of content words correct"
    yield from _token_values(content)
    if (seconds := finite(content.summary.get("seconds"))) is not None:
        yield format_duration(seconds), "for all stages"


def _token_values(content: ReportContent) -> Iterator[tuple[str, str]]:
    """Yield the numbers of codes and words in use."""
    chapter = next((c for c in reversed(content.chapters) if c.sequences), None)
    if chapter:
        codes, perplexity = measure_usage(chapter.sequences)
        yield str(codes), f"codes used in {chapter.plain_split}, perplexity {number(perplexity)}"
    words = next((c.vocabulary for c in reversed(content.chapters) if c.vocabulary), None)
    if words:
        yield str(len(words.codebook.words)), "composed words"
