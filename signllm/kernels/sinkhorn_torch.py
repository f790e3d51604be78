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
from signllm.kernels.sinkhorn_state import LINEAR, Progress, Scale, tiny_for

CACHE_BYTES = 768 * 1024
"""What the kernels of a group may take of each core's second-level cache (1 MB on current servers)."""

FAR = 1e8
"""A sum beyond this factor of 1 may have lost terms to underflow: float32 ends at 1e-38."""

REVIEW, FIRST_REVIEWS = 12, (2, 5)
"""Iterations between two looks at how fast a problem converges, and when the first ones are."""

COARSEST, STEP = 1 / 8, 1 / 4
"""ε comes down from at most this share of the largest cost, by this factor."""


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
        if not bool(can_move_n.all()):
            self.keep(can_move_n.nonzero()[:, 0].tolist())
        members = self.indices(range(len(self.problems)))
        mass_nC = self.columns.mass
        g_nC = mass_nC.double() * 0 if start_nC is None else start_nC[can_move_n].double()
        if self.problems:
            self.log_step(
                members, self.rows, torch.where(mass_nC > 0, g_nC, -math.inf) / self.epsilon(members)
            )
        return bool(self.problems)

    def solve(self, result: tuple[Tensor, ...]) -> None:
        """Iterate, and write into ``result`` (as ``solve`` returns it) what has converged, when it has."""
        while self.problems:
            self.iteration += 1
            omega_n1 = None if self.iteration == self.max_iterations else self.relaxation()
            self.half_step(self.columns, self.rows, omega_n1)
            before_nR = self.rows.scale
            errors = self.half_step(self.rows, self.columns, omega_n1, measure=True).tolist()
            pairs = enumerate(zip(self.problems, errors, strict=True))
            done = [k for k, (problem, error) in pairs if self.look(k, problem, error)]
            if done:
                self.finish(done, before_nR, errors, result)

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

    def look(self, k: int, problem: Progress, error: float) -> bool:
        """Return whether a problem is done now; adapt its relaxation and ε now and then."""
        if problem.is_done:
            return False
        if error <= self.enough(problem) or self.iteration == self.max_iterations:
            return True
        if problem.epsilon > problem.target:
            if error < LINEAR * problem.mass or self.iteration % (2 * REVIEW) == 0:
                self.refine(k, at_once=2 * self.iteration > self.max_iterations)
        elif error <= self.tolerance * problem.mass:
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
            void = self.indices(
                [k for k in is_void_n.nonzero()[:, 0].tolist() if not self.problems[k].is_done]
            )
            phi = mine.potential(void, before[void]) if measure else None
            moved = self.log_step(void, mine, other.potential(void, other.scale[void]), phi)
            moved_n = moved_n.index_copy(0, void, moved.to(moved_n.dtype)) if measure else moved_n
        return moved_n

    def log_step(self, members: Tensor, mine: Scale, phi_other: Tensor, phi: Tensor | None = None) -> Tensor:
        """Do a half step of some problems in the log domain; return how far off (m,) they were (L1).

        Without ``phi``, the potential before the step, that is not known. Problems whose error is enough
        are left as they are.
        """
        epsilon_m1, mass = self.epsilon(members), mine.mass[members].double()
        is_whole = len(members) == len(self.cost_nRC)
        cost = self.cost_nRC if is_whole else self.cost_nRC[self.places(members)]
        exponent = (self.facing(cost, mine) * (-1 / epsilon_m1)[:, :, None]).add_(
            phi_other[:, None]
        )  # float64
        top = exponent.amax(dim=2, keepdim=True).nan_to_num_(neginf=0.0)
        kernel = exponent.sub_(top).to(mine.scale.dtype).exp_()
        sums = kernel.sum(dim=2)
        log_sums = top[:, :, 0] + sums.double().log()
        log_wanted = log_marginal(mine.side, mass, epsilon_m1, log_sums)
        wanted = torch.where(mass > 0, log_wanted, -math.inf).exp().clamp_(max=1 / tiny_for(sums))
        moved = torch.full_like(epsilon_m1[:, 0], math.inf)
        if phi is not None:
            moved = (wanted - (log_sums + phi).exp()).abs().sum(dim=1)
        enough = moved.new_tensor([self.enough(self.problems[k]) for k in members.tolist()])
        on = ((moved > enough) | (phi is None)).nonzero()[:, 0]
        kernel.div_(sums.clamp(min=tiny_for(sums))[:, :, None])
        if len(on) == len(members):
            self.absorb(members, mine, kernel, wanted.to(sums.dtype), log_sums, phi_other)
        elif len(on) > 0:
            self.absorb(members[on], mine, kernel[on], wanted[on].to(sums.dtype), log_sums[on], phi_other[on])
        return moved

    def absorb(
        self,
        members: Tensor,
        mine: Scale,
        kernel: Tensor,
        wanted: Tensor,
        log_sums: Tensor,
        phi_other: Tensor,
    ) -> None:
        """Make ``kernel``, whose rows are ``mine`` and add up to 1, the kernel of some problems."""
        other, epsilon_m1 = self.columns if mine is self.rows else self.rows, self.epsilon(members)
        others = torch.bmm(wanted[:, None], kernel)[:, 0].clamp_(min=tiny_for(kernel))
        kernel.div_(others[:, None])
        mine.absorb(members, -log_sums, wanted, epsilon_m1)
        present = other.mass[members] > 0
        other.absorb(
            members, phi_other - others.double().log(), torch.where(present, others, 0.0), epsilon_m1
        )
        if self.absent_nRC is not None:  # 1 keeps the sums of masked rows and columns near 1
            kernel.masked_fill_(self.facing(self.absent_nRC[self.places(members)], mine), 1.0)
        self.facing(self.kernel_nRC, mine)[members] = kernel

    def refine(self, k: int, *, at_once: bool) -> None:
        """Bring ε of problem k a step nearer to the one asked for, keeping g."""
        problem, members = self.problems[k], self.indices([k])
        g_1C = self.columns.potential(members, self.columns.scale[members]) * problem.epsilon
        problem.epsilon = problem.target if at_once else max(problem.target, problem.epsilon * STEP)
        problem.relaxation, problem.contraction, problem.error_before = 1.0, 0.0, math.inf
        self.log_step(members, self.rows, g_1C / problem.epsilon)

    def finish(
        self, done: list[int], scale_nR: Tensor, errors: list[float], result: tuple[Tensor, ...]
    ) -> None:
        """Write the plans and potentials of those that are done; let them leave when they are many."""
        plan, f, g, iterations, error = result
        members = self.indices(done)
        phi, gamma = (
            self.rows.potential(members, scale_nR[members]),
            self.columns.potential(members, self.columns.scale[members]),
        )
        for k, phi_R, gamma_C in zip(done, phi, gamma, strict=True):
            problem = self.problems[k]
            b = problem.place
            torch.mul(self.kernel_nRC[k], scale_nR[k, :, None], out=plan[b]).mul_(self.columns.scale[k])
            f[b], g[b] = (problem.epsilon * x.nan_to_num(neginf=0.0) for x in (phi_R, gamma_C))
            iterations[b] = self.iteration
            error[b] += errors[k] / problem.mass
            problem.is_done = True
        staying = [k for k, problem in enumerate(self.problems) if not problem.is_done]
        if 2 * len(staying) <= len(self.problems):
            self.keep(staying)

    def keep(self, staying: list[int]) -> None:
        """Let the others leave."""
        members = self.indices(staying)
        self.problems = [self.problems[k] for k in staying]
        self.rows.keep(members)
        self.columns.keep(members)
        self.kernel_nRC = self.kernel_nRC.index_select(0, members)

    def facing(self, matrix_nRC: Tensor, side: Scale) -> Tensor:
        """Return the matrices with ``side`` along their rows."""
        return matrix_nRC if side is self.rows else matrix_nRC.mT

    def indices(self, members: Sequence[int]) -> Tensor:
        """Return positions in the group as a tensor (m,)."""
        return torch.tensor(members, dtype=torch.int64, device=self.kernel_nRC.device)

    def places(self, members: Tensor) -> list[int]:
        """Return where some problems stand in the costs, which do not move."""
        return [self.problems[k].place for k in members.tolist()]

    def epsilon(self, members: Tensor) -> Tensor:
        """Return the present ε (m, 1) of some problems."""
        epsilons = [self.problems[k].epsilon for k in members.tolist()]
        return torch.tensor(epsilons, dtype=torch.float64, device=members.device)[:, None]
