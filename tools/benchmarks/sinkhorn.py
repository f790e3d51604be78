"""Batched entropic transport: ours compared with POT and geomloss at equal marginal error, and the bound.

Every problem transports random masses between random points of the unit square, squared distance over its
largest as cost, in float32. The error is Σ|plan's row sums − a| + Σ|column sums − b| over the mass, of the
worst problem of the batch, taken by us in float64 from the plan that a solver returns. The target is ours; a
rival goes exactly as far as it needs to reach it (`benchmarks.reaching`). POT and geomloss take one epsilon
for all problems: each problem's cost is divided by its own beforehand, which is the same problem with epsilon
1.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contender import Case, Contender, Tuned
from benchmarks.reaching import by_iterations, by_threshold
from signllm.kernels import SinkhornResult, sinkhorn

TOLERANCE = 1e-5
MOST_ITERATIONS = 100_000


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases; in "uneven", epsilon goes from 1e-3 to 1 within the batch."""
    if quick:
        even, uneven = [(5, 17)], (4, 13)
    elif device.type == "cuda":
        even, uneven = [(64, 64), (64, 256), (256, 256)], (64, 256)
    else:
        even, uneven = [(64, 256), (64, 64)], (64, 64)
    square = [_case(b, n, 1e-2, 1e-2, quick) for b, n in even]
    return [*square, _case(*uneven, 3e-2 if quick else 1e-3, 1.0, quick)]


def _case(batch: int, size: int, smallest: float, largest: float, quick: bool) -> Case:
    spread = f"eps {smallest:g}" if smallest == largest else f"uneven eps {smallest:g}..{largest:g}"
    return Case(
        operator="sinkhorn",
        name=f"{batch}x{size}x{size} {spread}",
        error_is="marginal error, worst problem",
        build=functools.partial(_build, batch, size, smallest, largest),
    )


@dataclass(frozen=True)
class _Problems:
    cost: Tensor  # (B, R, C)
    row_mass: Tensor  # (B, R)
    column_mass: Tensor  # (B, C)
    epsilon: Tensor  # (B,) float64

    @functools.cached_property
    def scaled(self) -> Tensor:
        """(B, R, C) cost in units of each problem's epsilon."""
        return self.cost / self.epsilon.to(self.cost)[:, None, None]

    def error(self, plan: Tensor) -> float:
        plan, a, b = plan.double(), self.row_mass.double(), self.column_mass.double()
        unmet = (plan.sum(2) - a).abs().sum(1) + (plan.sum(1) - b).abs().sum(1)
        return float((unmet / a.sum(1)).max())


def _draw(
    batch: int, size: int, smallest: float, largest: float, device: torch.device, seed: int
) -> _Problems:
    generator = torch.Generator(device).manual_seed(seed)
    x, y = (torch.rand(batch, size, 2, generator=generator, device=device) for _ in range(2))
    cost = torch.cdist(x, y).square()
    masses = [torch.rand(batch, size, generator=generator, device=device) + 0.1 for _ in range(2)]
    a, b = (mass / mass.sum(1, keepdim=True) for mass in masses)
    steps = torch.linspace(0, 1, batch, dtype=torch.float64, device=device)
    epsilon = smallest * (largest / smallest) ** steps
    return _Problems(cost / cost.amax((1, 2), keepdim=True), a, b, epsilon)


def _build(
    batch: int, size: int, smallest: float, largest: float, device: torch.device, seed: int
) -> list[Contender]:
    problems = _draw(batch, size, smallest, largest, device, seed)

    def ours() -> SinkhornResult:
        return sinkhorn(
            problems.cost,
            problems.row_mass,
            problems.column_mass,
            epsilon=problems.epsilon,
            tolerance=TOLERANCE,
            max_iterations=MOST_ITERATIONS,
        )

    once = functools.cache(ours)
    target = functools.cache(lambda: max(TOLERANCE, problems.error(once().plan)))

    def error(result: SinkhornResult) -> tuple[float, dict[str, float]]:
        iterations = result.iterations.double()
        detail = {"mean_iterations": float(iterations.mean()), "most_iterations": float(iterations.max())}
        return problems.error(result.plan), detail

    return [
        Contender(name="ours", role="ours", run=lambda _: ours(), error=error),
        Contender(
            name="bare products",
            role="bound",
            run=_products(problems, lambda: once().iterations),
            note="matrix-vector products of our iterations alone",
        ),
        *_rivals(problems, target),
    ]


