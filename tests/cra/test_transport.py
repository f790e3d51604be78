"""Transport: costs by hand, equal plans from POT, and an effect on which words are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ot
import pytest

from signllm.cra.segmentation import count_occurrences
from signllm.cra.transport import (
    SizeResult,
    TransportConfig,
    choose_size,
    describe_curve,
    marginal_utilities,
    solve_sizes,
    word_costs,
)
from signllm.errors import UsageError

HARD, PAPER = TransportConfig(), TransportConfig(formulation="paper", slack=0.05)
ALPHABET = 160
WHOLES = tuple(tuple(range(4 * k, 4 * k + 4)) for k in range(ALPHABET // 4))
HALVES = tuple(word[:2] for word in WHOLES)


def corpus(alone: int) -> np.ndarray:
    """40 words of four characters, each 50 times, and the first half of each ``alone`` times by itself.

    Returns occurrences of the characters, the halves and the wholes.
    """
    rng = np.random.default_rng(0)
    pieces = [*WHOLES] * 50 + [*HALVES] * alone
    order = rng.permutation(len(pieces))
    sequence = np.array([c for k in order for c in pieces[k]])
    return count_occurrences(sequence, np.array([len(sequence)]), HALVES + WHOLES, ALPHABET)


def outcome(size: int, entropy: float, mean_length: float = 1.0) -> SizeResult:
    return SizeResult(size, np.ones(size, dtype=bool), entropy, mean_length, 1, 0.0)


def test_costs_are_those_of_the_definition() -> None:
    """A word of (0, 0, 1): P(0|j) = 2/3, so −log P, minus its own entropy, plus −log(rate)/3."""
    cost = word_costs([(0,), (1,), (0, 0, 1)], np.array([8, 4, 3]), 2)
    own = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    price = -np.log(3 / 12) / 3 - own
    assert cost[:, 2] == pytest.approx([-np.log(2 / 3) + price, -np.log(1 / 3) + price])
    assert cost[:, 0].tolist() == pytest.approx([-np.log(8 / 12), np.inf])
    assert cost[:, 1].tolist() == pytest.approx([np.inf, -np.log(4 / 12)])


def test_transport_drops_the_part_that_is_never_used_alone_and_keeps_one_that_is() -> None:
    """40 of 80 candidates are dropped if halves occur only inside longer words, none if they occur alone."""
    (never,) = solve_sizes(HALVES + WHOLES, corpus(alone=0), [80], HARD)
    assert never.kept.tolist() == [False] * 40 + [True] * 40
    (often,) = solve_sizes(HALVES + WHOLES, corpus(alone=50), [80], HARD)
    assert often.kept.all()


def test_the_papers_formulation_gives_every_word_its_demand_and_so_drops_none() -> None:
    (result,) = solve_sizes(HALVES + WHOLES, corpus(alone=0), [80], PAPER)
    assert result.kept.all()
    assert result.error <= 1e-6


def test_all_sizes_at_once_are_each_by_itself() -> None:
    occurrences, sizes = corpus(alone=3), [0, 16, 40, 56, 80]
    for config in (HARD, PAPER):
        together = solve_sizes(HALVES + WHOLES, occurrences, sizes, config)
        for size, one in zip(sizes, together, strict=True):
            words = (HALVES + WHOLES)[:size]
            (alone,) = solve_sizes(words, occurrences[: ALPHABET + size], [size], config)
            assert one.size == size
            assert np.array_equal(one.kept, alone.kept)
            assert one.entropy == pytest.approx(alone.entropy, rel=1e-4)
            assert one.mean_length == pytest.approx(alone.mean_length, rel=1e-4)


@pytest.mark.filterwarnings("ignore:If reg_type")
def test_entropy_and_words_are_those_of_a_plan_by_pot() -> None:
    words, occurrences = HALVES + WHOLES, corpus(alone=3)
    spellings = [(c,) for c in range(ALPHABET)] + list(words)
    length = np.array([len(s) for s in spellings])
    total = occurrences[:ALPHABET].sum()
    a, b = occurrences[:ALPHABET] / total, occurrences * length / total
    cost = np.minimum(word_costs(spellings, occurrences, ALPHABET), 1e3)
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, HARD.epsilon, (float("inf"), HARD.rho), reg_type="entropy", numItermax=5000, stopThr=1e-12
    )
    received = plan.sum(axis=0)
    uses = received / length
    p = uses / uses.sum()
    (result,) = solve_sizes(words, occurrences, [80], replace(HARD, tolerance=1e-9, max_iterations=5000))
    assert result.kept.tolist() == (received >= HARD.keep_share * b)[ALPHABET:].tolist()
    assert result.entropy == pytest.approx(-(p * np.log(np.maximum(p, 1e-300))).sum(), rel=1e-4)
    assert result.mean_length == pytest.approx(received.sum() / uses.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [(HARD, [16, 40, 80]), (replace(PAPER, slack=0.0), [0, 80])],
    ids=["hard supply", "paper"],
)
def test_the_solver_pot_finds_the_same(config: TransportConfig, sizes: list[int]) -> None:
    words, occurrences = HALVES + WHOLES, corpus(alone=3)
    strict = replace(config, tolerance=1e-9, max_iterations=5000)
    ours = solve_sizes(words, occurrences, sizes, strict)
    theirs = solve_sizes(words, occurrences, sizes, replace(strict, solver="pot"))
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.kept, other.kept)
        assert one.entropy == pytest.approx(other.entropy, rel=1e-4)
        assert one.mean_length == pytest.approx(other.mean_length, rel=1e-4)
        assert other.error < 1e-4
        assert other.iterations > 0


def test_both_solvers_tell_that_exact_sides_cannot_be_met() -> None:
    """Of the halves alone no plan gives every word its demand: second halves' characters are left over."""
    for solver in ("sinkhorn", "pot"):
        config = replace(PAPER, slack=0.0, solver=solver, max_iterations=200)
        (result,) = solve_sizes(HALVES + WHOLES, corpus(alone=3), [40], config)
        assert result.error > 0.1


