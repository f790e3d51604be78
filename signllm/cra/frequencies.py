"""Word frequencies, and the description length of a corpus that is encoded in words.

The description length (Rissanen 1978; of a lexicon: de Marcken, "Unsupervised Language Acquisition", 1996) is
the length of a code for the list of words, their frequencies, and the corpus as a sequence of words. More
words shorten the corpus and lengthen the list. The number of words with the least description length grows
with the corpus. This criterion is not in the paper, which chooses the number of words by marginal utility.
"""

from __future__ import annotations

import zlib

import numpy as np

from signllm.cra.byte_pair_merging import Merge
from signllm.cra.packed_sequences import Ints, Packed
from signllm.cra.segmentation import Method, WordTable, count_words

Words = tuple[tuple[int, ...], ...]

ROUNDS = 8
"""Largest number of segmentations. Frequencies usually converge within 3 or 4."""

SAMPLE = 1 << 18
"""Approximate number of characters of the videos from which the length of a larger corpus is estimated."""


def word_frequencies(
    short: Packed,
    words: Words,
    occurrences: Ints,
    *,
    method: Method,
    merges: tuple[Merge, ...] = (),
    rounds: int = ROUNDS,
) -> Ints:
    """Return how often each word id occurs in the segmented corpus, (alphabet + len(words),).

    Viterbi segmentation depends on the frequencies, so it is repeated until they no longer change.

    Args:
        short: sequences without repeats.
        words: spellings of the words of two or more characters.
        occurrences: (alphabet + len(words),) initial frequencies: occurrences of each id, including overlaps.
        method: method of segmentation.
        merges: merges for the method "bpe".
        rounds: largest number of segmentations.
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
    """Return the description length, in nats, of the words, their frequencies and the corpus.

    - A word of the list costs its length and its characters; a character costs minus the logarithm of its
    share of
      the corpus.
    - A frequency costs half the logarithm of the number of words in the corpus.
    - A word of the corpus costs minus the logarithm of its share of the words.

    Args:
        words: spellings of the words of two or more characters.
        frequencies: (alphabet + len(words),) number of occurrences of each id.
        times: size of the corpus divided by the size of the sample in which occurrences were counted.
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
    """Return a sample of the videos, and the size of the corpus divided by that of the sample.

    The sample depends on the content of the videos, not on their order. A corpus of at most ``size``
    characters is returned completely.
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
