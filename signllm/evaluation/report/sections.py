"""The sections of a report, each a title and what is below it, in reading order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from signllm.evaluation.report.breakdown_tables import breakdown_tables
from signllm.evaluation.report.chapter import Chapter, Source
from signllm.evaluation.report.conditions import conditions, duration
from signllm.evaluation.report.markup import Markup, joined, number, tag
from signllm.evaluation.report.run_folder import finite
from signllm.evaluation.report.samples import SHOWN_TIMELINES, exact, legend, pairs, spread, timelines
from signllm.evaluation.report.tables import ACCURACY, demo_table, score_table, seconds_table, settings
from signllm.evaluation.report.training import training_charts
from signllm.evaluation.report.video_frames import VideoFrames, films
from signllm.evaluation.report.vocabulary import pictured, usage, usage_chart, word_charts
from signllm.stages.alarms import alarms_of_log, alarms_of_scores

STAGE_NAMES = {
    "pretrain": "Stage 1: VQ-Sign learns characters",
    "compose": "Stage 2: characters become words",
    "finetune": "Stage 3: alignment with the frozen LLM",
}
CONTROLS = (
    "A score means something only beside its controls: shuffled videos show what the language model writes "
    "without looking, true signs instead of video what it could write with perfect eyes."
)
TIMELINE = (
    "Below the frames, each block is a character: the code of 13 frames, one every 4 frames, numbered and "
    "coloured by code. Brackets are words; those that join several characters are named. Samples are taken "
    "at equal distances, not chosen by score."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A card of the page: its anchor, its title, its contents."""

    key: str
    title: str
    body: Markup


def sections(source: Source) -> Iterator[Section]:
    """Yield the sections that have something to show."""
    table = demo_table(source.summary)
    if table:
        body = joined((tag("p", CONTROLS, class_="hint"), table))
        yield Section(key="result", title="Result", body=body)
    for part in (_alarms, _videos, _sentences, _scores, _stages):
        yield from _part(part, source)
    details = _details(source)
    if details:
        yield Section(key="details", title="Time and settings", body=details)


Found = list[tuple[str, Markup]]


def _part(part: Callable[[Chapter, Source], Found], source: Source) -> Iterator[Section]:
    """Yield one kind of section for every run; titles name the run where several have it."""
    kind = part.__name__.strip("_")
    found = [(chapter, title, body) for chapter in source.chapters for title, body in part(chapter, source)]
    titles = Counter(title for _, title, _ in found)
    for place, (chapter, title, body) in enumerate(found):
        aside = f" ({chapter.run.path.name})" if titles[title] > 1 else ""
        yield Section(key=f"{kind}-{place}", title=title + aside, body=body)


def _alarms(chapter: Chapter, source: Source) -> Found:
    """Show what is known to go wrong and did, with what to try."""
    scores, split = chapter.run.scores, chapter.split or ""
    found = alarms_of_log([*chapter.run.frozen_log, *chapter.run.log])
    found += alarms_of_scores(scores.get(split, {}), scores.get(f"{split}.shuffled"))
    if not found:
        return []
    lines = [
        tag("li", tag("b", alarm.name), _at(alarm.step), f": {alarm.observation}. Try {alarm.remedy}.")
        for alarm in found
    ]
    return [("Alarms", tag("ul", *lines))]


def _at(step: int | None) -> str:
    return "" if step is None else f" (step {step})"


def _videos(chapter: Chapter, source: Source) -> Found:
    """Show some videos on their way to text."""
    chosen = spread(chapter.records, SHOWN_TIMELINES)
    ids = [str(record.get("id")) for record in chosen]
    run = chapter.run
    seen = films(source.shards, chapter.plain_split, ids, run.problems, most=run.most_frames, fps=run.fps)
    drawn = timelines(chosen, chapter.vocabulary, seen)
    if drawn is None:
        return []
    return [("From video to text", joined((tag("p", TIMELINE, class_="hint"), legend(), drawn)))]


def _sentences(chapter: Chapter, source: Source) -> Found:
    """Show many translations against their references."""
    table = pairs(chapter.records)
    if table is None:
        return []
    counted = f"{exact(chapter.records)} of {len(chapter.records)} equal their reference."
    spoken = tag("div", table, lang=chapter.language)
    return [("Translations", joined((tag("p", counted, class_="hint"), legend(), spoken)))]


