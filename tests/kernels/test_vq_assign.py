"""Nearest code: against float64 brute force, with ties, awkward shapes, far offsets and bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from signllm.kernels import vq_assign
from signllm.kernels.implementation import Implementation

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def sample(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def excess(x: Tensor, codebook: Tensor, index: Tensor) -> float:
    """Return the largest difference between the distances to the chosen and to the nearest code, exactly."""
    exact_NK = distances(x, codebook)
    return float((exact_NK.gather(1, index[:, None])[:, 0] - exact_NK.amin(dim=1)).max())


def check(x: Tensor, codebook: Tensor) -> None:
    """Check that errors are at most about twice those of plain torch in the same precision."""
    index, distance = vq_assign(x, codebook, return_distance=True)
    assert index.dtype == torch.int64
    assert distance.dtype == (torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32)
    assert torch.equal(vq_assign(x, codebook), index)
    if len(x) == 0:
        assert index.shape == distance.shape == (0,)
        return
    wide_ND, codes_KD = x.to(distance.dtype), codebook.to(distance.dtype)
    plain = torch.addmm(codes_KD.square().sum(dim=1), wide_ND, codes_KD.T, alpha=-2).argmin(dim=1)
    tiny = torch.finfo(distance.dtype).eps * float(distances(x, codebook).amax())
    assert excess(x, codebook, index) <= 2 * excess(x, codebook, plain) + tiny
    exact_N = distances(x, codebook).gather(1, index[:, None])[:, 0]
    plain_N = (wide_ND - codes_KD[index]).square().sum(dim=1)
    error = float((plain_N - exact_N).abs().max())
    torch.testing.assert_close(
        distance.double(), exact_N, rtol=4 * torch.finfo(distance.dtype).eps, atol=2 * error
    )


@pytest.mark.parametrize("n", [0, 1, 7, 131])
@pytest.mark.parametrize(("codes", "width"), [(1, 1), (2, 3), (13, 129), (257, 31)])
def test_errs_as_little_as_plain_torch_at_awkward_shapes(
    implementation: Implementation, device: torch.device, n: int, codes: int, width: int
) -> None:
    check(sample(n, n, width).to(device), sample(codes + 1000, codes, width).to(device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_every_precision_and_mixture(
    implementation: Implementation, device: torch.device, dtype: torch.dtype, other: torch.dtype
) -> None:
    if implementation == "triton" and device.type == "cpu" and dtype == other == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16 products")
    check(sample(1, 33, 17, dtype=dtype).to(device), sample(2, 19, 17, dtype=other).to(device))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), codes=st.integers(1, 70), width=st.integers(1, 50), grid=st.integers(1, 4))
def test_ties_on_a_grid_go_to_the_lowest_index(n: int, codes: int, width: int, grid: int) -> None:
    """Sums of small integers are exact in any order, so that ties are exact."""
    x, codebook = sample(n, n, width).mul(grid).round(), sample(codes, codes, width).mul(grid).round()
    result, distance = vq_assign(x, codebook, return_distance=True)
    exact_NK = distances(x, codebook).round()
    lowest = (exact_NK == exact_NK.amin(dim=1, keepdim=True)).int().argmax(dim=1)
    if codes & (codes - 1) == 0:  # the mean code is on a grid as well
        assert torch.equal(result, lowest)
    torch.testing.assert_close(
        distance.double(), exact_NK.gather(1, result[:, None])[:, 0], rtol=1e-6, atol=0
    )


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = sample(1, 101, 16), sample(2, 29, 16)
    codebook[20] = codebook[3]
    only_block = vq_assign(x, codebook, return_distance=True)
    reference = sys.modules["signllm.kernels.vq_assign_torch"]
    monkeypatch.setattr(reference, "LARGEST_ROWS", 7)
    monkeypatch.setattr(reference, "CODE_BYTES", 4 * 16 * 3)
    assert all(map(torch.equal, vq_assign(x, codebook, return_distance=True), only_block))


@pytest.mark.parametrize("codes", [5, 33, 257])
def test_equal_codes_give_the_lowest_index(
    implementation: Implementation, device: torch.device, codes: int
) -> None:
    """The copy may be in the last tile of the matrix product, whose rounding can differ."""
    codebook = sample(codes, codes, 67).to(device)
    codebook[-1] = codebook[1]
    codebook[codes // 2] = codebook[1]
    x = codebook[1] + 0.01 * sample(0, 50, 67).to(device)
    assert (vq_assign(x, codebook) == 1).all()


def test_codes_that_share_a_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = sys.modules["signllm.kernels.vq_assign_torch"]
    monkeypatch.setattr(reference, "_hashes", lambda codes_CD: torch.zeros(len(codes_CD)))
    codebook = torch.tensor([[1.0], [2.0], [1.0], [3.0], [2.0], [3.0]])
    assert reference.first_equal_code(codebook, 2).tolist() == [0, 1, 0, 3, 1, 3]


def test_zero_and_minus_zero_are_equal_codes(implementation: Implementation, device: torch.device) -> None:
    codebook = torch.tensor([[5.0, 5.0], [0.0, 1.0], [-0.0, 1.0]], device=device)
    assert vq_assign(torch.tensor([[0.0, 0.9]], device=device), codebook).tolist() == [1]


def test_a_tie_between_different_codes_goes_to_the_lowest(
    implementation: Implementation, device: torch.device
) -> None:
    codebook = torch.tensor([[3.0], [1.0], [-1.0]], device=device)
    assert vq_assign(torch.tensor([[0.0], [2.0]], device=device), codebook).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_is_at_distance_nought_from_itself(dtype: torch.dtype) -> None:
    codebook = 100 + sample(1, 64, 40).to(dtype)
    index, distance = vq_assign(codebook, codebook, return_distance=True)
    assert torch.equal(codebook[index], codebook)
    assert (distance == 0).all()


def test_features_far_from_the_origin_keep_their_codes(
    implementation: Implementation, device: torch.device
) -> None:
    """Here ‖x‖² is 1e10 times the distances, so that the expanded square is too inaccurate."""
    x, codebook = 1000 + sample(1, 70, 64).to(device), 1000 + sample(2, 32, 64).to(device)
    index, distance = vq_assign(x, codebook, return_distance=True)
    exact = distances(x, codebook)
    assert torch.equal(index, exact.argmin(dim=1))
    torch.testing.assert_close(distance.double(), exact.amin(dim=1), rtol=1e-6, atol=0)


def test_strided_views_are_read_as_they_are(implementation: Implementation, device: torch.device) -> None:
    x, codebook = sample(1, 64, 40).to(device), sample(2, 32, 9).to(device).T
    only_block = vq_assign(x[::2, :32].contiguous(), codebook.contiguous(), return_distance=True)
    result = vq_assign(x[::2, :32], codebook, return_distance=True)
    assert torch.equal(result[0], only_block[0])
    torch.testing.assert_close(result[1], only_block[1])
    assert torch.equal(vq_assign(x.T.contiguous().T[::2, :32], codebook), only_block[0])


@pytest.mark.parametrize(
    ("x", "codebook", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3), "must be"),
        (torch.zeros(1, 4), torch.zeros(2, 3), "must be"),
        (torch.zeros(1, 3), torch.zeros(0, 3), "empty"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, 3), "floating"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(2, 1), "row 1 of x"),
        (torch.tensor([[0.0], [float("inf")]]), torch.ones(2, 1), "row 1 of x"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [float("inf")]]), "row 1 of codebook"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [float("nan")]]), "row 1 of codebook"),
        (torch.full((2, 1), 3e38), torch.tensor([[0.0], [3e38]]), "too large"),
    ],
)
def test_bad_input_is_named(
    implementation: Implementation, device: torch.device, x: Tensor, codebook: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vq_assign(x.to(device), codebook.to(device))


def test_the_distance_has_the_gradient_of_the_square(
    implementation: Implementation, device: torch.device
) -> None:
    x, codebook = sample(1, 23, 5).to(device).requires_grad_(), sample(2, 7, 5).to(device).requires_grad_()
    upstream = sample(3, 23).to(device)
    index, distance = vq_assign(x, codebook, return_distance=True)
    expected = ((x - codebook[index]).square().sum(dim=1) * upstream).sum()
    target = torch.autograd.grad(expected, (x, codebook))
    torch.testing.assert_close(torch.autograd.grad((distance * upstream).sum(), (x, codebook)), target)
    assert not vq_assign(x, codebook).requires_grad


def test_gradcheck() -> None:
    x = sample(1, 7, 5, dtype=torch.float64).requires_grad_()
    codebook = sample(2, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: vq_assign(x, c, return_distance=True)[1], (x, codebook))


@pytest.mark.parametrize("with_distance", [True, False])
def test_opcheck(implementation: Implementation, device: torch.device, with_distance: bool) -> None:
    x, codebook = sample(1, 9, 6).to(device).requires_grad_(), sample(2, 4, 6).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.signllm.vq_assign.default, (x, codebook, with_distance))


def test_value_and_gradient_compile_into_one_graph(
    implementation: Implementation, device: torch.device
) -> None:
    def loss(x: Tensor, codebook: Tensor) -> Tensor:
        index, distance = vq_assign(x, codebook, return_distance=True)
        return distance.sum() + (index * distance).sum() + vq_assign(x, codebook).sum()

    x, codebook = sample(1, 9, 6).to(device).requires_grad_(), sample(2, 4, 6).to(device).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(x, codebook), (x, codebook))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, codebook), (x, codebook)), eager)


PEAK = """
import resource, sys, torch
from signllm.kernels import vq_assign
n, codes, width = map(int, sys.argv[1:])
x, codebook = torch.randn(1, width).expand(n, width), torch.randn(codes, width)
vq_assign(x[:600], codebook[:600], return_distance=True)  # what torch's libraries keep for themselves
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
results = vq_assign(x, codebook, return_distance=True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 - sum(r.numel() * r.element_size() for r in results))
"""


@pytest.mark.parametrize(
    ("n", "codes", "width"),
    [(1_000_000, 3, 16), (300, 16_384, 4096), (5000, 65_536, 1), (3000, 4096, 1024)],
)
def test_the_workspace_is_bounded_for_many_vectors_and_many_codes(n: int, codes: int, width: int) -> None:
    """The memory is that of the process, including torch's own arrays."""
    command = [sys.executable, "-c", PEAK, *map(str, (n, codes, width))]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(message) <= 64 * 1024 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_beyond_two_to_the_31_numbers_and_many_codes(dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    codebook = torch.randn(65_536, 512, device="cuda", generator=generator).to(dtype)
    expected = torch.randint(65_536, (4_300_000,), device="cuda", generator=generator)
    x = codebook[expected]
    assert x.numel() > 2**31
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    index, distance = vq_assign(x, codebook, return_distance=True)
    assert torch.equal(index, expected)
    assert not distance.any()
    assert torch.cuda.max_memory_allocated() - before <= 12 * len(x) + 64 * 1024 * 1024
    assert torch.equal(vq_assign(x[-1000:, :511], codebook[:, :511]), expected[-1000:])
