"""The words of a run: spans over characters, spellings, the curve that chose their number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from signllm.clip_geometry import clip_frames
from signllm.evaluation.report.chart import Series, line_chart
from signllm.evaluation.report.markup import Markup, joined, tag
from signllm.evaluation.report.run_folder import RunFolder
from signllm.evaluation.report.timeline import Span, spans_of, swatch

if TYPE_CHECKING:
    from signllm.cra.word_codebook import WordCodebook
    from signllm.evaluation.report.video_frames import VideoFrames

SHOWN_WORDS = 24
PICTURED, CLIPS, FRAMES = 12, 2, 5
"""Words shown with frames, clips of each, of different videos, and frames of a clip."""
CURVES = {
    "entropy": ("Entropy per character", "of the transport plan, normalised by the mean length of a word"),
    "marginal_utility": ("Marginal utility", "fall of the entropy per word added"),
    "description_length": ("Description length", "of words and corpus together, nats per character"),
}
DECIDES = {
    "marginal_utility": "marginal_utility",
    "description_length": "description_length",
    "least_entropy": "entropy",
}
"""The curve that each ``choose_by`` looks at."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The word codebook of a run."""

    codebook: WordCodebook

    def spans(self, characters: Sequence[int]) -> list[Span]:
        """Segment a video's characters as training does; no spans if they are of another codebook."""
        import torch

        if max(characters, default=0) >= self.codebook.codes:
            return []
        packed = torch.tensor(list(characters), dtype=torch.int64)
        cut = self.codebook.segment(packed, torch.tensor([len(characters)]))
        words = cut.words.tolist()
        return spans_of(words, cut.slot.tolist(), [self.codebook.spell(word) for word in words])

    def told(self) -> Markup:
        """Return a sentence about how many words there are and how long."""
        lengths = Counter(len(word) for word in self.codebook.words)
        of_lengths = ", ".join(f"{count} of {length}" for length, count in sorted(lengths.items()))
        known = f"{len(lengths) and sum(lengths.values())} words join characters"
        told = tag(
            "p",
            f"{known}{': ' + of_lengths + ' characters' if of_lengths else ''}. s\u2080 marks a held sign.",
            class_="hint",
        )
        return joined((tag("h3", "Words"), told))

    def uses(self, sequences: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, Span]]]:
        """Return composed words, the most used first, each with where it is: video and span."""
        used: dict[int, list[tuple[int, Span]]] = {}
        for place, characters in enumerate(sequences):
            for span in self.spans(characters):
                if span.is_composed:
                    used.setdefault(span.word, []).append((place, span))
        return dict(sorted(used.items(), key=lambda one: (-len(one[1]), one[0])))

    def gallery(
        self, uses: Mapping[int, Sequence[tuple[int, Span]]], films: Mapping[int, VideoFrames]
    ) -> Markup | None:
        """Return the words that are used most, spelled, with their counts, and with frames of some videos.

        Args:
            uses: as :meth:`uses` returns them.
            films: by the number of the video; none shows words without frames.
        """
        if not uses:
            return None
        cells = [
            tag(
                "li",
                *(self._clip(word, film, span) for film, span in _clips(places, films)),
                tag("b", f"w{word}"),
                " ",
                *(self._swatch(c) for c in places[0][1].spelling),
                f" \u00d7 {len(places)}",
                class_="pictured" if films else None,
            )
            for word, places in list(uses.items())[: PICTURED if films else SHOWN_WORDS]
        ]
        told = "Each row of frames is another video: rows that look alike mean that the word is one thing."
        parts = (
            tag("h3", "The words these videos use most"),
            tag("p", told, class_="hint") if films else None,
            tag("ul", *cells, class_="gallery"),
        )
        return joined(part for part in parts if part is not None)

    def _clip(self, word: int, film: VideoFrames, span: Span) -> Markup:
        """Return the frames of a word in a video, from the first that its characters see to the last."""
        frames = clip_frames(span.start, span.stop)
        first, last = frames[0], frames[-1]
        shown = [first + round(place * (last - first) / (FRAMES - 1)) for place in range(FRAMES)]
        told = f"frames {first} to {last} of a video, read as word {word}"
        return tag("img", src=film.strip(shown), alt=told, width=FRAMES * film.width, height=film.height)

    def _swatch(self, character: int) -> Markup:
        """Return a character's number on its colour; s\u2080 has none."""
        return (
            tag("span", "s\u2080", class_="slow")
            if character == self.codebook.slow_down
            else swatch(character)
        )


