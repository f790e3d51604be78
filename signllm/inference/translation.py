"""The result of translating a video, or one piece of a recording: the sentence and the times of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from signllm.models.language_model.generation import Candidate


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The translation of a video, or of one piece of a longer recording.

    Attributes:
        text: the sentence, that is, the text of the best candidate.
        score: mean log probability per token of that candidate, including the end token.
        characters: sign codes of the video, one for every 4 frames.
        words: ids of the sign words that the language model read.
        word_times: begin and end of each word in seconds from the start of the video file. A character stands
            for the four middle frames of its clip of 13; a word that consists of the "slowing down" token
            only has the times of the word before it.
        candidates: the n best candidates, best first; at least one.
        start_s: begin of the piece within its recording in seconds; 0 for a complete video.
        end_s: end of the piece in seconds; for a complete video its duration.
        frames: number of frames of the video or piece.
        frames_read: number of frames that the model read; fewer if the video is longer than the model was
            trained on, and then evenly spaced.
        seconds: wall-clock time of decoding and translating.
    """

    text: str
    score: float
    characters: tuple[int, ...]
    words: tuple[int, ...]
    word_times: tuple[tuple[float, float], ...]
    candidates: tuple[Candidate, ...]
    start_s: float
    end_s: float
    frames: int
    frames_read: int
    seconds: float


def compute_word_times(
    slots: Sequence[int], words: int, bounds_s: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Return the begin and end of each word in seconds.

    Args:
        slots: (N,) index of the word that each character is part of, in order.
        words: number of words M.
        bounds_s: (N + 1,) begin of each character, and the end of the last one, in seconds.
    """
    times: list[tuple[float, float]] = []
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, slot in enumerate(slots):
        first.setdefault(slot, place)
        last[slot] = place
    for word in range(words):
        times.append((bounds_s[first[word]], bounds_s[last[word] + 1]) if word in first else times[-1])
    return tuple(times)
