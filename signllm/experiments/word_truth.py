"""Words against the truth of the generated language: where signs begin and end, and which sign it is.

A moment is one character before repeats are taken out: character n reads frames 4n to 4n+12 and belongs to
the unit and the sign that one of them shows, the middle one if nothing is said: which is a choice, for most
clips see two units. Before the first and after the last sign there is rest. A word covers the moments of its
characters. Boundaries are places between two moments of a video; a predicted one hits a true one at most
``tolerance`` moments (4 frames each) away, one to one. A word hits a sign if both of its ends do.

Information that words share with signs is counted per moment and corrected for chance: a large vocabulary
tells something of any labelling of a small corpus. (I − I₀)/((H_words + H_signs)/2 − I₀), I₀ with the words
shuffled among words of the same length. 1: the same word for the same sign, always; 0: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signllm.clip_geometry import CLIP_MIDDLE, CLIP_STRIDE
from signllm.cra.segmentation import Ints
from signllm.cra.word_codebook import Segmentation
from signllm.demo.language import glosses
from signllm.errors import UsageError
from signllm.experiments.information import entropy, mutual_information

TOLERANCES = (0, 1)
REST = -1
SHUFFLES = 3


@dataclass(frozen=True)
class MomentTruth:
    """What each moment of packed videos shows.

    Attributes:
        counts: (B,) moments per video.
        units: (sum N,) sublexical unit, −1 between signs.
        signs: (sum N,) sign as a number of the lexicon, −1 between signs.
        places: (sum N,) the sign's place in its video, −1 between signs; it tells two occurrences apart.
    """

    counts: Ints
    units: Ints
    signs: Ints
    places: Ints


def moment_truth(
    records: Sequence[dict[str, Any]], counts: Sequence[int] | Ints, *, frame: int = CLIP_MIDDLE
) -> MomentTruth:
    """Read the truth of videos, one record of ``read_truth`` each, at their moments.

    Args:
        records: one per video.
        counts: moments per video.
        frame: which of a clip's 13 frames decides, from 0.

    Raises:
        UsageError: a video with a moment that begins after the truth has ended.
    """
    number = {gloss: place for place, gloss in enumerate(glosses())}
    units: list[Ints] = []
    signs: list[Ints] = []
    places: list[Ints] = []
    for record, count in zip(records, counts, strict=True):
        middles = CLIP_STRIDE * np.arange(count) + frame
        if count > 0 and CLIP_STRIDE * (count - 1) > record["ends"][-1]:
            raise UsageError(
                f"{count} characters for signs that end at frame {record['ends'][-1]}",
                where=record["id"],
                remedy="these characters are of another demo: compose again",
            )
        is_rest = (middles < record["starts"][0]) | (middles >= record["ends"][-1])
        for labels, starts, values in (
            (units, record["starts"], record["units"]),
            (signs, record["sign_starts"], [number[gloss] for gloss in record["signs"]]),
            (places, record["sign_starts"], range(len(record["signs"]))),
        ):
            shown = np.asarray(values)[np.searchsorted(starts, middles, side="right") - 1]
            labels.append(np.where(is_rest, REST, shown))
    packed = (np.concatenate(labels).astype(np.int64) for labels in (units, signs, places))
    return MomentTruth(np.asarray(counts, dtype=np.int64), *packed)


def score_words(
    segmentation: Segmentation, truth: MomentTruth, *, codes: int, seed: int = 0
) -> dict[str, float]:
    """Score a segmentation of packed videos.

    Args:
        segmentation: what ``WordCodebook.segment`` returned for the same videos.
        truth: of the same moments.
        codes: K; words of two characters and more have ids above it.
        seed: of the shuffling that chance is measured with.

    Returns:
        ``boundary_*_t`` and ``word_*_t``: precision, recall, f1 at tolerance t; ``boundary_chance_t``: the F1
        of as many words of the same lengths in random order; ``word_sign_nmi`` (corrected) and
        ``word_sign_nmi_raw``; ``value``: the mean of ``boundary_f1_1`` and ``word_sign_nmi``; ``named``:
        share of the moments of every second video at which the word stands for the sign that it most often
        stands for in the other videos;
        ``perplexity`` of words; ``coverage``: share of moments in words of two characters and more;
        ``words_per_video``.
    """
    words, slot = segmentation.words.cpu().numpy(), segmentation.slot.cpu().numpy()
    starts = np.flatnonzero(np.diff(slot, prepend=-1))  # a word of s₀ alone covers no moment
    lengths = np.diff(starts, append=len(slot))
    video = np.repeat(np.arange(len(truth.counts)), truth.counts)
    rng = np.random.default_rng(seed)
    mixed = lengths[np.lexsort((rng.random(len(lengths)), video[starts]))]
    scores: dict[str, float] = {}
    for tolerance in TOLERANCES:
        scores |= _labelled("boundary", tolerance, boundary_scores(starts, video, truth, tolerance))
        chance = boundary_scores(np.cumsum(mixed) - mixed, video, truth, tolerance)
        scores[f"boundary_chance_{tolerance}"] = chance[2]
        scores |= _labelled(
            "word", tolerance, _word_scores(starts, lengths, len(words), video, truth, tolerance)
        )
    raw, corrected = _shared(words[slot[starts]], lengths, truth.signs, rng)
    return scores | {
        "word_sign_nmi": corrected,
        "word_sign_nmi_raw": raw,
        "value": (scores["boundary_f1_1"] + corrected) / 2,
        "named": _named_signs(words[slot], video % 2 == 1, truth.signs),
        "perplexity": float(np.exp(entropy(words))),
        "coverage": float((words[slot] > codes).mean()),
        "words_per_video": len(words) / len(truth.counts),
    }


def score_characters(characters: Ints, truth: MomentTruth, *, seed: int = 0) -> dict[str, float]:
    """Score characters (sum N,) as such: what they tell of units, and how many of them are in use."""
    rng = np.random.default_rng(seed)
    raw, corrected = _shared(characters, np.ones(len(characters), dtype=np.int64), truth.units, rng)
    return {
        "character_unit_nmi": corrected,
        "character_unit_nmi_raw": raw,
        "character_perplexity": float(np.exp(entropy(characters))),
        "moments_per_sign": float((truth.signs != REST).sum() / len(_sign_ends(truth)[0])),
    }


def boundary_scores(
    starts: Ints, video: Ints, truth: MomentTruth, tolerance: int
) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the words' ``starts``; those of videos themselves do not count."""
    begins = np.cumsum(truth.counts) - truth.counts
    true = np.flatnonzero(np.diff(truth.places, prepend=REST))
    apart = video * (tolerance + 1)  # keeps a boundary from hitting one of the next video
    predicted, true = np.setdiff1d(starts, begins), np.setdiff1d(true, begins)
    hits = count_hits(predicted + apart[predicted], true + apart[true], tolerance)
    return _f1(hits, len(predicted), len(true))


