"""How often a split uses each character and word, with a few random examples of each, in a single pass.

The examples are a reservoir sample: every occurrence draws a random key, and each character or word keeps the
occurrences with the smallest keys, all from different videos. The memory needed is proportional to the number
of characters and words times the number of examples, independent of the number of videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from signllm.cra.word_codebook import WordCodebook

CHUNK_CHARACTERS = 1 << 19
"""Videos are counted in chunks of about this many characters."""
KEY, ID, VIDEO, START, STOP = range(5)
"""Columns of an array of occurrences."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, order=True, kw_only=True)
class Example:
    """One occurrence of a character or word.

    Attributes:
        video: index of the video among the sequences.
        start: index of the first character of the occurrence in its video.
        stop: index after the last one.
    """

    video: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The counts of one pass over the characters of a split.

    Attributes:
        words: the word codebook.
        videos: number of videos.
        characters: (K,) number of occurrences of each code, repeats included.
        word_counts: (V,) number of occurrences of each word id, V = K + 1 + number of composed words.
        covered: number of characters that are part of words of two or more.
        examples: id → example occurrences, each from a different video. Ids below K are codes, ids above K
            are composed words.
    """

    words: WordCodebook
    videos: int
    characters: Ints
    word_counts: Ints
    covered: int
    examples: dict[int, tuple[Example, ...]]

    @property
    def total(self) -> int:
        """Number of characters."""
        return int(self.characters.sum())

    @property
    def perplexity(self) -> float:
        """Effective number of codes in use: the exponential of the entropy of the code distribution."""
        p = self.characters[self.characters > 0] / max(1, self.total)
        return math.exp(-float((p * np.log(p)).sum())) if self.total else 0.0

    def most_used_characters(self, top: int) -> list[int]:
        """Return the most frequent codes; equally frequent ones are in numerical order."""
        return _largest_counts(self.characters, top)

    def most_used_words(self, top: int) -> list[int]:
        """Return the ids of the most frequent words of two or more characters, ties in numerical order."""
        first = self.words.slow_down + 1
        return [first + index for index in _largest_counts(self.word_counts[first:], top)]

    def longest_words(self, top: int) -> list[int]:
        """Return the ids of the longest words that occur; among equally long ones, the most frequent."""
        used = [word for word in range(self.words.slow_down + 1, self.words.size) if self.word_counts[word]]
        used.sort(key=lambda word: (-len(self.words.spell(word)), -self.word_counts[word], word))
        return used[:top]

    def spelling(self, word: int) -> str:
        """Return the characters of a word as text; the "slowing down" token is written s₀."""
        slow = self.words.slow_down
        return " ".join("s₀" if character == slow else str(character) for character in self.words.spell(word))


def count_usage(words: WordCodebook, sequences: Sequence[Ints], *, examples: int = 3, seed: int = 0) -> Usage:
    """Count the characters and words of some videos, and choose random examples of each.

    Args:
        words: the word codebook.
        sequences: characters of each video, each below ``words.codes``.
        examples: largest number of examples of each character and word.
        seed: random seed of the choice of examples.

    Raises:
        UsageError: The characters do not belong to this codebook.
    """
    rng = np.random.default_rng(seed)
    character_counts, word_counts = np.zeros(words.codes, np.int64), np.zeros(words.size, np.int64)
    covered, kept = 0, np.zeros((0, 5), np.int64)
    for first_video, chunk in _chunks(sequences):
        characters = np.concatenate(chunk)
        lengths = np.array([len(sequence) for sequence in chunk], np.int64)
        segmentation = words.segment(torch.from_numpy(characters), torch.from_numpy(lengths))
        slot = segmentation.slot.numpy()
        word_of_character = segmentation.words.numpy()[slot]
        character_counts += np.bincount(characters, minlength=words.codes)
        word_counts += np.bincount(segmentation.words.numpy(), minlength=words.size)
        covered += int(words.in_composed_words(segmentation).sum())
        entries = _list_occurrences(characters, lengths, slot, word_of_character, words.slow_down)
        entries[:, KEY] = rng.integers(0, 2**62, len(entries))
        entries[:, VIDEO] += first_video
        kept = _keep_smallest_keys(np.concatenate([kept, entries]), examples)
    return Usage(
        words=words,
        videos=len(sequences),
        characters=character_counts,
        word_counts=word_counts,
        covered=covered,
        examples=_group_examples(kept),
    )


def usage_record(usage: Usage, *, top: int) -> dict[str, Any]:
    """Return the counts as JSON-compatible values, with lists of the ``top`` most used and longest words."""
    words, total, dead = usage.words, usage.total, np.flatnonzero(usage.characters == 0)
    words_read = int(usage.word_counts.sum())
    return {
        "characters": {
            "read": total,
            "codes": words.codes,
            "codes_used": words.codes - len(dead),
            "dead_codes": len(dead),
            "perplexity": usage.perplexity,
            "dead": dead.tolist(),
        },
        "words": {
            "read": words_read,
            "known": len(words.words),
            "used": int((usage.word_counts[words.slow_down + 1 :] > 0).sum()),
            "covered": usage.covered / max(1, total),
            "characters_per_word": total / max(1, words_read),
            "slow_downs_alone": int(usage.word_counts[words.slow_down]),
        },
        "most_used_characters": [
            {"id": code, "count": int(usage.characters[code]), "share": float(usage.characters[code] / total)}
            for code in usage.most_used_characters(top)
        ],
        "most_used_words": [_word_record(usage, word, words_read) for word in usage.most_used_words(top)],
        "longest_words": [_word_record(usage, word, words_read) for word in usage.longest_words(top)],
    }


def _word_record(usage: Usage, word: int, words_read: int) -> dict[str, Any]:
    return {
        "id": word,
        "spelling": usage.spelling(word),
        "length": len(usage.words.spell(word)),
        "count": int(usage.word_counts[word]),
        "share": float(usage.word_counts[word] / words_read),
    }


def _largest_counts(counts: Ints, top: int) -> list[int]:
    """Return the indices of the largest counts above 0, the largest first."""
    order = np.argsort(-counts, kind="stable")[:top]
    return [int(index) for index in order if counts[index]]


def _chunks(sequences: Sequence[Ints]) -> Iterator[tuple[int, list[Ints]]]:
    """Yield consecutive videos in groups of bounded size, each with the index of its first video."""
    chunk: list[Ints] = []
    first = size = 0
    for index, sequence in enumerate(sequences):
        chunk.append(np.asarray(sequence, np.int64))
        size += len(sequence)
        if size >= CHUNK_CHARACTERS:
            yield first, chunk
            chunk, first, size = [], index + 1, 0
    if size:
        yield first, chunk


def _list_occurrences(
    characters: Ints, lengths: Ints, slot: Ints, word_of_character: Ints, slow_down: int
) -> Ints:
    """Return (E, 5): one row for every character and for every word of two or more characters."""
    place = np.arange(len(characters))
    first = np.flatnonzero(np.diff(slot, prepend=-1))
    stop = np.append(first[1:], len(characters))
    is_composed = word_of_character[first] > slow_down
    start = np.concatenate([place, first[is_composed]])
    video = np.repeat(np.arange(len(lengths)), lengths)[start]
    entries = np.zeros((len(start), 5), np.int64)
    entries[:, ID] = np.concatenate([characters, word_of_character[first[is_composed]]])
    entries[:, VIDEO] = video
    entries[:, START] = start - (np.cumsum(lengths) - lengths)[video]
    entries[:, STOP] = entries[:, START] + np.concatenate([np.ones_like(place), (stop - first)[is_composed]])
    return entries


def _keep_smallest_keys(entries: Ints, most: int) -> Ints:
    """Keep, for each id, the ``most`` rows with the smallest keys, all from different videos."""
    entries = entries[np.lexsort((entries[:, KEY], entries[:, VIDEO], entries[:, ID]))]
    is_first_of_video = np.any(np.diff(entries[:, [ID, VIDEO]], axis=0, prepend=-1), axis=1)
    entries = entries[is_first_of_video]
    entries = entries[np.lexsort((entries[:, KEY], entries[:, ID]))]
    rank = np.arange(len(entries)) - np.searchsorted(entries[:, ID], entries[:, ID])
    return entries[rank < most]


def _group_examples(entries: Ints) -> dict[int, tuple[Example, ...]]:
    """Return id → its examples, ordered by video."""
    grouped: dict[int, list[Example]] = {}
    for _, word, video, start, stop in entries.tolist():
        grouped.setdefault(word, []).append(Example(video=video, start=start, stop=stop))
    return {word: tuple(sorted(examples)) for word, examples in grouped.items()}
