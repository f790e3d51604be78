"""MMD: against the written-out formula, closed forms, laws, gradients, and what it keeps in memory."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from signllm.kernels import median_bandwidths, mmd
from signllm.kernels.mmd_blocks import EDGES

BANDWIDTHS = (0.5, 2.0)


def samples(n: int, m: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 100 + m)
    x, y = torch.randn(n, width, generator=generator), torch.randn(m, width, generator=generator)
    return x.to(dtype), (1.5 * y + 0.3).to(dtype)


def written_out(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    def k(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b[None]).square().sum(-1)
        return sum((-squared / (2 * h * h)).exp() for h in BANDWIDTHS)

    p, q = p / p.sum(), q / q.sum()
    return p @ k(x, x) @ p + q @ k(y, y) @ q - 2 * p @ k(x, y) @ q


@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (1, 5, 3), (7, 13, 2), (33, 17, 65)])
def test_equals_the_formula_with_weights(n: int, m: int, width: int) -> None:
    x, y = samples(n, m, width)
    p, q = torch.rand(n).double() + 0.1, torch.rand(m).double() + 0.1
    value = mmd(x, y, bandwidths=BANDWIDTHS, weights_x=p, weights_y=q)
    torch.testing.assert_close(value, written_out(x, y, p, q), rtol=1e-9, atol=1e-12)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples(23, 11, 4)
    x.requires_grad_()
    y.requires_grad_()
    whole = mmd(x, y, bandwidths=BANDWIDTHS)
    expected = torch.autograd.grad(whole, (x, y))
    monkeypatch.setitem(EDGES, "cpu", (4, 8))
    blocked = mmd(x, y, bandwidths=BANDWIDTHS)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, (x, y)), expected)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 3), (5, 9)])
def test_gradcheck(n: int, m: int) -> None:
    x, y = samples(n, m, 3)
    weights = torch.arange(1.0, n + 1)
    assert torch.autograd.gradcheck(
        lambda x, y: mmd(x, y, bandwidths=BANDWIDTHS, weights_x=weights),
        (x.requires_grad_(), y.requires_grad_()),
    )


def test_gradient_of_one_side_alone() -> None:
    x, y = samples(6, 8, 3)
    both = torch.autograd.grad(mmd(x.requires_grad_(), y.requires_grad_(), bandwidths=BANDWIDTHS), (x, y))
    torch.testing.assert_close(torch.autograd.grad(mmd(x, y.detach(), bandwidths=BANDWIDTHS), x)[0], both[0])
    torch.testing.assert_close(torch.autograd.grad(mmd(x.detach(), y, bandwidths=BANDWIDTHS), y)[0], both[1])


def test_two_points_have_a_closed_form() -> None:
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    expected = sum(2 - 2 * math.exp(-25 / (2 * h * h)) for h in BANDWIDTHS)
    assert float(mmd(x, y, bandwidths=BANDWIDTHS)) == pytest.approx(expected, rel=1e-6)


def test_equal_samples_are_at_distance_zero_and_others_are_not() -> None:
    x, y = samples(40, 40, 8, torch.float32)
    assert abs(float(mmd(x, x[torch.randperm(40)]))) < 1e-6
    assert float(mmd(x, y)) > 1e-3


def test_symmetric_and_blind_to_order_and_translation() -> None:
    x, y = samples(12, 9, 5)
    value = mmd(x, y)
    torch.testing.assert_close(mmd(y, x), value)
    torch.testing.assert_close(mmd(x[torch.randperm(12)], y), value)
    torch.testing.assert_close(mmd(x + 100, y + 100), value, rtol=1e-6, atol=1e-9)


def test_weights_count_and_mask() -> None:
    x, y = samples(5, 6, 3)
    times = torch.tensor([1, 0, 3, 2, 0])
    expected = mmd(x.repeat_interleave(times, dim=0), y, bandwidths=BANDWIDTHS)
    torch.testing.assert_close(mmd(x, y, bandwidths=BANDWIDTHS, weights_x=times), expected)
    x[1], x[4] = 1e6, -1e6
    torch.testing.assert_close(mmd(x, y, weights_x=times), mmd(x[[0, 2, 3]], y, weights_x=times[[0, 2, 3]]))


def test_precision_of_float32_far_from_the_origin() -> None:
    x, y = samples(64, 64, 16)
    exact = mmd(x, y, bandwidths=BANDWIDTHS)
    moved = mmd((x + 300).float(), (y + 300).float(), bandwidths=BANDWIDTHS)
    assert float((moved - exact).abs()) < 1e-4


def test_bfloat16_is_computed_in_float32() -> None:
    x, y = samples(9, 9, 4, torch.bfloat16)
    x.requires_grad_()
    value = mmd(x, y)
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, mmd(x.float(), y.float()))


def test_nothing_of_size_n_times_m_is_kept() -> None:
    x, y = samples(50, 70, 3)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        mmd(x.requires_grad_(), y.requires_grad_(), bandwidths=BANDWIDTHS)
    assert sum(kept) <= 2 * (50 + 70) * 3
    assert sum(kept) > 0


def test_median_bandwidths_scale_with_the_sample() -> None:
    x, y = samples(30, 20, 4)
    torch.testing.assert_close(
        torch.tensor(median_bandwidths(7 * x, 7 * y)),
        7 * torch.tensor(median_bandwidths(x, y)),
        rtol=1e-4,
        atol=0,
    )
    three = torch.tensor([[0.0], [1.0], [10.0]])
    assert median_bandwidths(three[:1], three[1:], multiples=(1.0,)) == pytest.approx([9.0])


def test_points_that_coincide_still_have_a_bandwidth() -> None:
    same = torch.ones(8, 3)
    assert float(mmd(same, same)) == pytest.approx(0, abs=1e-6)
    assert float(mmd(same, same + torch.eye(8, 3))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidths": []}, "bandwidths"),
        ({"bandwidths": [0.0]}, "bandwidths"),
        ({"weights_x": torch.zeros(4)}, "weights_x"),
        ({"weights_x": torch.ones(3)}, "weights_x"),
        ({"weights_y": torch.tensor([1.0, -0.5, 1.0])}, "weights_y"),
        ({"weights_y": torch.tensor([1.0, float("nan"), 1.0])}, "weights_y"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmd(torch.randn(4, 2), torch.randn(3, 2), **arguments)


def test_bad_shapes_are_named() -> None:
    for x, y in (
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(0, 3), torch.zeros(2, 3)),
    ):
        with pytest.raises(ValueError, match=r"\(N, E\)|at least one row"):
            mmd(x, y)
