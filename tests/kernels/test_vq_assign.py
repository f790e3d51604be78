"""Nearest code: against float64 brute force, with ties, awkward shapes, far offsets and bad input."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from signllm.kernels import vq_assign


def brute_force(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(
        dim=1
    )


@pytest.mark.parametrize("n", [0, 1, 7, 257])
@pytest.mark.parametrize(("codes", "width"), [(1, 1), (2, 3), (13, 129), (257, 31)])
def test_equals_brute_force_at_awkward_shapes(n: int, codes: int, width: int) -> None:
    generator = torch.Generator().manual_seed(n + codes)
    x, codebook = torch.randn(n, width, generator=generator), torch.randn(codes, width, generator=generator)
    index = vq_assign(x, codebook)
    assert index.dtype == torch.int64
    assert torch.equal(index, brute_force(x, codebook))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = torch.randn(101, 16), torch.randn(29, 16)
    whole = vq_assign(x, codebook)
    reference = sys.modules["signllm.kernels.vq_assign_torch"]
    monkeypatch.setattr(reference, "LARGEST_ROWS", 7)
    monkeypatch.setattr(reference, "CODE_BYTES", 4 * 16 * 3)
    assert torch.equal(vq_assign(x, codebook), whole)


@pytest.mark.parametrize("codes", [5, 33, 257])
def test_equal_codes_give_the_lowest_index(codes: int) -> None:
    """Also where the copy sits in the last tile of the matrix product, whose rounding may differ."""
    codebook = torch.randn(codes, 67, generator=torch.Generator().manual_seed(codes))
    codebook[-1] = codebook[1]
    codebook[codes // 2] = codebook[1]
    x = codebook[1] + 0.01 * torch.randn(50, 67, generator=torch.Generator().manual_seed(0))
    assert (vq_assign(x, codebook) == 1).all()


def test_zero_and_minus_zero_are_equal_codes() -> None:
    codebook = torch.tensor([[5.0, 5.0], [0.0, 1.0], [-0.0, 1.0]])
    assert vq_assign(torch.tensor([[0.0, 0.9]]), codebook).tolist() == [1]


def test_a_tie_between_different_codes_goes_to_the_lowest() -> None:
    codebook = torch.tensor([[3.0], [1.0], [-1.0]])
    assert vq_assign(torch.tensor([[0.0], [2.0]]), codebook).tolist() == [1, 0]


def test_every_code_is_nearest_to_itself_in_every_precision() -> None:
    codebook = torch.randn(64, 40, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert vq_assign(codebook.to(dtype), codebook.to(dtype)).tolist() == list(range(64))


def test_features_far_from_the_origin_keep_their_codes() -> None:
    """The expanded square alone loses the codes here: ‖x‖² is 1e10 times the distances."""
    generator = torch.Generator().manual_seed(2)
    offset = 1000 * torch.ones(64)
    codebook = torch.randn(32, 64, generator=generator) + offset
    x = torch.randn(500, 64, generator=generator) + offset
    assert torch.equal(vq_assign(x, codebook), brute_force(x, codebook))


def test_a_strided_view_is_read_as_it_is() -> None:
    x = torch.randn(64, 40)
    codebook = torch.randn(9, 32)
    assert torch.equal(vq_assign(x.T[:32].T, codebook), vq_assign(x[:, :32].contiguous(), codebook))


@pytest.mark.parametrize(
    ("x", "codebook", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3), "must be"),
        (torch.zeros(1, 4), torch.zeros(2, 3), "must be"),
        (torch.zeros(1, 3), torch.zeros(0, 3), "empty"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, 3), "floating"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(2, 1), "row 1"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [float("inf")]]), "not finite"),
    ],
)
def test_bad_input_is_named(x: Tensor, codebook: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vq_assign(x, codebook)
