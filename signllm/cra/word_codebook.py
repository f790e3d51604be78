"""The word-level codebook: which runs of characters are words, how to find them in a video, its two files.

``words.json`` is what a person reads: settings, α, the curve that chose the size, every word.
``words.safetensors`` holds the same words as arrays, and guards against a damaged or edited JSON. Ids:
characters are 0..K−1, s₀ ("slowing down") is K, words of two characters and more follow. Words belong to
one codebook of characters, by fingerprint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from signllm.atomic_files import atomic_file, atomic_write
from signllm.cra.byte_pair_merging import Merge, MergeTable
from signllm.cra.repeats import collapse_repeats
from signllm.cra.segmentation import Method, WordTable, segment
from signllm.errors import UsageError

VERSION = 1


def fingerprint(codebook: Tensor) -> str:
    """Return 16 hexadecimal digits that name a codebook's shape and exact values (float32)."""
    values = codebook.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Segmentation:
    """Words of a batch, packed, and how each is made of the batch's characters.

    A word's vector is Σ weight·(its characters' vectors) + slow_weight·(vector of s₀): the mean over the
    word's spelling, each run of repeats counted as one character.

    Attributes:
        words: (sum M,) int64 word ids.
        counts: (B,) int64 words per video.
        slot: (sum N,) int64 packed place of the word that each character went into.
        position: (sum N,) int64 place of each character's run in the spelling of its word, from 0.
        weight: (sum N,) float32 share of the character in its word's mean.
        slow_weight: (sum M,) float32 share of s₀ in the word.
    """

    words: Tensor
    counts: Tensor
    slot: Tensor
    position: Tensor
    weight: Tensor
    slow_weight: Tensor

    @classmethod
    def one_word_per_token(cls, counts: Tensor) -> Segmentation:
        """Return every token of videos with ``counts`` (B,) as a word by itself."""
        place = torch.arange(int(counts.sum()), device=counts.device)
        none, all_of_it = torch.zeros_like(place), torch.ones_like(place, dtype=torch.float32)
        return cls(none, counts, place, none, all_of_it, torch.zeros_like(all_of_it))


