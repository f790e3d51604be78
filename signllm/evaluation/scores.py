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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from signllm.errors import UsageError

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.base import Metric

FinalPeriod = Literal["keep", "add", "drop"]
Case = Literal["convention", "lower", "keep"]
CHINESE = ("zh", "chinese", "csl", "mandarin")
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
        final_period: what happens to a sentence's last "." on *both* sides. Official PHOENIX-2014T files have
            none, neccam-style references end in " ."; scores of the two kinds cannot be compared.
        case: that of the convention, or both sides lowered, or kept.
        language: asked by sacrebleu only: Chinese (zh) has a tokeniser of its own, all else ``13a``.
    """

    convention: str = "phoenix2014t"
    final_period: FinalPeriod = "keep"
    case: Case = "convention"
    language: str | None = None

    def __post_init__(self) -> None:
        convention_named(self.convention)
        if self.final_period not in ("keep", "add", "drop"):
            raise UsageError(f"final_period is {self.final_period!r}", remedy="use keep, add or drop")
        if self.case not in ("convention", "lower", "keep"):
            raise UsageError(f"case is {self.case!r}", remedy="use convention, lower or keep")

    @property
    def rule(self) -> Convention:
        """The convention, with the case that was asked for."""
        rule = CONVENTIONS[self.convention]
        return rule if self.case == "convention" else replace(rule, lower=self.case == "lower")


def rules_for(
    languages: Collection[str],
    *,
    convention: str | None = None,
    final_period: FinalPeriod = "keep",
    case: Case = "convention",
) -> ScoreConfig:
    """Return the rules for texts of these languages: ``csl-daily`` if Chinese, else ``phoenix2014t``."""
    is_chinese = {name.lower().split("-")[0] for name in languages} <= {"chinese", "zh"}
    return ScoreConfig(
        convention=convention or ("csl-daily" if is_chinese else "phoenix2014t"),
        final_period=final_period,
        case=case,
        language=next(iter(languages)) if len(languages) == 1 else None,
    )


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

    config = config or ScoreConfig()
    ours, theirs = normalised(hypotheses, references, config)
    metrics = metrics_of(config)
    result: dict[str, Any] = {
        name: metric.corpus_score(ours, [theirs]).score for name, metric in metrics.items()
    }
    result |= {"samples": len(ours), "convention": config.convention}
    unit = "character" if config.rule.by_character else "token"
    signed = (
        f"{re.sub('[0-9]$', 'n', METRICS[name].title)} {metric.get_signature()}"
        for name, metric in metrics.items()
    )
    rules = f"{config.convention}|unit:{unit}|final_period:{config.final_period}"
    result["signature"] = "; ".join((rules, *dict.fromkeys(signed)))
    if bootstrap:
        result["intervals"] = intervals(ours, theirs, metrics, samples=bootstrap)
    return result


def one_score(name: str, hypotheses: Sequence[str], references: Sequence[str], config: ScoreConfig) -> float:
    """Return one of ``METRICS``, as :func:`score` gives it."""
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
    """Return the name of sacrebleu's tokeniser for this language."""
    language, tokenize = config.language, config.rule.tokenize
    is_chinese = language is not None and language.lower().split("-")[0] in CHINESE
    return "zh" if is_chinese and tokenize != "none" else tokenize


def _normaliser(config: ScoreConfig) -> Callable[[str], str]:
    """Return what happens to every sentence, hypothesis and reference alike, before any metric sees it."""
    rule = config.rule

    def normalise(sentence: str) -> str:
        sentence = " ".join(sentence.split())
        if config.final_period != "keep":
            sentence = sentence.rstrip(" .。")
        if config.final_period == "add":
            sentence += "。" if rule.by_character else " ."
        if rule.by_character:
            sentence = " ".join(sentence.replace(" ", ""))
        return sentence.lower() if rule.lower else sentence

    return normalise
