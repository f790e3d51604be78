"""Scores of translations: BLEU-1 to 4, ROUGE-L and chrF, each under a named convention.

The same sentences give a BLEU-4 of 21.2 or 22.2 depending on a final period, and three things called ROUGE-L
differ by 3 points; so a convention is named, and its signature is stored beside the numbers. BLEU and chrF
are sacrebleu's; ROUGE-L is the one of the sign language papers (neccam/slt), which no package computes:

    R = LCS/|reference|, P = LCS/|hypothesis|, F = (1 + b^2) P R / (R + b^2 P), b = 1.2, mean over sentences

For free-running translations only: teacher-forced output scored this way is not a translation score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from signllm.errors import UsageError
from signllm.evaluation.sentences import paired

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

FinalPeriod = Literal["keep", "add", "drop"]
ROUGE_BETA = 1.2
CHINESE = ("zh", "chinese", "csl", "mandarin")


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


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    convention: str = "phoenix2014t",
    *,
    language: str | None = None,
    final_period: FinalPeriod = "keep",
) -> dict[str, float | int | str]:
    """Score hypotheses against one reference each.

    Args:
        hypotheses: a system's sentences.
        references: the reference of each, in the same order.
        convention: ``phoenix2014t``, ``csl-daily`` or ``sacrebleu`` (:data:`CONVENTIONS`).
        language: asked by ``sacrebleu`` only: Chinese (``zh``) has a tokeniser of its own, all else ``13a``.
        final_period: what happens to a sentence's last "." on *both* sides. Official PHOENIX-2014T files have
            none, neccam-style references end in " ."; scores of the two kinds cannot be compared.

    Returns:
        ``bleu1`` .. ``bleu4``, ``rouge_l``, ``chrf`` (0 to 100), ``samples``, ``convention``, ``signature``.

    Raises:
        UsageError: an unknown convention, no sentences, or unequal numbers of them.
    """
    rule = convention_named(convention)
    if len(hypotheses) != len(references):
        raise UsageError(
            f"{len(hypotheses)} hypotheses but {len(references)} references",
            remedy="give exactly one hypothesis per reference, in the same order, or use id|text lines",
        )
    if not hypotheses:
        raise UsageError(
            "there is nothing to score: no hypotheses", remedy="check that the split is not empty"
        )
    normalise = _normaliser(rule, final_period)
    ours, theirs = [normalise(text) for text in hypotheses], [normalise(text) for text in references]
    return _scores(ours, theirs, convention, _tokenizer_of(rule, language), final_period)


def bleu4_interval(
    hypotheses: Sequence[str],
    references: Sequence[str],
    convention: str = "phoenix2014t",
    *,
    language: str | None = None,
    final_period: FinalPeriod = "keep",
) -> tuple[float, float]:
    """Return BLEU-4 and the half width of its 95 % interval over draws of the sentences, with replacement.

    1000 draws by sacrebleu, whose seed is fixed: the same sentences give the same interval. The arguments are
    those of :func:`score`.
    """
    rule = convention_named(convention)
    normalise = _normaliser(rule, final_period)
    ours, theirs = [normalise(text) for text in hypotheses], [normalise(text) for text in references]
    found = _bleu(rule, _tokenizer_of(rule, language), 4).corpus_score(ours, [theirs], n_bootstrap=1000)
    return found.score, float(found._ci)


def _scores(
    ours: list[str], theirs: list[str], convention: str, tokenize: str, final_period: FinalPeriod
) -> dict[str, float | int | str]:
    """Compute every metric on normalised sentences."""
    from sacrebleu.metrics import CHRF

    rule = CONVENTIONS[convention]
    result: dict[str, float | int | str] = {}
    for order in (1, 2, 3, 4):
        bleu = _bleu(rule, tokenize, order)
        result[f"bleu{order}"] = bleu.corpus_score(ours, [theirs]).score
    tokens = _tokens_by(bleu, tokenize)
    rouges = [rouge_l(tokens(mine), tokens(right)) for mine, right in zip(ours, theirs, strict=True)]
    result["rouge_l"] = 100.0 * sum(rouges) / len(rouges)
    chrf = CHRF(char_order=6, word_order=0, beta=2, lowercase=rule.lower)
    result["chrf"] = chrf.corpus_score(ours, [theirs]).score
    result |= {"samples": len(ours), "convention": convention}
    unit = "character" if rule.by_character else "token"
    case = "lc" if rule.lower else "mixed"
    result["signature"] = "; ".join(
        (
            f"{convention}|unit:{unit}|final_period:{final_period}",
            f"BLEU-n {bleu.get_signature()}",
            f"ROUGE-L lcs-f|beta:{ROUGE_BETA}|mean:sentence|case:{case}|tok:{tokenize}",
            f"chrF {chrf.get_signature()}",
        )
    )
    return result


def _bleu(rule: Convention, tokenize: str, order: int) -> BLEU:
    """Return sacrebleu's BLEU up to n-grams of this order."""
    from sacrebleu.metrics import BLEU

    value = 0.0 if rule.smooth == "floor" else None
    return BLEU(
        lowercase=rule.lower, tokenize=tokenize, smooth_method=rule.smooth, smooth_value=value, force=True,
        max_ngram_order=order,
    )  # fmt: skip


