"""What the characters and words of a run stand for: numbers for programs, lines and a picture for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.clip_geometry import CLIP_FRAMES, clip_frames
from signllm.data.video_error import VideoError
from signllm.errors import UsageError
from signllm.evaluation.report.frames import THUMBNAIL_HEIGHT, Film, film_of
from signllm.inspection.reading import Reading, read_characters
from signllm.inspection.sheet import Clip, Entry, Page, Section, draw_sheet
from signllm.inspection.usage import Example, Usage, count_usage, usage_record

CHARACTER_FRAMES, WORD_FRAMES = 4, 6
MOST = {"top": 256, "examples": 8}
"""Limits of a picture that can still be opened: about 40,000 pixels high."""


def inspect_codebook(
    run: Path,
    shards: Path | str,
    *,
    split: str = "train",
    top: int = 32,
    examples: int = 3,
    out: Path | None = None,
    json_file: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Count how a split uses the codebooks of a run, draw the contact sheet, and return the numbers.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards, or the mixture that the run was composed from.
        split: which of its splits.
        top: how many characters and how many words are drawn and listed.
        examples: clips of each, of different videos.
        out: PNG file; None draws nothing and decodes nothing.
        json_file: gets the numbers.
        seed: of the choice of clips.

    Raises:
        UsageError: no such run or split, no words yet, shards of other videos, or a video that cannot be
            read.
    """
    for name, value in (("top", top), ("examples", examples)):
        if not 1 <= value <= MOST[name]:
            raise UsageError(f"{name} is {value}", where=f"--{name}", remedy=f"give 1 to {MOST[name]}")
    reading = read_characters(run, shards, split)
    usage = count_usage(reading.words, reading.sequences, examples=examples, seed=seed)
    record = {
        "run": str(run),
        "stage": reading.stage,
        "split": split,
        "read": "recorded by compose" if reading.is_recorded else "encoded now",
        "codebook": "moved since its words were composed" if reading.codebook_moved else "that of its words",
        "videos": usage.videos,
        "unread_videos": len(reading.split) - len(reading.places),
    } | usage_record(usage, top=top)
    if out is not None:
        record["sheet"] = str(out)
        draw_codebook(reading, usage, out, top=top, title=f"{run.resolve().name}, {split} split")
    if json_file is not None:
        atomic_write(json_file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def draw_codebook(reading: Reading, usage: Usage, out: Path, *, top: int, title: str) -> Page:
    """Draw the contact sheet of a reading into a PNG file and return where everything stands."""
    return draw_sections(reading, sections_of(reading, usage, top=top), out, title, title_lines(usage))


def draw_sections(
    reading: Reading, sections: Sequence[Section], out: Path, title: str, lines: Sequence[str]
) -> Page:
    """Draw sections with clips of a reading's videos into a PNG file."""
    shown = {clip.video for section in sections for entry in section.entries for clip in entry.clips}
    samples = [reading.split.samples[video] for video in shown]
    aspect = max((sample.width / sample.height for sample in samples), default=1.0)
    thumbnail = max(8, round(THUMBNAIL_HEIGHT * aspect))
    return draw_sheet(sections, out, title=title, lines=lines, film=_films_of(reading), thumbnail=thumbnail)


def title_lines(usage: Usage) -> list[str]:
    """Return the numbers that stand on the sheet."""
    record = usage_record(usage, top=1)
    characters, words = record["characters"], record["words"]
    return [
        f"{characters['read']:,} characters of {usage.videos:,} videos: {characters['codes_used']} of "
        f"{characters['codes']} codes used, {characters['dead_codes']} dead, perplexity "
        f"{characters['perplexity']:.1f}",
        f"{words['known']} words of two characters and more, {words['used']} of them used, hold "
        f"{words['covered']:.1%} of the characters",
    ]


def sections_of(reading: Reading, usage: Usage, *, top: int) -> list[Section]:
    """Choose what stands on the sheet: the most used characters, then the most used words."""

    def clips(number: int, frames: Callable[[Example], tuple[int, ...]]) -> tuple[Clip, ...]:
        return tuple(
            Clip(video=reading.places[one.video], frames=frames(one)) for one in usage.examples[number]
        )

    read = max(1, int(usage.found.sum()))
    characters = tuple(
        Entry(
            name=str(code),
            count=int(usage.characters[code]),
            share=float(usage.characters[code]) / usage.total,
            clips=clips(code, frames_of_character),
        )
        for code in usage.most_used_characters(top)
    )
    words = tuple(
        Entry(
            name=f"w{word}",
            spelling=f"= {usage.spelling(word)}",
            count=int(usage.found[word]),
            share=float(usage.found[word]) / read,
            clips=clips(word, frames_of_word),
        )
        for word in usage.most_used_words(top)
    )
    return [
        Section(
            title=f"The {len(characters)} most used characters",
            hint=f"each row another video: {CHARACTER_FRAMES} of the {CLIP_FRAMES} frames that a character "
            "sees, the first and the last among them. Rows alike: it means one thing",
            frames=CHARACTER_FRAMES,
            entries=characters,
        ),
        Section(
            title=f"The {len(words)} most used words" if words else "No word joins characters here",
            hint=f"each row another video: {WORD_FRAMES} moments from the first frame that the word's "
            "characters see to the last. s₀: held for long"
            if words
            else "",
            frames=WORD_FRAMES,
            entries=words,
        ),
    ]


def frames_of_character(example: Example) -> tuple[int, ...]:
    """Return the frames to show of a character, the first and the last of its 13 included."""
    frames = clip_frames(example.start, example.start + 1)
    return _spread(frames[0], frames[-1], CHARACTER_FRAMES)


def frames_of_word(example: Example) -> tuple[int, ...]:
    """Return the frames to show of a word, from the first that its characters see to the last."""
    frames = clip_frames(example.start, example.stop)
    return _spread(frames[0], frames[-1], WORD_FRAMES)


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the numbers as aligned lines: single ones first, then what is used most and what is longest."""
    numbers: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{key}.{name}": inner for name, inner in value.items() if name != "dead"}
        elif not isinstance(value, list):
            numbers[key] = value
    width = max(map(len, numbers))
    lines = [f"{key:<{width}}  {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in numbers.items()]
    for key in ("most_used_characters", "most_used_words", "longest_words"):
        lines += ["", f"{key.replace('_', ' ')}{'' if record[key] else ': none'}"]
        if record[key]:
            lines.append(
                f"{'id':>8}{'count':>10}{'share':>9}  {'spelling' if 'words' in key else ''}".rstrip()
            )
        lines += [
            f"{one['id']:>8}{one['count']:>10}{one['share']:>9.2%}  {one.get('spelling', '')}".rstrip()
            for one in record[key]
        ]
    return lines


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    return tuple(first + round(place * (last - first) / (count - 1)) for place in range(count))


def _films_of(reading: Reading) -> Callable[[int], tuple[str, Film]]:
    """Return a function that decodes a video of the reading, thinned as it was read."""

    def film(video: int) -> tuple[str, Film]:
        name = reading.split.samples[video].id
        try:
            return name, film_of(reading.split, video, most=reading.max_frames, fps=reading.fps)
        except VideoError as error:
            raise UsageError(
                f"video {name} cannot be read: {error.what}",
                where=reading.split.tars[reading.split.samples[video].shard],
                remedy="`signllm shards verify` names the damage",
            ) from error

    return film