def count_hits(predicted: Ints, true: Ints, tolerance: int) -> int:
    """Return how many pairs, one to one, are at most ``tolerance`` apart; both sorted, so greedy is best."""
    one, another = predicted.tolist(), true.tolist()
    hits = place = other = 0
    while place < len(one) and other < len(another):
        distance = one[place] - another[other]
        hits += abs(distance) <= tolerance
        place, other = place + (distance <= tolerance), other + (distance >= -tolerance)
    return int(hits)


def _word_scores(
    starts: Ints, lengths: Ints, words: int, video: Ints, truth: MomentTruth, tolerance: int
) -> tuple[float, float, float]:
    """Precision, recall, F1 of whole words; the sign in question is the one at the word's middle."""
    begins, ends = _sign_ends(truth)
    sign = np.searchsorted(begins, starts + lengths // 2, side="right") - 1
    is_hit = (
        (sign >= 0)
        & (video[begins[sign]] == video[starts])
        & (abs(begins[sign] - starts) <= tolerance)
        & (abs(ends[sign] - (starts + lengths)) <= tolerance)
    )
    return _f1(len(np.unique(sign[is_hit])), words, len(begins))


def _sign_ends(truth: MomentTruth) -> tuple[Ints, Ints]:
    """Packed first moment of each sign, and the moment after its last."""
    video = np.repeat(np.arange(len(truth.counts)), truth.counts)
    changes = np.diff(truth.places, prepend=REST - 1) != 0
    changes |= np.diff(video, prepend=-1) != 0
    edges = np.append(np.flatnonzero(changes), len(video))
    is_sign = truth.places[edges[:-1]] != REST
    return edges[:-1][is_sign], edges[1:][is_sign]


def _shared(labels: Ints, lengths: Ints, true: Ints, rng: np.random.Generator) -> tuple[float, float]:
    """Normalized mutual information per moment of labels that last ``lengths`` moments, raw and corrected."""
    shown = true != REST
    by_length = np.argsort(lengths, kind="stable")
    chance = []
    for _ in range(SHUFFLES):
        mixed = np.empty_like(labels)
        mixed[by_length] = labels[np.lexsort((rng.random(len(labels)), lengths))]
        chance.append(mutual_information(np.repeat(mixed, lengths)[shown], true[shown]))
    each = np.repeat(labels, lengths)[shown]
    shared, most = mutual_information(each, true[shown]), (entropy(each) + entropy(true[shown])) / 2
    floor = float(np.mean(chance))
    return shared / max(most, 1e-12), (shared - floor) / max(most - floor, 1e-12)


def _named_signs(words: Ints, is_asked: NDArray[np.bool_], signs: Ints) -> float:
    """Share of the asked moments whose word's most frequent sign, in the others, is the sign shown."""
    learnt, asked = ~is_asked & (signs != REST), is_asked & (signs != REST)
    uses_VS = np.zeros((int(words.max(initial=0)) + 1, int(signs.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(uses_VS, (words[learnt], signs[learnt]), 1)
    best_V = np.where(uses_VS.any(axis=1), uses_VS.argmax(axis=1), REST)
    return float((best_V[words[asked]] == signs[asked]).mean()) if asked.any() else 0.0


def _f1(hits: int, predicted: int, true: int) -> tuple[float, float, float]:
    return hits / max(predicted, 1), hits / max(true, 1), 2 * hits / max(predicted + true, 1)


def _labelled(what: str, tolerance: int, scores: tuple[float, float, float]) -> dict[str, float]:
    parts = ("precision", "recall", "f1")
    return {f"{what}_{part}_{tolerance}": score for part, score in zip(parts, scores, strict=True)}
