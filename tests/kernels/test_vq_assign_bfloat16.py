"""Codes excluded in bfloat16: the result equals float32 for any data, and the bound always holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from signllm.kernels import vq_assign, vq_assign_bfloat16
from signllm.kernels.implementation import force_implementation

N, D, K = 300, 512, 96


def sample(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def data(kind: str) -> tuple[Tensor, Tensor]:
    x, codebook = sample(1, N, D), sample(2, K, D)
    if kind == "clustered":
        return codebook[torch.arange(N) % K] + 0.5 * x, codebook
    if kind == "far":
        return x + 100, codebook + 100
    if kind == "uneven":
        return x * torch.logspace(-6, 6, N)[:, None], codebook * torch.logspace(-3, 1, K)[:, None]
    if kind == "denormal":
        return x * 1e-30, codebook * 1e-30
    if kind == "half a unit off":  # every number of both sides rounds the same way
        return (1 + 2.0**-9) * x.sign(), (1 + 2.0**-9) * codebook.sign() * (1 + 0.01 * sample(3, K, 1))
    return x, codebook


KINDS = ["random", "clustered", "far", "uneven", "denormal", "half a unit off"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_nearest_code_is_excluded(kind: str) -> None:
    """This also runs on processors without bfloat16 products; the bound does not depend on them."""
    x, codebook = data(kind)
    centre = codebook.mean(dim=0)
    x, codebook = x - centre, codebook - centre
    norms = codebook.square().sum(dim=1)
    rounded = vq_assign_bfloat16.RoundedCodes.from_codes(codebook, norms, len(x))
    kept = rounded._candidates(x, norms)
    scores = norms.double() - 2 * x.double() @ codebook.double().T
    assert kept.gather(1, scores.argmin(dim=1, keepdim=True)).all()
    if kind in ("random", "clustered"):
        assert kept.sum(dim=1).float().mean() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = data(kind)
    x[7] = codebook[5]
    codebook[50] = codebook[5]
    with force_implementation("torch"):
        monkeypatch.setattr(vq_assign_bfloat16, "is_worthwhile", lambda *_: True)
        screened = vq_assign(x, codebook, return_distance=True)
        monkeypatch.setattr(vq_assign_bfloat16, "is_worthwhile", lambda *_: False)
        plain = vq_assign(x, codebook, return_distance=True)
    torch.testing.assert_close(screened[1], plain[1], rtol=1e-6, atol=0)
    if kind != "denormal":
        assert torch.equal(screened[0], plain[0])


def test_codes_too_close_for_bfloat16_are_left_to_float32() -> None:
    x, codebook = sample(1, N, D), sample(3, 1, D) + 1e-4 * sample(2, K, D)
    norms = codebook.square().sum(dim=1)
    rounded = vq_assign_bfloat16.RoundedCodes.from_codes(codebook, norms, N)
    assert rounded.nearest(x, codebook, norms) is None


def test_what_is_not_finite_is_left_to_float32_and_named() -> None:
    x, codebook = data("random")
    x[123, 45] = float("nan")
    with force_implementation("torch"), pytest.raises(ValueError, match="row 123 of x"):
        vq_assign(x, codebook)
