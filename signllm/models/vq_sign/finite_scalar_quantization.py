"""Finite scalar quantization (FSQ; Mentzer et al. 2023, arXiv 2309.15505): codes without a codebook loss.

A linear map projects z to d numbers, number i is bounded and rounded to one of L_i integers, and a second
linear map projects the integers back to D. The codes are the K = L_1 L_2 ... L_d points of this grid, and the
character is the number of the point. Every point can be reached from the first step, so there is no codebook
loss, no commitment loss and nothing to revive.

:class:`~signllm.models.vq_sign.quantizer.Quantizer` uses this for ``update="fsq"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from signllm.distributed.collectives import world_and_rank


class FiniteScalarQuantizer(nn.Module):
    """The two projections of FSQ and the rounding between them.

    The weights are parameters of this module, not of submodules, because the projections are computed in at
    least 32 bits, and under ZeRO-3 only the forward method of a module may read its parameters.

    Attributes:
        levels: L_1, ..., L_d.
        encode_weight, encode_bias: (d, D) and (d,), projection of z to the d numbers.
        decode_weight, decode_bias: (D, d) and (D,), projection of grid points to codes.
    """

    def __init__(self, levels: Sequence[int], width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.levels = tuple(levels)
        numbers = len(self.levels)
        # If the D numbers of z have variance 1, so have the d numbers, and the bounds map them to all levels.
        self.encode_weight = nn.Parameter(_uniform(numbers, width, generator))
        self.encode_bias = nn.Parameter(torch.zeros(numbers))
        self.decode_weight = nn.Parameter(_uniform(width, numbers, generator))
        self.decode_bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize vectors z (n, D).

        Returns:
            The projected grid points (n, D), the characters (n,) int64, and the codebook (K, D) as a
            constant: all projected grid points. The gradient of the first passes through the rounding as if
            it were the identity (round_ste of Mentzer et al., section 3.1) and trains both projections and z.
        """
        bounded = self._bounded(z)
        rounded = bounded.detach().round()
        straight_through = bounded + (rounded - bounded).detach()
        scaled = straight_through / _half_widths(self.levels, rounded)
        vectors = functional.linear(scaled.to(self.decode_weight.dtype), self.decode_weight, self.decode_bias)
        return vectors.to(z.dtype), grid_index(rounded, self.levels), self.project_grid()

    @torch.no_grad()
    def characters(self, z: Tensor) -> Tensor:
        """Return the characters (n,) of vectors (n, D); not under ZeRO-3, because it is not ``forward``."""
        return grid_index(self._bounded(z).round(), self.levels)

    @torch.no_grad()
    def project_grid(self) -> Tensor:
        """Return the codebook (K, D): the points of the grid, projected to D."""
        points = grid_points(self.levels, device=self.decode_weight.device).to(self.decode_weight.dtype)
        return functional.linear(points, self.decode_weight, self.decode_bias)

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        """Initialize the projections by the d principal components of ``sample`` (n, D).

        On the sample, the d numbers are uncorrelated with mean 0 and variance 1, so that the points of the
        grid are used about equally often. The codes are near the vectors that they replace. If the sample has
        fewer than d directions of variance, the remaining numbers keep their random weights. All ranks use
        the result of rank 0. Mentzer et al. have no such step.
        """
        mean = sample.double().mean(dim=0)
        variances, directions = torch.linalg.eigh((sample.double() - mean).T.cov(correction=0))
        varies = variances > 1e-6 * variances[-1].clamp(min=1e-9)
        components = min(len(self.levels), int(varies.sum()))
        scales = variances.flip(0)[:components].sqrt()
        directions = directions.flip(1)[:, :components]
        self.encode_weight[:components] = (directions / scales).T.to(self.encode_weight.dtype)
        self.encode_bias.copy_(-(self.encode_weight.double() @ mean))
        self.decode_weight[:, :components] = (directions * scales).to(self.decode_weight.dtype)
        self.decode_bias.copy_(mean)
        if world_and_rank()[0] > 1:
            for parameter in self.parameters():
                torch.distributed.broadcast(parameter, src=0)

    def _bounded(self, z: Tensor) -> Tensor:
        """Return the bounded numbers (n, d), float32, that are rounded to the digits of a character.

        Raises:
            ValueError: a value of z or of the projection is not finite.
        """
        numbers = functional.linear(z.float(), self.encode_weight.float(), self.encode_bias.float())
        if not bool(numbers.isfinite().all()):
            raise ValueError("z, or the projection of z to the numbers that are rounded, is not finite")
        return bound_numbers(numbers, self.levels)


def bound_numbers(numbers: Tensor, levels: Sequence[int]) -> Tensor:
    """Return (n, d) numbers, bounded so that rounding number i gives one of L_i integers around 0.

    This is the bounding function f of Mentzer et al., section 3.1, as in their appendix A.1:
    h tanh(y + s) - o with h = (L - 1) / 2. For even L the offset o is 1/2, because the L integers then lie
    between -L/2 and L/2 - 1. The shift s maps 0 to 0: it is the inverse of tanh at o / h. (Their code has
    tan(o / h), which maps 0 only near 0.) h is larger by 0.1 % than stated, because tanh would have no
    inverse at o / h for L = 2.

    Args:
        numbers: (n, d) float32 numbers y.
        levels: L_1, ..., L_d.
    """
    counts = torch.tensor(levels, dtype=numbers.dtype, device=numbers.device)
    half = (counts - 1) * (1.001 / 2)
    offset = torch.where(counts % 2 == 0, 0.5, 0.0)
    return torch.tanh(numbers + torch.atanh(offset / half)) * half - offset


def grid_index(rounded: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the number (n,), int64, of each grid point: its digits in the mixed radix of the levels.

    As in Mentzer et al., appendix A.1, the first digit changes fastest.

    Args:
        rounded: (n, d) integers, of which number i is between -floor(L_i / 2) and -floor(L_i / 2) + L_i - 1.
        levels: L_1, ..., L_d.
    """
    digits = (rounded + _half_widths(levels, rounded)).long()
    return (digits * _digit_values(levels, digits.device)).sum(dim=1)


def grid_points(levels: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Return all K points (K, d), float32, in the order of :func:`grid_index`, scaled to [-1, 1]."""
    counts = torch.tensor(levels, device=device)
    numbers = torch.arange(math.prod(levels), device=device)
    half = _half_widths(levels, counts)
    return ((numbers[:, None] // _digit_values(levels, device)) % counts - half) / half


def _half_widths(levels: Sequence[int], like: Tensor) -> Tensor:
    """Return floor(L_i / 2), (d,), in the dtype of ``like``; it scales the rounded numbers to [-1, 1]."""
    return torch.tensor([count // 2 for count in levels], dtype=like.dtype, device=like.device)


def _digit_values(levels: Sequence[int], device: torch.device | str) -> Tensor:
    """Return the value (d,), int64, of each digit of a character: the product of the levels before it."""
    return torch.tensor([math.prod(levels[:place]) for place in range(len(levels))], device=device)


def _uniform(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Return random weights (outputs, inputs) that map inputs of variance 1 to outputs of variance 1."""
    return (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * math.sqrt(3 / inputs)
