"""Scores of translations: BLEU-1 to BLEU-4, ROUGE-L and chrF, each under a named convention.

The same sentences have a BLEU-4 of 21.2 or of 22.2 depending on a final period, and three definitions of
ROUGE-L differ by 3 points. The convention therefore has a name, and its signature is stored with the scores.
BLEU and chrF are computed by sacrebleu. ROUGE-L is that of the sign language papers
(:mod:`signllm.metrics.rouge`). Confidence intervals and significance tests are those of sacrebleu for
every metric (:mod:`signllm.metrics.significance`).

To add a metric, add one entry to :data:`METRICS`: scores, tables, report and comparisons then include it.
The scores are meant for freely generated translations only; teacher-forced output must not be scored as a
translation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from signllm.data.shards.unspaced_text import all_chinese, is_unspaced, separate_characters
from signllm.errors import UsageError
from signllm.languages import find_language, is_written_without_spaces
from signllm.metrics.significance import bootstrap_intervals
from signllm.validation import validated

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.base import Metric

FinalPeriod = Literal["keep", "add", "drop"]
Case = Literal["convention", "lower", "keep"]
Unit = Literal["auto", "word", "character", "mixed"]
_CHINESE = ("Chinese", "Traditional Chinese", "Cantonese")
_ALL, _SOME = 0.9, 0.02
"""Share of sentences in scripts without spaces from which on all sentences, or some, count as written so."""
NORMAL_FORM: Literal["NFC"] = "NFC"
"""Unicode form in which both sides are compared: ``ü`` is one code point, even if macOS wrote two."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How the papers about a dataset tokenize sentences and smooth BLEU.

    Attributes:
        lower: whether both sides are converted to lower case.
        by_character: whether tokens are single characters (spaces are removed first), as for Chinese.
        tokenize: tokenizer of sacrebleu; ``"none"`` splits at whitespace.
        smooth: smoothing method of sacrebleu; ``"floor"`` (value 0) makes BLEU 0 if an n-gram order has no
            match.
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


