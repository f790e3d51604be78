"""Composing a word codebook from the characters of a training set: the steps of CRA in order.

Repeats are collapsed, candidate words are learned, the transport problem is solved for all sizes, one size is
chosen, and the kept words are counted in the corpus with the same segmentation that training and evaluation
use. The result is deterministic and does not depend on the order of the videos.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from signllm.cra.byte_pair_merging import Merge
from signllm.cra.candidates import learn_merges, words_of_size
from signllm.cra.frequencies import description_length, sample_of_videos, word_frequencies
from signllm.cra.packed_sequences import Ints, Packed, count_characters
from signllm.cra.repeats import collapse_corpus, mean_run_length
from signllm.cra.segmentation import Method, count_occurrences
from signllm.cra.transport import SizeResult, TransportConfig, choose_size, describe_curve, solve_sizes
from signllm.cra.word_codebook import WordCodebook
from signllm.errors import UsageError
from signllm.validation import NonNegativeInt, PositiveInt, validated

log = logging.getLogger(__name__)

COLLAPSED_PERPLEXITY = 1.5
"""Perplexity of the characters below which the codebook has collapsed: nearly all characters are equal."""

MIN_JUDGED_CHARACTERS = 16
"""Least number of characters for these checks. One clip gives one character, whatever the codebook."""


@validated
class WordsConfig:
    """Configuration of the composition of words; the paper states only m = 32.

    Attributes:
        alpha_scope: whether α is one number for the corpus or the mean run length of each video.
        alpha_runs: whether α is the mean over runs of at least two characters ("repeated") or over all runs.
        longest_word: number of characters of the longest word, including s₀.
        min_frequency: least number of occurrences of a pair that becomes a candidate.
        increment: m, the difference between consecutive sizes.
        max_size: largest number of candidates that is tried.
        min_size: smallest number of candidates that may be chosen. The first size is compared with single
            characters and in our measurements always has the largest marginal utility, so the default is the
            second.
        size: number of candidates to use instead of choosing one; 0 means characters only.
        segmentation: "viterbi" (most probable segmentation), "longest" (longest match) or "bpe" (byte-pair
            order).
        transport: configuration of the transport.
    """

    alpha_scope: Literal["corpus", "video"] = "corpus"
    alpha_runs: Literal["repeated", "all"] = "repeated"
    longest_word: Annotated[int, Field(ge=2)] = 6
    min_frequency: PositiveInt = 2
    increment: PositiveInt = 32
    max_size: PositiveInt = 1024
    min_size: NonNegativeInt = 64
    size: NonNegativeInt | None = None
    segmentation: Method = "viterbi"
    transport: TransportConfig = field(default_factory=TransportConfig)

    def __post_init__(self) -> None:
        name, value = ("min_size", self.min_size) if self.size is None else ("size", self.size)
        if value > self.max_size:
            raise UsageError(
                f"{name} is {value}, which is more than max_size, {self.max_size}",
                where=name,
                remedy="lower the first or raise the second",
            )


def compose_words(
    characters: NDArray[np.integer],
    counts: Ints,
    *,
    codes: int,
    codebook: str,
    config: WordsConfig | None = None,
) -> WordCodebook:
    """Compose words from the characters of a training set.

    Args:
        characters: (sum N,) packed characters of all videos, including repeats, each below ``codes``; of any
            integer type.
        counts: (B,) number of characters of each video.
        codes: K, the number of codes.
        codebook: fingerprint of the character codebook.
        config: configuration, by default ``WordsConfig()``.

    Raises:
        UsageError: there are no characters, the character codebook has collapsed, or there are fewer
            candidates than ``config.size``.
    """
    config = config or WordsConfig()
    _check_characters(characters, codes)
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
    sizes = _sizes_to_try(len(candidates), config)
    occurrences = count_occurrences(short.characters, short.counts, candidates, codes + 1)
    outcomes = solve_sizes(candidates, occurrences, sizes, config.transport)
    outcomes = _add_description_lengths(outcomes, short, candidates, occurrences, merges, config)
    chosen = _choose_size(outcomes, sizes, config)
    words, counted = _select_kept_words(outcomes[chosen], candidates, occurrences)
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


def _check_characters(characters: NDArray[np.integer], codes: int) -> None:
    if len(characters) == 0:
        raise UsageError(
            "there are no characters to compose words from", remedy="give a split that contains videos"
        )
    if not (0 <= characters.min() and characters.max() < codes):
        raise ValueError(f"characters {characters.min()} to {characters.max()} for a codebook of {codes}")
    p = count_characters(characters) / len(characters)
    perplexity = float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))
    if perplexity < COLLAPSED_PERPLEXITY and len(characters) >= MIN_JUDGED_CHARACTERS:
        raise UsageError(
            f"the character codebook has collapsed: perplexity {perplexity:.2f} of {codes} codes over "
            f"{len(characters)} characters",
            remedy="pretrain longer, or with --vq-sign.quantizer.kmeans-start, .update ema and "
            ".revive-dead-after 100; `perplexity` in log.jsonl shows when codes fall out of use",
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
            "%s: no pair of neighbours occurs %d times, so all words are single characters; "
            "give more videos, or a smaller --words.min-frequency",
            corpus,
            config.min_frequency,
        )


def _sizes_to_try(candidates: int, config: WordsConfig) -> list[int]:
    """Return 0, the multiples of the increment, the number of candidates and the configured size."""
    sizes = {0, candidates, *range(config.increment, candidates, config.increment)}
    return sorted(sizes | ({config.size} if config.size is not None else set()))


def _choose_size(outcomes: list[SizeResult], sizes: list[int], config: WordsConfig) -> int:
    """Return the index of the configured size, or of the best; log a warning if that is the largest size."""
    if config.size is not None:
        return sizes.index(config.size)
    chosen = choose_size(outcomes, config.transport, min_size=config.min_size)
    if config.min_size < sizes[chosen] == config.max_size:
        log.warning(
            "the largest allowed number of candidates, %d, was chosen; try more with --words.max-size %d",
            config.max_size,
            2 * config.max_size,
        )
    return chosen


def _select_kept_words(
    outcome: SizeResult, candidates: tuple[tuple[int, ...], ...], occurrences: Ints
) -> tuple[tuple[tuple[int, ...], ...], Ints]:
    """Return the words that a size keeps, and the occurrences of all characters and of these words."""
    alphabet = len(occurrences) - len(candidates)
    places = np.flatnonzero(outcome.kept)
    return tuple(candidates[place] for place in places), occurrences[
        np.concatenate([np.arange(alphabet), alphabet + places])
    ]


def _add_description_lengths(
    outcomes: list[SizeResult],
    short: Packed,
    candidates: tuple[tuple[int, ...], ...],
    occurrences: Ints,
    merges: tuple[Merge, ...],
    config: WordsConfig,
) -> list[SizeResult]:
    """Return the results of all sizes with the description length of the corpus, estimated on a sample.

    With ``drop`` "if_shorter", all words are kept if dropping some would increase the description length.
    """
    sample, times = sample_of_videos(short)
    method = config.segmentation

    def measure(result: SizeResult) -> SizeResult:
        words, counted = _select_kept_words(result, candidates, occurrences)
        applied = words_of_size(merges, result.size) if method == "bpe" else ()
        frequencies = word_frequencies(sample, words, counted, method=method, merges=applied)
        nats = description_length(words, frequencies, times=times)
        return dataclasses.replace(result, description_length=nats / len(short.characters))

    measured = []
    for outcome in outcomes:
        best = measure(outcome)
        if config.transport.drop == "if_shorter" and not outcome.kept.all():
            complete = measure(dataclasses.replace(outcome, kept=np.ones_like(outcome.kept)))
            best = min(complete, best, key=lambda result: result.description_length or 0.0)
        measured.append(best)
    return measured
