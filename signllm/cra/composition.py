"""From the characters of a training set to a word codebook: the steps of CRA in order (design 2.2).

Runs are collapsed, candidates learnt, all sizes transported, one chosen by marginal utility, and what
transport kept is counted in the corpus by the same segmentation that training and evaluation use.
Deterministic, and independent of the order of the videos.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from signllm.cra.byte_pair_merging import Merge
from signllm.cra.candidates import learn_merges, words_of_size
from signllm.cra.frequencies import description_length, sample_of_videos, word_frequencies
from signllm.cra.packed_sequences import Ints, Packed, count_characters
from signllm.cra.repeats import collapse_corpus, mean_run_length
from signllm.cra.segmentation import Method, count_occurrences
from signllm.cra.transport import SizeResult, TransportConfig, choose_size, describe_curve, solve_sizes
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError

log = logging.getLogger(__name__)

COLLAPSED_PERPLEXITY = 1.5
"""Perplexity below which there is nothing to compose: nearly all characters are the same one."""

MIN_JUDGED_CHARACTERS = 16
"""Characters from which it can be told: a clip of 13 frames is one character, whatever the codebook."""


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """How words are composed; what the paper gives is m = 32, the rest is not stated in it.

    Attributes:
        alpha_scope: whether α is one number for the corpus or each video's own mean run length.
        alpha_runs: whether α is the mean over runs of at least two ("repeated") or over all runs.
        longest_word: characters in the longest word, s₀ included.
        min_frequency: a pair of pieces that occurs less often is no candidate.
        increment: m, the step between sizes.
        max_size: the largest number of candidates that is tried.
        min_size: the smallest that may be chosen. The first size is measured against characters and would
            always have the largest marginal utility (measured), so the default starts at the second.
        size: the number of candidates to take, instead of choosing; 0: characters only.
        segmentation: "viterbi" (most probable split), "longest" (longest match) or "bpe" (byte-pair order).
        transport: formulation and strengths.
    """

    alpha_scope: Literal["corpus", "video"] = "corpus"
    alpha_runs: Literal["repeated", "all"] = "repeated"
    longest_word: int = 6
    min_frequency: int = 2
    increment: int = 32
    max_size: int = 1024
    min_size: int = 64
    size: int | None = None
    segmentation: Method = "viterbi"
    transport: TransportConfig = field(default_factory=TransportConfig)

    def __post_init__(self) -> None:
        if self.longest_word < 2 or self.increment < 1 or self.max_size < 1 or self.min_frequency < 1:
            raise UsageError(
                f"longest_word={self.longest_word} must be at least 2; increment={self.increment}, "
                f"max_size={self.max_size} and min_frequency={self.min_frequency} at least 1"
            )
        name, value = ("min_size", self.min_size) if self.size is None else ("size", self.size)
        if not 0 <= value <= self.max_size:
            raise UsageError(f"{name}={value} must lie between 0 and max_size={self.max_size}")


def compose_words(
    characters: NDArray[np.integer],
    counts: Ints,
    *,
    codes: int,
    codebook: str,
    config: WordsConfig | None = None,
) -> WordCodebook:
    """Compose words from packed characters (sum N,) of videos with ``counts`` (B,).

    Args:
        characters: as the encoder gives them, repeats included, each below ``codes``; of any integer type.
        counts: characters per video.
        codes: K.
        codebook: fingerprint of the character codebook.
        config: by default ``WordsConfig()``.

    Raises:
        UsageError: no characters, a collapsed character codebook, or fewer candidates than ``size``.
    """
    config = config or WordsConfig()
    _check(characters, codes)
    repeated = config.alpha_runs == "repeated"
    mean = mean_run_length(characters, counts, repeated_only=repeated)
    alpha = mean if config.alpha_scope == "corpus" else None
    short = collapse_corpus(characters, counts, slow_down=codes, alpha=alpha, repeated_only=repeated)
    merges = learn_merges(
        short.characters,
        short.counts,
        limit=config.max_size,
        longest=config.longest_word,
        min_frequency=config.min_frequency,
    )
    candidates = tuple(dict.fromkeys(left + right for left, right in merges))
    _check_candidates(len(candidates), len(counts), len(characters), config)
    sizes = _sizes(len(candidates), config)
    occurrences = count_occurrences(short.characters, short.counts, candidates, codes + 1)
    outcomes = solve_sizes(candidates, occurrences, sizes, config.transport)
    outcomes = _told(outcomes, short, candidates, occurrences, merges, config)
    chosen = _choose(outcomes, sizes, config)
    words, counted = _kept(outcomes[chosen], candidates, occurrences)
    merges = words_of_size(merges, outcomes[chosen].size) if config.segmentation == "bpe" else ()
    frequencies = word_frequencies(short, words, counted, method=config.segmentation, merges=merges)
    return WordCodebook(
        codes=codes,
        words=words,
        frequencies=tuple(frequencies.tolist()),
        alpha=alpha,
        codebook=codebook,
        segmentation=config.segmentation,
        merges=merges,
        repeated_only=repeated,
        curve=describe_curve(outcomes, chosen),
        config=dataclasses.asdict(config),
    )


def _check(characters: NDArray[np.integer], codes: int) -> None:
    if len(characters) == 0:
        raise UsageError("there are no characters", remedy="give a split with videos")
    if not (0 <= characters.min() and characters.max() < codes):
        raise ValueError(f"characters {characters.min()} to {characters.max()} for a codebook of {codes}")
    p = count_characters(characters) / len(characters)
    perplexity = float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))
    if perplexity < COLLAPSED_PERPLEXITY and len(characters) >= MIN_JUDGED_CHARACTERS:
        raise UsageError(
            f"the character codebook has collapsed: perplexity {perplexity:.2f} of {codes} codes over "
            f"{len(characters)} characters",
            remedy="pretrain longer, or with --vq-sign.quantizer.kmeans-start, .update ema and "
            ".revive-dead-after 100; `perplexity` in log.jsonl tells when codes die",
        )


def _check_candidates(candidates: int, videos: int, characters: int, config: WordsConfig) -> None:
    corpus = f"the corpus of {characters} characters in {videos} videos yields {candidates} candidate words"
    if config.size is not None and config.size > candidates:
        raise UsageError(
            f"size={config.size}, but {corpus}",
            where="--words.size",
            remedy=f"give at most {candidates}, more videos, or a smaller --words.min-frequency "
            f"(now {config.min_frequency})",
        )
    if config.size is None and candidates == 0 and characters >= MIN_JUDGED_CHARACTERS:
        log.warning(
            "%s: no two characters follow each other %d times, so characters stand for themselves alone; "
            "give more videos, or a smaller --words.min-frequency",
            corpus,
            config.min_frequency,
        )


def _sizes(candidates: int, config: WordsConfig) -> list[int]:
    """0, the multiples of the increment, the number of candidates there are, and the explicit size."""
    sizes = {0, candidates, *range(config.increment, candidates, config.increment)}
    return sorted(sizes | ({config.size} if config.size is not None else set()))


def _choose(outcomes: list[SizeResult], sizes: list[int], config: WordsConfig) -> int:
    """The place of the size: the one asked for, or the best; says so if the best is all that there was."""
    if config.size is not None:
        return sizes.index(config.size)
    chosen = choose_size(outcomes, config.transport, min_size=config.min_size)
    if config.min_size < sizes[chosen] == config.max_size:
        log.warning(
            "%d candidates, the most that were tried, were chosen; more may be better: --words.max-size %d",
            config.max_size,
            2 * config.max_size,
        )
    return chosen


def _kept(
    outcome: SizeResult, candidates: tuple[tuple[int, ...], ...], occurrences: Ints
) -> tuple[tuple[tuple[int, ...], ...], Ints]:
    """The words that a size keeps, and the occurrences of all characters and these."""
    alphabet = len(occurrences) - len(candidates)
    places = np.flatnonzero(outcome.kept)
    return tuple(candidates[place] for place in places), occurrences[
        np.concatenate([np.arange(alphabet), alphabet + places])
    ]


def _told(
    outcomes: list[SizeResult],
    short: Packed,
    candidates: tuple[tuple[int, ...], ...],
    occurrences: Ints,
    merges: tuple[Merge, ...],
    config: WordsConfig,
) -> list[SizeResult]:
    """Tell (a sample of) the corpus in the words of every size; spare what is dropped at a loss."""
    sample, times = sample_of_videos(short)
    method = config.segmentation

    def length(outcome: SizeResult) -> float:
        words, counted = _kept(outcome, candidates, occurrences)
        applied = words_of_size(merges, outcome.size) if method == "bpe" else ()
        found = word_frequencies(sample, words, counted, method=method, merges=applied)
        return description_length(words, found, times=times) / len(short.characters)

    told = []
    for outcome in outcomes:
        best = dataclasses.replace(outcome, description_length=length(outcome))
        if config.transport.drop == "if_shorter" and not outcome.kept.all():
            whole = dataclasses.replace(outcome, kept=np.ones_like(outcome.kept))
            whole = dataclasses.replace(whole, description_length=length(whole))
            best = min(whole, best, key=lambda one: one.description_length or 0.0)
        told.append(best)
    return told
