"""The torch reference of ``sinkhorn``: scaling iterations on a kernel that stays in cache.

With φ = f/ε = F + log u and γ = g/ε = G + log v the plan is u·K·v, K = exp(F + G − C/ε). F and G (float64)
make the sums K·v near 1; u, v and K have the cost's dtype, so an iteration is two matrix-vector products and
a few operations on vectors. When a sum leaves [1/FAR, FAR], that half step is done in the log domain and the
kernel is made anew. Problems are solved a group at a time, as many as the cores' caches hold; each has its
own state and is finished when it has converged.

Two things make hard problems cheap and change no fixed point: ε comes down in steps where it is far below
the cost, and where convergence is slow both sides are over-relaxed (Lehmann et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Side, least_marginal, log_marginal
from signllm.kernels.sinkhorn_state import COARSEST, LINEAR, STEP, At, Progress, Scale, tiny_for

CACHE_BYTES = 768 * 1024
"""What the kernels of a group may take of each core's second-level cache (1 MB on current servers)."""

WIDE_BYTES = 1024 * 1024
"""What the float64 exponents of problems may take that are made together at the start."""

FAR = 1e8
"""A sum beyond this factor of 1 may have lost terms to underflow: float32 ends at 1e-38."""

REVIEW, FIRST_REVIEWS = 12, (2, 5)
"""Iterations between two looks at how fast a problem converges, and when the first ones are."""


