"""What becomes of a video, or of a piece of a recording: a sentence, what it was read from, and when."""

from __future__ import annotations

from dataclasses import dataclass

from signllm.models.generation import Candidate


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What became of a video, or of a piece of a longer recording.

    Attributes:
        text: the sentence: that of the first candidate.
        score: its mean log probability of a token, the end included.
        characters: its codes, one for every 4 frames.
        words: the word ids that the language model read.
        word_times: of each word, where it begins and ends, in seconds from the start of the video file.
        candidates: the n best, best first; at least one.
        start_s: where the piece begins in its recording; 0 for a whole video.
        end_s: where it ends; for a whole video its duration.
        seconds: decoding and translating, on the clock.
    """

    text: str
    score: float
    characters: tuple[int, ...]
    words: tuple[int, ...]
    word_times: tuple[tuple[float, float], ...]
    candidates: tuple[Candidate, ...]
    start_s: float
    end_s: float
    seconds: float