def _scores(chapter: Chapter, source: Source) -> Found:
    drawn = score_table(chapter.run.scores)
    groups = breakdown_tables(chapter.run.scores.get(chapter.split or "", {}))
    return [(title, body) for title, body in (("Scores", drawn), ("Where it errs", groups)) if body]


def _stages(chapter: Chapter, source: Source) -> Found:
    """Show the stages that made a run, words before the fine-tuning that reads them."""
    charts = training_charts(chapter.run)
    found = [(STAGE_NAMES.get(chapter.run.stage, "Training"), charts)] if charts else []
    words = _words(chapter, source)
    return (words + found) if chapter.run.stage == "finetune" else found + words


def _words(chapter: Chapter, source: Source) -> Found:
    """Show how the number of words was chosen, and which words the translated videos use.

    A fine-tuned run carries a copy of the words it was given: the last of several equal codebooks is shown.
    """
    words = chapter.vocabulary
    later = [other.vocabulary for other in source.chapters[chapter.place + 1 :]]
    if words is None or words in later:
        return []
    uses = words.uses(chapter.sequences)
    films = _films_of(chapter, source, pictured(uses)) if source.shards is not None else {}
    charts, gallery = word_charts(words.codebook), words.gallery(uses, films)
    codes = usage_chart(chapter.sequences, words.codebook.codes, f"the split {chapter.plain_split}")
    parts = [part for part in (codes, words.told(), charts, gallery) if part]
    return [(STAGE_NAMES["compose"], joined(parts))] if charts or gallery or codes else []


def _films_of(chapter: Chapter, source: Source, places: Sequence[int]) -> dict[int, VideoFrames]:
    """Decode some of the videos whose characters a chapter shows, by their number in ``sequences``."""
    ids = {place: chapter.read[place][0] for place in places}
    found = films(
        source.shards,
        chapter.plain_split,
        [*ids.values()],
        chapter.run.problems,
        most=chapter.run.most_frames,
        fps=chapter.run.fps,
    )
    return {place: found[id] for place, id in ids.items() if id in found}


def _details(source: Source) -> Markup | None:
    """Show time, settings, and what could not be read."""
    parts: list[Markup | None] = [seconds_table(source.summary)]
    for chapter in source.chapters:
        shown = [part for part in (conditions(chapter.run), settings(chapter.run.config)) if part]
        if shown:
            parts += [tag("h3", chapter.run.path.name), *shown]
    problems = [f"{c.run.path.name}: {problem}" for c in source.chapters for problem in c.run.problems]
    if problems:
        parts += [tag("h3", "What could not be read"), tag("ul", *(tag("li", line) for line in problems))]
    return joined(parts) if any(part is not None for part in parts) else None


def headline(source: Source) -> Markup | None:
    """Return the few numbers to see first."""
    tiles = [
        tag("div", tag("b", value), tag("span", name), class_="tile") for value, name in _figures(source)
    ]
    return tag("div", *tiles, class_="tiles") if tiles else None


def _figures(source: Source) -> Iterator[tuple[str, str]]:
    """Yield values and their names: scores, codes, words, time; the last run that has one counts."""
    chapter = next((c for c in reversed(source.chapters) if c.run.scores), None)
    scores = source.summary
    if finite(scores.get("bleu4")) is None and chapter:
        scores = chapter.run.scores.get(chapter.split or "", {}) or next(iter(chapter.run.scores.values()))
    for key, name in (("bleu4", "BLEU-4"), ("rouge_l", "ROUGE-L")):
        if (value := finite(scores.get(key))) is not None:
            by = (scores.get("split"), scores.get("convention"))
            yield f"{value:.1f}", ", ".join([name, *(str(part) for part in by if part)])
    if (accuracy := finite(source.summary.get(ACCURACY))) is not None:
        yield f"{100 * accuracy:.0f} %", "content words right"
    yield from _token_figures(source)
    if (seconds := finite(source.summary.get("seconds"))) is not None:
        yield duration(seconds), "for the whole path"


def _token_figures(source: Source) -> Iterator[tuple[str, str]]:
    """Yield how many codes and words are in use."""
    chapter = next((c for c in reversed(source.chapters) if c.sequences), None)
    if chapter:
        codes, perplexity = usage(chapter.sequences)
        yield str(codes), f"codes used in {chapter.plain_split}, perplexity {number(perplexity)}"
    words = next((c.vocabulary for c in reversed(source.chapters) if c.vocabulary), None)
    if words:
        yield str(len(words.codebook.words)), "composed words"
