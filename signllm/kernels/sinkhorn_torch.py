"""The torch reference of ``sinkhorn``: scaling iterations with stabilized kernels that stay in the cache.

The potentials are split into φ = f/ε = F + log u and γ = g/ε = G + log v, so that the plan is u·K·v with the
kernel K = exp(F + G − C/ε). The offsets F and G (float64) are chosen such that the sums K·v are near 1. The
scales u and v and the kernel K have the dtype of the cost, so an iteration is two matrix-vector products and
a few vector operations. If a sum leaves [1/FAR, FAR], the half step is repeated in the log domain, which
gives new offsets and a new kernel. Problems are solved in groups whose kernels fit into the caches of the
processor cores; each problem stops when it has converged.

Two accelerations do not change the fixed point: if ε is much smaller than the costs, it is lowered in steps
(ε scaling), and if convergence is slow, both sides are over-relaxed (Lehmann et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from signllm.kernels.sinkhorn_sides import Side, least_marginal, log_marginal
from signllm.kernels.sinkhorn_state import COARSEST, LINEAR, STEP, At, Progress, Scale, tiny_for

CACHE_BYTES = 768 * 1024
"""Bytes of each core's second-level cache for the kernels of a group (current servers have at least 1 MB)."""

WIDE_BYTES = 1024 * 1024
"""Bytes of float64 exponents that are computed at a time when kernels are built."""

FAR = 1e8
"""Largest factor between a sum and 1. Beyond it, terms may underflow: the smallest float32 is 1e-38."""

REVIEW, FIRST_REVIEWS = 12, (2, 5)
"""Iterations between two reviews of the rate of convergence, and the iterations of the first two reviews."""


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

    The arguments are those of :func:`signllm.kernels.sinkhorn`, already checked; ``epsilon`` is (B,) float64.
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
        chunk = slice(begin, begin + size)
        group = _Group(cost[chunk], row_mass[chunk], column_mass[chunk], epsilon[chunk], row, column)
        group.max_iterations, group.tolerance = max_iterations, tolerance
        result[4][chunk] = group.unmet_n
        if group.start(None if start is None else start[chunk]):
            group.solve(tuple(part[chunk] for part in result))
    return result


