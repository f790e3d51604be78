"""How many words, and which: an entropic transport of characters into words, all sizes in one batched solve.

Supply of a character: its share of the corpus. Demand of a word: its share if it took every one of its
occurrences, overlaps included, so that demand exceeds supply and words compete. Cost (design 2.2): −log
P(i|j), forbidden where the word lacks the character, plus a price per word. A price changes nothing where
columns are exact (the paper's formulation) but decides who wins where they are soft; ours is what a word
costs the reader, its code length per character: (−log q_j)/ℓ_j − H(P(·|j)), q_j its occurrences per
character. A part then loses to the whole that contains it, unless it is also used by itself.

Entropy of a size: H_r = −(1/ℓ_r) Σ p_j log p_j over words as the plan uses them, ℓ_r the mean word length;
its marginal utility is −(H_r − H_{r−1})/m. It takes the smallest size that may be taken
(``tools/cra_evidence``), so by default description length chooses (``signllm.cra.frequencies``), and says
whether what transport starves is better dropped. Exact columns always get what they demand: that
formulation drops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from signllm.cra.segmentation import Ints
from signllm.cra.transport_pot import solve_with_pot
from signllm.errors import UsageError
from signllm.kernels import Exact, Side, Slack, Soft, sinkhorn

Floats = NDArray[np.float64]
Formulation = Literal["hard_supply", "paper"]
Normalisation = Literal["length", "none"]
Drop = Literal["if_shorter", "always"]
ChooseBy = Literal["marginal_utility", "description_length", "least_entropy"]


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """How characters are carried into words; none of the numbers is stated in the paper.

    Attributes:
        formulation: "hard_supply": characters exact (within ``slack``), words soft; "paper": words exact,
            characters within ``slack``.
        epsilon: strength of the entropy, in nats of cost per character.
        rho: price of leaving a word's demand ("hard_supply").
        slack: how far a character's share may be from its supply; None: 0 for "hard_supply", 0.01 for
            "paper", which can hardly be solved without.
        keep_share: a word that receives less than this share of its demand is starved.
        drop: whether starved words go "always", or only "if_shorter": where words and corpus are described
            in less without them.
        choose_by: what makes a size the best: "marginal_utility" of the entropy is the paper's;
            "description_length" (of words and corpus together, the least) and "least_entropy" are ours.
        normalisation: of the entropy that chooses the size: "length" divides by the mean word length.
        solver: "sinkhorn": all sizes in one batched solve; "pot": the same problems one by one by POT, to
            check; it knows no ``slack``.
        max_iterations: of the solver, per size.
        tolerance: of the solver.
    """

    formulation: Formulation = "hard_supply"
    epsilon: float = 0.05
    rho: float = 0.2
    slack: float | None = None
    keep_share: float = 0.02
    drop: Drop = "if_shorter"
    choose_by: ChooseBy = "description_length"
    normalisation: Normalisation = "length"
    solver: Literal["sinkhorn", "pot"] = "sinkhorn"
    max_iterations: int = 1000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.rho <= 0 or (self.slack or 0.0) < 0 or self.keep_share < 0:
            raise UsageError(
                f"epsilon={self.epsilon} and rho={self.rho} must be positive, slack={self.slack} and "
                f"keep_share={self.keep_share} not negative"
            )
        slack = _slack(self)
        if self.solver == "pot" and slack > 0:
            raise UsageError(
                f"slack={slack:g}: POT has no relaxation that leaves a marginal free within a box",
                where="--words.transport.solver pot",
                remedy="--words.transport.slack 0, which POT solves, or the solver sinkhorn",
            )


@dataclass(frozen=True)
class SizeResult:
    """What transport says about one number of candidates.

    Attributes:
        size: how many candidates took part.
        kept: (size,) bool, which of them received enough.
        entropy: Σ −p log p in nats per word.
        mean_length: characters per word.
        iterations: of the solver.
        error: share of the mass that is not where the row side wants it.
        description_length: of the words and of the corpus told in them, in nats per character of the corpus;
            known once the corpus was segmented.
    """

    size: int
    kept: NDArray[np.bool_]
    entropy: float
    mean_length: float
    iterations: int
    error: float
    description_length: float | None = None

    def normalised(self, normalisation: Normalisation) -> float:
        """Return the entropy per word, or per character."""
        return self.entropy / self.mean_length if normalisation == "length" else self.entropy


def solve_sizes(
    words: Sequence[tuple[int, ...]], occurrences: Ints, sizes: Sequence[int], config: TransportConfig
) -> list[SizeResult]:
    """Solve the transport of every size at once.

    Args:
        words: candidates in order; a size takes the first so many.
        occurrences: (characters + len(words),) of each character, then of each candidate, overlaps included.
        sizes: how many candidates take part in each problem; 0 is allowed.
        config: formulation and strengths.
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
    """Return (alphabet, V) −log P(i|j) plus the word's price; +inf where the word lacks the character."""
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
    """Return −(H_r − H_{r−1})/(difference in size) for every size after the first, which is the reference."""
    pairs = zip(outcomes[1:], outcomes, strict=False)
    return [
        (before.normalised(normalisation) - after.normalised(normalisation)) / (after.size - before.size)
        for after, before in pairs
    ]


def choose_size(outcomes: Sequence[SizeResult], config: TransportConfig, *, min_size: int) -> int:
    """Return the place of the best size of at least ``min_size``, the smallest of equals.

    Where no size reaches the minimum, the largest stands in.
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
        raise ValueError("a description length is not known before the corpus is segmented")
    return [length for length in lengths if length is not None]


def describe_curve(outcomes: Sequence[SizeResult], chosen: int) -> tuple[dict[str, Any], ...]:
    """Return one plain record per size, with both normalisations, for ``words.json``."""
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
    """Return (B, V) what each word receives, and each problem's iterations and error."""
    if config.solver == "pot":
        return solve_with_pot(cost_KV, supply_K, demand_BV, config)
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
    default = 0.01 if config.formulation == "paper" else 0.0
    return default if config.slack is None else config.slack


def _sides(config: TransportConfig) -> tuple[Side, Side]:
    is_paper = config.formulation == "paper"
    slack = _slack(config)
    return (Slack(slack) if slack > 0 else Exact()), (Exact() if is_paper else Soft(config.rho))


def _entropy(uses_V: Floats, received_V: Floats) -> tuple[float, float]:
    """Entropy in nats per word and mean word length, from how often a plan uses each word."""
    p_V = uses_V[uses_V > 0] / uses_V.sum()
    return float(-(p_V * np.log(p_V)).sum()), float(received_V.sum() / uses_V.sum())