def _tokens_by(bleu: BLEU, tokenize: str) -> Callable[[str], list[str]]:
    """Return the splitter that ROUGE-L uses: the papers' ``split(" ")``, or the words of BLEU's tokeniser.

    ``"".split(" ")`` is one empty token: two empty sentences agree, and an empty hypothesis scores 0.
    """
    if tokenize == "none":
        return lambda sentence: sentence.split(" ")
    return lambda sentence: bleu.tokenizer(sentence).split(" ")


def _tokenizer_of(rule: Convention, language: str | None) -> str:
    """Return sacrebleu's tokeniser for this language."""
    is_chinese = language is not None and language.lower().split("-")[0] in CHINESE
    return "zh" if is_chinese and rule.tokenize != "none" else rule.tokenize


def _normaliser(rule: Convention, final_period: FinalPeriod) -> Callable[[str], str]:
    """Return what happens to every sentence, hypothesis and reference alike, before any metric sees it."""
    if final_period not in ("keep", "add", "drop"):
        raise UsageError(f"final_period is {final_period!r}", remedy="use keep, add or drop")

    def normalise(sentence: str) -> str:
        sentence = " ".join(sentence.split())
        if final_period != "keep":
            sentence = sentence.rstrip(" .。")
        if final_period == "add":
            sentence += "。" if rule.by_character else " ."
        if rule.by_character:
            sentence = " ".join(sentence.replace(" ", ""))
        return sentence.lower() if rule.lower else sentence

    return normalise


def rouge_l(hypothesis: Sequence[str], reference: Sequence[str], beta: float = ROUGE_BETA) -> float:
    """Return ROUGE-L of one sentence, between 0 and 1: the F measure of the longest common subsequence."""
    common = longest_common_subsequence(hypothesis, reference)
    if common == 0:
        return 0.0
    precision, recall = common / len(hypothesis), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence in O(len(left) * len(right)) time."""
    row = [0] * (len(right) + 1)
    for token in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if token == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def score_files(
    hypotheses: Path,
    references: Path,
    convention: str = "phoenix2014t",
    *,
    language: str | None = None,
    final_period: FinalPeriod = "keep",
) -> dict[str, float | int | str]:
    """Score a file of anybody's output against one of references: both plain or both ``id|text`` lines.

    Raises:
        UsageError: a file is missing or not text, ids are missing or repeated, or line counts differ.
    """
    ours, theirs = paired(hypotheses, references)
    return score(ours, theirs, convention, language=language, final_period=final_period)
