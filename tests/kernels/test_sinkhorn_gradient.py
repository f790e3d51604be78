"""The plan's gradient by implicit differentiation, the objective's by the envelope theorem, the operator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from signllm.kernels import Exact, Side, Slack, Soft, objective, sinkhorn
from signllm.kernels.implementation import Implementation

SIDES = (Exact(), Slack(0.02), Soft(0.3))


def problem(batch: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs and log masses; masses are normalized from them, because exact sides need equal sums."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, rows, columns), (batch, rows), (batch, columns))
    cost, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return cost, a, b


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("column", SIDES)
@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 3, 5), (1, 1, 3)])
def test_the_plan_differentiates(row: Side, column: Side, shape: tuple[int, int, int]) -> None:
    cost, a, b = (t.requires_grad_() for t in problem(*shape, seed=3))

    def plan(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        masses = a.softmax(1), b.softmax(1)
        return sinkhorn(
            cost, *masses, epsilon=0.2, row=row, column=column, tolerance=1e-13, max_iterations=5000
        ).plan

    assert torch.autograd.gradcheck(plan, (cost, a, b), atol=1e-5)


@pytest.mark.parametrize("row", SIDES)
@pytest.mark.parametrize("column", SIDES)
def test_the_objective_differentiates_by_the_envelope_theorem(row: Side, column: Side) -> None:
    cost, a, b = (t.requires_grad_() for t in problem(2, 4, 3, seed=4))
    epsilon = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def value(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inputs = (cost, a.softmax(1), b.softmax(1))
        sides = {"epsilon": epsilon, "row": row, "column": column}
        result = sinkhorn(*inputs, **sides, tolerance=1e-13, max_iterations=5000)
        return objective(result, *inputs, **sides)

    assert torch.autograd.gradcheck(value, (cost, a, b), atol=1e-5)


def primal(
    plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, rhos: tuple[float, float]
) -> Tensor:
    """Return ⟨C, P⟩ + ε Σ P (log P − 1) + ρ KL(P1 | a) + ρ' KL(Pᵀ1 | b)."""
    value = (plan * cost).sum((1, 2)) + epsilon * (plan.xlogy(plan) - plan).sum((1, 2))
    for marginal, mass, rho in ((plan.sum(2), a, rhos[0]), (plan.sum(1), b, rhos[1])):
        value = value + rho * (marginal.xlogy(marginal / mass) - marginal + mass).sum(1)
    return value


def test_the_objective_is_the_least_that_any_plan_attains() -> None:
    cost, a, b = problem(1, 5, 4, seed=5)
    sides = {"epsilon": 0.1, "row": Soft(0.3), "column": Soft(0.7)}
    result = sinkhorn(cost, a, b, **sides, tolerance=1e-13, max_iterations=5000)
    least = objective(result, cost, a, b, **sides)
    torch.testing.assert_close(least, primal(result.plan, cost, a, b, 0.1, (0.3, 0.7)), rtol=1e-9, atol=1e-9)
    for seed in range(5):
        other = result.plan * (1 + 0.1 * torch.randn(result.plan.shape, generator=torch.manual_seed(seed)))
        assert (primal(other, cost, a, b, 0.1, (0.3, 0.7)) > least).all()


def test_masked_and_forbidden_entries_have_no_gradient_and_spoil_none() -> None:
    cost, a, b = problem(1, 4, 4, seed=6)
    cost[0, 1, 2] = torch.inf
    a[0, 3] = 0
    free = cost.clone().requires_grad_()
    plan = sinkhorn(free, a, b, epsilon=0.2, row=Soft(0.3), column=Soft(0.3), tolerance=1e-12).plan
    plan.square().sum().backward()
    assert free.grad is not None
    assert free.grad.isfinite().all()
    assert free.grad[0, 1, 2] == 0
    assert (free.grad[0, 3] == 0).all()
    assert (free.grad[0, 0] != 0).all()


def test_a_shared_cost_collects_the_gradients_of_all_problems() -> None:
    cost, a, b = problem(1, 4, 3, seed=7)
    masses = [torch.cat([m, m.flip(1)]).softmax(1) for m in (a, b)]
    shared, apart = cost[0].clone().requires_grad_(), cost.repeat(2, 1, 1).requires_grad_()
    for inputs in (shared, apart):
        sinkhorn(inputs, *masses, epsilon=0.2, tolerance=1e-12).plan.square().sum().backward()
    assert shared.grad is not None
    torch.testing.assert_close(shared.grad, apart.grad.sum(0))  # type: ignore[union-attr]


def test_float32_gradients_are_those_of_float64_up_to_rounding() -> None:
    exact = problem(3, 17, 9, seed=8)
    grads = []
    for dtype in (torch.float32, torch.float64):
        cost, a, b = (t.to(dtype).requires_grad_() for t in exact)
        plan = sinkhorn(cost, a.softmax(1), b.softmax(1), epsilon=0.1, tolerance=1e-7).plan
        (plan * torch.linspace(0, 1, 9, dtype=dtype)).square().sum().backward()
        grads.append(torch.cat([t.grad.flatten().double() for t in (cost, a, b)]))  # type: ignore[union-attr]
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()


def test_the_operator_keeps_the_contract_of_torch(implementation: Implementation) -> None:
    cost, a, b = (t.float() for t in problem(2, 5, 4, seed=9))
    epsilon = torch.tensor([0.2, 0.5], dtype=torch.float64)
    for needed in (False, True):
        inputs = (cost.clone().requires_grad_(needed), a.softmax(1).requires_grad_(needed), b.softmax(1))
        arguments = (*inputs, epsilon, None, [0.0, 0.0, 2.0, 0.3], 300, 1e-6, False)
        torch.library.opcheck(torch.ops.signllm.sinkhorn.default, arguments)


def test_it_compiles_into_one_graph_with_its_gradient(implementation: Implementation) -> None:
    cost, a, b = problem(2, 5, 4, seed=10)

    def loss(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        result = sinkhorn(cost, a.softmax(1), b.softmax(1), epsilon=0.2, column=Soft(0.3), tolerance=1e-12)
        return result.plan.square().sum() + result.error.sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        inputs = [t.clone().requires_grad_() for t in (cost, a, b)]
        function(*inputs).backward()
        grads.append([t.grad for t in inputs])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled)


MEMORY = """
import resource, sys, torch
from signllm.kernels import sinkhorn
torch.manual_seed(0)
cost = torch.rand(4, 400, 400, requires_grad=True)
masses = torch.full((4, 400), 1 / 400)
def run(iterations):
    sinkhorn(cost, masses, masses, epsilon=1e-3, tolerance=0, max_iterations=iterations).plan.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(3)
print(run(5), run(300))
"""


def test_memory_does_not_grow_with_the_iterations() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    few, many = (int(kilobytes) for kilobytes in done.stdout.split())
    assert (
        many - few < 4 * 400 * 400 * 4 / 1024
    )  # less than one more copy of the plan, for 295 more iterations
