"""Scores of composed words: those of optimal transport under many settings, and words made without it.

Each row composes the characters of one corpus with the same repeats and s₀ and is scored against the truth of
the train split, where words are learned without it. *Plain BPE* is the first candidates in the order of
learning; *unigram* the language model of ``tokenizers``, with its own split. For every row of transport
``value_over_bpe`` and ``named_over_bpe`` are its scores minus those of plain BPE with **as many words** under
the same segmentation. The row that wins is the one with the largest mean ``value``: settled before any table
was seen. It rewards rare boundaries as such, so read ``boundary_chance`` and ``named`` together with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from signllm.clip_geometry import CLIP_MIDDLE
from signllm.cra.candidates import FIRST_CODE_POINT
from signllm.cra.composition import WordsConfig, compose_words
from signllm.cra.repeats import CollapsedSequences, collapse_repeats
from signllm.cra.segmentation import Ints, Method
from signllm.cra.word_codebook import WordCodebook
from signllm.data.loading.characters import load_split_characters
from signllm.demo.studio import read_truth
from signllm.errors import UsageError
from signllm.experiments.word_truth import MomentTruth, moment_truth, score_characters, score_words

SIZES = (32, 64, 128, 256, 512)
VARIED = 256
"""Candidates where transport's strengths are varied: at the size chosen today it drops next to nothing."""

UNIGRAM_SCALE = 10**9
"""Probabilities become counts: smoothing by one count then changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to make words.

    Attributes:
        label: what the table calls it.
        config: settings; ``size`` None: chosen by transport; for the baselines: as many as the default keeps.
        kind: who makes the words.
        is_default: whether this is what ``signllm compose`` does when nothing is said.
    """

    label: str
    config: WordsConfig = field(default_factory=WordsConfig)
    kind: Literal["transport", "bpe", "unigram"] = "transport"
    is_default: bool = False


def all_rows(sizes: Sequence[int] = SIZES, varied: int = VARIED) -> list[Row]:
    """Return the rows of the table, in order."""
    default = WordsConfig()
    solver = default.transport
    others: list[Method] = [method for method in get_args(Method) if method != default.segmentation]
    rows = [
        Row(label="characters only", config=replace(default, size=0)),
        Row(label="DEFAULT: chosen", is_default=True),
    ]
    rows += [
        Row(label=f"chosen, {method}", config=replace(default, segmentation=method)) for method in others
    ]
    always, paper = replace(solver, drop="always"), replace(solver, formulation="paper")
    marginal = replace(solver, choose_by="marginal_utility")
    least = replace(solver, choose_by="least_entropy")
    for label, transport in (
        ("starved always dropped: chosen", always),
        ("paper: chosen", paper),
        ("marginal utility", marginal),
        ("marginal utility, not normalised", replace(marginal, normalisation="none")),
        ("paper: marginal utility", replace(marginal, formulation="paper")),
        ("least entropy", least),
        ("least entropy, not normalised", replace(least, normalisation="none")),
        ("paper: least entropy", replace(least, formulation="paper")),
    ):
        rows.append(Row(label=label, config=replace(default, transport=transport)))
    for size in sizes:
        sized = replace(default, size=size, max_size=max(size, default.max_size))
        rows.append(Row(label=f"{size}", config=sized))
        rows += [Row(label=f"{size}, {m}", config=replace(sized, segmentation=m)) for m in others]
        rows.append(Row(label=f"{size}, starved always dropped", config=replace(sized, transport=always)))
        rows.append(Row(label=f"paper: {size}", config=replace(sized, transport=paper)))
        rows.append(Row(label=f"plain BPE {size}", config=sized, kind="bpe"))
        rows += [
            Row(label=f"plain BPE {size}, {m}", config=replace(sized, segmentation=m), kind="bpe")
            for m in others
        ]
    rows += _variations(replace(default, size=varied, transport=always))
    rows += _long_words(replace(default, transport=always), sizes[-1])
    rows.append(Row(label="plain BPE, as many as default", kind="bpe"))
    rows.append(Row(label="unigram, as many as default", kind="unigram"))
    rows.append(Row(label=f"unigram {varied}", config=replace(default, size=varied), kind="unigram"))
    return rows


