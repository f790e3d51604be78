"""The word codebook: the sign words of a run, the segmentation of videos into them, and its two files.

``words.json`` is for people: settings, α, the curve that chose the number of words, and all words.
``words.safetensors`` contains the same words as arrays and reveals a damaged or edited JSON file. The ids of
characters are 0 to K − 1, the id of s₀ ("slowing down") is K, and the words of two or more characters follow.
A word codebook is only valid for one character codebook, which it identifies by its fingerprint.
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
    """Return 16 hexadecimal digits that identify the shape and the float32 values of a tensor."""
    values = codebook.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Segmentation:
    """The packed words of a batch, and which characters each of them consists of.

    The vector of a word is Σ weight · (vectors of its characters) + slow_weight · (vector of s₀): the mean
    over the word's spelling, in which each run of repeats counts as one character.

    Attributes:
        words: (sum M,) int64, word ids.
        counts: (B,) int64, number of words of each video.
        slot: (sum N,) int64, index in ``words`` of the word that each character is part of.
        position: (sum N,) int64, position of each character's run in the spelling of its word, from 0.
        weight: (sum N,) float32, share of each character in the mean of its word.
        slow_weight: (sum M,) float32, share of s₀ in the mean of each word.
    """

    words: Tensor
    counts: Tensor
    slot: Tensor
    position: Tensor
    weight: Tensor
    slow_weight: Tensor

    @classmethod
    def one_word_per_token(cls, counts: Tensor) -> Segmentation:
        """Return a segmentation with one word per token; ``counts`` (B,) are the tokens of each video."""
        place = torch.arange(int(counts.sum()), device=counts.device)
        zero, weight = torch.zeros_like(place), torch.ones_like(place, dtype=torch.float32)
        return cls(zero, counts, place, zero, weight, torch.zeros_like(weight))


@dataclass(frozen=True, kw_only=True)
class WordCodebook:
    """The words over the characters of one codebook.

    Attributes:
        codes: K, the number of codes; s₀ has the id K.
        words: spellings of the words of two or more characters; word i has the id K + 1 + i.
        frequencies: number of occurrences of each id, including characters and s₀, as a word of the corpus.
        alpha: a run longer than this adds s₀; None means the mean run length of each video.
        codebook: fingerprint of the character codebook.
        segmentation: method of segmentation: "viterbi", "longest" or "bpe".
        repeated_only: whether α is a mean over runs of at least two characters only.
        merges: merges for "bpe" in the order they were learned, including those of dropped words; otherwise
            empty.
        curve: one entry per size that was tried, with its entropy, its marginal utility and whether it was
            chosen.
        config: settings with which the words were composed.
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
                raise ValueError("segmentation is bpe, but no merges are recorded")
            MergeTable(self.merges, self.words, self.codes + 1)

    @property
    def slow_down(self) -> int:
        """The id of s₀."""
        return self.codes

    @property
    def size(self) -> int:
        """Number of word ids, including those of characters and s₀."""
        return self.codes + 1 + len(self.words)

    def spell(self, word: int) -> tuple[int, ...]:
        """Return the characters of the word with an id; the spelling of a character is the character."""
        if not 0 <= word < self.size:
            raise ValueError(f"there is no word {word}: ids are 0 to {self.size - 1}")
        return (word,) if word <= self.codes else self.words[word - self.codes - 1]

    def segment(self, characters: Tensor, counts: Tensor) -> Segmentation:
        """Segment packed characters into words, on the CPU.

        Args:
            characters: (sum N,) characters of all videos.
            counts: (B,) number of characters of each video.

        Returns:
            the segmentation, on the device of ``characters``.

        Raises:
            UsageError: a character is not part of this codebook.
        """
        raw, raw_counts = characters.cpu().numpy().astype(np.int64), counts.cpu().numpy().astype(np.int64)
        if int(raw_counts.sum()) != len(raw):
            raise ValueError(f"counts add up to {int(raw_counts.sum())}, but there are {len(raw)} characters")
        if len(raw) > 0 and not (0 <= raw.min() and raw.max() < self.codes):
            raise UsageError(
                f"characters {raw.min()} to {raw.max()}, but these words are made of 0 to {self.codes - 1}",
                remedy="compose the words again from the current codebook: signllm compose",
            )
        short = collapse_repeats(
            raw, raw_counts, slow_down=self.codes, alpha=self.alpha, repeated_only=self.repeated_only
        )
        starts, words_at_starts = segment(
            short.characters, short.counts, self._table, method=self.segmentation
        )
        words, slot = words_at_starts[starts == 1], (np.cumsum(starts) - 1)[short.place]
        position = short.place - np.flatnonzero(starts)[slot]
        video = np.repeat(np.arange(len(raw_counts)), short.counts)
        word_counts = np.bincount(video, weights=starts, minlength=len(raw_counts)).astype(np.int64)
        weight = 1 / (short.run_lengths * self._lengths[words][slot])
        slow_weight = self._slow[words] / self._lengths[words]
        weights = weight.astype(np.float32), slow_weight.astype(np.float32)
        arrays = (words, word_counts, slot, position, *weights)
        return Segmentation(*(torch.from_numpy(array).to(characters.device) for array in arrays))

    def in_composed_words(self, segmentation: Segmentation) -> Tensor:
        """Return whether each character is part of a word of two or more characters, bool (sum N,)."""
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
        """Write words.safetensors and then words.json into ``folder``, each atomically.

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
        """Load a word codebook from a folder.

        Raises:
            UsageError: a file is missing, damaged or of another version, or the two files contain different
                words.
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
            content.setdefault("merges", [])  # older files have no merges
            fields = {f.name: content[f.name] for f in dataclasses.fields(cls)}
            fields["words"] = tuple(tuple(word) for word in fields["words"])
            fields["merges"] = tuple((tuple(left), tuple(right)) for left, right in fields["merges"])
            fields["frequencies"], fields["curve"] = tuple(fields["frequencies"]), tuple(fields["curve"])
            words = cls(**fields)
            spelt = [character for word in words.words for character in word]
            if (
                spelt != arrays["spellings"].tolist()
                or list(words.frequencies) != arrays["frequencies"].tolist()
            ):
                raise ValueError("words.json and words.safetensors contain different words")
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the word codebook is damaged: {error}", where=path, remedy=remedy) from None
        return words
