"""What the characters and words of a run represent: usage counts, and a contact sheet of example frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from signllm.atomic_files import atomic_write
from signllm.clip_geometry import CLIP_FRAMES, clip_frames
from signllm.data.video.video_error import VideoError
from signllm.errors import UsageError
from signllm.experiments.codebook_usage import Example, Usage, count_usage, usage_record
from signllm.experiments.contact_sheet import Clip, Entry, Page, Section, draw_sheet
from signllm.experiments.encoded_split import EncodedSplit, load_or_encode_split
from signllm.reporting.video_frames import THUMBNAIL_HEIGHT, VideoFrames, load_video_frames

CHARACTER_FRAMES, WORD_FRAMES = 4, 6
LIMITS = {"top": 256, "examples": 8}
"""Largest values of the options; the contact sheet is then about 40,000 pixels high and can be opened."""


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
    """Count how a split uses the codebooks of a run, draw a contact sheet, and return the counts.

    Args:
        run: a pretrained and composed run, or a fine-tuned one.
        shards: folder or address of the shards, or the mixture that the run was composed from.
        split: name of the split.
        top: number of characters, and of words, that are drawn and listed.
        examples: number of example clips of each, from different videos.
        out: PNG file; None draws nothing and decodes no video.
        json_file: file to which the counts are written as JSON.
        seed: random seed of the choice of examples.

    Raises:
        UsageError: There is no such run or split, the run has no words yet, the shards hold other videos, or
            a video cannot be read.
    """
    for name, value in (("top", top), ("examples", examples)):
        if not 1 <= value <= LIMITS[name]:
            raise UsageError(f"{name} is {value}", where=f"--{name}", remedy=f"give 1 to {LIMITS[name]}")
    encoded = load_or_encode_split(run, shards, split)
    usage = count_usage(encoded.words, encoded.sequences, examples=examples, seed=seed)
    record = {
        "run": str(run),
        "stage": encoded.stage,
        "split": split,
        "read": "recorded by compose" if encoded.is_recorded else "encoded now",
        "codebook": "moved since its words were composed" if encoded.codebook_moved else "that of its words",
        "videos": usage.videos,
        "unread_videos": len(encoded.split) - len(encoded.places),
    } | usage_record(usage, top=top)
    if out is not None:
        record["sheet"] = str(out)
        draw_codebook(encoded, usage, out, top=top, title=f"{run.resolve().name}, {split} split")
    if json_file is not None:
        atomic_write(json_file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def draw_codebook(encoded: EncodedSplit, usage: Usage, out: Path, *, top: int, title: str) -> Page:
    """Draw the contact sheet of a split's characters and words into a PNG file, and return its layout."""
    sections = choose_sections(encoded, usage, top=top)
    return draw_sections(encoded, sections, out, title, format_title_lines(usage))


def draw_sections(
    encoded: EncodedSplit, sections: Sequence[Section], out: Path, title: str, lines: Sequence[str]
) -> Page:
    """Draw sections with clips of a split's videos into a PNG file, and return the layout.

    Args:
        encoded: the split that the clips are from.
        sections: sections of the sheet.
        out: PNG file.
        title: heading of the sheet.
        lines: lines of text below the heading.
    """
    videos = {clip.video for section in sections for entry in section.entries for clip in entry.clips}
    samples = [encoded.split.samples[video] for video in videos]
    aspect = max((sample.width / sample.height for sample in samples), default=1.0)
    thumbnail = max(8, round(THUMBNAIL_HEIGHT * aspect))
    return draw_sheet(
        sections, out, title=title, lines=lines, decode=_video_decoder(encoded), thumbnail=thumbnail
    )


def format_title_lines(usage: Usage) -> list[str]:
    """Return the lines below the heading of the sheet: how many characters and words are in use."""
    record = usage_record(usage, top=1)
    characters, words = record["characters"], record["words"]
    return [
        f"{characters['read']:,} characters of {usage.videos:,} videos: {characters['codes_used']} of "
        f"{characters['codes']} codes used, {characters['dead_codes']} unused, perplexity "
        f"{characters['perplexity']:.1f}",
        f"{words['known']} words of two or more characters, {words['used']} of them used; they cover "
        f"{words['covered']:.1%} of the characters",
    ]


def choose_sections(encoded: EncodedSplit, usage: Usage, *, top: int) -> list[Section]:
    """Return the sections of the sheet: the most used characters, then the most used words."""

    def clips(number: int, choose_frames: Callable[[Example], tuple[int, ...]]) -> tuple[Clip, ...]:
        return tuple(
            Clip(video=encoded.places[example.video], frames=choose_frames(example))
            for example in usage.examples[number]
        )

    words_read = max(1, int(usage.word_counts.sum()))
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
            count=int(usage.word_counts[word]),
            share=float(usage.word_counts[word]) / words_read,
            clips=clips(word, frames_of_word),
        )
        for word in usage.most_used_words(top)
    )
    return [
        Section(
            title=f"The {len(characters)} most used characters",
            hint=f"each row is another video: {CHARACTER_FRAMES} of the {CLIP_FRAMES} frames of a "
            "character's clip, from the first to the last. Similar rows: the code has one meaning",
            frames=CHARACTER_FRAMES,
            entries=characters,
        ),
        Section(
            title=f"The {len(words)} most used words" if words else "There is no word of several characters",
            hint=f"each row is another video: {WORD_FRAMES} frames from the first to the last that the "
            "word's characters are read from. s₀: the sign lasts long"
            if words
            else "",
            frames=WORD_FRAMES,
            entries=words,
        ),
    ]


def frames_of_character(example: Example) -> tuple[int, ...]:
    """Return evenly spaced frames of a character's clip, including its first and its last one."""
    frames = clip_frames(example.start, example.start + 1)
    return _spaced_frames(frames[0], frames[-1], CHARACTER_FRAMES)


def frames_of_word(example: Example) -> tuple[int, ...]:
    """Return evenly spaced frames of a word, from the first to the last that its characters are read from."""
    frames = clip_frames(example.start, example.stop)
    return _spaced_frames(frames[0], frames[-1], WORD_FRAMES)


def format_summary(record: Mapping[str, Any]) -> list[str]:
    """Return the counts as aligned lines: first the single values, then the most used and longest entries."""
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
            f"{item['id']:>8}{item['count']:>10}{item['share']:>9.2%}  {item.get('spelling', '')}".rstrip()
            for item in record[key]
        ]
    return lines


def _spaced_frames(first: int, last: int, count: int) -> tuple[int, ...]:
    return tuple(first + round(place * (last - first) / (count - 1)) for place in range(count))


def _video_decoder(encoded: EncodedSplit) -> Callable[[int], tuple[str, VideoFrames]]:
    """Return a function that decodes a video of the split: the frames that the encoder read."""

    def decode(video: int) -> tuple[str, VideoFrames]:
        name = encoded.split.samples[video].id
        try:
            return name, load_video_frames(encoded.split, video, most=encoded.max_frames, fps=encoded.fps)
        except VideoError as error:
            raise UsageError(
                f"video {name} cannot be read: {error.what}",
                where=encoded.split.tars[encoded.split.samples[video].shard],
                remedy="`signllm shards verify` names the damage",
            ) from error

    return decode
