"""Candidate words: the merges of byte-pair encoding over character sequences, in the order they are learnt.

``tokenizers`` does the learning; each character is one code point for it, and no merge crosses videos.
Merges are ordered by how often their pair occurs: the first n are the candidates of size n. Counting is
over the whole corpus, so videos may come in any order.

The pair that is merged next never occurs more often than the one before, and no pair more often than two
neighbours at its seam. So for all merges of at least F occurrences sequences may be cut between neighbours
that meet less than F times: what remains is short and much of it equal, which ``tokenizers`` keeps and
merges once. F falls until there are merges enough; the outcome is that of whole sequences.
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
"""Characters start above the surrogates: 0x10FFFF − 0x10000 leaves room for a million."""

FALL = 2
"""F starts at so much less than what as many pairs as are wanted reach, and falls by it where merges are
lacking. Merges are seldomer than pairs, and half as often was enough for generated and demo characters."""

COUNTERS = 4_194_301
"""Pairs are counted in at most so many counters, a prime: up to 2,047 characters each pair has its own. Pairs
that share one count as often as all of them together, so a seam may be missed, but none is wrong."""


def learn_candidates(
    characters: NDArray[np.integer], counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[tuple[int, ...], ...]:
    """Learn at most ``limit`` candidate words of 2 to ``longest`` characters, most useful merge first.

    Args:
        characters: (sum R,) packed sequences without repeats.
        counts: (B,) how many characters each video has.
        limit: how many candidates at most.
        longest: characters in the longest word.
        min_frequency: a pair that occurs less often is not merged.
    """
    merges = learn_merges(characters, counts, limit=limit, longest=longest, min_frequency=min_frequency)
    return tuple(dict.fromkeys(left + right for left, right in merges))


def learn_merges(
    characters: NDArray[np.integer], counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[Merge, ...]:
    """Learn the merges that make the candidates; two may make the same one.

    Args:
        characters: as for ``learn_candidates``.
        counts: likewise.
        limit: how many words the merges make at most.
        longest: likewise.
        min_frequency: likewise.
    """
    present = count_characters(characters).nonzero()[0]
    if limit < 1 or longest < 2 or len(present) == 0:
        return ()
    pair_counts = _pair_counts(characters, counts)
    frequency = max(min_frequency, _reached_by(limit, pair_counts) // FALL)
    while True:
        pieces = _pieces(characters, counts, pair_counts < frequency)
        merges = _learn(pieces, present, limit, longest, frequency)
        if frequency <= min_frequency or len({left + right for left, right in merges}) >= limit:
            return merges
        frequency = max(min_frequency, frequency // FALL)


def words_of_size(merges: tuple[Merge, ...], size: int) -> tuple[Merge, ...]:
    """Return the merges that learning at most ``size`` words would have given."""
    made: set[tuple[int, ...]] = set()
    for count, (left, right) in enumerate(merges):
        made.add(left + right)
        if len(made) > size:
            return merges[:count]
    return merges


def _pair_counts(characters: NDArray[np.integer], counts: Ints) -> Ints:
    """How often two characters meet, by the counters of ``_neighbours``; 0 in that of ends of videos."""
    alphabet = int(characters.max()) + 1
    total = np.zeros(min(alphabet**2, COUNTERS) + 1, dtype=np.int64)
    for _, counter in _neighbours(characters, counts, len(total) - 1):
        np.add.at(total, counter, 1)
    total[-1] = 0
    return total


def _neighbours(characters: NDArray[np.integer], counts: Ints, counters: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield chunks of whole videos, and the counter of each character and the next; at an end the last."""
    alphabet = int(characters.max()) + 1
    for chunk, chunk_counts in video_chunks(characters, counts):
        counter = np.full(len(chunk), counters)
        counter[:-1] = (chunk[:-1] * alphabet + chunk[1:]) % counters
        counter[np.cumsum(chunk_counts[chunk_counts > 0]) - 1] = counters
        yield chunk, counter


def _reached_by(pairs: int, pair_counts: Ints) -> int:
    """The count that the so many most frequent pairs all reach; 0 where there are fewer pairs."""
    return int(np.partition(pair_counts, -pairs)[-pairs]) if pairs <= len(pair_counts) else 0


def _learn(
    pieces: Iterator[str], present: Ints, limit: int, longest: int, frequency: int
) -> tuple[Merge, ...]:
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=len(present) + limit,
        min_frequency=frequency,
        initial_alphabet=[chr(FIRST_CODE_POINT + character) for character in present.tolist()],
        max_token_length=longest + 1,  # exclusive in tokenizers 0.23, against its own documentation
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    learnt = (tuple(map(_characters, pair)) for pair in json.loads(tokenizer.to_str())["model"]["merges"])
    return tuple((left, right) for left, right in learnt if len(left) + len(right) <= longest)


def _characters(token: str) -> tuple[int, ...]:
    return tuple(ord(point) - FIRST_CODE_POINT for point in token)


def _pieces(characters: NDArray[np.integer], counts: Ints, is_seam: NDArray[np.bool_]) -> Iterator[str]:
    """Yield what stands between seams, two characters and more, each character one code point."""
    for chunk, counter in _neighbours(characters, counts, len(is_seam) - 1):
        text = (chunk + FIRST_CODE_POINT).astype("<u4").tobytes().decode("utf-32-le")
        ends = is_seam[counter].nonzero()[0] + 1
        starts = np.append(0, ends)[:-1]
        is_long = ends - starts > 1
        for start, end in zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True):
            yield text[start:end]
