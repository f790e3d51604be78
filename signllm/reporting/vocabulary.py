"""The word codebook of a run in the report: how its size was chosen, and which words the videos use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from signllm.clip_geometry import clip_frames
from signllm.reporting.charts import Chart, Series, line_chart
from signllm.reporting.run_folder import RunFolder
from signllm.reporting.timeline import Span, build_spans

if TYPE_CHECKING:
    from signllm.cra.word_codebook import WordCodebook
    from signllm.reporting.video_frames import VideoFrames

SHOWN_WORDS = 24
WORDS_WITH_FRAMES, VIDEOS_PER_WORD, FRAMES_PER_VIDEO = 12, 2, 5
"""Size of the gallery with frames."""
CURVES = {
    "entropy": ("Entropy per character", "entropy of the transport plan, normalised by the mean word length"),
    "marginal_utility": ("Marginal utility", "decrease of the entropy per added word"),
    "description_length": ("Description length", "length of words and corpus, nats per character"),
}
DECIDING_CURVE = {
    "marginal_utility": "marginal_utility",
    "description_length": "description_length",
    "least_entropy": "entropy",
}
"""The curve that each value of ``choose_by`` uses."""


@dataclass(frozen=True, kw_only=True)
class WordClip:
    """Frames of a video that were encoded as a word: ``data:`` address, description, size in pixels."""

    address: str
    description: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class GalleryWord:
    """A word of the gallery.

    Attributes:
        word: id of the word.
        spelling: its characters; None stands for s\u2080.
        count: number of its occurrences.
        clips: frames of some occurrences, each from another video.
    """

    word: int
    spelling: list[int | None]
    count: int
    clips: list[WordClip]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How often codes are used: a sentence, and a chart of their shares."""

    sentence: str
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The word codebook of a run.

    Attributes:
        codebook: the word codebook.
    """

    codebook: WordCodebook

    def spans(self, characters: Sequence[int]) -> list[Span]:
        """Segment the characters of a video as in training; no spans if they belong to another codebook."""
        import torch

        if max(characters, default=0) >= self.codebook.codes:
            return []
        packed = torch.tensor(list(characters), dtype=torch.int64)
        segmentation = self.codebook.segment(packed, torch.tensor([len(characters)]))
        words = segmentation.words.tolist()
        return build_spans(words, segmentation.slot.tolist(), [self.codebook.spell(word) for word in words])

    def summary(self) -> str:
        """Return a sentence about the number of words and their lengths."""
        lengths = Counter(len(word) for word in self.codebook.words)
        of_lengths = ", ".join(f"{count} of {length}" for length, count in sorted(lengths.items()))
        of_lengths = f" ({of_lengths} characters)" if of_lengths else ""
        return f"{len(self.codebook.words)} words consist of two or more characters{of_lengths}."

    def find_uses(self, sequences: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, Span]]]:
        """Return word → index of the video and span of each occurrence, the most used composed word first."""
        occurrences: dict[int, list[tuple[int, Span]]] = {}
        for place, characters in enumerate(sequences):
            for span in self.spans(characters):
                if span.is_composed:
                    occurrences.setdefault(span.word, []).append((place, span))
        return dict(sorted(occurrences.items(), key=lambda item: (-len(item[1]), item[0])))

    def gallery(
        self, uses: Mapping[int, Sequence[tuple[int, Span]]], videos: Mapping[int, VideoFrames]
    ) -> list[GalleryWord]:
        """Return the most used words with spelling, count, and frames of some videos.

        Args:
            uses: result of :meth:`find_uses`.
            videos: index of a video → its frames; if empty, more words are shown, without frames.
        """
        slow_down = self.codebook.slow_down
        return [
            GalleryWord(
                word=word,
                spelling=[None if code == slow_down else code for code in places[0][1].spelling],
                count=len(places),
                clips=[_draw_clip(word, frames, span) for frames, span in _example_clips(places, videos)],
            )
            for word, places in list(uses.items())[: WORDS_WITH_FRAMES if videos else SHOWN_WORDS]
        ]


def _draw_clip(word: int, video: VideoFrames, span: Span) -> WordClip:
    """Return evenly spaced frames of a word, over all frames that its characters are read from."""
    frames = clip_frames(span.start, span.stop)
    first, last = frames[0], frames[-1]
    numbers = [
        first + round(place * (last - first) / (FRAMES_PER_VIDEO - 1)) for place in range(FRAMES_PER_VIDEO)
    ]
    return WordClip(
        address=video.strip(numbers),
        description=f"frames {first} to {last} of a video, encoded as word {word}",
        width=FRAMES_PER_VIDEO * video.width,
        height=video.height,
    )


def videos_of_gallery(uses: Mapping[int, Sequence[tuple[int, Span]]]) -> list[int]:
    """Return the indices of the videos whose frames :meth:`Vocabulary.gallery` shows."""
    chosen = {place for places in list(uses.values())[:WORDS_WITH_FRAMES] for place in _first_videos(places)}
    return sorted(chosen)


def _first_videos(places: Sequence[tuple[int, Span]]) -> list[int]:
    return list(dict.fromkeys(place for place, _ in places))[:VIDEOS_PER_WORD]


def _example_clips(
    places: Sequence[tuple[int, Span]], videos: Mapping[int, VideoFrames]
) -> list[tuple[VideoFrames, Span]]:
    """Return the first occurrence of a word in each of its first videos, if the video could be read."""
    first = {place: span for place, span in reversed(places)}
    return [(videos[place], first[place]) for place in _first_videos(places) if place in videos]


def load_vocabulary(run: RunFolder) -> Vocabulary | None:
    """Load the word codebook of a run, None if there is none; damage is added to ``run.problems``."""
    if not (run.path / "words.json").is_file():
        return None
    from signllm.cra.word_codebook import WordCodebook

    try:
        return Vocabulary(codebook=WordCodebook.load(run.path))
    except (OSError, ValueError, KeyError) as error:
        run.problems.append(f"words: {error}")
        return None


def _criterion(codebook: WordCodebook) -> str:
    """Return the criterion that chose the number of words; ``""`` if it was configured or is unknown."""
    settings = codebook.config.get("words", codebook.config)
    if not isinstance(settings, dict) or settings.get("size") is not None:
        return ""
    transport = settings.get("transport")
    return str(transport.get("choose_by", "")) if isinstance(transport, dict) else ""


def word_charts(codebook: WordCodebook) -> list[Chart]:
    """Draw the curves over the number of words, with a mark at the chosen number."""
    rows = [entry for entry in codebook.curve if isinstance(entry.get("size"), int)]
    chosen = next((entry["size"] for entry in rows if entry.get("chosen")), None)
    mark = (float(chosen), f"{chosen} chosen") if chosen is not None else None
    deciding = DECIDING_CURVE.get(_criterion(codebook))
    charts = [
        line_chart(
            title,
            [Series(name=key, points=_column(rows, key))],
            x_label="number of words",
            note=f"{note}; this curve decided" if key == deciding else note,
            mark=mark,
        )
        for key, (title, note) in CURVES.items()
    ]
    return [chart for chart in charts if chart]


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return the points of a quantity over the number of words; the first has no marginal utility."""
    return [(float(row["size"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def measure_usage(sequences: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Return the number of codes that character sequences use, and the perplexity of the codes."""
    shares = _shares(sequences)
    return len(shares), math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def describe_usage(sequences: Sequence[Sequence[int]], codes: int, where: str) -> Usage | None:
    """Return the shares of the codes in some videos, the most used code first, with their perplexity.

    Args:
        sequences: characters of each video.
        codes: number of codes K.
        where: description of the videos.
    """
    used, perplexity = measure_usage(sequences)
    shares = [*_shares(sequences), *[0.0] * max(0, codes - used)]
    chart = line_chart(
        "Usage of the codes",
        [
            Series(
                name="share of the characters, %",
                points=[(n, 100 * share) for n, share in enumerate(shares, 1)],
            )
        ],
        x_label="codes, the most used first",
        note="share of the characters, %",
        mark=(perplexity, f"perplexity {perplexity:.0f}"),
    )
    if not used or chart is None:
        return None
    sentence = (
        f"{used} of {codes} codes are used in {where}, {max(0, codes - used)} are not. The perplexity is "
        f"{perplexity:.1f}: the entropy equals that of {perplexity:.1f} codes that are used equally often."
    )
    return Usage(sentence=sentence, chart=chart)


def _shares(sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return the shares of the codes that are used, the largest first."""
    counts = Counter(code for characters in sequences for code in characters)
    total = sum(counts.values())
    return [count / total for _, count in counts.most_common()]