@dataclass(frozen=True, kw_only=True)
class WordCodebook:
    """Words over the characters of one codebook.

    Attributes:
        codes: K, the number of characters; s₀ has the id K.
        words: spellings of two characters and more; word i has the id K + 1 + i.
        frequencies: how often each id, characters and s₀ included, occurs in the corpus as a word.
        alpha: a run longer than this adds s₀; None: each video's own mean run length.
        codebook: fingerprint of the character codebook.
        segmentation: how sequences are split: "viterbi", "longest" or "bpe".
        repeated_only: whether α is a mean over runs of at least two only.
        merges: what "bpe" applies, in the order learnt, those of dropped words too; otherwise empty.
        curve: one entry per size that was tried: entropy, marginal utility, whether it was chosen.
        config: the settings that made it, for the record.
    """

    codes: int
    words: tuple[tuple[int, ...], ...]
    frequencies: tuple[int, ...]
    alpha: float | None
    codebook: str
    segmentation: Method = "viterbi"
    repeated_only: bool = True
    merges: tuple[Merge, ...] = ()
    curve: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.frequencies) != self.size:
            raise ValueError(f"{len(self.frequencies)} frequencies for {self.size} word ids")
        if len(set(self.words)) != len(self.words):
            raise ValueError("a word occurs twice")
        for word in self.words:
            if len(word) < 2 or not all(0 <= character <= self.codes for character in word):
                raise ValueError(f"word {word}: needs at least two characters, each from 0 to {self.codes}")
        if self.segmentation == "bpe":
            if self.words and not self.merges:
                raise ValueError("byte-pair order, but no merges are recorded")
            MergeTable(self.merges, self.words, self.codes + 1)

    @property
    def slow_down(self) -> int:
        """The id of s₀."""
        return self.codes

    @property
    def size(self) -> int:
        """Number of word ids: characters, s₀ and words."""
        return self.codes + 1 + len(self.words)

    def spell(self, word: int) -> tuple[int, ...]:
        """Return the characters of a word id; a character spells itself."""
        if not 0 <= word < self.size:
            raise ValueError(f"word {word}: ids run from 0 to {self.size - 1}")
        return (word,) if word <= self.codes else self.words[word - self.codes - 1]

    def segment(self, characters: Tensor, counts: Tensor) -> Segmentation:
        """Split packed characters (sum N,) of videos with ``counts`` (B,) into words.

        It runs on the CPU; the result is on the device of ``characters``.

        Raises:
            UsageError: a character that is not of this codebook.
        """
        raw, raw_counts = characters.cpu().numpy().astype(np.int64), counts.cpu().numpy().astype(np.int64)
        if int(raw_counts.sum()) != len(raw):
            raise ValueError(f"counts add up to {int(raw_counts.sum())}, but there are {len(raw)} characters")
        if len(raw) > 0 and not (0 <= raw.min() and raw.max() < self.codes):
            raise UsageError(
                f"characters {raw.min()} to {raw.max()}, but these words are made of 0 to {self.codes - 1}",
                remedy="compose words again from the codebook in use",
            )
        short = collapse_repeats(
            raw, raw_counts, slow_down=self.codes, alpha=self.alpha, repeated_only=self.repeated_only
        )
        starts, found = segment(short.characters, short.counts, self._table, method=self.segmentation)
        words, slot = found[starts == 1], (np.cumsum(starts) - 1)[short.place]
        position = short.place - np.flatnonzero(starts)[slot]
        video = np.repeat(np.arange(len(raw_counts)), short.counts)
        word_counts = np.bincount(video, weights=starts, minlength=len(raw_counts)).astype(np.int64)
        weight = 1 / (short.run_lengths * self._lengths[words][slot])
        slow_weight = self._slow[words] / self._lengths[words]
        weights = weight.astype(np.float32), slow_weight.astype(np.float32)
        arrays = (words, word_counts, slot, position, *weights)
        return Segmentation(*(torch.from_numpy(array).to(characters.device) for array in arrays))

    def in_composed_words(self, segmentation: Segmentation) -> Tensor:
        """Say of each character, bool (sum N,), whether it went into a word of two and more."""
        return (segmentation.words > self.slow_down)[segmentation.slot]

    @cached_property
    def _table(self) -> WordTable:
        return WordTable(self.words, self.codes + 1, np.array(self.frequencies), self.merges)

    @cached_property
    def _lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([1] * (self.codes + 1) + [len(word) for word in self.words], dtype=np.int64)

    @cached_property
    def _slow(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(
            [0] * self.codes + [1] + [word.count(self.codes) for word in self.words], dtype=np.int64
        )

    def save(self, folder: Path) -> None:
        """Write words.safetensors and then words.json into ``folder``; each is whole or absent.

        Raises:
            UsageError: the disk is full.
        """
        arrays = {
            "spellings": np.array([character for word in self.words for character in word], dtype=np.int64),
            "lengths": np.array([len(word) for word in self.words], dtype=np.int64),
            "frequencies": np.array(self.frequencies, dtype=np.int64),
        }
        with atomic_file(folder / "words.safetensors") as unfinished:
            save_file(arrays, unfinished, metadata={"codebook": self.codebook})
        text = json.dumps(
            {"version": VERSION, "slow_down": self.slow_down, "size": self.size} | dataclasses.asdict(self)
        )
        atomic_write(folder / "words.json", text + "\n")

    @classmethod
    def load(cls, folder: Path) -> WordCodebook:
        """Read what ``save`` wrote.

        Raises:
            UsageError: a file that is missing, broken, of another version, or that does not belong to the
                other.
        """
        remedy = "run `signllm compose` on this run again"
        path = folder / "words.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            arrays = load_file(folder / "words.safetensors")
        except FileNotFoundError as error:
            raise UsageError(
                "the word codebook is missing", where=error.filename or folder, remedy=remedy
            ) from None
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(
                f"the word codebook cannot be read: {error}", where=path, remedy=remedy
            ) from None
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise UsageError(f"the word codebook is not of version {VERSION}", where=path, remedy=remedy)
        try:
            content.setdefault("merges", [])  # written before there was byte-pair order
            known = {f.name: content[f.name] for f in dataclasses.fields(cls)}
            known["words"] = tuple(tuple(word) for word in known["words"])
            known["merges"] = tuple((tuple(left), tuple(right)) for left, right in known["merges"])
            known["frequencies"], known["curve"] = tuple(known["frequencies"]), tuple(known["curve"])
            words = cls(**known)
            spelt = [character for word in words.words for character in word]
            if (
                spelt != arrays["spellings"].tolist()
                or list(words.frequencies) != arrays["frequencies"].tolist()
            ):
                raise ValueError("words.json and words.safetensors hold different words")
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the word codebook is broken: {error}", where=path, remedy=remedy) from None
        return words
