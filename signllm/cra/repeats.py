"""Runs of one character become one character; a long run adds the "slowing down" token s₀ (design 2.2).

A signer who holds a handshape yields the same character clip after clip. What matters is that it was held,
not for how many clips: a run keeps one character, and one longer than the mean run length α is followed by
s₀. Over which runs the mean is taken is not stated in the paper; ours: all runs of at least two in the
corpus (``repeated_only``), because with runs of one included α falls below 2 and s₀ would follow every
repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from signllm.cra.packed_sequences import Ints, Packed, video_chunks


@dataclass(frozen=True)
class CollapsedSequences:
    """Packed sequences without repeats, and where each original character went.

    Attributes:
        characters: (sum R,) characters and s₀.
        counts: (B,) how many of them each video has.
        place: (sum N,) packed place in ``characters`` of each original character's run.
        run_lengths: (sum N,) length of the run that each original character is part of.
    """

    characters: Ints
    counts: Ints
    place: Ints
    run_lengths: Ints


def run_lengths(characters: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return the run of each packed character (sum N,) and each run's length; no run crosses videos."""
    starts = np.ones(len(characters), dtype=bool)
    starts[1:] = characters[1:] != characters[:-1]
    begins = np.cumsum(counts) - counts
    starts[begins[begins < len(characters)]] = True
    run = np.cumsum(starts) - 1
    return run, np.bincount(run).astype(np.int64)


def mean_run_length(characters: NDArray[np.integer], counts: Ints, *, repeated_only: bool = True) -> float:
    """Return α, the mean run length of a corpus; 1 where no run of the kind exists."""
    total = runs = 0
    for chunk in video_chunks(characters, counts):
        _, lengths = run_lengths(*chunk)
        taken = lengths[lengths > 1] if repeated_only else lengths
        total, runs = total + int(taken.sum()), runs + len(taken)
    return total / runs if runs > 0 else 1.0


def mean_run_lengths(characters: Ints, counts: Ints, *, repeated_only: bool = True) -> NDArray[np.float64]:
    """Return (B,) α of each video by itself; 1 where no run of the kind exists."""
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
        characters: (sum N,) characters of all videos, one after the other.
        counts: (B,) how many each video has.
        slow_down: the id of s₀.
        alpha: a run longer than this is followed by s₀; None: each video's own mean run length.
        repeated_only: which runs a video's own mean is taken over.
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
    """Collapse the runs of a whole corpus, of which only the sequences are kept, s₀ the largest id.

    Arguments are those of ``collapse_repeats``.
    """
    parts, new_counts = [np.zeros(0, dtype=np.min_scalar_type(slow_down))], [np.zeros(0, dtype=np.int64)]
    for chunk in video_chunks(characters, counts):
        short = collapse_repeats(*chunk, slow_down=slow_down, alpha=alpha, repeated_only=repeated_only)
        parts.append(short.characters.astype(parts[0].dtype))
        new_counts.append(short.counts)
    return Packed(np.concatenate(parts), np.concatenate(new_counts))
