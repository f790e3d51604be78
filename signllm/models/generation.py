"""How text is decoded (greedy, beams, sampling, n-best), and what a text's score is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A text that the language model wrote.

    Attributes:
        text: without its end.
        score: mean log probability of its tokens, the end included.
    """

    text: str
    score: float