def _products(problems: _Problems, iterations_of: Callable[[], Tensor]) -> Callable[[float | None], None]:
    """Return what runs two products per iteration: problem by problem on a CPU, all at once on a GPU."""
    kernel = torch.full_like(problems.cost, 1 / problems.cost.shape[2])  # a mean: numbers keep their size

    def run(_: float | None) -> None:
        (_at_once if problems.cost.is_cuda else _one_by_one)(problems, kernel, iterations_of())

    return run


def _one_by_one(problems: _Problems, kernel: Tensor, iterations: Tensor) -> None:
    a, b = problems.row_mass.clone(), problems.column_mass.clone()
    for k, u, v, count in zip(kernel, a, b, iterations.tolist(), strict=True):
        transposed = k.T
        for _ in range(count):
            torch.mv(k, v, out=u)
            torch.mv(transposed, u, out=v)


def _at_once(problems: _Problems, kernel: Tensor, iterations: Tensor) -> None:
    """As many products as all problems together need, spread evenly."""
    for _ in range(round(float(iterations.double().mean()))):
        torch.bmm(kernel, problems.column_mass[:, :, None])
        torch.bmm(kernel.mT, problems.row_mass[:, :, None])


def _rivals(problems: _Problems, target: Callable[[], float]) -> list[Contender]:
    def counted(
        name: str, package: str, plan_after: Callable[[_Problems, int], Tensor], note: str = ""
    ) -> Contender:
        def run(iterations: float | None) -> Tensor:
            return plan_after(problems, int(iterations or 1))

        def tune(limit_s: float) -> Tuned:
            return by_iterations(run, problems.error, target(), limit_s, problems.cost.device)

        return Contender(name=name, role="rival", run=run, package=package, tune=tune, brief=20, note=note)

    def stopped(name: str, method: str) -> Contender:
        run = _Looped(problems, method)

        def tune(limit_s: float) -> Tuned:
            run.limit_s = limit_s
            return by_threshold(run, problems.error, target(), problems.cost.device)

        return Contender(name=name, role="rival", run=run, package="ot", tune=tune, brief=0.1)

    return [
        counted("POT solve_batch log_sinkhorn", "ot", functools.partial(_pot_batch, "log_sinkhorn")),
        counted("POT solve_batch sinkhorn", "ot", functools.partial(_pot_batch, "sinkhorn")),
        stopped("POT ot.sinkhorn looped", "sinkhorn"),
        stopped("POT ot.sinkhorn looped log", "sinkhorn_log"),
        counted("geomloss ot.solve_batch", "geomloss", _geomloss, "anneals to the end"),
    ]


def _pot_batch(method: str, problems: _Problems, iterations: int) -> Tensor:
    from ot.batch import solve_batch

    a, b = problems.row_mass, problems.column_mass
    solution = solve_batch(
        problems.scaled, 1.0, a, b, max_iter=iterations, tol=0.0, method=method, grad="detach"
    )
    plan: Tensor = solution.plan
    return plan


def _geomloss(problems: _Problems, iterations: int) -> Tensor:
    from geomloss import ot

    masses = {"a": problems.row_mass, "b": problems.column_mass}
    plan: Tensor = ot.solve_batch(problems.scaled, reg=1.0, max_iter=iterations, **masses).plan
    return plan


class _Looped:
    """`ot.sinkhorn` problem by problem, each with its own epsilon and POT's own stopping rule.

    It gives up between problems after ``limit_s``; plans not reached stay 0, which the error shows.
    """

    def __init__(self, problems: _Problems, method: str) -> None:
        self.problems, self.method, self.limit_s = problems, method, float("inf")

    def __call__(self, threshold: float | None) -> Tensor:
        import ot

        plan, deadline = torch.zeros_like(self.problems.cost), time.perf_counter() + self.limit_s
        parts = (self.problems.cost, self.problems.row_mass, self.problems.column_mass)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what did not converge is seen in the error
            for number, (cost, a, b) in enumerate(zip(*parts, strict=True)):
                if time.perf_counter() > deadline:
                    break
                plan[number] = ot.sinkhorn(
                    a,
                    b,
                    cost,
                    float(self.problems.epsilon[number]),
                    method=self.method,
                    stopThr=threshold,
                    numItermax=MOST_ITERATIONS,
                )
        return plan
