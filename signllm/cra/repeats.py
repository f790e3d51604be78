"""Collapsing repeats: a run of equal characters becomes one character, and a long run adds the token s₀.

A signer who keeps a handshape for some time produces the same character in consecutive clips. The exact
number of clips does not matter. Therefore a run is replaced by one character, and a run that is longer than
the mean run length α is followed by the "slowing down" token s₀ (paper section 3.3). The paper does not state
over which runs the mean is taken. By default we use all runs of at least two characters in the corpus
(``repeated_only``): with runs of one, α is below 2 and s₀ would follow every repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signllm.cra.packed_sequences import Ints, Packed, video_chunks


@dataclass(frozen=True)
class CollapsedSequences:
    """Packed sequences without repeats, and how the original characters correspond to them.

    Attributes:
        characters: (sum R,) characters and s₀.
        counts: (B,) number of these in each video.
        place: (sum N,) index in ``characters`` of the run that each original character is part of.
        run_lengths: (sum N,) length of the run that each original character is part of.
    """

    characters: Ints
    counts: Ints
    place: Ints
    run_lengths: Ints


def run_lengths(characters: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return the number of the run of each packed character, (sum N,), and the length of each run.

    A run does not continue in the next video.
    """
    starts = np.ones(len(characters), dtype=bool)
    starts[1:] = characters[1:] != characters[:-1]
    begins = np.cumsum(counts) - counts
    starts[begins[begins < len(characters)]] = True
    run = np.cumsum(starts) - 1
    return run, np.bincount(run).astype(np.int64)


def mean_run_length(characters: NDArray[np.integer], counts: Ints, *, repeated_only: bool = True) -> float:
    """Return α, the mean length of the runs of a corpus; 1 if there are none.

    ``repeated_only`` restricts the mean to runs of at least two characters.
    """
    total = runs = 0
    for chunk in video_chunks(characters, counts):
        _, lengths = run_lengths(*chunk)
        taken = lengths[lengths > 1] if repeated_only else lengths
        total, runs = total + int(taken.sum()), runs + len(taken)
    return total / runs if runs > 0 else 1.0


def mean_run_lengths(characters: Ints, counts: Ints, *, repeated_only: bool = True) -> NDArray[np.float64]:
    """Return α of each video, (B,); see :func:`mean_run_length`."""
    run, lengths = run_lengths(characters, counts)
    video_of_run = np.zeros(len(lengths), dtype=np.int64)
    video_of_run[run] = np.repeat(np.arange(len(counts)), counts)
    taken = lengths > 1 if repeated_only else np.ones(len(lengths), dtype=bool)
    total = np.bincount(video_of_run[taken], weights=lengths[taken], minlength=len(counts))
    runs = np.bincount(video_of_run[taken], minlength=len(counts))
    return np.where(runs > 0, total / np.maximum(runs, 1), 1.0)


def collapse_repeats(
    characters: Ints, counts: Ints, *, slow_down: int, alpha: float | None, repeated_only: bool = True
) -> CollapsedSequences:
    """Collapse the runs of packed sequences.

    Args:
        characters: (sum N,) packed characters of all videos.
        counts: (B,) number of characters of each video.
        slow_down: id of s₀.
        alpha: a run longer than this is followed by s₀; None means the mean run length of each video.
        repeated_only: whether a video's mean run length is taken over runs of at least two characters only.
    """
    run, lengths = run_lengths(characters, counts)
    video = np.repeat(np.arange(len(counts)), counts)
    video_of_run, kept = np.zeros(len(lengths), dtype=np.int64), np.zeros(len(lengths), dtype=np.int64)
    video_of_run[run], kept[run] = video, characters
    limits = (
        alpha
        if alpha is not None
        else mean_run_lengths(characters, counts, repeated_only=repeated_only)[video_of_run]
    )
    is_slow = lengths > limits
    place = np.cumsum(1 + is_slow) - (1 + is_slow)
    collapsed = np.full(len(lengths) + int(is_slow.sum()), slow_down, dtype=np.int64)
    collapsed[place] = kept
    new_counts = np.bincount(video_of_run, weights=1 + is_slow, minlength=len(counts)).astype(np.int64)
    return CollapsedSequences(collapsed, new_counts, place[run], lengths[run])


def collapse_corpus(
    characters: NDArray[np.integer],
    counts: Ints,
    *,
    slow_down: int,
    alpha: float | None,
    repeated_only: bool = True,
) -> Packed:
    """Collapse the runs of a corpus and return only the sequences, in the smallest integer type for s₀.

    The arguments are those of :func:`collapse_repeats`; s₀ must be the largest id.
    """
    parts, new_counts = [np.zeros(0, dtype=np.min_scalar_type(slow_down))], [np.zeros(0, dtype=np.int64)]
    for chunk in video_chunks(characters, counts):
        short = collapse_repeats(*chunk, slow_down=slow_down, alpha=alpha, repeated_only=repeated_only)
        parts.append(short.characters.astype(parts[0].dtype))
        new_counts.append(short.counts)
    return Packed(np.concatenate(parts), np.concatenate(new_counts))