def pictured(uses: Mapping[int, Sequence[tuple[int, Span]]]) -> list[int]:
    """Return the numbers of the videos that a gallery with frames shows."""
    chosen = {place for places in list(uses.values())[:PICTURED] for place in _first_videos(places)}
    return sorted(chosen)


def _first_videos(places: Sequence[tuple[int, Span]]) -> list[int]:
    return list(dict.fromkeys(place for place, _ in places))[:CLIPS]


def _clips(
    places: Sequence[tuple[int, Span]], films: Mapping[int, VideoFrames]
) -> list[tuple[VideoFrames, Span]]:
    """Return the first occurrence of a word in each of its first videos that could be read."""
    first = {place: span for place, span in reversed(places)}
    return [(films[place], first[place]) for place in _first_videos(places) if place in films]


def vocabulary_of(run: RunFolder) -> Vocabulary | None:
    """Load a run's words if they are there and whole; say in ``run.problems`` if they are not."""
    if not (run.path / "words.json").is_file():
        return None
    from signllm.cra.word_codebook import WordCodebook

    try:
        return Vocabulary(codebook=WordCodebook.load(run.path))
    except (OSError, ValueError, KeyError) as error:
        run.problems.append(f"words: {error}")
        return None


def _choose_by(codebook: WordCodebook) -> str:
    """Return what chose the number of words; ``""`` where it was given, or is not recorded."""
    settings = codebook.config.get("words", codebook.config)
    if not isinstance(settings, dict) or settings.get("size") is not None:
        return ""
    transport = settings.get("transport")
    return str(transport.get("choose_by", "")) if isinstance(transport, dict) else ""


def word_charts(codebook: WordCodebook) -> Markup | None:
    """Draw entropy and marginal utility against the number of words, the chosen size marked."""
    rows = [entry for entry in codebook.curve if isinstance(entry.get("size"), int)]
    chosen = next((entry["size"] for entry in rows if entry.get("chosen")), None)
    mark = (float(chosen), f"{chosen} chosen") if chosen is not None else None
    decided = DECIDES.get(_choose_by(codebook))
    charts = [
        line_chart(
            title,
            [Series(name=key, points=_column(rows, key))],
            x_label="number of words",
            note=f"{note}; this one decided" if key == decided else note,
            mark=mark,
        )
        for key, (title, note) in CURVES.items()
    ]
    shown = [chart for chart in charts if chart]
    return tag("div", *shown, class_="charts") if shown else None


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return a quantity over size, where it is known (the first size has no marginal utility)."""
    return [(float(row["size"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def usage(sequences: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Return how many codes some character sequences use, and the perplexity of that use."""
    shares = _shares(sequences)
    return len(shares), math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def usage_chart(sequences: Sequence[Sequence[int]], codes: int, where: str) -> Markup | None:
    """Draw how often the codes are used in some videos, the most used first, with the perplexity of that.

    Args:
        sequences: characters of the videos.
        codes: K.
        where: which videos these are.
    """
    used, perplexity = usage(sequences)
    if not used:
        return None
    shares = [*_shares(sequences), *[0.0] * max(0, codes - used)]
    drawn = line_chart(
        "Use of the codes",
        [
            Series(
                name="share of the characters, %", points=[(n, 100 * one) for n, one in enumerate(shares, 1)]
            )
        ],
        x_label="codes, the most used first",
        note="share of the characters, %",
        mark=(perplexity, f"perplexity {perplexity:.0f}"),
    )
    told = (
        f"{used} of {codes} codes are used in {where}, {max(0, codes - used)} are not; perplexity "
        f"{perplexity:.1f}: as many codes, used evenly, would tell as much."
    )
    return joined((tag("h3", "Codebook"), tag("p", told, class_="hint"), tag("div", drawn, class_="charts")))


def _shares(sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return the share of each code that is used, the largest first."""
    counts = Counter(code for characters in sequences for code in characters)
    total = sum(counts.values())
    return [count / total for _, count in counts.most_common()]
