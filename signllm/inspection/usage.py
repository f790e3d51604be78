"""How a split uses characters and words: counts, and a few random examples of each, in one pass.

Examples are a reservoir by random keys: every occurrence draws a key, and each character or word keeps the
occurrences with the smallest keys, of different videos. Memory is bounded by characters and words times
examples, however many videos there are.
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
"""Videos are counted in chunks of about so many characters."""
KEY, ID, VIDEO, START, STOP = range(5)
Ints = NDArray[np.int64]


@dataclass(frozen=True, order=True, kw_only=True)
class Example:
    """An occurrence: characters ``start`` up to, not including, ``stop`` of the ``video``-th sequence."""

    video: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one pass over a split counted.

    Attributes:
        words: the word codebook.
        videos: how many there were.
        characters: (K,) how often each code was read, repeats included.
        found: (K + 1 + words,) how often segmentation found each word id.
        covered: how many characters went into words of two and more.
        examples: of a code below K its occurrences, of an id above K those of the word; at most the asked
            number, each of another video.
    """

    words: WordCodebook
    videos: int
    characters: Ints
    found: Ints
    covered: int
    examples: dict[int, tuple[Example, ...]]

    @property
    def total(self) -> int:
        """Number of characters."""
        return int(self.characters.sum())

    @property
    def perplexity(self) -> float:
        """Codes in effective use: exp of the entropy of the characters."""
        p = self.characters[self.characters > 0] / max(1, self.total)
        return math.exp(-float((p * np.log(p)).sum())) if self.total else 0.0

    def most_used_characters(self, top: int) -> list[int]:
        """Return the codes that were read most, ties by number."""
        return _most_used(self.characters, top)

    def most_used_words(self, top: int) -> list[int]:
        """Return the ids of words of two and more that were found most, ties by number."""
        first = self.words.slow_down + 1
        return [first + place for place in _most_used(self.found[first:], top)]

    def longest_words(self, top: int) -> list[int]:
        """Return the ids of the longest words that were found, the more frequent first."""
        used = [word for word in range(self.words.slow_down + 1, self.words.size) if self.found[word]]
        return sorted(used, key=lambda word: (-len(self.words.spell(word)), -self.found[word], word))[:top]

    def spelling(self, word: int) -> str:
        """Return a word's characters, s₀ shown as such."""
        slow = self.words.slow_down
        return " ".join("s₀" if one == slow else str(one) for one in self.words.spell(word))


def count_usage(words: WordCodebook, sequences: Sequence[Ints], *, examples: int = 3, seed: int = 0) -> Usage:
    """Count and choose examples.

    Args:
        words: the word codebook.
        sequences: characters of each video, each below ``words.codes``.
        examples: most occurrences to keep of each character and word.
        seed: of the choice.

    Raises:
        UsageError: characters that are not of this codebook.
    """
    drawn = np.random.default_rng(seed)
    characters, found = np.zeros(words.codes, np.int64), np.zeros(words.size, np.int64)
    covered, kept = 0, np.zeros((0, 5), np.int64)
    for first_video, chunk in _chunks(sequences):
        raw, counts = np.concatenate(chunk), np.array([len(sequence) for sequence in chunk], np.int64)
        cut = words.segment(torch.from_numpy(raw), torch.from_numpy(counts))
        word_of, slot = cut.words.numpy()[cut.slot.numpy()], cut.slot.numpy()
        characters += np.bincount(raw, minlength=words.codes)
        found += np.bincount(cut.words.numpy(), minlength=words.size)
        covered += int(words.in_composed_words(cut).sum())
        entries = _occurrences(raw, counts, slot, word_of, words.slow_down)
        entries[:, KEY] = drawn.integers(0, 2**62, len(entries))
        entries[:, VIDEO] += first_video
        kept = _smallest(np.concatenate([kept, entries]), examples)
    return Usage(
        words=words,
        videos=len(sequences),
        characters=characters,
        found=found,
        covered=covered,
        examples=_examples(kept),
    )


def usage_record(usage: Usage, *, top: int) -> dict[str, Any]:
    """Return the numbers as plain values, the ``top`` most used and longest listed."""
    words, total, dead = usage.words, usage.total, np.flatnonzero(usage.characters == 0)
    read = int(usage.found.sum())
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
            "read": read,
            "known": len(words.words),
            "used": int((usage.found[words.slow_down + 1 :] > 0).sum()),
            "covered": usage.covered / max(1, total),
            "characters_per_word": total / max(1, read),
            "slow_downs_alone": int(usage.found[words.slow_down]),
        },
        "most_used_characters": [
            {"id": code, "count": int(usage.characters[code]), "share": float(usage.characters[code] / total)}
            for code in usage.most_used_characters(top)
        ],
        "most_used_words": [_word_record(usage, word, read) for word in usage.most_used_words(top)],
        "longest_words": [_word_record(usage, word, read) for word in usage.longest_words(top)],
    }


def _word_record(usage: Usage, word: int, read: int) -> dict[str, Any]:
    return {
        "id": word,
        "spelling": usage.spelling(word),
        "length": len(usage.words.spell(word)),
        "count": int(usage.found[word]),
        "share": float(usage.found[word] / read),
    }


def _most_used(counts: Ints, top: int) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:top]
    return [int(place) for place in order if counts[place]]


def _chunks(sequences: Sequence[Ints]) -> Iterator[tuple[int, list[Ints]]]:
    """Cut videos into runs of bounded length, each with the number of its first video."""
    chunk: list[Ints] = []
    first = size = 0
    for place, sequence in enumerate(sequences):
        chunk.append(np.asarray(sequence, np.int64))
        size += len(sequence)
        if size >= CHUNK_CHARACTERS:
            yield first, chunk
            chunk, first, size = [], place + 1, 0
    if size:
        yield first, chunk


def _occurrences(raw: Ints, counts: Ints, slot: Ints, word_of: Ints, slow_down: int) -> Ints:
    """Return (E, 5) every character, and every word of two and more that holds one."""
    place = np.arange(len(raw))
    first = np.flatnonzero(np.diff(slot, prepend=-1))
    stop = np.append(first[1:], len(raw))
    composed = word_of[first] > slow_down
    start = np.concatenate([place, first[composed]])
    video = np.repeat(np.arange(len(counts)), counts)[start]
    entries = np.zeros((len(start), 5), np.int64)
    entries[:, ID] = np.concatenate([raw, word_of[first[composed]]])
    entries[:, VIDEO] = video
    entries[:, START] = start - (np.cumsum(counts) - counts)[video]
    entries[:, STOP] = entries[:, START] + np.concatenate([np.ones_like(place), (stop - first)[composed]])
    return entries


def _smallest(entries: Ints, most: int) -> Ints:
    """Keep of each id the ``most`` smallest keys of different videos."""
    entries = entries[np.lexsort((entries[:, KEY], entries[:, VIDEO], entries[:, ID]))]
    is_new = np.any(np.diff(entries[:, [ID, VIDEO]], axis=0, prepend=-1), axis=1)
    entries = entries[is_new]
    entries = entries[np.lexsort((entries[:, KEY], entries[:, ID]))]
    rank = np.arange(len(entries)) - np.searchsorted(entries[:, ID], entries[:, ID])
    return entries[rank < most]


def _examples(kept: Ints) -> dict[int, tuple[Example, ...]]:
    found: dict[int, list[Example]] = {}
    for _, word, video, start, stop in kept.tolist():
        found.setdefault(word, []).append(Example(video=video, start=start, stop=stop))
    return {word: tuple(sorted(examples)) for word, examples in found.items()}