def get_convention(name: str) -> Convention:
    """Return the convention with this name.

    Raises:
        UsageError: There is no such convention.
    """
    if name not in CONVENTIONS:
        raise UsageError(
            f"there is no score convention {name!r}", remedy=f"use one of: {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]


@validated
class ScoreConfig:
    """The rules by which sentences are scored.

    Attributes:
        convention: phoenix2014t, csl-daily or sacrebleu: how sentences are tokenized.
        unit: what counts as a word. ``auto`` decides by the language and the references: ``character`` if
            they are written without spaces, ``mixed`` if some of them are (only these are split into
            characters).
        final_period: what is done with the last "." of a sentence on *both* sides. The official PHOENIX-2014T
            files have none, references in the style of neccam/slt end in " ."; scores of the two are not
            comparable.
        case: whether the convention decides about lower case, or both sides are lowered, or kept.
        language: language of the sentences, as any name or code; it decides the unit. With the convention
            sacrebleu, Chinese has a tokenizer of its own.
    """

    convention: str = "phoenix2014t"
    unit: Unit = "auto"
    final_period: FinalPeriod = "keep"
    case: Case = "convention"
    language: str | None = None

    def __post_init__(self) -> None:
        get_convention(self.convention)

    @property
    def effective_convention(self) -> Convention:
        """The convention, changed by the configured case and unit."""
        rule = CONVENTIONS[self.convention]
        if self.case != "convention":
            rule = replace(rule, lower=self.case == "lower")
        is_character = self.for_texts(()).unit == "character"
        if rule.tokenize != "none" and is_character:
            return replace(rule, tokenize="zh" if _is_chinese(self.language) else "char")
        return replace(rule, by_character=is_character)

    def for_texts(self, references: Sequence[str]) -> ScoreConfig:
        """Return the rules with ``auto`` replaced by the unit that suits the language and these references.

        Split at whitespace, a sentence without spaces would be a single word, and BLEU would be 0 unless the
        hypothesis equals the reference.
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


def choose_score_rules(
    languages: Collection[str],
    references: Sequence[str],
    *,
    convention: str | None = None,
    final_period: FinalPeriod = "keep",
    case: Case = "convention",
) -> ScoreConfig:
    """Return the rules for references in these languages.

    By default the convention is ``csl-daily`` if all references are written without spaces, as in Chinese and
    Japanese, and ``phoenix2014t`` otherwise. If only some are, only these are split into characters.
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
    """Score hypotheses, each against one reference.

    Args:
        hypotheses: sentences of a system.
        references: the reference of each hypothesis, in the same order.
        config: rules of scoring; ``phoenix2014t`` by default.
        bootstrap: number of resamples for the confidence intervals; 0 computes none.

    Returns:
        Each metric of ``METRICS`` (0 to 100), ``intervals`` (metric → ends of its 95 % confidence interval),
        ``samples``, ``convention`` and ``signature``.

    Raises:
        UsageError: There are no sentences, or the numbers of hypotheses and references differ.
    """
    config = (config or ScoreConfig()).for_texts(references)
    hypotheses, references = normalize_texts(hypotheses, references, config)
    metrics = build_metrics(config)
    result: dict[str, Any] = {
        name: metric.corpus_score(hypotheses, [references]).score for name, metric in metrics.items()
    }
    result |= {"samples": len(hypotheses), "convention": config.convention}
    unit = "token" if config.unit == "word" else config.unit
    metric_signatures = (
        f"{re.sub('[0-9]$', 'n', METRICS[name].title)} {metric.get_signature()}"
        for name, metric in metrics.items()
    )
    rules = f"{config.convention}|unit:{unit}|final_period:{config.final_period}|{NORMAL_FORM}"
    result["signature"] = "; ".join((rules, *dict.fromkeys(metric_signatures)))
    if bootstrap:
        result["intervals"] = bootstrap_intervals(hypotheses, references, metrics, samples=bootstrap)
    return result


def compute_metric(
    name: str, hypotheses: Sequence[str], references: Sequence[str], config: ScoreConfig
) -> float:
    """Return a single metric of ``METRICS``, with the same value as :func:`score`."""
    config = config.for_texts(references)
    hypotheses, references = normalize_texts(hypotheses, references, config)
    return METRICS[name].build(config).corpus_score(hypotheses, [references]).score


def normalize_texts(
    hypotheses: Sequence[str], references: Sequence[str], config: ScoreConfig
) -> tuple[list[str], list[str]]:
    """Return hypotheses and references in the form in which every metric compares them.

    Raises:
        UsageError: There are no sentences, or the numbers of hypotheses and references differ.
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
    normalize = _build_normalizer(config)
    return [normalize(text) for text in hypotheses], [normalize(text) for text in references]


def build_metrics(config: ScoreConfig) -> dict[str, Metric]:
    """Return name → metric under these rules; the sentences must have been normalized before."""
    return {name: kind.build(config) for name, kind in METRICS.items()}


def _bleu(order: int, config: ScoreConfig) -> BLEU:
    """Return BLEU of sacrebleu with n-grams up to this order."""
    from sacrebleu.metrics import BLEU

    rule = config.effective_convention
    value = 0.0 if rule.smooth == "floor" else None
    return BLEU(
        lowercase=rule.lower, tokenize=_tokenizer_name(config), smooth_method=rule.smooth, smooth_value=value,
        force=True, max_ngram_order=order,
    )  # fmt: skip


def _rouge_l(config: ScoreConfig) -> Metric:
    """Return ROUGE-L as the sign language papers define it."""
    from signllm.metrics.rouge import RougeL

    return RougeL(
        build_tokenizer(config), tokenize=_tokenizer_name(config), lowercase=config.effective_convention.lower
    )


def _chrf(config: ScoreConfig) -> Metric:
    """Return chrF2 of sacrebleu."""
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=6, word_order=0, beta=2, lowercase=config.effective_convention.lower)


@dataclass(frozen=True)
class MetricKind:
    """A corpus-level metric in the form of sacrebleu.

    :class:`signllm.metrics.rouge.RougeL` shows how to write a metric that sacrebleu does not have.

    Attributes:
        title: name of the metric in tables.
        build: function that returns the metric under the rules of a configuration.
        is_brief: whether the metric is also shown in tables with many systems.
        higher_is_better: whether ``keep_best`` selects the highest value; False for an error rate.
    """

    title: str
    build: Callable[[ScoreConfig], Metric]
    is_brief: bool = True
    higher_is_better: bool = True


METRICS: dict[str, MetricKind] = {
    "bleu1": MetricKind("BLEU-1", partial(_bleu, 1)),
    "bleu2": MetricKind("BLEU-2", partial(_bleu, 2), is_brief=False),
    "bleu3": MetricKind("BLEU-3", partial(_bleu, 3), is_brief=False),
    "bleu4": MetricKind("BLEU-4", partial(_bleu, 4)),
    "rouge_l": MetricKind("ROUGE-L", _rouge_l),
    "chrf": MetricKind("chrF", _chrf),
}
"""All metrics by their names in results."""


def metric_titles(*, brief: bool = False) -> dict[str, str]:
    """Return name → title of all metrics; with ``brief``, of those shown in tables with many systems."""
    return {name: kind.title for name, kind in METRICS.items() if kind.is_brief or not brief}


def build_tokenizer(config: ScoreConfig) -> Callable[[str], list[str]]:
    """Return the tokenizer of normalized sentences: ``split(" ")`` as in the papers, or as BLEU does.

    Note that ``"".split(" ")`` is one empty token, so two empty sentences agree, and an empty hypothesis
    scores 0 against any other reference.
    """
    tokenize = _tokenizer_name(config)
    if tokenize == "none":
        return lambda sentence: sentence.split(" ")
    bleu = _bleu(4, config)
    return lambda sentence: bleu.tokenizer(sentence).split(" ")


def _tokenizer_name(config: ScoreConfig) -> str:
    """Return the name of the tokenizer in sacrebleu."""
    return config.effective_convention.tokenize


def _is_chinese(language: str | None) -> bool:
    known = find_language(language or "")
    return known is not None and known.name in _CHINESE


def _build_normalizer(config: ScoreConfig) -> Callable[[str], str]:
    """Return the function that is applied to every hypothesis and reference before any metric is computed."""
    rule, is_mixed = config.effective_convention, config.unit == "mixed"

    def normalize(sentence: str) -> str:
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

    return normalize
