"""ROUGE-L as the sign language papers compute it (neccam/slt), implemented as a metric of sacrebleu.

    R = LCS/|reference|, P = LCS/|hypothesis|, F = (1 + b^2) P R / (R + b^2 P), b = 1.2, mean over sentences

No package computes this variant. As a metric of sacrebleu it has the same confidence intervals and
significance tests as BLEU and chrF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric, Score, Signature

BETA = 1.2


class RougeSignature(Signature):
    """The signature of ROUGE-L: case, tokenizer, and the variant of the formula."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.info |= {"case": "lc" if args["lowercase"] else "mixed", "tok": args["tokenize"]}
        self.info |= {"lcs": "f", "beta": BETA, "mean": "sentence"}


class RougeL(Metric):
    """The mean over sentences of the F-measure of the longest common subsequence of tokens.

    Args:
        tokens: function that tokenizes a sentence.
        tokenize: name of the tokenizer in the signature.
        lowercase: whether case is ignored.
    """

    _SIGNATURE_TYPE = RougeSignature

    def __init__(self, tokens: Callable[[str], list[str]], *, tokenize: str, lowercase: bool) -> None:
        super().__init__()
        self.tokens, self.tokenize, self.lowercase = tokens, tokenize, lowercase

    def _preprocess_segment(self, sent: str) -> str:
        return sent.lower() if self.lowercase else sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"references": [self.tokens(reference) for reference in refs]}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: Mapping[str, Any]) -> list[float]:
        """Return the statistics that are summed over sentences: the F-measure, and 1 for the sentence."""
        tokens = self.tokens(hypothesis)
        return [max(rouge_l(tokens, reference) for reference in ref_kwargs["references"]), 1.0]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score("ROUGE-L", float(100.0 * stats[0] / stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])


def rouge_l(hypothesis: Sequence[str], reference: Sequence[str], beta: float = BETA) -> float:
    """Return ROUGE-L of one sentence, the F-measure of the longest common subsequence, between 0 and 1."""
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
