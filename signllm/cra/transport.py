"""Optimal transport of characters into words, which decides how many words, and which, are kept.

One entropic transport problem is solved per *size*, the number of candidate words that take part; all sizes
are one batched solve.

- The supply of a character is its share of the corpus.
- The demand of a word is the share of the corpus that it would cover with all its occurrences, including
overlaps.
  The total demand exceeds the supply, so words compete.
- The cost is −log P(i|j) for character i in word j, infinite if the word does not contain the character,
plus a
  price per word. The price has no effect in the paper's formulation with exact columns, but it decides which
  words win if columns are soft. Our price is the code length of the word per character, (−log q_j)/ℓ_j −
  H(P(·|j)), where q_j is the number of its occurrences per character and ℓ_j its length. A part of a longer
  word then loses against that word, unless the part also occurs by itself.

The entropy of a size is H_r = −(1/ℓ_r) Σ p_j log p_j, where p_j is the share of word j in the plan and ℓ_r
the mean word length. The marginal utility of a size is −(H_r − H_{r−1})/m. It selects the smallest size that
is allowed (``tools/cra_evidence``). By default the size is therefore chosen by description length
(:mod:`signllm.cra.frequencies`), which also decides whether words that receive too little mass are dropped.
Exact columns always receive their demand, so that formulation drops no word.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from signllm.cra.segmentation import Ints
from signllm.errors import UsageError
from signllm.kernels import Exact, Side, Slack, Soft, sinkhorn
from signllm.validation import NonNegativeFloat, PositiveFloat, PositiveInt, validated

Floats = NDArray[np.float64]
FORBIDDEN_COST = 1e3
"""Cost of a forbidden pair, since POT supports no infinite costs; e^(−FORBIDDEN_COST/ε) is 0."""
Formulation = Literal["hard_supply", "paper"]
Normalisation = Literal["length", "none"]
Drop = Literal["if_shorter", "always"]
ChooseBy = Literal["marginal_utility", "description_length", "least_entropy"]


@validated
class TransportConfig:
    """Configuration of the transport of characters into words; the paper states none of the numbers.

    Attributes:
        formulation: "hard_supply" has exact characters (within ``slack``) and soft words; "paper" has exact
            words and characters within ``slack``.
        epsilon: strength of the entropic regularization, in nats of cost per character.
        rho: price of deviating from a word's demand, for "hard_supply".
        slack: largest deviation of a character's share from its supply. None means 0 for "hard_supply" and
            0.01 for "paper", which rarely has a solution without slack.
        keep_share: a word that receives less than this share of its demand is a candidate for dropping.
        drop: whether such words are dropped "always", or only "if_shorter": if the description length of
            words and corpus is smaller without them.
        choose_by: criterion for the size. "marginal_utility" of the entropy is the paper's; the smallest
            "description_length" of words and corpus, and "least_entropy", are ours.
        normalisation: normalization of the entropy in the criterion; "length" divides by the mean word
            length.
        solver: "sinkhorn" solves all sizes in one batch; "pot" solves them one by one with the library POT,
            as a cross-check, and supports no ``slack``.
        max_iterations: largest number of iterations of the solver, per size.
        tolerance: error at which the solver stops, as a share of the mass.
    """

    formulation: Formulation = "hard_supply"
    epsilon: PositiveFloat = 0.05
    rho: PositiveFloat = 0.2
    slack: NonNegativeFloat | None = None
    keep_share: NonNegativeFloat = 0.02
    drop: Drop = "if_shorter"
    choose_by: ChooseBy = "description_length"
    normalisation: Normalisation = "length"
    solver: Literal["sinkhorn", "pot"] = "sinkhorn"
    max_iterations: PositiveInt = 1000
    tolerance: NonNegativeFloat = 1e-6

    def __post_init__(self) -> None:
        slack = _slack(self)
        if self.solver == "pot" and slack > 0:
            raise UsageError(
                f"the solver pot cannot be used with slack={slack:g}: POT has no such relaxation",
                where="solver",
                remedy="give slack 0, or use the solver sinkhorn",
            )


@dataclass(frozen=True)
class SizeResult:
    """The result of the transport problem of one size.

    Attributes:
        size: number of candidates that took part.
        kept: (size,) bool, whether each of them is kept.
        entropy: Σ −p log p over the words, in nats per word.
        mean_length: mean number of characters per word.
        iterations: number of iterations of the solver.
        error: share of the mass by which the row marginals deviate from their constraint.
        description_length: description length of the words and of the corpus encoded in them, in nats per
            character of the corpus; None until the corpus has been segmented.
    """

    size: int
    kept: NDArray[np.bool_]
    entropy: float
    mean_length: float
    iterations: int
    error: float
    description_length: float | None = None

    def normalised(self, normalisation: Normalisation) -> float:
        """Return the entropy per character ("length") or per word ("none")."""
        return self.entropy / self.mean_length if normalisation == "length" else self.entropy


def solve_sizes(
    words: Sequence[tuple[int, ...]], occurrences: Ints, sizes: Sequence[int], config: TransportConfig
) -> list[SizeResult]:
    """Solve the transport problems of all sizes in one batch.

    Args:
        words: candidate words in order; the problem of size n has the first n of them.
        occurrences: (alphabet + len(words),) number of occurrences of each character, then of each candidate,
            including overlaps.
        sizes: number of candidates in each problem; 0 is allowed.
        config: formulation and parameters of the transport.
    """
    alphabet = len(occurrences) - len(words)
    spellings = [(character,) for character in range(alphabet)] + list(words)
    length_V = np.array([len(spelling) for spelling in spellings], dtype=np.float64)
    supply_K = occurrences[:alphabet] / occurrences[:alphabet].sum()
    demand_V = occurrences * length_V / occurrences[:alphabet].sum()
    takes_part_BV = np.arange(len(spellings)) < alphabet + np.array(sizes)[:, None]
    demand_BV = np.where(takes_part_BV, demand_V, 0.0)
    if config.formulation == "paper":
        demand_BV /= demand_BV.sum(axis=1, keepdims=True)
    cost_KV = word_costs(spellings, occurrences, alphabet)
    received_BV, iterations, error = _solve(cost_KV, supply_K, demand_BV, config)
    kept_BV = received_BV >= config.keep_share * demand_BV
    return [
        SizeResult(
            size,
            kept_BV[b, alphabet : alphabet + size],
            *_entropy(received_BV[b] / length_V, received_BV[b]),
            iterations[b],
            error[b],
        )
        for b, size in enumerate(sizes)
    ]


def word_costs(spellings: Sequence[tuple[int, ...]], occurrences: Ints, alphabet: int) -> Floats:
    """Return the costs −log P(i|j) plus the word's price, (alphabet, V).

    The cost is +inf if the word does not contain the character.
    """
    share_KV = np.zeros((alphabet, len(spellings)))
    length_V = np.array([len(spelling) for spelling in spellings], dtype=np.float64)
    column = np.repeat(np.arange(len(spellings)), length_V.astype(np.int64))
    np.add.at(share_KV, (np.concatenate([np.array(s) for s in spellings]), column), 1 / length_V[column])
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise_KV = -np.log(share_KV)
        own_V = np.where(share_KV > 0, share_KV * surprise_KV, 0).sum(axis=0)
    rate_V = np.maximum(occurrences, 1) / occurrences[:alphabet].sum()
    return surprise_KV + (-np.log(rate_V) / length_V - own_V)


def marginal_utilities(outcomes: Sequence[SizeResult], normalisation: Normalisation) -> list[float]:
    """Return the marginal utility −(H_r − H_{r−1})/(difference in size) of every size after the first."""
    pairs = zip(outcomes[1:], outcomes, strict=False)
    return [
        (before.normalised(normalisation) - after.normalised(normalisation)) / (after.size - before.size)
        for after, before in pairs
    ]


def choose_size(outcomes: Sequence[SizeResult], config: TransportConfig, *, min_size: int) -> int:
    """Return the index of the best size that is at least ``min_size``; of equally good sizes, the smallest.

    If no size is as large as ``min_size``, the largest size is returned.
    """
    if config.choose_by == "marginal_utility":
        scores = [float("-inf"), *marginal_utilities(outcomes, config.normalisation)]
    elif config.choose_by == "description_length":
        scores = [-length for length in _known_lengths(outcomes)]
    else:
        scores = [-outcome.normalised(config.normalisation) for outcome in outcomes]
    allowed = [place for place in range(1, len(outcomes)) if outcomes[place].size >= min_size]
    return max(allowed, key=lambda place: scores[place], default=len(outcomes) - 1)


def _known_lengths(outcomes: Sequence[SizeResult]) -> list[float]:
    lengths = [outcome.description_length for outcome in outcomes]
    if None in lengths:
        raise ValueError("the description length of a size is missing: the corpus has to be segmented first")
    return [length for length in lengths if length is not None]


def describe_curve(outcomes: Sequence[SizeResult], chosen: int) -> tuple[dict[str, Any], ...]:
    """Return one JSON record per size, with both normalizations, for ``words.json``."""
    per_character = [None, *marginal_utilities(outcomes, "length")]
    per_word = [None, *marginal_utilities(outcomes, "none")]
    return tuple(
        {
            "size": outcome.size,
            "kept": int(outcome.kept.sum()),
            "entropy": outcome.normalised("length"),
            "entropy_unnormalised": outcome.entropy,
            "mean_length": outcome.mean_length,
            "description_length": outcome.description_length,
            "marginal_utility": per_character[place],
            "marginal_utility_unnormalised": per_word[place],
            "iterations": outcome.iterations,
            "error": outcome.error,
            "chosen": place == chosen,
        }
        for place, outcome in enumerate(outcomes)
    )


def _solve(
    cost_KV: Floats, supply_K: Floats, demand_BV: Floats, config: TransportConfig
) -> tuple[Floats, list[int], list[float]]:
    """Return the mass that each word receives, (B, V), and the iterations and error of each problem."""
    if config.solver == "pot":
        return _solve_with_pot(cost_KV, supply_K, demand_BV, config)
    cost = torch.from_numpy(cost_KV).float()
    row, column = _sides(config)
    result = sinkhorn(
        cost.expand(len(demand_BV), *cost.shape),
        torch.from_numpy(np.tile(supply_K, (len(demand_BV), 1))),
        torch.from_numpy(demand_BV),
        epsilon=config.epsilon,
        row=row,
        column=column,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )
    received_BV = result.plan.sum(dim=1, dtype=torch.float64).numpy()
    return received_BV, result.iterations.tolist(), result.error.tolist()


def _slack(config: TransportConfig) -> float:
    """Return the slack of the characters, or its default."""
    default = 0.01 if config.formulation == "paper" else 0.0
    return default if config.slack is None else config.slack


def _sides(config: TransportConfig) -> tuple[Side, Side]:
    """Return how the characters (rows) and the words (columns) are constrained."""
    is_paper = config.formulation == "paper"
    slack = _slack(config)
    return (Slack(slack) if slack > 0 else Exact()), (Exact() if is_paper else Soft(config.rho))


def _entropy(uses_V: Floats, received_V: Floats) -> tuple[float, float]:
    """Return the entropy in nats per word, and the mean word length, of the words in a transport plan.

    Args:
        uses_V: mass of each word divided by its length.
        received_V: mass of each word.
    """
    p_V = uses_V[uses_V > 0] / uses_V.sum()
    return float(-(p_V * np.log(p_V)).sum()), float(received_V.sum() / uses_V.sum())


def _solve_with_pot(
    cost_KV: Floats, supply_K: Floats, demand_BV: Floats, config: TransportConfig
) -> tuple[Floats, list[int], list[float]]:
    """Solve one problem per row of ``demand_BV`` with POT; words without demand are left out.

    Exact rows with soft columns are ``ot.unbalanced.sinkhorn_unbalanced`` with an infinite price for the
    rows; two exact sides are ``ot.bregman.sinkhorn_log``. POT (Python Optimal Transport) has no slack around
    a marginal, so ``TransportConfig`` refuses a slack above 0.

    Returns:
        the mass that each word receives, (B, V), the number of iterations per problem, and the share of the
        mass by which exact sides are violated, per problem.
    """
    received_BV = np.zeros_like(demand_BV)
    iterations, errors = [], []
    rows = supply_K > 0
    for b, demand_V in enumerate(demand_BV):
        taken = demand_V > 0
        plan, steps = _solve_problem_with_pot(
            cost_KV[np.ix_(rows, taken)], supply_K[rows], demand_V[taken], config
        )
        received_BV[b, taken] = plan.sum(axis=0)
        iterations.append(steps)
        error = np.abs(plan.sum(axis=1) - supply_K[rows]).sum()
        if config.formulation == "paper":  # POT ends with the rows, whose error is then 0
            error += np.abs(plan.sum(axis=0) - demand_V[taken]).sum()
        errors.append(float(error / supply_K.sum()))
    return received_BV, iterations, errors


def _solve_problem_with_pot(
    cost_KV: Floats, a: Floats, b: Floats, config: TransportConfig
) -> tuple[Floats, int]:
    import ot

    # A constant may be subtracted from the costs of an exact row. With its cheapest pair at 0, e^(−cost/ε)
    # does not underflow.
    least = cost_KV.min(axis=1, keepdims=True)
    cost = np.where(np.isfinite(cost_KV), cost_KV - least, FORBIDDEN_COST)
    limits = {"numItermax": config.max_iterations, "stopThr": config.tolerance, "log": True}
    # POT warns that reg_type "entropy" ignores a parameter, and about problems that have not converged,
    # whose error is returned anyway.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.formulation == "paper":
            plan, log = ot.bregman.sinkhorn_log(a, b, cost, config.epsilon, **limits)
            return plan, int(log["niter"]) + 1
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a, b, cost, config.epsilon, (float("inf"), config.rho), reg_type="entropy", **limits
        )
        return plan, len(log["err"])