def solve(
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    epsilon: Tensor,
    row: Side,
    column: Side,
    start: Tensor | None,
    *,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return plan (B, R, C), potentials (B, R) and (B, C), iterations (B,) and error (B,).

    Arguments as of ``sinkhorn``, checked; ``epsilon`` is (B,) float64.
    """
    B, R, C = cost.shape
    result = (
        torch.zeros(cost.shape, dtype=cost.dtype, device=cost.device),
        row_mass.new_zeros(B, R),
        column_mass.new_zeros(B, C),
        torch.zeros(B, dtype=torch.int64, device=cost.device),
        torch.zeros(B, dtype=torch.float64, device=cost.device),
    )
    size = max(1, torch.get_num_threads() * CACHE_BYTES // max(1, R * C * cost.element_size()))
    for begin in range(0, B, size) if R and C else ():
        some = slice(begin, begin + size)
        group = _Group(cost[some], row_mass[some], column_mass[some], epsilon[some], row, column)
        group.max_iterations, group.tolerance = max_iterations, tolerance
        result[4][some] = group.unmet_n
        if group.start(None if start is None else start[some]):
            group.solve(tuple(part[some] for part in result))
    return result


class _Group:
    """Problems whose kernels fit into cache together; iterates until each has converged."""

    iteration: int = 0
    max_iterations: int
    tolerance: float

    def __init__(
        self, cost_nRC: Tensor, a_nR: Tensor, b_nC: Tensor, epsilon_n: Tensor, row: Side, column: Side
    ) -> None:
        mass_n = torch.maximum(a_nR.sum(dim=1, dtype=torch.float64), b_nC.sum(dim=1, dtype=torch.float64))
        largest_n = torch.maximum(-cost_nRC.amin(dim=(1, 2)), cost_nRC.amax(dim=(1, 2)))
        self.unmet_n, self.absent_nRC = torch.zeros_like(mass_n), None
        if not bool(largest_n.isfinite().all() & (a_nR > 0).all() & (b_nC > 0).all()):
            is_reached_nRC = cost_nRC.isfinite() & (a_nR > 0)[:, :, None] & (b_nC > 0)[:, None]
            stranded_nR, stranded_nC = a_nR * ~is_reached_nRC.any(dim=2), b_nC * ~is_reached_nRC.any(dim=1)
            sides = ((row, stranded_nR), (column, stranded_nC))
            unmet_n = sum((least_marginal(*side).sum(dim=1) for side in sides), start=self.unmet_n)
            self.unmet_n = unmet_n / mass_n.clamp(min=tiny_for(mass_n))
            a_nR, b_nC = a_nR - stranded_nR, b_nC - stranded_nC
            self.absent_nRC = ~((a_nR > 0)[:, :, None] & (b_nC > 0)[:, None])
            largest_n = torch.where(is_reached_nRC, cost_nRC.abs(), 0).amax(dim=(1, 2))
        self.cost_nRC, self.largest_n = cost_nRC, largest_n.tolist()
        self.rows, self.columns = Scale(row, a_nR), Scale(column, b_nC)
        self.kernel_nRC = torch.empty_like(cost_nRC, memory_format=torch.contiguous_format)
        facts = zip(epsilon_n.tolist(), mass_n.tolist(), strict=True)
        self.problems = [Progress(k, e, e, mass) for k, (e, mass) in enumerate(facts)]
        self.omegas: list[float] = []
        self.omega_n1: Tensor | None = None

    def start(self, start_nC: Tensor | None) -> bool:
        """Make the kernels, from g = 0 or from a given g, with the first row half step done.

        Problems without mass that can move are left out; return whether there are others.
        """
        if start_nC is None and self.max_iterations >= 20 * REVIEW:
            for problem, largest in zip(self.problems, self.largest_n, strict=True):
                while problem.epsilon < largest * COARSEST * STEP:
                    problem.epsilon /= STEP
        can_move_n = (self.rows.mass > 0).any(dim=1)
        self.keep(can_move_n.nonzero()[:, 0].tolist())
        mass_nC = self.columns.mass
        g_nC = torch.zeros_like(mass_nC) if start_nC is None else start_nC[can_move_n]
        g_nC = torch.where(mass_nC > 0, g_nC.double(), -math.inf)
        self.notice()
        self.log_steps(range(len(self.problems)), g_nC)
        return bool(self.problems)

    def solve(self, result: tuple[Tensor, ...]) -> None:
        """Iterate, and write into ``result`` (as ``solve`` returns it) what has converged, when it has."""
        while self.problems:
            self.iteration += 1
            omega_n1 = None if self.iteration == self.max_iterations else self.relaxation()
            self.half_step(self.columns, self.rows, omega_n1)
            before_nR = self.rows.scale
            error_n = self.half_step(self.rows, self.columns, omega_n1, measure=True)
            if self.is_time_to_look(error_n):
                errors = error_n.tolist()
                coarse = [k for k, p in enumerate(self.problems) if self.may_refine(p, errors[k])]
                done = [k for k, p in enumerate(self.problems) if self.is_done(p, errors[k])]
                self.refine(coarse)
                if done:
                    self.finish(done, before_nR, error_n, result)

    def relaxation(self) -> Tensor | None:
        """Return ω (n, 1), or nothing where all are 1."""
        omegas = [problem.relaxation for problem in self.problems]
        if omegas != self.omegas:  # it seldom changes, and making a tensor costs as much as a product
            self.omegas = omegas
            self.omega_n1 = self.rows.scale.new_tensor(omegas)[:, None] if max(omegas) > 1 else None
        return self.omega_n1

    def enough(self, problem: Progress) -> float:
        """Return the error at which a problem is done: only a plain step meets the columns exactly."""
        if self.iteration == self.max_iterations:
            return math.inf
        is_plain = problem.relaxation == 1.0 and problem.epsilon == problem.target
        return self.tolerance * problem.mass if is_plain else -1.0

    def is_time_to_look(self, error_n: Tensor) -> bool:
        """Return whether a problem may be done, may go on to a finer ε, or has a review now."""
        if self.iteration == self.max_iterations or self.iteration % REVIEW == 0:
            return True
        return self.iteration in FIRST_REVIEWS or bool((error_n <= self.notable_n).any())

    def may_refine(self, problem: Progress, error: float) -> bool:
        """Return whether a problem is solved well enough, or has tried long enough, for a finer ε."""
        if problem.epsilon == problem.target or self.iteration == self.max_iterations:
            return False
        return error < LINEAR * problem.mass or self.iteration % (2 * REVIEW) == 0

    def is_done(self, problem: Progress, error: float) -> bool:
        """Return whether a problem is done now; adapt its relaxation now and then."""
        if problem.is_done:
            return False
        if error <= self.enough(problem) or self.iteration == self.max_iterations:
            return True
        if problem.epsilon > problem.target:
            return False
        if error <= self.tolerance * problem.mass:
            problem.relaxation = 1.0  # see ``enough``
        elif self.iteration % REVIEW == 0 or self.iteration in FIRST_REVIEWS:
            problem.review(error, self.iteration)
        return False

    def half_step(
        self, mine: Scale, other: Scale, omega_n1: Tensor | None, *, measure: bool = False
    ) -> Tensor:
        """Give one side the marginals it asks for; return, if measured, how far off (n,) they were (L1)."""
        sums = torch.bmm(other.scale[:, None], self.facing(self.kernel_nRC, other))[:, 0]
        wanted, before = mine.wanted(sums), mine.scale
        moved_n = (wanted - before).mul_(sums).abs_().sum(dim=1) if measure else sums
        mine.scale = wanted
        if omega_n1 is not None:
            mine.scale = torch.where(before > 0, (wanted / before).pow_(omega_n1).mul_(before), wanted)
        least, most = (float(bound) for bound in sums.aminmax())
        if not (least >= 1 / FAR and most <= FAR):
            is_void_n = ~((sums.amin(dim=1) >= 1 / FAR) & (sums.amax(dim=1) <= FAR))
            void = [k for k in is_void_n.nonzero()[:, 0].tolist() if not self.problems[k].is_done]
            if void:
                at = self.at(void)
                phi = mine.potential(at, before[at]) if measure else None
                moved = self.log_step(void, mine, other.potential(at, other.scale[at]), phi)
                if measure:
                    moved_n[at] = moved.to(moved_n.dtype)
        return moved_n

    def log_step(
        self, members: Sequence[int], mine: Scale, phi_other: Tensor, phi: Tensor | None = None
    ) -> Tensor:
        """Do a half step of some problems in the log domain; return how far off (m,) they were (L1).

        Without ``phi``, the potential before the step, that is not known. Problems whose error is enough
        are left as they are.
        """
        epsilon_m1, mass = self.epsilon(members), mine.mass[self.at(members)].double()
        cost = self.cost_nRC[self.places(members)].to(
            torch.float64, copy=True
        )  # types mixed in a product are slow
        exponent = self.facing(cost, mine).mul_(-1 / epsilon_m1[:, :, None]).add_(phi_other[:, None])
        top = exponent.amax(dim=2, keepdim=True).nan_to_num_(neginf=0.0)
        kernel = exponent.sub_(top).to(mine.scale.dtype).exp_()
        sums = kernel.sum(dim=2)
        kernel.div_(sums.clamp(min=tiny_for(sums))[:, :, None])
        log_sums = top[:, :, 0] + sums.double().log()
        log_wanted = log_marginal(mine.side, mass, epsilon_m1, log_sums)
        wanted = torch.where(mass > 0, log_wanted, -math.inf).exp().clamp_(max=1 / tiny_for(sums))
        parts = (kernel, wanted.to(sums.dtype), log_sums, phi_other)
        if phi is None:
            self.absorb(members, mine, *parts)
            return torch.full_like(epsilon_m1[:, 0], math.inf)
        moved = (wanted - (log_sums + phi).exp()).abs().sum(dim=1)
        for k, error, *own in zip(members, moved.tolist(), *(part.split(1) for part in parts), strict=True):
            if not error <= self.enough(self.problems[k]):
                self.absorb([k], mine, *own)
        return moved

    def absorb(
        self,
        members: Sequence[int],
        mine: Scale,
        kernel: Tensor,
        wanted: Tensor,
        log_sums: Tensor,
        phi_other: Tensor,
    ) -> None:
        """Make ``kernel``, whose rows are ``mine`` and add up to 1, the kernel of some problems."""
        other, at, epsilon_m1 = (
            self.columns if mine is self.rows else self.rows,
            self.at(members),
            self.epsilon(members),
        )
        others = torch.bmm(wanted[:, None], kernel)[:, 0].clamp_(min=tiny_for(kernel))
        kernel.div_(others[:, None])
        mine.absorb(at, -log_sums, wanted, epsilon_m1)
        present = other.mass[at] > 0
        other.absorb(at, phi_other - others.double().log(), torch.where(present, others, 0.0), epsilon_m1)
        if self.absent_nRC is not None:  # 1 keeps the sums of masked rows and columns near 1
            kernel.masked_fill_(self.facing(self.absent_nRC[self.places(members)], mine), 1.0)
        self.facing(self.kernel_nRC, mine)[at] = kernel

    def refine(self, members: list[int]) -> None:
        """Bring the ε of some problems a step nearer to the one asked for, keeping g."""
        if not members:
            return
        at = self.at(members)
        g_mC = self.columns.potential(at, self.columns.scale[at]) * self.epsilon(members)
        for k in members:
            self.problems[k].refine(at_once=2 * self.iteration > self.max_iterations)
        self.notice()
        self.log_steps(members, g_mC)

    def log_steps(self, members: Sequence[int], g_mC: Tensor) -> None:
        """Begin again from g with the row half step, so many problems together that they stay in cache."""
        size = max(1, WIDE_BYTES // (8 * self.cost_nRC[0].numel()))
        for begin in range(0, len(members), size):
            some = members[begin : begin + size]
            self.log_step(some, self.rows, g_mC[begin : begin + size] / self.epsilon(some))

    def finish(self, done: list[int], scale_nR: Tensor, error_n: Tensor, result: tuple[Tensor, ...]) -> None:
        """Write the plans and potentials of those that are done; let them leave when they are many."""
        plan, f, g, iterations, error = result
        at, places, epsilon_m1 = self.at(done), self.places(done), self.epsilon(done)
        for k in done:
            scaled = torch.mul(self.kernel_nRC[k], scale_nR[k, :, None], out=plan[self.problems[k].place])
            scaled.mul_(self.columns.scale[k])
            self.problems[k].is_done = True
        phi, gamma = self.rows.potential(at, scale_nR[at]), self.columns.potential(at, self.columns.scale[at])
        f[places] = (epsilon_m1 * phi.nan_to_num_(neginf=0.0)).to(f.dtype)
        g[places] = (epsilon_m1 * gamma.nan_to_num_(neginf=0.0)).to(g.dtype)
        iterations[places] = self.iteration
        error[places] += error_n[at] / error.new_tensor([self.problems[k].mass for k in done])
        staying = [k for k, problem in enumerate(self.problems) if not problem.is_done]
        if 2 * len(staying) <= len(self.problems):
            self.keep(staying)
        self.notice()

    def notice(self) -> None:
        """Note the errors (n,) from which on a problem is to be looked at between reviews."""
        shares = [
            LINEAR if p.epsilon > p.target else -1.0 if p.is_done else self.tolerance for p in self.problems
        ]
        notable = [share * p.mass for share, p in zip(shares, self.problems, strict=True)]
        self.notable_n = self.rows.mass.new_tensor(notable)

    def keep(self, staying: list[int]) -> None:
        """Let the others leave."""
        if len(staying) < len(self.problems):
            members = torch.tensor(staying, dtype=torch.int64, device=self.kernel_nRC.device)
            self.problems = [self.problems[k] for k in staying]
            self.rows.keep(members)
            self.columns.keep(members)
            self.kernel_nRC = self.kernel_nRC.index_select(0, members)

    def facing(self, matrix_nRC: Tensor, side: Scale) -> Tensor:
        """Return the matrices with ``side`` along their rows."""
        return matrix_nRC if side is self.rows else matrix_nRC.mT

    def at(self, members: Sequence[int]) -> At:
        """Return what indexes the group's tensors."""
        return _index(members, self.kernel_nRC.device)

    def places(self, members: Sequence[int]) -> At:
        """Return what indexes costs and results, which stay where they are."""
        return _index([self.problems[k].place for k in members], self.kernel_nRC.device)

    def epsilon(self, members: Sequence[int]) -> Tensor:
        """Return the present ε (m, 1) of some problems."""
        epsilons = [self.problems[k].epsilon for k in members]
        return torch.tensor(epsilons, dtype=torch.float64, device=self.kernel_nRC.device)[:, None]


def _index(numbers: Sequence[int], device: torch.device) -> At:
    """Return a slice where the numbers follow each other: no copy."""
    if len(numbers) > 0 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(list(numbers), dtype=torch.int64, device=device)
