"""Scores of translations: BLEU-1 to 4, ROUGE-L and chrF, each under a named convention.

The same sentences give a BLEU-4 of 21.2 or 22.2 depending on a final period, and three things called ROUGE-L
differ by 3 points; so a convention is named, and its signature is stored beside the numbers. BLEU and chrF
are sacrebleu's, ROUGE-L is the sign language papers' (:mod:`signllm.evaluation.rouge`); intervals and tests
of significance are sacrebleu's for all of them (:mod:`signllm.evaluation.significance`).

A further metric is one entry of :data:`METRICS`: scores, tables, report and comparisons have it then. For
free-running translations only: teacher-forced output scored this way is not a translation score.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from signllm.data.unspaced_text import all_chinese, is_unspaced, separate_characters
from signllm.errors import UsageError
from signllm.languages import find_language, is_written_without_spaces

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.base import Metric

FinalPeriod = Literal["keep", "add", "drop"]
Case = Literal["convention", "lower", "keep"]
Unit = Literal["auto", "word", "character", "mixed"]
_CHINESE = ("Chinese", "Traditional Chinese", "Cantonese")
_ALL, _SOME = 0.9, 0.02
"""Shares of sentences in scripts without spaces, from which on all, or some, are taken to be written so."""
NORMAL_FORM: Literal["NFC"] = "NFC"
"""Form of Unicode in which both sides are compared: ``ü`` is one code point, as a Mac's two are made."""
SAMPLES = 1000
"""Resamples of the bootstrap, as in sacrebleu."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a data set's papers turn sentences into tokens, and how they smooth.

    Attributes:
        lower: both sides in lower case.
        by_character: tokens are characters (spaces removed first), as for Chinese.
        tokenize: sacrebleu's tokeniser; ``"none"`` splits at whitespace.
        smooth: sacrebleu's smoothing method; ``"floor"`` (value 0) makes BLEU 0 when an order has no match.
    """

    lower: bool
    by_character: bool
    tokenize: str
    smooth: str


CONVENTIONS: dict[str, Convention] = {
    "phoenix2014t": Convention(lower=True, by_character=False, tokenize="none", smooth="floor"),
    "csl-daily": Convention(lower=True, by_character=True, tokenize="none", smooth="floor"),
    "sacrebleu": Convention(lower=False, by_character=False, tokenize="13a", smooth="exp"),
}


