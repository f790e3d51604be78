"""Breakdowns of the errors: by length of the sign sequence, by signer, by word frequency in training.

Different weaknesses of a model show in different breakdowns. A model that loses long-range dependencies
makes more errors in longer videos; one that overfits to its signers makes more errors on other signers; one
that guesses misses rare words. To add a breakdown, add one entry to :data:`SENTENCE_PROPERTIES`, or a
function like :func:`count_missed_words_by_frequency`.

    word error rate = (substitutions + deletions + insertions) / number of words in the references
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from signllm.metrics.scores import METRICS, ScoreConfig, build_tokenizer


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A translation with the properties by which it can be grouped.

    Attributes:
        hypothesis: normalized translation (:func:`signllm.metrics.scores.normalize_texts`).
        reference: normalized reference.
        characters: number of characters of the video.
        words: number of sign words that the language model read.
        signer: signer of the video, "" if the dataset does not record it.
    """

    hypothesis: str
    reference: str
    characters: int
    words: int
    signer: str = ""


SENTENCE_PROPERTIES: dict[str, Callable[[Sentence], int | str]] = {
    "characters": lambda sentence: sentence.characters,
    "sign_words": lambda sentence: sentence.words,
    "reference_words": lambda sentence: len(sentence.reference.split()),
    "signer": lambda sentence: sentence.signer,
}
"""Breakdown → property of a sentence; numbers are divided into groups of about equally many sentences."""

GROUPS = 4
FREQUENCIES = (0, 1, 5, 20, 100)
"""Smallest count in the training texts of each group of words."""


def compute_breakdowns(
    sentences: Sequence[Sentence], config: ScoreConfig, training_counts: Mapping[str, int] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the groups of each breakdown; a breakdown with fewer than two groups is left out.

    Args:
        sentences: translations of a split.
        config: rules of scoring.
        training_counts: word → its count in the training texts; None leaves out the breakdown by frequency.

    Returns:
        breakdown → records with ``group``, ``samples``, ``wer`` and ``bleu4``; under ``frequency`` ``group``
        (range of counts in training), ``words`` (number of words in the references) and ``missed``
        (percentage of them that are not in the hypothesis).
    """
    breakdowns = {
        name: _group_by_property(sentences, key, config) for name, key in SENTENCE_PROPERTIES.items()
    }
    if training_counts is not None:
        breakdowns["frequency"] = count_missed_words_by_frequency(sentences, config, training_counts)
    return {name: groups for name, groups in breakdowns.items() if len(groups) > 1}


def _group_by_property(
    sentences: Sequence[Sentence], key: Callable[[Sentence], int | str], config: ScoreConfig
) -> list[dict[str, Any]]:
    values = [key(sentence) for sentence in sentences]
    if all(isinstance(value, int) for value in values):
        names = _name_ranges([int(value) for value in values])
    else:
        names = [str(value) or "unknown" for value in values]
    bleu, tokens = METRICS["bleu4"].build(config), build_tokenizer(config)
    groups = []
    for name in dict.fromkeys(name for _, name in sorted(zip(values, names, strict=True))):
        members = [sentence for sentence, group in zip(sentences, names, strict=True) if group == name]
        pairs = [(tokens(member.hypothesis), tokens(member.reference)) for member in members]
        score = bleu.corpus_score([m.hypothesis for m in members], [[m.reference for m in members]]).score
        groups.append({"group": name, "samples": len(members), "wer": word_error_rate(pairs), "bleu4": score})
    return groups


def _name_ranges(values: Sequence[int]) -> list[str]:
    """Return the name of the group of each value; equal values are in the same group."""
    edges = np.unique(np.quantile(values, np.arange(1, GROUPS) / GROUPS, method="lower"))
    place = np.searchsorted(edges, values, side="left")  # a group includes its upper edge
    names = {}
    for group in np.unique(place):
        members = np.asarray(values)[place == group]
        low, high = int(members.min()), int(members.max())
        names[group] = str(low) if low == high else f"{low} to {high}"
    return [names[group] for group in place]


def count_missed_words_by_frequency(
    sentences: Sequence[Sentence], config: ScoreConfig, training_counts: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return the share of reference words missing in the hypotheses, by their count in the training texts."""
    tokens = build_tokenizer(config)
    total, missed = [0] * len(FREQUENCIES), [0] * len(FREQUENCIES)
    for sentence in sentences:
        generated = Counter(tokens(sentence.hypothesis))
        for word, count in Counter(tokens(sentence.reference)).items():
            group = sum(training_counts.get(word, 0) >= least for least in FREQUENCIES) - 1
            total[group] += count
            missed[group] += max(0, count - generated[word])
    names = [
        str(low) if high == low + 1 else f"{low} to {high - 1}"
        for low, high in itertools.pairwise(FREQUENCIES)
    ] + [f"{FREQUENCIES[-1]} and more"]
    return [
        {"group": name, "words": words, "missed": 100.0 * count / words}
        for name, words, count in zip(names, total, missed, strict=True)
        if words
    ]


def word_error_rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return the word error rate in percent over pairs of a tokenized hypothesis and its reference."""
    words = sum(len(reference) for _, reference in pairs)
    return 100.0 * sum(edit_distance(*pair) for pair in pairs) / max(1, words)


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the least number of substitutions, deletions and insertions between two sequences."""
    row = list(range(len(right) + 1))
    for place, token in enumerate(left, start=1):
        diagonal, row[0] = row[0], place
        for other, candidate in enumerate(right, start=1):
            substituted = diagonal + (token != candidate)
            diagonal, row[other] = row[other], min(substituted, row[other] + 1, row[other - 1] + 1)
    return row[-1]
