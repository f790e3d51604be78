"""How often segmentation finds each word, and how long the corpus becomes when it is told in these words.

Description length (Rissanen 1978; of a lexicon: de Marcken, "Unsupervised Language Acquisition", 1996): what
it takes to write down the words, how often each occurs, and then the corpus as a sequence of them. More words
shorten the text and lengthen the list; the number at which the sum is least grows with the corpus. Not in the
paper, where marginal utility chooses.
"""

from __future__ import annotations

import zlib

import numpy as np

from signllm.cra.byte_pair_merging import Merge
from signllm.cra.packed_sequences import Ints, Packed
from signllm.cra.segmentation import Method, WordTable, count_words

Words = tuple[tuple[int, ...], ...]

ROUNDS = 8
"""Frequencies and the segmentation that follows from them settle within 3 or 4 rounds; more are cut off."""

SAMPLE = 1 << 18
"""Characters from which the length of a larger corpus is estimated, in whole videos."""


def word_frequencies(
    short: Packed,
    words: Words,
    occurrences: Ints,
    *,
    method: Method,
    merges: tuple[Merge, ...] = (),
    rounds: int = ROUNDS,
) -> Ints:
    """Return how often segmentation finds each id: (alphabet + len(words),).

    Viterbi depends on the frequencies: it is repeated until they settle.

    Args:
        short: sequences without repeats.
        words: spelt in characters.
        occurrences: (alphabet + len(words),) where it starts: each id's, overlaps included.
        method: of segmentation.
        merges: for the method "bpe".
        rounds: at most so many.
    """
    frequencies, alphabet = occurrences, len(occurrences) - len(words)
    for _ in range(rounds if method == "viterbi" else 1):
        before = frequencies
        table = WordTable(words, alphabet, before, merges)
        frequencies = count_words(short.characters, short.counts, table, method=method)
        if np.array_equal(frequencies, before):
            break
    return frequencies


def description_length(words: Words, frequencies: Ints, *, times: float = 1.0) -> float:
    """Return the nats that words, their frequencies and the corpus told in them take.

    A word in the list is its characters, each at the code length of its share of the corpus, and its length;
    a frequency takes half the logarithm of the number of words in the corpus; a word in the text takes minus
    the logarithm of its share.

    Args:
        words: spelt in characters.
        frequencies: (alphabet + len(words),) of each id.
        times: how many times as large as what was counted the corpus is.
    """
    alphabet = len(frequencies) - len(words)
    used = frequencies[frequencies > 0]
    total = float(used.sum()) * times
    text = -times * float((used * np.log(used / used.sum())).sum())
    parameters = 0.5 * np.log(max(total, 1.0)) * len(used)
    length_V = np.array([len(word) for word in words], dtype=np.int64)
    spelt = np.array([character for word in words for character in word], dtype=np.int64)
    share_K = frequencies[:alphabet].astype(np.float64)
    share_K += np.bincount(spelt, np.repeat(frequencies[alphabet:], length_V), minlength=alphabet)
    letters = -np.log(np.maximum(share_K[spelt], 1) / share_K.sum()).sum()
    lengths = len(words) * np.log(max(2, int(length_V.max(initial=2)) - 1))
    return text + float(parameters + letters + lengths)


def sample_of_videos(corpus: Packed, size: int = SAMPLE) -> tuple[Packed, float]:
    """Return some videos, and how many times as large the corpus is; the same in any order of videos.

    A corpus of at most ``size`` characters is its own sample.
    """
    characters, counts = corpus
    if len(characters) <= size:
        return corpus, 1.0
    begins = np.cumsum(counts) - counts
    names = [zlib.crc32(characters[b : b + n].tobytes()) for b, n in zip(begins, counts, strict=True)]
    order = np.argsort(names, kind="stable")
    taken = order[: int(np.searchsorted(np.cumsum(counts[order]), size)) + 1]
    parts = [characters[begins[video] : begins[video] + counts[video]] for video in taken]
    return Packed(np.concatenate(parts), counts[taken]), len(characters) / int(counts[taken].sum())
