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
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from signllm.cra.merging import Merge
from signllm.cra.segmentation import Ints

FIRST_CODE_POINT = 0x10000
"""Characters start above the surrogates: 0x10FFFF − 0x10000 leaves room for a million."""

FALL = 4
"""F falls by so much where merges are lacking. It starts at what as many pairs as are wanted reach."""

CHUNK_SEQUENCES = 1 << 16
"""Sequences turned into text at a time."""


def learn_candidates(
    characters: Ints, counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
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
    characters: Ints, counts: Ints, *, limit: int, longest: int, min_frequency: int = 2
) -> tuple[Merge, ...]:
    """Learn the merges that make the candidates; two may make the same one.

    Args:
        characters: as for ``learn_candidates``.
        counts: likewise.
        limit: how many words the merges make at most.
        longest: likewise.
        min_frequency: likewise.
    """
    present = np.unique(characters)
    if limit < 1 or longest < 2 or len(present) == 0:
        return ()
    pair_counts = _pair_counts(characters, counts)
    frequency = max(min_frequency, _reached_by(limit, pair_counts))
    while True:
        is_seam = pair_counts < frequency
        merges = _learn(characters, counts, is_seam, present, limit, longest, frequency)
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


def _pair_counts(characters: Ints, counts: Ints) -> Ints:
    """(sum R,) how often each character and its successor meet; 0 at the last of a video."""
    _, dense = np.unique(characters, return_inverse=True)
    pair = dense[:-1] * (int(dense.max()) + 1) + dense[1:]
    ends = np.cumsum(counts)[counts > 0][:-1] - 1
    is_pair = np.ones(len(pair), dtype=bool)
    is_pair[ends] = False
    if len(pair) > 0 and int(pair.max()) < max(1 << 22, len(pair)):
        times = np.bincount(pair[is_pair], minlength=int(pair.max()) + 1)[pair]
    else:
        _, inverse = np.unique(pair, return_inverse=True)
        times = np.bincount(inverse[is_pair], minlength=len(pair))[inverse]
    return np.append(np.where(is_pair, times, 0), 0)


def _reached_by(pairs: int, pair_counts: Ints) -> int:
    """The count that the so many most frequent pairs all reach; 0 where there are fewer pairs."""
    places = np.bincount(pair_counts)
    distinct = places[1:] / np.arange(1, len(places))
    is_reached = np.cumsum(distinct[::-1])[::-1] >= pairs
    return int(is_reached.sum())


def _learn(
    characters: Ints,
    counts: Ints,
    is_seam: np.ndarray[tuple[int], np.dtype[np.bool_]],
    present: Ints,
    limit: int,
    longest: int,
    frequency: int,
) -> tuple[Merge, ...]:
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=len(present) + limit,
        min_frequency=frequency,
        initial_alphabet=[chr(FIRST_CODE_POINT + character) for character in present.tolist()],
        max_token_length=longest + 1,  # exclusive in tokenizers 0.23, against its own documentation
        show_progress=False,
    )
    tokenizer.train_from_iterator(_spelt(characters, is_seam), trainer)
    learnt = (tuple(map(_characters, pair)) for pair in json.loads(tokenizer.to_str())["model"]["merges"])
    return tuple((left, right) for left, right in learnt if len(left) + len(right) <= longest)


def _characters(token: str) -> tuple[int, ...]:
    return tuple(ord(point) - FIRST_CODE_POINT for point in token)


def _spelt(characters: Ints, is_seam: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterator[str]:
    """Yield what stands between seams, two characters and more."""
    ends = is_seam.nonzero()[0] + 1
    for first in range(0, len(ends), CHUNK_SEQUENCES):
        stops = ends[first : first + CHUNK_SEQUENCES]
        begin = int(ends[first - 1]) if first else 0
        starts = np.append(begin, stops[:-1])
        spelt = (characters[begin : stops[-1]] + FIRST_CODE_POINT).astype("<u4").tobytes()
        text, is_long = spelt.decode("utf-32-le"), stops - starts > 1
        for start, stop in zip(
            (starts - begin)[is_long].tolist(), (stops - begin)[is_long].tolist(), strict=True
        ):
            yield text[start:stop]
