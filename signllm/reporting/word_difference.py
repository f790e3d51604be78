"""The word difference of a hypothesis and its reference: which words are extra, and which are missing.

Words are aligned by ``difflib`` (longest matching blocks), not counted as in BLEU, because readers want to
see the position of an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from signllm.reporting.markup import Markup, join_markup, tag


def compare_words(hypothesis: str, reference: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the words of hypothesis and reference, each with whether it differs; case is ignored."""
    hypothesis_words, reference_words = hypothesis.split(), reference.split()
    matcher = SequenceMatcher(
        None, [w.lower() for w in hypothesis_words], [w.lower() for w in reference_words], autojunk=False
    )
    matched_hypothesis: set[int] = set()
    matched_reference: set[int] = set()
    for block in matcher.get_matching_blocks():
        matched_hypothesis |= set(range(block.a, block.a + block.size))
        matched_reference |= set(range(block.b, block.b + block.size))
    return (
        [(word, place not in matched_hypothesis) for place, word in enumerate(hypothesis_words)],
        [(word, place not in matched_reference) for place, word in enumerate(reference_words)],
    )


def mark_words(words: Sequence[tuple[str, bool]], element: str) -> Markup:
    """Return words with each run of differing words inside one ``element`` (``del`` or ``ins``)."""
    parts: list[object] = []
    run: list[str] = []
    for word, differs in [*words, ("", False)]:
        if differs:
            run.append(word)
            continue
        if run:
            parts += [tag(element, " ".join(run)), " "]
            run = []
        if word:
            parts += [word, " "]
    return join_markup(parts)