class _Group:
    """A group of problems whose kernels fit into the cache together, and the iterations that solve it.

    Suffixes: n problems of the group, m some of them, R rows, C columns.
    """

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
            immovable_nR, immovable_nC = a_nR * ~is_reached_nRC.any(dim=2), b_nC * ~is_reached_nRC.any(dim=1)
            sides = ((row, immovable_nR), (column, immovable_nC))
            unmet_n = sum((least_marginal(*side).sum(dim=1) for side in sides), start=self.unmet_n)
            self.unmet_n = unmet_n / mass_n.clamp(min=tiny_for(mass_n))
            a_nR, b_nC = a_nR - immovable_nR, b_nC - immovable_nC
            self.absent_nRC = ~((a_nR > 0)[:, :, None] & (b_nC > 0)[:, None])
            largest_n = torch.where(is_reached_nRC, cost_nRC.abs(), 0).amax(dim=(1, 2))
        self.cost_nRC, self.largest_n = cost_nRC, largest_n.tolist()
        self.rows, self.columns = Scale(row, a_nR), Scale(column, b_nC)
        self.kernel_nRC = torch.empty_like(cost_nRC, memory_format=torch.contiguous_format)
        settings = zip(epsilon_n.tolist(), mass_n.tolist(), strict=True)
        self.problems = [Progress(k, e, e, mass) for k, (e, mass) in enumerate(settings)]
        self.omegas: list[float] = []
        self.omega_n1: Tensor | None = None

    def start(self, start_nC: Tensor | None) -> bool:
        """Build the kernels from g = 0 or from the given g, including the first half step of the rows.

        Problems without mass that can move are removed from the group.

        Returns:
            whether any problem remains.
        """
        if start_nC is None and self.max_iterations >= 20 * REVIEW:
            for problem, largest in zip(self.problems, self.largest_n, strict=True):
                while problem.epsilon < largest * COARSEST * STEP:
                    problem.epsilon /= STEP
        can_move_n = (self.rows.mass > 0).any(dim=1)
        self.retain(can_move_n.nonzero()[:, 0].tolist())
        mass_nC = self.columns.mass
        g_nC = torch.zeros_like(mass_nC) if start_nC is None else start_nC[can_move_n]
        g_nC = torch.where(mass_nC > 0, g_nC.double(), -math.inf)
        self.update_check_thresholds()
        self.log_steps_in_chunks(range(len(self.problems)), g_nC)
        return bool(self.problems)

    def solve(self, result: tuple[Tensor, ...]) -> None:
        """Iterate until all problems have converged, and write their results into ``result``."""
        while self.problems:
            self.iteration += 1
            omega_n1 = None if self.iteration == self.max_iterations else self.relaxation()
            self.half_step(self.columns, self.rows, omega_n1)
            before_nR = self.rows.scale
            error_n = self.half_step(self.rows, self.columns, omega_n1, measure=True)
            if self.is_check_due(error_n):
                errors = error_n.tolist()
                coarse = [k for k, p in enumerate(self.problems) if self.may_refine(p, errors[k])]
                done = [k for k, p in enumerate(self.problems) if self.is_done(p, errors[k])]
                self.refine(coarse)
                if done:
                    self.finish(done, before_nR, error_n, result)

    def relaxation(self) -> Tensor | None:
        """Return the relaxation ω of each problem, (n, 1), or None if all are 1."""
        omegas = [problem.relaxation for problem in self.problems]
        if omegas != self.omegas:  # creating a tensor costs as much as a product, and ω rarely changes
            self.omegas = omegas
            self.omega_n1 = self.rows.scale.new_tensor(omegas)[:, None] if max(omegas) > 1 else None
        return self.omega_n1

    def stopping_error(self, problem: Progress) -> float:
        """Return the error at which a problem is done; negative if it must not stop in this iteration.

        Only after a step without relaxation, at the requested ε, are the column constraints met exactly.
        """
        if self.iteration == self.max_iterations:
            return math.inf
        is_plain = problem.relaxation == 1.0 and problem.epsilon == problem.target
        return self.tolerance * problem.mass if is_plain else -1.0

    def is_check_due(self, error_n: Tensor) -> bool:
        """Return whether some problem may be done, may continue with a smaller ε, or has a review now."""
        if self.iteration == self.max_iterations or self.iteration % REVIEW == 0:
            return True
        return self.iteration in FIRST_REVIEWS or bool((error_n <= self.check_below_n).any())

    def may_refine(self, problem: Progress, error: float) -> bool:
        """Return whether a problem may continue with a smaller ε: it is close to convergence or slow."""
        if problem.epsilon == problem.target or self.iteration == self.max_iterations:
            return False
        return error < LINEAR * problem.mass or self.iteration % (2 * REVIEW) == 0

    def is_done(self, problem: Progress, error: float) -> bool:
        """Return whether a problem is done now; from time to time, adapt its relaxation."""
        if problem.is_done:
            return False
        if error <= self.stopping_error(problem) or self.iteration == self.max_iterations:
            return True
        if problem.epsilon > problem.target:
            return False
        if error <= self.tolerance * problem.mass:
            problem.relaxation = 1.0  # required to stop: see ``stopping_error``
        elif self.iteration % REVIEW == 0 or self.iteration in FIRST_REVIEWS:
            problem.review(error, self.iteration)
        return False

    def half_step(
        self, side: Scale, other: Scale, omega_n1: Tensor | None, *, measure: bool = False
    ) -> Tensor:
        """Update the scale of one side such that its marginals meet its constraint.

        Args:
            side: the side to update.
            other: the opposite side.
            omega_n1: relaxation (n, 1), or None for none.
            measure: whether to compute the error.

        Returns:
            the L1 error (n,) of the marginals before the step, if ``measure``; otherwise an arbitrary tensor.
        """
        sums = torch.bmm(other.scale[:, None], self.orient(self.kernel_nRC, other))[:, 0]
        target, before = side.target_scale(sums), side.scale
        moved_n = (target - before).mul_(sums).abs_().sum(dim=1) if measure else sums
        side.scale = target
        if omega_n1 is not None:
            side.scale = torch.where(before > 0, (target / before).pow_(omega_n1).mul_(before), target)
        smallest, largest = (float(bound) for bound in sums.aminmax())
        if not (smallest >= 1 / FAR and largest <= FAR):
            is_void_n = ~((sums.amin(dim=1) >= 1 / FAR) & (sums.amax(dim=1) <= FAR))
            void = [k for k in is_void_n.nonzero()[:, 0].tolist() if not self.problems[k].is_done]
            if void:
                at = self.tensor_index(void)
                phi = side.potential(at, before[at]) if measure else None
                moved = self.log_step(void, side, other.potential(at, other.scale[at]), phi)
                if measure:
                    moved_n[at] = moved.to(moved_n.dtype)
        return moved_n

    def log_step(
        self, members: Sequence[int], side: Scale, phi_other: Tensor, phi: Tensor | None = None
    ) -> Tensor:
        """Do a half step of some problems in the log domain and rebuild their kernels.

        Problems whose error is small enough to stop are not changed.

        Args:
            members: the problems.
            side: the side to update.
            phi_other: (m, ...) potential of the opposite side, in units of ε.
            phi: potential of this side before the step; without it, the error is unknown.

        Returns:
            the L1 error (m,) of the marginals before the step; infinite if unknown.
        """
        epsilon_m1, mass = self.epsilon(members), side.mass[self.tensor_index(members)].double()
        cost = self.cost_nRC[self.result_index(members)].to(
            torch.float64, copy=True
        )  # types mixed in a product are slow
        exponent = self.orient(cost, side).mul_(-1 / epsilon_m1[:, :, None]).add_(phi_other[:, None])
        top = exponent.amax(dim=2, keepdim=True).nan_to_num_(neginf=0.0)
        kernel = exponent.sub_(top).to(side.scale.dtype).exp_()
        sums = kernel.sum(dim=2)
        kernel.div_(sums.clamp(min=tiny_for(sums))[:, :, None])
        log_sums = top[:, :, 0] + sums.double().log()
        log_target = log_marginal(side.constraint, mass, epsilon_m1, log_sums)
        target = torch.where(mass > 0, log_target, -math.inf).exp().clamp_(max=1 / tiny_for(sums))
        parts = (kernel, target.to(sums.dtype), log_sums, phi_other)
        if phi is None:
            self.absorb(members, side, *parts)
            return torch.full_like(epsilon_m1[:, 0], math.inf)
        moved = (target - (log_sums + phi).exp()).abs().sum(dim=1)
        for k, error, *own in zip(members, moved.tolist(), *(part.split(1) for part in parts), strict=True):
            if not error <= self.stopping_error(self.problems[k]):
                self.absorb([k], side, *own)
        return moved

    def absorb(
        self,
        members: Sequence[int],
        side: Scale,
        kernel: Tensor,
        target: Tensor,
        log_sums: Tensor,
        phi_other: Tensor,
    ) -> None:
        """Set the kernel, the scales and the offsets of some problems from the results of ``log_step``.

        The rows of ``kernel`` correspond to ``side`` and sum to 1.
        """
        other, at, epsilon_m1 = (
            self.columns if side is self.rows else self.rows,
            self.tensor_index(members),
            self.epsilon(members),
        )
        others = torch.bmm(target[:, None], kernel)[:, 0].clamp_(min=tiny_for(kernel))
        kernel.div_(others[:, None])
        side.absorb(at, -log_sums, target, epsilon_m1)
        present = other.mass[at] > 0
        other.absorb(at, phi_other - others.double().log(), torch.where(present, others, 0.0), epsilon_m1)
        if self.absent_nRC is not None:  # so that the sums of masked rows and columns stay near 1
            kernel.masked_fill_(self.orient(self.absent_nRC[self.result_index(members)], side), 1.0)
        self.orient(self.kernel_nRC, side)[at] = kernel

    def refine(self, members: list[int]) -> None:
        """Lower the ε of some problems by one step towards the requested one; the potential g is kept."""
        if not members:
            return
        at = self.tensor_index(members)
        g_mC = self.columns.potential(at, self.columns.scale[at]) * self.epsilon(members)
        for k in members:
            self.problems[k].refine(at_once=2 * self.iteration > self.max_iterations)
        self.update_check_thresholds()
        self.log_steps_in_chunks(members, g_mC)

    def log_steps_in_chunks(self, members: Sequence[int], g_mC: Tensor) -> None:
        """Restart problems from g with the half step of the rows, in chunks that stay in the cache."""
        size = max(1, WIDE_BYTES // (8 * self.cost_nRC[0].numel()))
        for begin in range(0, len(members), size):
            chunk = members[begin : begin + size]
            self.log_step(chunk, self.rows, g_mC[begin : begin + size] / self.epsilon(chunk))

    def finish(self, done: list[int], scale_nR: Tensor, error_n: Tensor, result: tuple[Tensor, ...]) -> None:
        """Write the plans and potentials of the problems ``done``; remove done problems if they are many."""
        plan, f, g, iterations, error = result
        at, places, epsilon_m1 = self.tensor_index(done), self.result_index(done), self.epsilon(done)
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
            self.retain(staying)
        self.update_check_thresholds()

    def update_check_thresholds(self) -> None:
        """Set the errors (n,) below which a problem is checked between reviews."""
        shares = [
            LINEAR if p.epsilon > p.target else -1.0 if p.is_done else self.tolerance for p in self.problems
        ]
        thresholds = [share * p.mass for share, p in zip(shares, self.problems, strict=True)]
        self.check_below_n = self.rows.mass.new_tensor(thresholds)

    def retain(self, staying: list[int]) -> None:
        """Remove all problems from the group except those in ``staying``."""
        if len(staying) < len(self.problems):
            members = torch.tensor(staying, dtype=torch.int64, device=self.kernel_nRC.device)
            self.problems = [self.problems[k] for k in staying]
            self.rows.retain(members)
            self.columns.retain(members)
            self.kernel_nRC = self.kernel_nRC.index_select(0, members)

    def orient(self, matrix_nRC: Tensor, side: Scale) -> Tensor:
        """Return the matrices, transposed if necessary, such that their rows correspond to ``side``."""
        return matrix_nRC if side is self.rows else matrix_nRC.mT

    def tensor_index(self, members: Sequence[int]) -> At:
        """Return an index of some problems in the tensors of the group."""
        return _index(members, self.kernel_nRC.device)

    def result_index(self, members: Sequence[int]) -> At:
        """Return an index of some problems in costs and results, from which no problem is removed."""
        return _index([self.problems[k].place for k in members], self.kernel_nRC.device)

    def epsilon(self, members: Sequence[int]) -> Tensor:
        """Return the current ε (m, 1) of some problems."""
        epsilons = [self.problems[k].epsilon for k in members]
        return torch.tensor(epsilons, dtype=torch.float64, device=self.kernel_nRC.device)[:, None]


def _index(numbers: Sequence[int], device: torch.device) -> At:
    """Return an index of consecutive numbers as a slice, which copies nothing, and of others as a tensor."""
    if len(numbers) > 0 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return slice(numbers[0], numbers[-1] + 1)
    return torch.tensor(list(numbers), dtype=torch.int64, device=device)