def test_pot_has_no_box_and_says_so() -> None:
    for settings in ({"formulation": "paper"}, {"slack": 0.05}):
        with pytest.raises(UsageError, match=r"POT[\s\S]*slack 0"):
            TransportConfig(solver="pot", **settings)  # type: ignore[arg-type]


def test_without_candidates_the_entropy_is_that_of_the_characters() -> None:
    (result,) = solve_sizes((), np.array([6, 3, 0, 1]), [0], HARD)
    p = np.array([0.6, 0.3, 0.1])
    assert result.entropy == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
    assert result.mean_length == pytest.approx(1.0)


def test_the_largest_marginal_utility_wins() -> None:
    outcomes = [outcome(0, 5.0), outcome(32, 4.9), outcome(64, 3.3), outcome(128, 1.0), outcome(160, 0.9)]
    assert marginal_utilities(outcomes, "length") == pytest.approx([0.1 / 32, 1.6 / 32, 2.3 / 64, 0.1 / 32])
    gain = replace(HARD, choose_by="marginal_utility")
    assert choose_size(outcomes, gain, min_size=0) == 2
    assert choose_size(outcomes, gain, min_size=65) == 3
    assert choose_size(outcomes, gain, min_size=1000) == 4
    assert choose_size(outcomes, replace(HARD, choose_by="least_entropy"), min_size=0) == 4
    assert choose_size(outcomes[:1], gain, min_size=64) == 0


def test_the_shortest_description_wins() -> None:
    lengths = (4.0, 3.5, 3.1, 3.1, 3.2)
    outcomes = [replace(outcome(32 * k, 5.0), description_length=length) for k, length in enumerate(lengths)]
    assert choose_size(outcomes, HARD, min_size=0) == 2
    assert choose_size(outcomes, HARD, min_size=97) == 4
    with pytest.raises(ValueError, match="description length"):
        choose_size([outcome(0, 5.0), outcome(32, 4.9)], HARD, min_size=0)


def test_normalisation_decides_between_words_and_characters() -> None:
    outcomes = [outcome(0, 4.0), outcome(32, 4.4, 1.1), outcome(64, 4.9, 2.0)]
    gain = replace(HARD, choose_by="marginal_utility")
    assert choose_size(outcomes, gain, min_size=0) == 2
    assert marginal_utilities(outcomes, "none") == pytest.approx([-0.4 / 32, -0.5 / 32])
    assert choose_size(outcomes, replace(gain, normalisation="none"), min_size=0) == 1


def test_the_curve_tells_everything_and_marks_the_choice() -> None:
    curve = describe_curve([outcome(0, 4.0), outcome(32, 4.4, 2.0)], 1)
    assert [entry["chosen"] for entry in curve] == [False, True]
    assert curve[0]["marginal_utility"] is None
    assert curve[1]["entropy"] == pytest.approx(2.2)
    assert curve[1]["entropy_unnormalised"] == pytest.approx(4.4)
    assert curve[1]["marginal_utility"] == pytest.approx(1.8 / 32)
    assert curve[1]["marginal_utility_unnormalised"] == pytest.approx(-0.4 / 32)


@pytest.mark.parametrize("changed", [{"epsilon": 0.0}, {"rho": -1.0}, {"slack": -0.1}, {"keep_share": -0.1}])
def test_impossible_strengths_are_named(changed: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(changed))):
        TransportConfig(**changed)
