"""The word difference of a hypothesis and its reference: which words are extra, and which are missing.

Words are aligned by ``difflib`` (longest matching blocks), not counted as in BLEU, because readers want to
see the position of an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

MarkedWords = list[tuple[str, bool]]
"""Parts of a sentence, each with whether it differs from the other sentence."""


def compare_words(hypothesis: str, reference: str) -> tuple[MarkedWords, MarkedWords]:
    """Return the parts of hypothesis and reference, each with whether it differs; case is ignored.

    Consecutive words that differ are one part; every other word is a part of its own.
    """
    hypothesis_words, reference_words = hypothesis.split(), reference.split()
    matcher = SequenceMatcher(
        None, [w.lower() for w in hypothesis_words], [w.lower() for w in reference_words], autojunk=False
    )
    matched_hypothesis: set[int] = set()
    matched_reference: set[int] = set()
    for block in matcher.get_matching_blocks():
        matched_hypothesis |= set(range(block.a, block.a + block.size))
        matched_reference |= set(range(block.b, block.b + block.size))
    return _join_runs(hypothesis_words, matched_hypothesis), _join_runs(reference_words, matched_reference)


def _join_runs(words: Sequence[str], matched: set[int]) -> MarkedWords:
    """Return the words, with each run of words that are not matched joined."""
    parts: MarkedWords = []
    for place, word in enumerate(words):
        differs = place not in matched
        if differs and parts and parts[-1][1]:
            parts[-1] = (f"{parts[-1][0]} {word}", True)
        else:
            parts.append((word, differs))
    return parts
