"""Maximum mean discrepancy, five bandwidths: ours compared with full kernel matrices and geomloss.

The bound is the bare matrix products that nobody can leave out: x·xᵀ, y·yᵀ, x·yᵀ forward (half of the first
two is redundant, so ours may go below it), and four more of the same size for the gradients. The error is
relative, against float64; of a gradient, over evenly spaced rows of x.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Case, Contender
from signllm.kernels import median_bandwidths, mmd

BLOCK_ROWS = 1024
GRADIENT_ROWS = 128


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return forward alone, and with the gradients of both samples."""
    cuda = device.type == "cuda"
    n, e = (257, 32) if quick else (16384, 4096) if cuda else (8192, 1024)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32} if cuda else {"fp32": torch.float32}
    return [
        Case(
            operator="mmd",
            name=f"{n}x{n}x{e} {named} {'forward+backward' if gradient else 'forward'}",
            error_is="relative error" + (" of the gradient" if gradient else ""),
            build=functools.partial(_build, n, e, dtype, gradient),
        )
        for named, dtype in dtypes.items()
        for gradient in (False, True)
    ]


def _build(
    n: int, e: int, dtype: torch.dtype, gradient: bool, device: torch.device, seed: int
) -> list[Contender]:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(n, e, generator=generator, device=device).to(dtype)
    y = (1.1 * torch.randn(n, e, generator=generator, device=device) + 0.1).to(dtype)
    bandwidths = median_bandwidths(x, y)
    error = functools.partial(_error, _Truth(x, y, bandwidths), gradient)
    run = functools.partial(_run, x=x, y=y, gradient=gradient)
    return [
        Contender(
            name="ours",
            role="ours",
            run=lambda _: run(lambda a, b: mmd(a, b, bandwidths=bandwidths)),
            error=error,
        ),
        Contender(
            name="bare products",
            role="bound",
            run=lambda _: _products(x, y, 7 if gradient else 3),
            note=f"{7 if gradient else 3} products of {n}x{n}x{e}",
        ),
        Contender(
            name="naive torch",
            role="rival",
            run=lambda _: run(lambda a, b: _naive(a, b, bandwidths)),
            error=error,
            note="three kernel matrices",
        ),
        Contender(
            name="geomloss",
            role="rival",
            run=lambda _: run(lambda a, b: _geomloss(a, b, bandwidths)),
            error=error,
            package="geomloss",
            note="one call per bandwidth",
        ),
    ]


def _run(value_of: Any, *, x: Tensor, y: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return the value and, if asked, the gradient of x (that of y is computed too)."""
    if not gradient:
        with torch.no_grad():
            return value_of(x, y), None
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = value_of(x, y)
    return value.detach(), torch.autograd.grad(value, (x, y))[0]


def _products(x: Tensor, y: Tensor, count: int) -> None:
    for number in range(count):
        (x if number != 1 else y) @ (y if number else x).T


def _naive(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return sum((-squared.clamp(min=0) / (2 * s**2)).exp() for s in bandwidths).mean()  # type: ignore[union-attr]

    x, y = x.float(), y.float()  # in bfloat16 distances would be nowhere near
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def _geomloss(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    from geomloss import SamplesLoss

    x, y = x.float(), y.float()
    losses = [SamplesLoss("gaussian", blur=s, backend="tensorized")(x, y) for s in bandwidths]
    return 2 * torch.stack(losses).sum()  # its loss is half the squared MMD


class _Truth:
    """The value, and the gradient at some rows of x, in float64."""

    def __init__(self, x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> None:
        self.x, self.y, self.bandwidths = x, y, bandwidths
        self.rows = torch.linspace(0, len(x) - 1, min(GRADIENT_ROWS, len(x)), device=x.device).round().long()

    @functools.cached_property
    def value(self) -> float:
        """MMD² by blocks of rows; of the symmetric matrices the upper triangle."""
        x, y = self.x.double(), self.y.double()
        within = sum(self._upper(z) / len(z) ** 2 for z in (x, y))
        between = sum(self._sum(block, y) for block in x.split(BLOCK_ROWS))
        return within - 2 * between / (len(x) * len(y))

    def _upper(self, z: Tensor) -> float:
        total = 0.0
        for begin in range(0, len(z), BLOCK_ROWS):
            block = z[begin : begin + BLOCK_ROWS]
            total += self._sum(block, block)
            total += 2 * self._sum(block, z[begin + BLOCK_ROWS :])
        return total

    @functools.cached_property
    def gradient(self) -> Tensor:
        """The gradient at ``rows`` of x: Σ_j w_ij (x_i − z_j) over both samples."""
        selected, gradient = self.x[self.rows].double(), 0
        for z, share in ((self.x, 2 / len(self.x) ** 2), (self.y, -2 / (len(self.x) * len(self.y)))):
            kernels = zip(self._kernels(selected, z.double()), self.bandwidths, strict=True)
            slope = -share * sum(kernel / s**2 for kernel, s in kernels)
            gradient = gradient + slope.sum(1)[:, None] * selected - slope @ z.double()
        return gradient  # type: ignore[return-value]

    def _kernels(self, a: Tensor, b: Tensor) -> list[Tensor]:
        squared = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)
        return [(squared / (-2 * s**2)).exp_() for s in self.bandwidths]

    def _sum(self, a: Tensor, b: Tensor) -> float:
        return float(sum(kernel.sum() for kernel in self._kernels(a, b)))


def _error(
    truth: _Truth, gradient: bool, result: tuple[Tensor, Tensor | None]
) -> tuple[float, dict[str, float]]:
    value_error = abs(float(result[0]) - truth.value) / abs(truth.value)
    detail = {"value": float(result[0]), "true_value": truth.value, "relative_error_of_value": value_error}
    if result[1] is None:
        return value_error, detail
    distance = (result[1][truth.rows].double() - truth.gradient).norm()
    return float(distance / truth.gradient.norm()), detail
