"""The Triton solver against POT, closed forms and the torch reference; interpreted where there is no GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Exact, Side, Slack, Soft
from signllm.kernels.sinkhorn_torch import solve as reference

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of void iterations interpreted

SIDES = (Exact(), Slack(0.02), Soft(0.3))
Solved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float | list[float],
    row: Side = SIDES[0],
    column: Side = SIDES[0],
    start: Tensor | None = None,
    *,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    on_chip_bytes: int = 64 * 1024,
) -> Solved:
    from signllm.kernels.sinkhorn_triton import solve as launch

    target = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    epsilons = torch.as_tensor(epsilon, dtype=torch.float64).expand(len(cost)).contiguous().to(target)
    tensors = [None if t is None else t.to(target) for t in (cost, a, b, start)]
    results = launch(
        *tensors[:3], epsilons, row, column, tensors[3],
        max_iterations=max_iterations, tolerance=tolerance, on_chip_bytes=on_chip_bytes,
    )  # fmt: skip
    assert all(result.isfinite().all() for result in results)
    return tuple(result.cpu() for result in results)


def problem(
    B: int, R: int, C: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cost, a, b = (torch.rand(B, *n, generator=generator, dtype=torch.float64) for n in ((R, C), (R,), (C,)))
    a, b = a + 0.05, b + 0.05
    return cost.to(dtype), (a / a.sum(1, keepdim=True)).to(dtype), (b / b.sum(1, keepdim=True)).to(dtype)


def close(result: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(result.double(), expected.double().cpu(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("row", "column"), itertools.product(SIDES, SIDES))
def test_all_sides_agree_with_the_reference_on_chip_and_streamed(row: Side, column: Side) -> None:
    cost, a, b = problem(2, 7, 5, seed=6)
    wide = [t.double() for t in (cost, a, b)]
    epsilons = torch.tensor([1.0, 0.7], dtype=torch.float64)
    options = {"max_iterations": 20_000, "tolerance": 1e-11}
    exact = reference(*wide, epsilons, row, column, None, **options)
    plain = reference(cost, a, b, epsilons, row, column, None, max_iterations=2000, tolerance=1e-6)
    for on_chip_bytes in (64 * 1024, 256):  # all rows resident, 4 of 7 (others are streamed)
        plan, f, g, iterations, error = solve(
            cost, a, b, epsilons.tolist(), row, column, on_chip_bytes=on_chip_bytes
        )
        assert float(error.max()) <= 1e-6
        assert int(iterations.max()) < 2000
        rounding = 2 * float((plain[0].double() - exact[0]).abs().max()) + 3e-6
        close(plan, exact[0], rounding)
        epsilon_B11 = epsilons[:, None, None]
        close(plan, ((f[:, :, None].double() + g[:, None].double() - wide[0]) / epsilon_B11).exp(), 3e-6)


@pytest.mark.parametrize(("row", "column"), [(Exact(), Exact()), (Slack(0.02), Soft(0.3))])
def test_float64_is_exact_to_its_own_rounding(row: Side, column: Side) -> None:
    cost, a, b = problem(1, 5, 7, seed=7, dtype=torch.float64)
    epsilon = torch.tensor([0.2], dtype=torch.float64)
    expected = reference(cost, a, b, epsilon, row, column, None, max_iterations=20_000, tolerance=1e-13)
    plan = solve(cost, a, b, 0.2, row, column, tolerance=1e-13)[0]
    close(plan, expected[0], 1e-11)


@pytest.mark.parametrize(
    ("B", "R", "C"), [(1, 1, 1), (3, 1, 5), (1, 13, 1), (2, 17, 11), (1, 3, 33), (2, 5, 16)]
)
@pytest.mark.parametrize("on_chip_bytes", [64 * 1024, 64])
def test_awkward_shapes_meet_their_marginals(B: int, R: int, C: int, on_chip_bytes: int) -> None:
    cost, a, b = problem(B, R, C, seed=1)
    plan, _, _, _, error = solve(cost, a, b, 0.2, on_chip_bytes=on_chip_bytes)
    assert float(error.max()) <= 1e-6
    close(plan.sum(2), a, 2e-6)
    close(plan.sum(1), b, 1e-6)


def test_costs_may_be_shared_and_transposed() -> None:
    cost, a, b = problem(2, 5, 4, seed=2)
    shared = cost[:1].expand(2, 5, 4)
    close(solve(shared, a, b, 0.1)[0], solve(shared.contiguous(), a, b, 0.1)[0], 0.0)
    turned = cost.mT.contiguous().mT
    close(solve(turned, a, b, 0.1)[0], solve(cost, a, b, 0.1)[0], 0.0)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4])
def test_small_epsilon_is_stable(epsilon: float) -> None:
    cost, a, b = problem(1, 6, 5, seed=12)
    plan, _, _, iterations, error = solve(1e3 * cost, a, b, 1e3 * epsilon, max_iterations=150, tolerance=1e-5)
    close(plan.sum(1), b, 1e-6)
    assert abs(float((plan.sum(2) - a).abs().sum()) - float(error)) < 1e-5
    assert int(iterations) <= 150


def test_each_problem_stops_by_itself_and_alone_as_in_a_batch() -> None:
    cost, a, b = problem(3, 8, 8, seed=11)
    epsilons = [1.0, 0.1, 0.03]
    plan, f, g, iterations, error = solve(cost, a, b, epsilons)
    assert iterations[0] < iterations[1] < iterations[2]
    for k, epsilon in enumerate(epsilons):
        alone = solve(cost[k : k + 1], a[k : k + 1], b[k : k + 1], epsilon)
        for result, expected in zip(alone, (plan, f, g, iterations, error), strict=True):
            close(result[0], expected[k], 0.0)


def test_a_start_at_the_solution_is_one_iteration_or_two() -> None:
    cost, a, b = problem(2, 6, 7, seed=3)
    plan, _, g, _, _ = solve(cost, a, b, 0.1)
    again = solve(cost, a, b, 0.1, start=g, tolerance=5e-6)
    assert int(again[3].max()) <= 2
    close(again[0], plan, 5e-6)


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("on_chip_bytes", [64 * 1024, 64])
def test_mass_zero_is_absence(row: Side, on_chip_bytes: int) -> None:
    cost, a, b = problem(3, 7, 6, seed=8)
    a[0, 2], b[0, 5], a[2] = 0, 0, 0
    cost[0, 2] = 1e30
    rows, columns = [0, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4]
    options = {"row": row, "column": Soft(0.5), "max_iterations": 200}
    plan, f, g, iterations, error = solve(cost, a, b, 0.3, on_chip_bytes=on_chip_bytes, **options)
    alone = solve(cost[:1, rows][:, :, columns], a[:1, rows], b[:1, columns], 0.3, **options)
    close(plan[:1, rows][:, :, columns], alone[0], 1e-6)
    assert plan[0, 2].sum() == plan[0, :, 5].sum() == plan[2].sum() == f[0, 2] == g[0, 5] == 0
    assert int(iterations[2]) == 0
    assert float(error[2]) == 0.0


def test_what_cannot_be_met_is_reported() -> None:
    cost, a, b = problem(3, 4, 5, seed=9)
    cost[0, 1, 2] = torch.inf
    cost[1, 3] = torch.inf
    cost[2] = torch.inf
    plan, _, _, iterations, error = solve(cost, a, b, 0.2, max_iterations=100)
    assert plan[0, 1, 2] == 0
    assert float(error[0]) <= 1e-6
    assert float(error[1]) >= 2 * float(a[1, 3]) - 1e-5  # it stays, and columns ask the other rows for it
    assert float(error[2]) == pytest.approx(2.0)  # neither side is met at all
    assert iterations.tolist()[1:] == [100, 0]
    slack = solve(cost, a, b, 0.2, Slack(1.0), Soft(1.0), max_iterations=100)
    assert float(slack[4].max()) <= 1e-6


def test_masses_that_do_not_add_up_keep_columns_and_tell_the_rows_error() -> None:
    cost, a, b = problem(1, 4, 5, seed=10)
    plan, _, _, iterations, error = solve(cost, a, 2 * b, 0.2, max_iterations=60)
    assert float(error) == pytest.approx(0.5, abs=1e-3)
    assert int(iterations) == 60
    close(plan.sum(1), 2 * b, 2e-6)


@pytest.mark.parametrize("seed", range(6))
def test_never_nan(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = 100 * torch.rand(2, 5, 4, generator=generator)
    cost[torch.rand(cost.shape, generator=generator) < 0.4] = torch.inf
    a, b = (10 ** (-8 * torch.rand(2, n, generator=generator)) for n in (5, 4))
    a[torch.rand(a.shape, generator=generator) < 0.2] = 0
    row, column = SIDES[seed % 3], SIDES[(seed + seed // 3) % 3]
    epsilon = (1.0, 1e-2, 1e-4)[seed % 3]
    plan, *_ = solve(cost, a, b, epsilon, row, column, max_iterations=20)
    assert (plan >= 0).all()
    assert (plan[cost.isinf()] == 0).all()


def test_kernel_variants_name_every_argument() -> None:
    from signllm.kernels.sinkhorn_triton import kernel_variants, solve_kernel

    for variant in kernel_variants():
        assert set(variant.signature) == set(solve_kernel.arg_names)
        assert {n for n, kind in variant.signature.items() if kind == "constexpr"} == set(variant.constants)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "R", "C"), [(256, 256, 256), (64, 1024, 1024), (5, 129, 257), (2, 300, 5000)])
def test_sizes_of_a_gpu(B: int, R: int, C: int, dtype: torch.dtype) -> None:
    cost, a, b = problem(B, R, C, seed=13, dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    plan, f, g, iterations, error = solve(cost, a, b, 0.05, tolerance=tolerance)
    assert float(error.max()) <= tolerance
    assert int(iterations.max()) < 2000
    close(plan.double().sum(2), a, 2e-6)
    log_plan = (f[:, :, None].double() + g[:, None].double() - cost.double()) / 0.05
    close(plan, log_plan.exp(), 1e-6)
    first = torch.full((1,), 0.05, dtype=torch.float64)
    expected = reference(
        cost[:1].double(), a[:1].double(), b[:1].double(), first, Exact(), Exact(), None,
        max_iterations=5000, tolerance=1e-11,
    )  # fmt: skip
    assert math.isfinite(float(expected[4]))
    close(plan[:1], expected[0], 1e-6 if dtype == torch.float32 else 1e-9)