def _variations(config: WordsConfig) -> Iterator[Row]:
    for name, value in (
        ("epsilon", 0.02),
        ("epsilon", 0.2),
        ("rho", 0.05),
        ("rho", 1.0),
        ("keep_share", 0.1),
        ("keep_share", 0.3),
    ):
        changed: dict[str, float] = {name: value}
        transport = replace(config.transport, **changed)  # type: ignore[arg-type]
        yield Row(label=f"{config.size}, {name} {value}", config=replace(config, transport=transport))


def _long_words(config: WordsConfig, size: int) -> Iterator[Row]:
    """Words long enough for a sign, from as many candidates as the table's largest size and twice as many."""
    for many, longest in ((size, 12), (2 * size, config.longest_word), (2 * size, 12)):
        changed = replace(config, size=many, max_size=max(many, config.max_size), longest_word=longest)
        kept = f"{many}, longest word {longest}"
        yield Row(label=kept, config=changed)
        yield Row(label=f"plain BPE {kept}", config=changed, kind="bpe")


@dataclass(frozen=True)
class Corpus:
    """The characters of a demo's training videos, packed, and what they show."""

    characters: Ints
    counts: Ints
    codes: int
    codebook: str
    truth: MomentTruth

    @classmethod
    def read(cls, folder: Path, *, frame: int = CLIP_MIDDLE) -> Corpus:
        """Read a finished demo; ``frame`` of each clip says which sign it shows.

        Raises:
            UsageError: not a folder in which a demo has composed words.
        """
        run = folder / "vq-sign"
        known, codebook = load_split_characters(run, "train")
        codes = WordCodebook.load(run).codes
        try:
            records = {record["id"]: record for record in read_truth(folder)}
            truths = [records[video] for video in known]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise UsageError(
                f"no truth of its videos: {error}", where=folder, remedy="name the --out of a finished demo"
            ) from None
        counts = np.array([len(sequence) for sequence in known.values()], dtype=np.int64)
        truth = moment_truth(truths, counts, frame=frame)
        return cls(np.concatenate(list(known.values())), counts, codes, codebook, truth)