def convention_named(name: str) -> Convention:
    """Return the convention of this name.

    Raises:
        UsageError: no such convention.
    """
    if name not in CONVENTIONS:
        raise UsageError(
            f"there is no score convention {name!r}", remedy=f"use one of: {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """By what rules sentences are scored.

    Attributes:
        convention: phoenix2014t, csl-daily or sacrebleu: how text is cut into words.
        unit: what a word is. ``auto`` decides by the language and by the references: ``character`` where they
            are written without spaces, ``mixed`` where some of them are (only these are cut into characters).
        final_period: what happens to a sentence's last "." on *both* sides. Official PHOENIX-2014T files have
            none, neccam-style references end in " ."; scores of the two kinds cannot be compared.
        case: that of the convention, or both sides lowered, or kept.
        language: of the sentences, by any name or code: decides the unit. Under sacrebleu Chinese has a
            tokeniser of its own.
    """

    convention: str = "phoenix2014t"
    unit: Unit = "auto"
    final_period: FinalPeriod = "keep"
    case: Case = "convention"
    language: str | None = None

    def __post_init__(self) -> None:
        convention_named(self.convention)
        if self.final_period not in ("keep", "add", "drop"):
            raise UsageError(f"final_period is {self.final_period!r}", remedy="use keep, add or drop")
        if self.case not in ("convention", "lower", "keep"):
            raise UsageError(f"case is {self.case!r}", remedy="use convention, lower or keep")
        if self.unit not in ("auto", "word", "character", "mixed"):
            raise UsageError(f"unit is {self.unit!r}", remedy="use auto, word, character or mixed")

    @property
    def rule(self) -> Convention:
        """The convention, with the case and the unit that were asked for."""
        rule = CONVENTIONS[self.convention]
        if self.case != "convention":
            rule = replace(rule, lower=self.case == "lower")
        is_character = self.for_texts(()).unit == "character"
        if rule.tokenize != "none" and is_character:
            return replace(rule, tokenize="zh" if _is_chinese(self.language) else "char")
        return replace(rule, by_character=is_character)

    def for_texts(self, references: Sequence[str]) -> ScoreConfig:
        """Return the rules with the unit that suits the language and these references, in place of ``auto``.

        By whitespace a sentence without spaces would be one word, and BLEU 0 unless it is repeated exactly.
        """
        if self.unit != "auto":
            return self
        unspaced = [text for text in references if is_unspaced(text)]
        share = len(unspaced) / max(1, len(references))
        language = self.language
        if language is None and share >= _ALL and all_chinese(unspaced):
            language = "Chinese"
        is_character = CONVENTIONS[self.convention].by_character or share >= _ALL
        if is_character or is_written_without_spaces(self.language or ""):
            return replace(self, unit="character", language=language)
        return replace(self, unit="mixed" if share >= _SOME else "word")


def rules_for(
    languages: Collection[str],
    references: Sequence[str],
    *,
    convention: str | None = None,
    final_period: FinalPeriod = "keep",
    case: Case = "convention",
) -> ScoreConfig:
    """Return the rules for references of these languages.

    The convention is ``csl-daily`` where all are written without spaces, as Chinese and Japanese are, and
    ``phoenix2014t`` elsewhere. If only some are, these alone are cut into characters.
    """
    unspaced = [name for name in languages if is_written_without_spaces(name)]
    rules = ScoreConfig(
        convention=convention or "phoenix2014t",
        final_period=final_period,
        case=case,
        language=next(iter(sorted(languages))) if languages and len(unspaced) == len(languages) else None,
    ).for_texts(references)
    if convention is None and rules.unit == "character":
        return replace(rules, convention="csl-daily")
    return replace(rules, unit="mixed") if unspaced and rules.unit == "word" else rules


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    config: ScoreConfig | None = None,
    *,
    bootstrap: int = 0,
) -> dict[str, Any]:
    """Score hypotheses against one reference each.

    Args:
        hypotheses: a system's sentences.
        references: the reference of each, in the same order.
        config: by which rules; ``phoenix2014t`` by default.
        bootstrap: resamples for the intervals; 0 leaves them out.

    Returns:
        Each of ``METRICS`` (0 to 100), ``intervals`` (of each metric the ends of its 95 % interval),
        ``samples``, ``convention``, ``signature``.

    Raises:
        UsageError: no sentences, or unequal numbers of them.
    """
    from signllm.evaluation.significance import intervals

    config = (config or ScoreConfig()).for_texts(references)
    ours, theirs = normalised(hypotheses, references, config)
    metrics = metrics_of(config)
    result: dict[str, Any] = {
        name: metric.corpus_score(ours, [theirs]).score for name, metric in metrics.items()
    }
    result |= {"samples": len(ours), "convention": config.convention}
    unit = "token" if config.unit == "word" else config.unit
    signed = (
        f"{re.sub('[0-9]$', 'n', METRICS[name].title)} {metric.get_signature()}"
        for name, metric in metrics.items()
    )
    rules = f"{config.convention}|unit:{unit}|final_period:{config.final_period}|{NORMAL_FORM}"
    result["signature"] = "; ".join((rules, *dict.fromkeys(signed)))
    if bootstrap:
        result["intervals"] = intervals(ours, theirs, metrics, samples=bootstrap)
    return result


def one_score(name: str, hypotheses: Sequence[str], references: Sequence[str], config: ScoreConfig) -> float:
    """Return one of ``METRICS``, as :func:`score` gives it."""
    config = config.for_texts(references)
    ours, theirs = normalised(hypotheses, references, config)
    return METRICS[name].build(config).corpus_score(ours, [theirs]).score


def normalised(
    hypotheses: Sequence[str], references: Sequence[str], config: ScoreConfig
) -> tuple[list[str], list[str]]:
    """Return both sides as every metric sees them.

    Raises:
        UsageError: no sentences, or unequal numbers of them.
    """
    if len(hypotheses) != len(references):
        raise UsageError(
            f"{len(hypotheses)} hypotheses but {len(references)} references",
            remedy="give exactly one hypothesis per reference, in the same order, or use id|text lines",
        )
    if not hypotheses:
        raise UsageError(
            "there is nothing to score: no hypotheses", remedy="check that the split is not empty"
        )
    normalise = _normaliser(config)
    return [normalise(text) for text in hypotheses], [normalise(text) for text in references]


def metrics_of(config: ScoreConfig) -> dict[str, Metric]:
    """Return the metrics of a convention by their names in results; sentences are normalised before."""
    return {name: kind.build(config) for name, kind in METRICS.items()}


def _bleu(order: int, config: ScoreConfig) -> BLEU:
    """Return sacrebleu's BLEU up to n-grams of this order."""
    from sacrebleu.metrics import BLEU

    rule = config.rule
    value = 0.0 if rule.smooth == "floor" else None
    return BLEU(
        lowercase=rule.lower, tokenize=_tokenize(config), smooth_method=rule.smooth, smooth_value=value,
        force=True, max_ngram_order=order,
    )  # fmt: skip


def _rouge_l(config: ScoreConfig) -> Metric:
    """Return the sign language papers' ROUGE-L."""
    from signllm.evaluation.rouge import RougeL

    return RougeL(tokenizer_of(config), tokenize=_tokenize(config), lowercase=config.rule.lower)


def _chrf(config: ScoreConfig) -> Metric:
    """Return sacrebleu's chrF2."""
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=6, word_order=0, beta=2, lowercase=config.rule.lower)


