"""Sinkhorn: POT as oracle, closed forms, laws, masks, and what cannot be solved."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from signllm.kernels import (
    Exact,
    NotConvergedError,
    Side,
    SinkhornResult,
    Slack,
    Soft,
    sinkhorn,
    sinkhorn_torch,
)

SIDES = (Exact(), Slack(0.02), Soft(0.3))


def problem(batch: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs in [0, 1] and masses with sum 1 on both sides."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, rows, columns, generator=generator, dtype=torch.float64)
    a = torch.rand(batch, rows, generator=generator, dtype=torch.float64) + 0.05
    b = torch.rand(batch, columns, generator=generator, dtype=torch.float64) + 0.05
    return cost, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def close(result: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(result, torch.as_tensor(expected, dtype=result.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (5, 1), (7, 13), (33, 17)])
@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_balanced_plans_are_those_of_pot(rows: int, columns: int, epsilon: float) -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = problem(3, rows, columns)
    result = sinkhorn(cost, a, b, epsilon=epsilon, tolerance=1e-10, max_iterations=50_000)
    assert result.error.max() <= 1e-10
    for k in range(3):
        plan = ot.bregman.sinkhorn_log(
            a[k].numpy(), b[k].numpy(), cost[k].numpy(), epsilon, numItermax=50_000, stopThr=1e-10
        )
        close(result.plan[k], plan, 1e-7)


@pytest.mark.filterwarnings("ignore:If reg_type")
@pytest.mark.parametrize("rhos", [(0.3, 0.3), (2.0, 0.05), (float("inf"), 0.2), (0.2, float("inf"))])
@pytest.mark.parametrize("epsilon", [0.5, 0.05])
def test_unbalanced_plans_are_those_of_pot(rhos: tuple[float, float], epsilon: float) -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = problem(2, 9, 6, seed=1)
    b = 1.7 * b
    row, column = (Exact() if rho == float("inf") else Soft(rho) for rho in rhos)
    result = sinkhorn(
        cost, a, b, epsilon=epsilon, row=row, column=column, tolerance=1e-11, max_iterations=50_000
    )
    for k in range(2):
        plan = ot.unbalanced.sinkhorn_unbalanced(
            a[k].numpy(),
            b[k].numpy(),
            cost[k].numpy(),
            epsilon,
            rhos,
            reg_type="entropy",
            numItermax=50_000,
            stopThr=1e-14,
        )
        close(result.plan[k], plan, 1e-7)


def test_a_box_is_kept_and_its_potential_obeys_complementary_slackness() -> None:
    """At the optimum, f is 0 inside the box, ≥ 0 at its lower bound and ≤ 0 at its upper bound."""
    cost, a, b = problem(4, 11, 8, seed=2)
    slack = 0.03
    result = sinkhorn(cost, a, b, epsilon=0.05, row=Slack(slack), tolerance=1e-11, max_iterations=50_000)
    excess = result.plan.sum(2) - a
    assert excess.abs().max() <= slack + 1e-9
    close(result.plan.sum(1), b)
    f = result.row_potential
    is_inside = excess.abs() < slack - 1e-7
    assert is_inside.any()
    assert (~is_inside).any()
    assert f[is_inside].abs().max() < 1e-6
    assert f[excess < -slack + 1e-7].min() > -1e-9
    assert f[excess > slack - 1e-7].max() < 1e-9


def test_slack_reaches_from_exact_to_free() -> None:
    cost, a, b = problem(2, 6, 5, seed=3)
    exact = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-9)
    close(sinkhorn(cost, a, b, epsilon=0.1, row=Slack(0.0), tolerance=1e-9).plan, exact.plan)
    free = sinkhorn(cost, a, b, epsilon=0.1, row=Slack(10.0), tolerance=1e-9)
    close(free.plan, b[:, None] * torch.softmax(-cost / 0.1, dim=1))


def test_a_large_rho_is_exact() -> None:
    cost, a, b = problem(2, 6, 5, seed=4)
    exact = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-10)
    soft = sinkhorn(cost, a, b, epsilon=0.1, column=Soft(1e6), tolerance=1e-10)
    close(soft.plan, exact.plan)


def test_diracs_and_products() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    close(sinkhorn(5 * one[None], 0.3 * one, 0.3 * one, epsilon=0.01).plan, [[[0.3]]])
    _, a, b = problem(1, 4, 6)
    close(sinkhorn(torch.zeros(1, 4, 6).double(), a, b, epsilon=1.0).plan, a[:, :, None] * b[:, None])


def test_gaussians_have_a_closed_form() -> None:
    """Janati et al. 2020: for (x−y)², N(0, s²) and N(0, t²) the covariance is (√(ε²/4 + 4s²t²) − ε/2)/2."""
    s, t, epsilon = 0.7, 1.3, 0.5
    x = torch.linspace(-8, 8, 301, dtype=torch.float64)
    masses = [torch.softmax(-x.square() / (2 * width**2), dim=0)[None] for width in (s, t)]
    cost = (x[:, None] - x).square()
    plan = sinkhorn(cost, *masses, epsilon=epsilon, tolerance=1e-10).plan[0]
    covariance = float(x @ plan @ x)
    assert covariance == pytest.approx(
        (np.sqrt(epsilon**2 / 4 + 4 * s**2 * t**2) - epsilon / 2) / 2, rel=1e-6
    )


def test_a_small_epsilon_finds_the_permutation() -> None:
    generator = torch.Generator().manual_seed(5)
    cost = torch.rand(1, 5, 5, generator=generator)
    best = min(itertools.permutations(range(5)), key=lambda p: sum(float(cost[0, i, p[i]]) for i in range(5)))
    mass = torch.full((1, 5), 0.2)
    plan = sinkhorn(cost, mass, mass, epsilon=5e-3, max_iterations=3000).plan
    assert plan[0].argmax(dim=1).tolist() == list(best)
    assert float(plan.max()) <= 0.2 + 1e-5


def test_two_by_two_has_a_closed_form() -> None:
    """P = [[t, a−t], [b−t, 1−a−b+t]] with t(1−a−b+t) / ((a−t)(b−t)) = exp(−(C00 + C11 − C01 − C10)/ε)."""
    cost = torch.tensor([[[0.1, 0.9], [0.7, 0.4]]], dtype=torch.float64)
    a, b, epsilon = 0.3, 0.6, 0.25
    masses = [torch.tensor([[s, 1 - s]], dtype=torch.float64) for s in (a, b)]
    t = float(sinkhorn(cost, *masses, epsilon=epsilon, tolerance=1e-12, max_iterations=10_000).plan[0, 0, 0])
    odds = t * (1 - a - b + t) / ((a - t) * (b - t))
    assert odds == pytest.approx(np.exp(-(0.1 + 0.4 - 0.9 - 0.7) / epsilon), rel=1e-6)


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("column", SIDES)
def test_laws(row: Side, column: Side) -> None:
    cost, a, b = problem(5, 7, 6, seed=6)

    def solve(
        cost: Tensor, a: Tensor, b: Tensor, row: Side, column: Side, epsilon: float = 0.1
    ) -> SinkhornResult:
        return sinkhorn(
            cost, a, b, epsilon=epsilon, row=row, column=column, tolerance=1e-10, max_iterations=20_000
        )

    result = solve(cost, a, b, row, column)
    assert (result.error <= 1e-10).all()
    # the plan follows from the potentials
    potentials = result.row_potential[:, :, None] + result.column_potential[:, None]
    close(result.plan, ((potentials - cost) / 0.1).exp())
    # transposition
    close(solve(cost.mT, b, a, column, row).plan.mT, result.plan)
    # permutation of rows
    order = torch.randperm(7)
    close(solve(cost[:, order], a[:, order], b, row, column).plan, result.plan[:, order])
    # a batch equals its problems solved one by one
    close(
        torch.cat([solve(cost[[k]], a[[k]], b[[k]], row, column).plan for k in range(5)]), result.plan, 1e-9
    )
    # cost and epsilon may be scaled together, with rho, which is a cost
    scaled = [Soft(3 * side.rho) if isinstance(side, Soft) else side for side in (row, column)]
    close(solve(3 * cost, a, b, *scaled, epsilon=0.3).plan, result.plan)


def test_exact_marginals_ignore_a_shift_of_rows_and_columns() -> None:
    cost, a, b = problem(2, 7, 6, seed=7)
    plan = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-10).plan
    shifted = sinkhorn(
        cost + torch.randn(2, 7, 1).double() + torch.randn(2, 1, 6).double(),
        a,
        b,
        epsilon=0.1,
        tolerance=1e-10,
    )
    close(shifted.plan, plan)


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("column", SIDES)
def test_mass_zero_is_absence(row: Side, column: Side) -> None:
    cost, a, b = problem(3, 7, 6, seed=8)
    a[0, 2], b[0, 5], b[1, 0] = 0, 0, 0
    a[2] = 0
    cost[0, 2] = 1e30
    result = sinkhorn(cost, a, b, epsilon=0.1, row=row, column=column, tolerance=1e-10, max_iterations=300)
    rows, columns = [0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4]
    alone = sinkhorn(
        cost[:1, rows][:, :, columns],
        a[:1, rows],
        b[:1, columns],
        epsilon=0.1,
        row=row,
        column=column,
        tolerance=1e-10,
        max_iterations=300,
    )
    close(result.plan[:1, rows][:, :, columns], alone.plan, 1e-9)
    assert result.plan[0, 2].sum() == result.plan[0, :, 5].sum() == result.plan[2].sum() == 0
    assert result.plan.isfinite().all()


def test_forbidden_pairs_stay_empty_and_stranded_mass_is_reported() -> None:
    cost, a, b = problem(2, 4, 5, seed=9)
    cost[0, 1, 2] = torch.inf
    cost[1, 3] = torch.inf
    result = sinkhorn(cost, a, b, epsilon=0.1)
    assert result.plan[0, 1, 2] == 0
    assert float(result.error[0]) <= 1e-6
    # row 3 of problem 1 cannot send its mass anywhere, and the others cannot send what columns then lack
    assert float(result.error[1]) >= float(a[1, 3]) - 1e-6
    assert result.plan.isfinite().all()
    soft = sinkhorn(cost, a, b, epsilon=0.1, row=Soft(1.0), column=Soft(1.0))
    assert (soft.error <= 1e-6).all()


def test_masses_that_do_not_add_up_are_reported_per_problem() -> None:
    cost, a, b = problem(2, 4, 5, seed=10)
    b[1] *= 2
    result = sinkhorn(cost, a, b, epsilon=0.1, max_iterations=200)
    assert float(result.error[0]) <= 1e-6
    assert float(result.error[1]) == pytest.approx(0.5, abs=1e-3)
    assert result.iterations.tolist()[1] == 200
    assert result.iterations.tolist()[0] < 200


def test_each_problem_stops_by_itself() -> None:
    cost, a, b = (t.expand(3, *t.shape[1:]) for t in problem(1, 12, 12, seed=11))
    epsilon = torch.tensor([1.0, 0.1, 0.01])
    result = sinkhorn(cost, a, b, epsilon=epsilon, max_iterations=50_000)
    first, second, third = result.iterations.tolist()
    assert first < second < third
    close(result.plan[1:2], sinkhorn(cost[:1], a[:1], b[:1], epsilon=0.1).plan, 1e-9)


def test_a_start_near_the_solution_spares_iterations() -> None:
    cost, a, b = problem(3, 20, 15, seed=13)
    cold = sinkhorn(cost, a, b, epsilon=0.01, tolerance=1e-9)
    warm = sinkhorn(cost, a, b, epsilon=0.01, tolerance=1e-9, start=cold.column_potential)
    assert (warm.iterations <= 2).all()
    assert (cold.iterations > 20).all()
    close(warm.plan, cold.plan, 1e-8)
    moved = sinkhorn(cost + 1e-3 * torch.rand(cost.shape), a, b, epsilon=0.01, start=cold.column_potential)
    assert (moved.iterations < cold.iterations).all()


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("column", SIDES)
def test_every_half_step_may_be_one_in_the_log_domain(
    row: Side, column: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, a, b = problem(4, 7, 6, seed=17)
    a[0, 2], cost[1, 3, 3] = 0, torch.inf
    epsilon = torch.tensor([1.0, 0.5, 0.2, 0.1])
    sides = {"epsilon": epsilon, "row": row, "column": column, "tolerance": 1e-8, "max_iterations": 200}
    plain = sinkhorn(cost, a, b, **sides)
    monkeypatch.setattr(sinkhorn_torch, "FAR", 1.0)  # no sum is exactly 1: all are void
    void = sinkhorn(cost, a, b, **sides)
    met = (plain.error <= 1e-8) & (void.error <= 1e-8)
    assert met.sum() >= 2
    close(void.plan[met], plain.plan[met], 1e-6)


def test_one_cost_may_serve_all_problems() -> None:
    cost, a, b = problem(4, 6, 5, seed=14)
    apart = sinkhorn(cost[:1].repeat(4, 1, 1), a, b, epsilon=0.1).plan
    close(sinkhorn(cost[0], a, b, epsilon=0.1).plan, apart, 0)
    close(sinkhorn(cost[:1], a, b, epsilon=0.1).plan, apart, 0)


def test_a_problem_that_must_converge_and_does_not_is_named() -> None:
    cost, a, b = problem(3, 4, 5, seed=15)
    sinkhorn(cost, a, b, epsilon=0.1, must_converge=True)
    b[1] *= 2
    with pytest.raises(NotConvergedError, match=r"1 of 3 .* number 1,.* 0\.5 after 40 iterations"):
        sinkhorn(cost, a, b, epsilon=0.1, must_converge=True, max_iterations=40)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (3, 9, 1), (2, 31, 33), (5, 129, 65)])
@pytest.mark.parametrize("epsilon", [0.5, 0.02])
def test_float32_errs_no_more_than_plain_float32(shape: tuple[int, int, int], epsilon: float) -> None:
    """The error is compared with that of the textbook iteration in the log domain, in float32."""
    cost, a, b = problem(*shape, seed=16)
    exact = sinkhorn(cost, a, b, epsilon=epsilon, tolerance=1e-12, max_iterations=20_000).plan
    result = sinkhorn(
        cost.float(), a.float(), b.float(), epsilon=epsilon, tolerance=1e-6, max_iterations=20_000
    )
    scaled, log_a, log_b = cost.float() / -epsilon, a.float().log(), b.float().log()
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(max(100, 2 * int(result.iterations.max()))):
        f = log_a - (scaled + g[:, None]).logsumexp(2)
        g = log_b - (scaled + f[:, :, None]).logsumexp(1)
    plain = (scaled + f[:, :, None] + g[:, None]).exp()
    ours, theirs = ((p.double() - exact).abs().sum((1, 2)) for p in (result.plan, plain))
    assert (ours <= 2 * theirs + 1e-6).all()  # the tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4, 1e-6])
def test_float32_is_stable_down_to_small_epsilon(dtype: torch.dtype, epsilon: float) -> None:
    cost, a, b = problem(2, 10, 10, seed=12)
    result = sinkhorn(
        1e3 * cost.to(dtype),
        a.to(dtype),
        b.to(dtype),
        epsilon=1e3 * epsilon,
        max_iterations=3000,
        tolerance=1e-5,
    )
    assert result.plan.isfinite().all()
    close(result.plan.sum(1).double(), b, 1e-6)
    assert float((result.plan.sum(2).double() - a).abs().sum(1).sub(result.error).abs().max()) < 1e-4


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1.0, 1e-2, 1e-4]),
    st.sampled_from(list(itertools.product(SIDES, SIDES))),
    st.integers(0, 10_000),
)
def test_never_nan(rows: int, columns: int, epsilon: float, sides: tuple[Side, Side], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = 100 * torch.rand(2, rows, columns, generator=generator)
    cost[torch.rand(cost.shape, generator=generator) < 0.4] = torch.inf
    a, b = (10 ** (-8 * torch.rand(2, n, generator=generator)) for n in (rows, columns))
    a[torch.rand(a.shape, generator=generator) < 0.2] = 0
    result = sinkhorn(cost, a, b, epsilon=epsilon, row=sides[0], column=sides[1], max_iterations=50)
    for tensor in (result.plan, result.row_potential, result.column_potential, result.error):
        assert tensor.isfinite().all()
    assert (result.plan >= 0).all()
    assert (result.plan[cost.isinf()] == 0).all()
    if isinstance(sides[1], Exact):
        assert (result.plan.double().sum(1) <= b.double() * (1 + 1e-4) + 1e-12).all()


COST = torch.zeros(1, 2, 3)
A, B = torch.ones(1, 2), torch.ones(1, 3)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cost": COST[0, 0]}, "must be"),
        ({"cost": COST.expand(3, 2, 3)}, "must be"),
        ({"start": A}, "start must be"),
        ({"row_mass": B}, "must be"),
        ({"cost": COST.half()}, "float32 or float64"),
        ({"cost": torch.tensor([[[0.0, 0, 0], [0, NAN, 0]]])}, r"\(0, 1, 1\)"),
        ({"cost": torch.tensor([[[0.0, 0, -INF], [0, 0, 0]]])}, r"\(0, 0, 2\)"),
        ({"row_mass": torch.tensor([[1.0, -1.0]])}, r"row_mass.*\(0, 1\)"),
        ({"column_mass": torch.tensor([[1.0, NAN, 1.0]])}, r"column_mass.*\(0, 1\)"),
        ({"column_mass": torch.tensor([[1.0, INF, 1.0]])}, "column_mass"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": NAN}, "epsilon"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"row": Slack(-0.1)}, "row="),
        ({"column": Soft(0.0)}, "column="),
        ({"column": Soft(INF)}, "column="),
    ],
)
def test_bad_input_is_named(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"cost": COST, "row_mass": A, "column_mass": B, "epsilon": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        sinkhorn(**arguments)
