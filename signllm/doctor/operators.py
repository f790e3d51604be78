"""Findings about each operator on each device: the implementation, its reason and its error.

The expected result is computed here in float64 with textbook formulas, without any code of the operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from signllm.doctor.finding import Finding
from signllm.errors import UsageError
from signllm.kernels import mmd, sinkhorn, vq_assign
from signllm.kernels.implementation import choose

LARGEST_ERROR = 1e-5
"""Error that float32 may have in problems of this size, in which all numbers are about 1."""


def findings() -> list[Finding]:
    """Return a finding per device and operator.

    Raises:
        UsageError: an implementation was forced that this machine does not have.
    """
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    checks = {"vq_assign": _vq_assign_error, "sinkhorn": _sinkhorn_error, "mmd": _mmd_error}
    return [_finding(name, check, device) for device in devices for name, check in checks.items()]


def _finding(name: str, error_on: Callable[[torch.device], float], device: torch.device) -> Finding:
    chosen = choose(device)
    title = f"{name} on {device}"
    facts = {"implementation": chosen.implementation, "why": chosen.reason}
    try:
        error = error_on(device)
    except UsageError:
        raise
    except Exception as failure:
        description = f"{chosen.implementation} fails: {type(failure).__name__}: {failure}".splitlines()[0]
        return Finding(
            group="operators",
            name=title,
            state="wrong",
            description=description,
            remedy=_remedy(facts),
            facts=facts,
        )
    is_right = error <= LARGEST_ERROR
    description = (
        f"{chosen.implementation}, {'max error' if is_right else 'WRONG by'} {error:.1e}; {chosen.reason}"
    )
    return Finding(
        group="operators",
        name=title,
        state="ok" if is_right else "wrong",
        description=description,
        remedy="" if is_right else _remedy(facts),
        facts={**facts, "max_error": error},
    )


def _remedy(facts: dict[str, str]) -> str:
    other = "SIGNLLM_KERNELS=torch avoids it; " if facts["implementation"] == "triton" else ""
    return f"{other}please report this with `signllm doctor --json`"


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def _vq_assign_error(device: torch.device) -> float:
    """Return how much farther the chosen codes are than the nearest, in squared distance."""
    x, codebook = _normal(67, 17), _normal(9, 17)
    distances = (x.double()[:, None] - codebook.double()).square().sum(dim=2)
    index = vq_assign(x.to(device), codebook.to(device)).cpu()
    return float((distances.gather(1, index[:, None])[:, 0] - distances.amin(dim=1)).max())


def _sinkhorn_error(device: torch.device) -> float:
    """Return the largest difference of a plan's entries from those after 2000 plain iterations."""
    cost, epsilon = _normal(3, 7, 5).abs(), 0.25
    row, column = torch.full((3, 7), 1 / 7), torch.full((3, 5), 1 / 5)
    f, g = torch.zeros(3, 7, 1, dtype=torch.float64), torch.zeros(3, 1, 5, dtype=torch.float64)
    scores = cost.double() / -epsilon
    for _ in range(2000):
        f = row.double().log()[:, :, None] - (scores + g).logsumexp(2, keepdim=True)
        g = column.double().log()[:, None] - (scores + f).logsumexp(1, keepdim=True)
    masses = (row.to(device), column.to(device))
    result = sinkhorn(cost.to(device), *masses, epsilon=epsilon, tolerance=1e-6)
    return float((result.plan.cpu() - (scores + f + g).exp()).abs().max())


def _mmd_error(device: torch.device) -> float:
    """Return the largest difference of the value and of its gradient in x."""
    x, y, bandwidths = _normal(33, 6), _normal(29, 6) + 0.5, (1.0, 2.0, 4.0)

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(dim=2)
        return torch.stack([(squared / (-2 * s * s)).exp() for s in bandwidths]).sum(dim=0).mean()

    exact = x.double().requires_grad_()
    z = y.double()
    expected = mean_kernel(exact, exact) + mean_kernel(z, z) - 2 * mean_kernel(exact, z)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    own = x.to(device).requires_grad_()
    value = mmd(own, y.to(device), bandwidths=bandwidths)
    (gradient,) = torch.autograd.grad(value, own)
    differences = ((value.cpu() - expected).abs(), (gradient.cpu() - expected_gradient).abs().max())
    return float(max(float(d.detach()) for d in differences))