class Table:
    """Scores of rows over one corpus; what several rows need is made once."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._curves: dict[tuple[str, ...], tuple[dict[str, Any], ...]] = {}
        self._plain: dict[tuple[int, Method, int], dict[str, float]] = {}

    def score(self, row: Row) -> dict[str, float]:
        """Make a row's words and score them: ``score_words`` and ``size``, ``words``, ``*_over_bpe``."""
        words = self.words(row)
        scores = self._scored(words) | {"size": float(self.size(row)), "words": float(len(words.words))}
        plain = None
        if row.kind == "transport" and words.words:
            plain = self._plain_scores(len(words.words), row.config)
        for name in ("value", "named"):
            scores[f"{name}_over_bpe"] = scores[name] - plain[name] if plain else math.nan
        return scores

    def characters(self) -> dict[str, float]:
        """What is the same for all rows."""
        return score_characters(self.corpus.characters, self.corpus.truth)

    def size(self, row: Row) -> int:
        """Return how many candidates a row's transport, or how many words a baseline, starts from."""
        if row.config.size is not None:
            return row.config.size
        if row.kind != "transport":
            return len(self._default.words)
        return chosen_size(self._curve(row.config), row.config)

    def words(self, row: Row) -> WordCodebook:
        """Make a row's words."""
        size = self.size(row)
        if row.kind == "unigram":
            return self._unigram(size, row.config)
        return self._plain_words(size, row.config) if row.kind == "bpe" else self._compose(size, row.config)

    @cached_property
    def _default(self) -> WordCodebook:
        return self.words(Row(label="default"))

    @cached_property
    def _short(self) -> CollapsedSequences:
        alone = self._compose(0, WordsConfig())
        return collapse_repeats(
            self.corpus.characters,
            self.corpus.counts,
            slow_down=self.corpus.codes,
            alpha=alone.alpha,
            repeated_only=alone.repeated_only,
        )

    def _compose(self, size: int, config: WordsConfig) -> WordCodebook:
        """Compose with a known size: one size is solved instead of all."""
        most = max(size, 1)
        return compose_words(
            self.corpus.characters,
            self.corpus.counts,
            codes=self.corpus.codes,
            codebook=self.corpus.codebook,
            config=replace(config, size=size, max_size=most, increment=most, min_size=0),
        )

    def _plain_words(self, size: int, config: WordsConfig) -> WordCodebook:
        """Candidates in order: where nothing need be received, transport drops nothing."""
        return self._compose(size, replace(config, transport=replace(config.transport, keep_share=0.0)))

    def _plain_scores(self, size: int, config: WordsConfig) -> dict[str, float]:
        key = size, config.segmentation, config.longest_word
        if key not in self._plain:
            self._plain[key] = self._scored(self._plain_words(size, config))
        return self._plain[key]

    def _scored(self, words: WordCodebook) -> dict[str, float]:
        corpus = self.corpus
        segmentation = words.segment(torch.from_numpy(corpus.characters), torch.from_numpy(corpus.counts))
        return score_words(segmentation, corpus.truth, codes=corpus.codes)

    def _curve(self, config: WordsConfig) -> tuple[dict[str, Any], ...]:
        """All sizes, which the ways to choose among them share."""
        key = config.transport.formulation, config.transport.drop, config.segmentation
        if key not in self._curves:
            corpus = self.corpus
            self._curves[key] = compose_words(
                corpus.characters, corpus.counts, codes=corpus.codes, codebook=corpus.codebook, config=config
            ).curve
        return self._curves[key]

    def _unigram(self, size: int, config: WordsConfig) -> WordCodebook:
        pieces = learn_unigram(self._short, size=size, longest=config.longest_word)
        alphabet = self.corpus.codes + 1
        words = tuple(piece for piece in pieces if len(piece) > 1)
        spellings = [(character,) for character in range(alphabet)] + list(words)
        frequencies = [round(UNIGRAM_SCALE * pieces.get(spelling, 0.0)) for spelling in spellings]
        alone = self._compose(0, config)
        return replace(alone, words=words, frequencies=tuple(frequencies), segmentation="viterbi", curve=())


def chosen_size(curve: Sequence[dict[str, Any]], config: WordsConfig) -> int:
    """Return the size that ``choose_by`` and ``normalisation`` of ``config`` take from a recorded curve."""
    by = config.transport.choose_by
    name = {"marginal_utility": "marginal_utility", "least_entropy": "entropy"}.get(by, by)
    is_per_word = by != "description_length" and config.transport.normalisation == "none"
    key = f"{name}_unnormalised" if is_per_word else name
    is_gain = by == "marginal_utility"
    allowed = [record for record in curve[1:] if record["size"] >= config.min_size] or [curve[-1]]
    best = max(allowed, key=lambda record: record[key] if is_gain else -record[key])
    return int(best["size"])


def learn_unigram(short: CollapsedSequences, *, size: int, longest: int) -> dict[tuple[int, ...], float]:
    """Return the pieces of ``tokenizers``' unigram language model and their probabilities.

    Args:
        short: sequences without repeats.
        size: pieces of two characters and more.
        longest: characters in the longest piece.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.trainers import UnigramTrainer

    text = (short.characters + FIRST_CODE_POINT).astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(short.counts)
    tokenizer = Tokenizer(Unigram())
    trainer = UnigramTrainer(
        vocab_size=len(np.unique(short.characters)) + size, max_piece_length=longest, show_progress=False
    )
    spelt = (text[end - count : end] for end, count in zip(ends, short.counts, strict=True))
    tokenizer.train_from_iterator(spelt, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["vocab"]
    return {tuple(ord(point) - FIRST_CODE_POINT for point in piece): math.exp(p) for piece, p in learnt}
