"""The words of a run: spans over characters, spellings, the curve that chose their number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from signllm.evaluation.report.chart import Series, line_chart
from signllm.evaluation.report.markup import Markup, joined, tag
from signllm.evaluation.report.run_folder import RunFolder
from signllm.evaluation.report.timeline import Span, spans_of, swatch

if TYPE_CHECKING:
    from signllm.cra.word_codebook import WordCodebook

SHOWN_WORDS = 24
CURVES = {
    "entropy": ("Entropy per character", "of the transport plan, normalised by the mean length of a word"),
    "marginal_utility": ("Marginal utility", "fall of the entropy per word added; the largest wins"),
}


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
        return tag(
            "p",
            f"{known}{': ' + of_lengths + ' characters' if of_lengths else ''}. s\u2080 marks a held sign.",
            class_="hint",
        )

    def gallery(self, sequences: Sequence[Sequence[int]]) -> Markup | None:
        """Return the composed words that these character sequences use most, spelled, with their counts."""
        spelled = {}
        used: Counter[int] = Counter()
        for characters in sequences:
            for span in self.spans(characters):
                if span.is_composed:
                    used[span.word] += 1
                    spelled[span.word] = span.spelling
        if not used:
            return None
        cells = [
            tag(
                "li", tag("b", f"w{word}"), " ", *(self._swatch(c) for c in spelled[word]), f" \u00d7 {count}"
            )
            for word, count in used.most_common(SHOWN_WORDS)
        ]
        title = tag("h3", "The words these videos use most")
        return joined((title, tag("ul", *cells, class_="gallery")))

    def _swatch(self, character: int) -> Markup:
        """Return a character's number on its colour; s\u2080 has none."""
        return (
            tag("span", "s\u2080", class_="slow")
            if character == self.codebook.slow_down
            else swatch(character)
        )


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


def word_charts(codebook: WordCodebook) -> Markup | None:
    """Draw entropy and marginal utility against the number of words, the chosen size marked."""
    rows = [entry for entry in codebook.curve if isinstance(entry.get("size"), int)]
    chosen = next((entry["size"] for entry in rows if entry.get("chosen")), None)
    mark = (float(chosen), f"{chosen} chosen") if chosen is not None else None
    charts = [
        line_chart(
            title,
            [Series(name=key, points=_column(rows, key))],
            x_label="number of words",
            note=note,
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
    counts = Counter(code for characters in sequences for code in characters)
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0
    return len(counts), math.exp(entropy) if total else 0.0