@dataclass(frozen=True)
class MetricKind:
    """A metric of corpora, as sacrebleu has them.

    Attributes:
        title: for people.
        build: returns the metric under the rules of a configuration.
        is_brief: also in tables with a row for each of many systems.
    """

    title: str
    build: Callable[[ScoreConfig], Metric]
    is_brief: bool = True


METRICS: dict[str, MetricKind] = {
    "bleu1": MetricKind("BLEU-1", partial(_bleu, 1)),
    "bleu2": MetricKind("BLEU-2", partial(_bleu, 2), is_brief=False),
    "bleu3": MetricKind("BLEU-3", partial(_bleu, 3), is_brief=False),
    "bleu4": MetricKind("BLEU-4", partial(_bleu, 4)),
    "rouge_l": MetricKind("ROUGE-L", _rouge_l),
    "chrf": MetricKind("chrF", _chrf),
}
"""Every metric by its name in results."""


def titles(*, brief: bool = False) -> dict[str, str]:
    """Return name → title of all metrics, or of those in tables of many systems."""
    return {name: kind.title for name, kind in METRICS.items() if kind.is_brief or not brief}


def tokenizer_of(config: ScoreConfig) -> Callable[[str], list[str]]:
    """Return what cuts a normalised sentence: the papers' ``split(" ")``, or the words of BLEU's tokeniser.

    ``"".split(" ")`` is one empty token: two empty sentences agree, and an empty hypothesis scores 0.
    """
    tokenize = _tokenize(config)
    if tokenize == "none":
        return lambda sentence: sentence.split(" ")
    bleu = _bleu(4, config)
    return lambda sentence: bleu.tokenizer(sentence).split(" ")


def _tokenize(config: ScoreConfig) -> str:
    """Return the name of sacrebleu's tokeniser."""
    return config.rule.tokenize


def _is_chinese(language: str | None) -> bool:
    known = find_language(language or "")
    return known is not None and known.name in _CHINESE


def _normaliser(config: ScoreConfig) -> Callable[[str], str]:
    """Return what happens to every sentence, hypothesis and reference alike, before any metric sees it."""
    rule, is_mixed = config.rule, config.unit == "mixed"

    def normalise(sentence: str) -> str:
        sentence = " ".join(unicodedata.normalize(NORMAL_FORM, sentence).split())
        if config.final_period != "keep":
            sentence = sentence.rstrip(" .。")
        if config.final_period == "add":
            sentence += "。" if rule.by_character else " ."
        if rule.by_character:
            sentence = " ".join(sentence.replace(" ", ""))
        elif is_mixed:
            sentence = separate_characters(sentence)
        return sentence.lower() if rule.lower else sentence

    return normalise
