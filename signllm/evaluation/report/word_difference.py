"""Which words of a hypothesis are not in its reference, and which the hypothesis lacks.

Words are aligned by ``difflib`` (longest matching blocks), not by BLEU's counts: a reader asks where, not how
often.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from signllm.evaluation.report.markup import Markup, joined, tag


def differing(hypothesis: str, reference: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the words of both sentences, each with whether it differs; case does not count."""
    ours, theirs = hypothesis.split(), reference.split()
    matcher = SequenceMatcher(None, [w.lower() for w in ours], [w.lower() for w in theirs], autojunk=False)
    same_ours: set[int] = set()
    same_theirs: set[int] = set()
    for block in matcher.get_matching_blocks():
        same_ours |= set(range(block.a, block.a + block.size))
        same_theirs |= set(range(block.b, block.b + block.size))
    return (
        [(word, place not in same_ours) for place, word in enumerate(ours)],
        [(word, place not in same_theirs) for place, word in enumerate(theirs)],
    )


def marked(words: Sequence[tuple[str, bool]], element: str) -> Markup:
    """Return words, runs of differing ones inside one ``element`` (``del`` or ``ins``)."""
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
    return joined(parts)
