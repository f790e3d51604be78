"""The sections of a report in reading order, each with a title and its content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from signllm.reporting.breakdown_tables import breakdown_tables
from signllm.reporting.chapter import Chapter, ReportContent
from signllm.reporting.conditions import conditions_table, format_duration
from signllm.reporting.markup import Markup, join_markup, number, tag
from signllm.reporting.run_folder import finite
from signllm.reporting.samples import (
    SHOWN_TIMELINES,
    choose_evenly,
    count_exact,
    legend,
    pairs,
    timelines,
)
from signllm.reporting.tables import ACCURACY, demo_table, score_table, seconds_table, settings_table
from signllm.reporting.training import training_charts
from signllm.reporting.video_frames import VideoFrames, load_videos
from signllm.reporting.vocabulary import measure_usage, usage_chart, videos_of_gallery, word_charts
from signllm.stages.alarms import alarms_of_log, alarms_of_scores

STAGE_NAMES = {
    "pretrain": "Stage 1: VQ-Sign learns characters",
    "compose": "Stage 2: CRA composes characters into words",
    "finetune": "Stage 3: alignment with the frozen LLM",
}
CONTROLS = (
    "Compare a score with its controls: shuffled videos show what the language model achieves without the "
    "video, and true signs instead of video show what it could achieve if every sign were recognised."
)
TIMELINE = (
    "Each block below the frames is a character, the code of a clip of 13 frames; there is one for every 4 "
    "frames, numbered and coloured by its code. Brackets are words; those of several characters have a name. "
    "The samples are taken at equal distances from the split, not chosen by score."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
        key: anchor of the section.
        title: heading of the section.
        body: content of the section.
    """

    key: str
    title: str
    body: Markup


def sections(content: ReportContent) -> Iterator[Section]:
    """Yield the sections of a report that have content."""
    table = demo_table(content.summary)
    if table:
        body = join_markup((tag("p", CONTROLS, class_="hint"), table))
        yield Section(key="result", title="Result", body=body)
    for key, build in (
        ("alarms", _alarms),
        ("videos", _videos),
        ("sentences", _sentences),
        ("scores", _scores),
        ("stages", _stages),
    ):
        yield from _sections_of_runs(key, build, content)
    details = _details(content)
    if details:
        yield Section(key="details", title="Time and settings", body=details)


TitledParts = list[tuple[str, Markup]]
"""Titles and contents of sections."""


def _sections_of_runs(
    key: str, build: Callable[[Chapter, ReportContent], TitledParts], content: ReportContent
) -> Iterator[Section]:
    """Yield the sections of one kind for every run; the titles name the run if several runs have them."""
    parts = [
        (chapter, title, body) for chapter in content.chapters for title, body in build(chapter, content)
    ]
    titles = Counter(title for _, title, _ in parts)
    for place, (chapter, title, body) in enumerate(parts):
        run_name = f" ({chapter.run.path.name})" if titles[title] > 1 else ""
        yield Section(key=f"{key}-{place}", title=title + run_name, body=body)


def _alarms(chapter: Chapter, content: ReportContent) -> TitledParts:
    """Return the alarms of a run with their remedies."""
    scores, split = chapter.run.scores, chapter.split or ""
    alarms = alarms_of_log([*chapter.run.frozen_log, *chapter.run.log])
    alarms += alarms_of_scores(scores.get(split, {}), scores.get(f"{split}.shuffled"))
    if not alarms:
        return []
    lines = [
        tag(
            "li",
            tag("b", alarm.name),
            _format_step(alarm.step),
            f": {alarm.observation}. Try {alarm.remedy}.",
        )
        for alarm in alarms
    ]
    return [("Alarms", tag("ul", *lines))]


def _format_step(step: int | None) -> str:
    return "" if step is None else f" (step {step})"


def _videos(chapter: Chapter, content: ReportContent) -> TitledParts:
    """Return the token timelines of some translated videos."""
    chosen = choose_evenly(chapter.records, SHOWN_TIMELINES)
    ids = [str(record.get("id")) for record in chosen]
    run = chapter.run
    videos = load_videos(
        content.shards, chapter.plain_split, ids, run.problems, most=run.most_frames, fps=run.fps
    )
    timeline_markup = timelines(chosen, chapter.vocabulary, videos)
    if timeline_markup is None:
        return []
    return [
        ("From video to text", join_markup((tag("p", TIMELINE, class_="hint"), legend(), timeline_markup)))
    ]


def _sentences(chapter: Chapter, content: ReportContent) -> TitledParts:
    """Return the table of translations with their references."""
    table = pairs(chapter.records)
    if table is None:
        return []
    counted = f"{count_exact(chapter.records)} of {len(chapter.records)} translations equal their reference."
    table_in_language = tag("div", table, lang=chapter.language)
    return [("Translations", join_markup((tag("p", counted, class_="hint"), legend(), table_in_language)))]


def _scores(chapter: Chapter, content: ReportContent) -> TitledParts:
    """Return the table of scores and the breakdowns of the errors."""
    table = score_table(chapter.run.scores)
    groups = breakdown_tables(chapter.run.scores.get(chapter.split or "", {}))
    return [(title, body) for title, body in (("Scores", table), ("Error breakdowns", groups)) if body]


def _stages(chapter: Chapter, content: ReportContent) -> TitledParts:
    """Return training curves and words of a run; words come before the fine-tuning that uses them."""
    charts = training_charts(chapter.run)
    training = [(STAGE_NAMES.get(chapter.run.stage, "Training"), charts)] if charts else []
    words = _words(chapter, content)
    return words + training if chapter.run.stage == "finetune" else training + words


def _words(chapter: Chapter, content: ReportContent) -> TitledParts:
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
    charts, gallery = word_charts(words.codebook), words.gallery(uses, videos)
    codes = usage_chart(chapter.sequences, words.codebook.codes, f"the split {chapter.plain_split}")
    parts = [part for part in (codes, words.summary(), charts, gallery) if part]
    return [(STAGE_NAMES["compose"], join_markup(parts))] if charts or gallery or codes else []


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


def _details(content: ReportContent) -> Markup | None:
    """Return the times of the stages, the settings, and the files that could not be read."""
    parts: list[Markup | None] = [seconds_table(content.summary)]
    for chapter in content.chapters:
        tables = [
            part for part in (conditions_table(chapter.run), settings_table(chapter.run.config)) if part
        ]
        if tables:
            parts += [tag("h3", chapter.run.path.name), *tables]
    problems = [f"{c.run.path.name}: {problem}" for c in content.chapters for problem in c.run.problems]
    if problems:
        parts += [
            tag("h3", "Files that could not be read"),
            tag("ul", *(tag("li", line) for line in problems)),
        ]
    return join_markup(parts) if any(part is not None for part in parts) else None


def headline(content: ReportContent) -> Markup | None:
    """Return the tiles with the most important values, None if there are none."""
    tiles = [
        tag("div", tag("b", value), tag("span", name), class_="tile")
        for value, name in _headline_values(content)
    ]
    return tag("div", *tiles, class_="tiles") if tiles else None


def _headline_values(content: ReportContent) -> Iterator[tuple[str, str]]:
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
