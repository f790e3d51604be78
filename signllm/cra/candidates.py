"""Candidate words: the merges of byte-pair encoding (BPE) over character sequences, in the order of learning.

The library ``tokenizers`` learns them; each character is one Unicode code point for it, and no merge crosses
the border between videos. Merges are ordered by the number of occurrences of their pair; the first n are the
candidates of size n. Pairs are counted over the complete corpus, so the result does not depend on the order
of the videos.

Learning is accelerated by cutting the sequences. A merged pair never occurs more often than the pair that was
merged before it, and no pair occurs more often than the two characters at its seam. To learn all merges with
at least F occurrences, sequences may therefore be cut between neighbours that occur together less than F
times. The remaining pieces are short and many of them are equal; ``tokenizers`` processes equal pieces once.
F is lowered until there are enough merges. The result equals that of the uncut sequences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from signllm.cra.byte_pair_merging import Merge
from signllm.cra.packed_sequences import Ints, count_characters, video_chunks

FIRST_CODE_POINT = 0x10000
"""Code point of character 0. It is above the surrogates and leaves room for a million characters."""

FREQUENCY_DIVISOR = 2
"""Divisor of F. F starts at this fraction of the frequency that as many pairs as candidates reach, and it is
divided again if there are too few merges. Merges are rarer than pairs of the original characters; half the
frequency was enough for the characters of the demo and of generated corpora."""

PAIR_COUNTERS = 4_194_301
"""Largest number of counters for pairs, a prime. Up to 2,047 characters, each pair has a counter of its own.
Pairs that share a counter appear more frequent than they are, so that a possible cut may be missed, but no
cut is wrong."""


def learn_merges(
    characters: NDArray[np.integer], counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[Merge, ...]:
    """Learn the merges that make the candidate words; two merges may make the same word.

    Args:
        characters: (sum R,) packed sequences without repeats.
        counts: (B,) number of characters of each video.
        limit: largest number of different words that the merges make.
        longest: number of characters of the longest word.
        min_frequency: least number of occurrences of a pair that is merged.
    """
    present = count_characters(characters).nonzero()[0]
    if limit < 1 or longest < 2 or len(present) == 0:
        return ()
    pair_counts = _count_pairs(characters, counts)
    frequency = max(min_frequency, _frequency_of_rank(limit, pair_counts) // FREQUENCY_DIVISOR)
    while True:
        pieces = _split_at_seams(characters, counts, pair_counts < frequency)
        merges = _train_tokenizer(pieces, present, limit, longest, frequency)
        if frequency <= min_frequency or len({left + right for left, right in merges}) >= limit:
            return merges
        frequency = max(min_frequency, frequency // FREQUENCY_DIVISOR)


def words_of_size(merges: tuple[Merge, ...], size: int) -> tuple[Merge, ...]:
    """Return the first merges, which are the result of learning at most ``size`` words."""
    made: set[tuple[int, ...]] = set()
    for count, (left, right) in enumerate(merges):
        made.add(left + right)
        if len(made) > size:
            return merges[:count]
    return merges


def _count_pairs(characters: NDArray[np.integer], counts: Ints) -> Ints:
    """Return how often each pair of neighbours occurs, by the counters of :func:`_neighbours`.

    The last counter, that of the ends of videos, is 0.
    """
    alphabet = int(characters.max()) + 1
    total = np.zeros(min(alphabet**2, PAIR_COUNTERS) + 1, dtype=np.int64)
    for _, counter in _neighbours(characters, counts, len(total) - 1):
        np.add.at(total, counter, 1)
    total[-1] = 0
    return total


def _neighbours(characters: NDArray[np.integer], counts: Ints, counters: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield chunks of videos: the characters, and for each the counter of the pair with the next character.

    The last character of a video has the last counter.
    """
    alphabet = int(characters.max()) + 1
    for chunk, chunk_counts in video_chunks(characters, counts):
        counter = np.full(len(chunk), counters)
        counter[:-1] = (chunk[:-1] * alphabet + chunk[1:]) % counters
        counter[np.cumsum(chunk_counts[chunk_counts > 0]) - 1] = counters
        yield chunk, counter


def _frequency_of_rank(pairs: int, pair_counts: Ints) -> int:
    """Return the frequency that the ``pairs`` most frequent pairs all reach; 0 if there are fewer pairs."""
    return int(np.partition(pair_counts, -pairs)[-pairs]) if pairs <= len(pair_counts) else 0


def _train_tokenizer(
    pieces: Iterator[str], present: Ints, limit: int, longest: int, frequency: int
) -> tuple[Merge, ...]:
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=len(present) + limit,
        min_frequency=frequency,
        initial_alphabet=[chr(FIRST_CODE_POINT + character) for character in present.tolist()],
        max_token_length=longest + 1,  # an exclusive limit in tokenizers 0.23, unlike its documentation says
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    learnt = (tuple(map(_decode_token, pair)) for pair in json.loads(tokenizer.to_str())["model"]["merges"])
    return tuple((left, right) for left, right in learnt if len(left) + len(right) <= longest)


def _decode_token(token: str) -> tuple[int, ...]:
    return tuple(ord(point) - FIRST_CODE_POINT for point in token)


def _split_at_seams(
    characters: NDArray[np.integer], counts: Ints, is_seam: NDArray[np.bool_]
) -> Iterator[str]:
    """Yield the pieces between cuts that have at least two characters, each character as a code point."""
    for chunk, counter in _neighbours(characters, counts, len(is_seam) - 1):
        text = (chunk + FIRST_CODE_POINT).astype("<u4").tobytes().decode("utf-32-le")
        ends = is_seam[counter].nonzero()[0] + 1
        starts = np.append(0, ends)[:-1]
        is_long = ends - starts > 1
        for start, end in zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True):
            yield text[start:end]
