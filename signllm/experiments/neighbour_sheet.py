"""The output of :mod:`signllm.experiments.similar_signs`: a picture, a table and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signllm.experiments.codebook import WORD_FRAMES, draw_sections, frames_of_word
from signllm.experiments.codebook_usage import Usage, count_usage
from signllm.experiments.contact_sheet import Clip, Entry, Section
from signllm.experiments.similar_signs import SignComparison


def draw_neighbours(comparison: SignComparison, out: Path, *, top: int = 12, seed: int = 0) -> None:
    """Draw the most used words with their nearest neighbours, each as frames of example videos (PNG).

    Args:
        comparison: result of the experiment.
        out: PNG file to write.
        top: number of words that get a section.
        seed: random seed of the choice of example clips.

    Raises:
        UsageError: A video cannot be read, or the file cannot be written.
    """
    encoded = comparison.encoded
    usage = count_usage(encoded.words, encoded.sequences, examples=2, seed=seed)
    rows = range(min(top, len(comparison.neighbours.words)))
    sections = [_section_of_word(comparison, usage, row) for row in rows]
    title = f"Words and the words nearest to them, {comparison.record['split']} split"
    draw_sections(encoded, sections, out, title, format_results(comparison.record))


def _section_of_word(comparison: SignComparison, usage: Usage, row: int) -> Section:
    """Return the section of the picture that shows one word and its nearest neighbours."""
    neighbours = comparison.neighbours
    word = int(neighbours.words[row])
    nearest = neighbours.nearest[row].tolist()
    labels = [
        f"w{neighbour} {format_sign(comparison, neighbour)}, cosine {cosine:.2f}"
        for neighbour, cosine in zip(nearest, neighbours.cosines[row].tolist(), strict=True)
    ]
    return Section(
        title=f"w{word} {format_sign(comparison, word)}",
        hint="nearest: " + "; ".join(labels),
        frames=WORD_FRAMES,
        entries=tuple(_entry_of_word(comparison, usage, member) for member in (word, *nearest)),
    )


def _entry_of_word(comparison: SignComparison, usage: Usage, word: int) -> Entry:
    """Return the entry of a word: its spelling, how often it was used, and example clips."""
    clips = tuple(
        Clip(video=comparison.encoded.places[example.video], frames=frames_of_word(example))
        for example in usage.examples.get(word, ())
    )
    count = int(usage.word_counts[word])
    share = count / max(1, int(usage.word_counts.sum()))
    return Entry(name=f"w{word}", spelling=f"= {usage.spelling(word)}", count=count, share=share, clips=clips)


def format_sign(comparison: SignComparison, word: int) -> str:
    """Return the most frequent sign of a word with its share, or ``(no sign)`` if none is annotated there."""
    if word not in comparison.neighbours.sign_of:
        return "(no sign)"
    sign, share = comparison.neighbours.sign_of[word]
    return f"{sign} {share:.0%}"


def format_results(record: dict[str, Any]) -> list[str]:
    """Return the measured values (``SignComparison.record``) as lines for the terminal."""
    lines = [
        f"{record['occurrences']} occurrences of {record['signs']} signs, {record['moments']} characters"
    ]
    for name in ("words", "characters"):
        values = record[name]
        lines.append(
            f"{name}: purity {values['purity']:.3f} (chance {values['purity_chance']:.3f}), normalised "
            f"mutual information {values['nmi']:.3f} (chance {values['nmi_chance']:.3f})"
        )
    similar = record["similar"]
    for name in ("words", "characters") if similar else ():
        values = similar[name]
        lines.append(
            f"signs that share parts ({similar['pairs_alike']} of {similar['pairs']} pairs) share "
            f"{values['overlap_alike']:.1%} of their {name}, other signs {values['overlap_others']:.1%}; "
            f"Spearman's correlation {values['spearman']:+.3f}, p = {values['p']:.3f} (Mantel test)"
        )
    nearest = record["nearest"]
    lines.append(
        f"a word and its nearest neighbour correspond to the same sign in {nearest['same_sign']:.1%} of "
        f"{nearest['pairs']} pairs (chance {nearest['same_sign_chance']:.1%})"
    )
    return lines


def format_neighbour_table(comparison: SignComparison, *, top: int = 12) -> Sequence[str]:
    """Return one line for each of the most used words: its count, its sign, and its nearest neighbours."""
    neighbours = comparison.neighbours
    return [
        f"w{word:<6}{neighbours.counts[word]:>6}  {format_sign(comparison, word):<20}"
        + "  ".join(
            f"w{neighbour} {format_sign(comparison, neighbour)} ({cosine:.2f})"
            for neighbour, cosine in zip(
                neighbours.nearest[row].tolist(), neighbours.cosines[row].tolist(), strict=True
            )
        )
        for row, word in enumerate(neighbours.words[:top].tolist())
    ]
