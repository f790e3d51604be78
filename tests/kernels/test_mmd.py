"""MMD: against its definition and closed forms, laws, gradients, and peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from signllm.kernels import median_bandwidths, mmd
from signllm.kernels.implementation import Implementation, force_implementation
from signllm.kernels.mmd_blocks import EDGES

BANDWIDTHS = (0.5, 2.0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
AWKWARD = [(1, 1, 1), (1, 5, 3), (7, 13, 2), (33, 17, 65)]


def samples(
    n: int, m: int, width: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 100 + m)
    x, y = torch.randn(n, width, generator=generator), torch.randn(m, width, generator=generator)
    return x.to(device, dtype), (1.5 * y + 0.3).to(device, dtype)


def random_weights(n: int, device: torch.device | None = None) -> Tensor:
    weights = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + 0.1
    return weights.to(device)


def mmd_by_definition(
    x: Tensor,
    y: Tensor,
    p: Tensor,
    q: Tensor,
    bandwidths: tuple[float, ...] = BANDWIDTHS,
    unbiased: bool = False,
) -> Tensor:
    """Return the MMD by its definition, from three kernel matrices in the precision of x."""

    def k(a: Tensor, b: Tensor) -> Tensor:
        products = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        exact = (a[:, None] - b[None]).square().sum(-1) if a.dtype == torch.float64 else products.clamp(min=0)
        return sum((-exact / (2 * h * h)).exp() for h in bandwidths)

    def within(a: Tensor, p: Tensor) -> Tensor:
        if not unbiased:
            return p @ k(a, a) @ p
        return p @ k(a, a).fill_diagonal_(0) @ p / (1 - p.square().sum())

    p, q = p / p.sum(), q / q.sum()
    return within(x, p) + within(y, q) - 2 * p @ k(x, y) @ q


def with_gradients(value: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    result = value(x, y)
    return [result.detach(), *torch.autograd.grad(result, (x, y))]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m", "width"), AWKWARD)
def test_equals_the_formula_with_weights(
    n: int, m: int, width: int, unbiased: bool, implementation: Implementation, device: torch.device
) -> None:
    if unbiased and n == 1:
        pytest.skip("not defined for one row")
    x, y = samples(n, m, width, device=device)
    p, q = random_weights(n, device), random_weights(m, device)
    ours = with_gradients(
        lambda x, y: mmd(x, y, bandwidths=BANDWIDTHS, weights_x=p, weights_y=q, unbiased=unbiased), x, y
    )
    plain = with_gradients(lambda x, y: mmd_by_definition(x, y, p, q, unbiased=unbiased), x, y)
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_rows_of_a_group_give_the_value_and_gradient_that_they_give_one_by_one(
    implementation: Implementation, device: torch.device
) -> None:
    distinct, y = samples(7, 5, 4, device=device)
    groups = torch.tensor([3, 0, 3, 6, 1, 1, 3, 5, 5, 2], device=device)
    x = distinct[groups]
    weights = torch.tensor([1.0, 0, 2, 1, 0, 0, 1, 0, 3, 1], dtype=x.dtype, device=device)
    for p in (None, weights):
        one_by_one = with_gradients(lambda x, y, p=p: mmd(x, y, weights_x=p), x, y)
        grouped = with_gradients(lambda x, y, p=p: mmd(x, y, weights_x=p, groups_x=groups), x, y)
        for actual, expected in zip(grouped, one_by_one, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_groups_of_another_length_or_without_bias_are_refused() -> None:
    x, y = samples(4, 5, 3)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        mmd(x, y, groups_x=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="unbiased"):
        mmd(x, y, groups_x=torch.zeros(4, dtype=torch.int64), unbiased=True)


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize(("n", "m", "width"), [*AWKWARD, (129, 65, 31)])
def test_error_is_at_most_twice_that_of_plain_float32(
    n: int, m: int, width: int, offset: float, implementation: Implementation, device: torch.device
) -> None:
    x, y = (side + offset for side in samples(n, m, width, torch.float32, device))
    p, q = random_weights(n, device), random_weights(m, device)
    bandwidths = tuple(median_bandwidths(x, y))

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return mmd_by_definition(x, y, p.to(x.dtype), q.to(x.dtype), bandwidths)

    exact = with_gradients(plain, x.double(), y.double())
    theirs = with_gradients(plain, x, y)
    ours = with_gradients(lambda x, y: mmd(x, y, bandwidths=bandwidths, weights_x=p, weights_y=q), x, y)
    for got, rounded, truth, scale in zip(
        ours, theirs, exact, (2.0 * len(bandwidths), *(float(g.abs().max()) for g in exact[1:])), strict=True
    ):
        limit = 2 * float((rounded - truth).abs().max()) + 2 * torch.finfo(torch.float32).eps * scale
        assert float((got - truth).abs().max()) <= limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(
    dtype: torch.dtype, implementation: Implementation, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EDGES, "half", (4, 16))
    monkeypatch.setitem(EDGES, "half, copied", (8, 8))
    x, y = samples(19, 9, 5, dtype, device)
    for weights in (None, random_weights(19, device)):
        got = with_gradients(lambda x, y: mmd(x, y, weights_x=weights), x, y)  # noqa: B023
        exact = with_gradients(lambda x, y: mmd(x, y, weights_x=weights), x.double(), y.double())  # noqa: B023
        assert [tensor.dtype for tensor in got] == [torch.float32, dtype, dtype]
        torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=1e-6)
        for half, truth in zip(got[1:], exact[1:], strict=True):
            limit = 3 * torch.finfo(dtype).eps * float(truth.abs().max())
            torch.testing.assert_close(half.double(), truth, rtol=0, atol=limit)


@pytest.mark.parametrize("unbiased", [False, True])
def test_blocks_do_not_show(
    monkeypatch: pytest.MonkeyPatch, implementation: Implementation, device: torch.device, unbiased: bool
) -> None:
    x, y = samples(23, 11, 4, device=device)
    results = []
    for edges in ((512, 512), (4, 8), (5, 5), (6, 23)):
        monkeypatch.setitem(EDGES, device.type if device.type == "cpu" else "device", edges)
        results.append(with_gradients(lambda x, y: mmd(x, y, bandwidths=BANDWIDTHS, unbiased=unbiased), x, y))
    for blocked in results[1:]:
        torch.testing.assert_close(blocked, results[0])


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (4, 3), (5, 9)])
def test_gradcheck(
    n: int, m: int, unbiased: bool, implementation: Implementation, device: torch.device
) -> None:
    x, y = samples(n, m, 3, device=device)
    weights = torch.arange(1.0, n + 1, device=device)
    assert torch.autograd.gradcheck(
        lambda x, y: mmd(x, y, bandwidths=BANDWIDTHS, weights_x=weights, unbiased=unbiased),
        (x.requires_grad_(), y.requires_grad_()),
        fast_mode=implementation == "triton",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, implementation: Implementation, device: torch.device) -> None:
    x, y = samples(5, 4, 3, dtype, device)
    bandwidths = torch.tensor(BANDWIDTHS, device=device)
    for weights in (None, random_weights(5, device)):
        inputs = (x.requires_grad_(), y.requires_grad_(), bandwidths, weights, None, False)
        torch.library.opcheck(torch.ops.signllm.mmd.default, inputs)
        upstream = torch.ones((), dtype=torch.float32, device=device)
        inputs = (upstream, x.detach(), y.detach(), bandwidths, weights, None, True, True, False)
        torch.library.opcheck(torch.ops.signllm.mmd_backward.default, inputs)


@pytest.mark.parametrize("bandwidths", [None, BANDWIDTHS, torch.tensor(BANDWIDTHS)], ids=str)
def test_compiles_in_one_graph(
    bandwidths: tuple[float, ...] | Tensor | None, implementation: Implementation, device: torch.device
) -> None:
    x, y = samples(9, 6, 3, torch.float32, device)
    weights = random_weights(9, device)
    weights[2] = 0

    def value(x: Tensor, y: Tensor) -> Tensor:
        return 2 * mmd(x, y, bandwidths=bandwidths, weights_x=weights * 3, unbiased=True)

    torch._dynamo.reset()
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    for got, expected in zip(with_gradients(compiled, x, y), with_gradients(value, x, y), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gradient_of_one_side_alone() -> None:
    x, y = samples(6, 8, 3)
    both = torch.autograd.grad(mmd(x.requires_grad_(), y.requires_grad_(), bandwidths=BANDWIDTHS), (x, y))
    torch.testing.assert_close(torch.autograd.grad(mmd(x, y.detach(), bandwidths=BANDWIDTHS), x)[0], both[0])
    torch.testing.assert_close(torch.autograd.grad(mmd(x.detach(), y, bandwidths=BANDWIDTHS), y)[0], both[1])


def test_two_diracs_have_a_closed_form(implementation: Implementation, device: torch.device) -> None:
    x = torch.zeros(1, 2, device=device, requires_grad=True)
    y = torch.tensor([[3.0, 4.0]], device=device)
    value = mmd(x, y, bandwidths=BANDWIDTHS)
    assert float(value.detach()) == pytest.approx(
        sum(2 - 2 * math.exp(-25 / (2 * h * h)) for h in BANDWIDTHS), rel=1e-6
    )
    pull = sum(-2 * math.exp(-25 / (2 * h * h)) / (h * h) for h in BANDWIDTHS)
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], pull * y)


def test_equal_samples_are_at_distance_zero_and_others_are_not() -> None:
    x, y = samples(40, 40, 8, torch.float32)
    assert abs(float(mmd(x, x[torch.randperm(40)]))) < 1e-6
    assert float(mmd(x, y)) > 1e-3


@pytest.mark.parametrize("unbiased", [False, True])
def test_symmetric_and_blind_to_order_and_translation(
    unbiased: bool, implementation: Implementation, device: torch.device
) -> None:
    x, y = samples(12, 9, 5, device=device)
    value = mmd(x, y, unbiased=unbiased)
    torch.testing.assert_close(mmd(y, x, unbiased=unbiased), value)
    torch.testing.assert_close(mmd(x[torch.randperm(12)], y, unbiased=unbiased), value)
    torch.testing.assert_close(mmd(x + 100, y + 100, unbiased=unbiased), value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(mmd(7 * x, 7 * y, unbiased=unbiased), value)


def test_weights_count_and_mask(implementation: Implementation, device: torch.device) -> None:
    x, y = samples(5, 6, 3, device=device)
    times = torch.tensor([1, 0, 3, 2, 0], device=device)
    expected = mmd(x.repeat_interleave(times, dim=0), y, bandwidths=BANDWIDTHS)
    torch.testing.assert_close(mmd(x, y, bandwidths=BANDWIDTHS, weights_x=times), expected)
    present = [0, 2, 3]
    for unbiased in (False, True):
        without = mmd(x[present], y, weights_x=times[present], unbiased=unbiased)
        for garbage in (1e6, math.nan):
            x[1], x[4] = garbage, -garbage
            masked = mmd(x.requires_grad_(), y, weights_x=times, unbiased=unbiased)
            torch.testing.assert_close(masked.detach(), without)
            (gradient,) = torch.autograd.grad(masked, x)
            assert not gradient[[1, 4]].any()
            assert gradient.isfinite().all()
            x.requires_grad_(False)


def test_unbiased_has_mean_zero_for_equal_distributions_and_biased_has_not() -> None:
    generator = torch.Generator().manual_seed(0)
    values = {False: [], True: []}
    for _ in range(200):
        x, y = (torch.randn(rows, 2, generator=generator) for rows in (10, 15))
        for unbiased, result in values.items():
            result.append(float(mmd(x, y, bandwidths=(1.0,), unbiased=unbiased)))
    for unbiased, result in values.items():
        mean, error = torch.tensor(result).mean(), torch.tensor(result).std() / math.sqrt(len(result))
        assert bool(mean.abs() < 3 * error) == unbiased


def test_unbiased_is_the_u_statistic_of_the_textbook() -> None:
    x, y = samples(4, 3, 2)

    def k(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-float((a - b).square().sum()) / (2 * h * h)) for h in BANDWIDTHS)

    within_x = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / (4 * 3)
    within_y = sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / (3 * 2)
    across = sum(k(a, b) for a in x for b in y) / (4 * 3)
    expected = within_x + within_y - 2 * across
    assert float(mmd(x, y, bandwidths=BANDWIDTHS, unbiased=True)) == pytest.approx(expected, rel=1e-12)


def test_precision_of_float32_far_from_the_origin(
    implementation: Implementation, device: torch.device
) -> None:
    x, y = samples(64, 64, 16, device=device)
    exact = mmd(x, y, bandwidths=BANDWIDTHS)
    moved = mmd((x + 300).float(), (y + 300).float(), bandwidths=BANDWIDTHS)
    assert float((moved - exact).abs()) < 1e-4


def test_a_side_far_from_the_other_keeps_its_precision() -> None:
    x, y = samples(32, 32, 8, torch.float32)
    ours = mmd(x, y + 1000, bandwidths=BANDWIDTHS)
    exact = mmd(x.double(), (y + 1000).double(), bandwidths=BANDWIDTHS)
    assert float(ours) == pytest.approx(float(exact), rel=1e-5)


def test_autocast_does_not_reach_inside() -> None:
    x, y = samples(9, 9, 4, torch.float32)
    expected = mmd(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mmd(x, y), expected, rtol=0, atol=0)


def test_rows_may_be_strided_and_of_two_types(implementation: Implementation, device: torch.device) -> None:
    x, y = samples(9, 8, 6, torch.float32, device)
    expected = mmd(x[::2].contiguous(), y, bandwidths=BANDWIDTHS)
    torch.testing.assert_close(mmd(x[::2], y.T.contiguous().T, bandwidths=BANDWIDTHS), expected)
    assert mmd(x.bfloat16(), y, bandwidths=BANDWIDTHS).dtype == torch.float32
    assert mmd(x, y.double(), bandwidths=BANDWIDTHS).dtype == torch.float64


def test_a_bandwidth_near_zero_leaves_the_diagonal(
    implementation: Implementation, device: torch.device
) -> None:
    x, y = samples(6, 4, 3, torch.float32, device)
    value = mmd(x, y, bandwidths=(1e-30,))
    torch.testing.assert_close(value, torch.tensor(1 / 6 + 1 / 4, device=device))


def test_forward_keeps_the_samples_alone() -> None:
    x, y = samples(50, 70, 3)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mmd(x.requires_grad_(), y.requires_grad_(), bandwidths=BANDWIDTHS, weights_x=torch.ones(50))
    assert sorted(tensor.numel() for tensor in kept) == [2, 50, 150, 210]


def test_memory_is_that_of_a_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EDGES, "cpu", (64, 64))
    x, y = samples(1024, 768, 32, torch.float32)
    rows, block, gradients = 64 * 32 * 4, 64 * 64 * 4, (1024 + 768) * 32 * 4
    forward, value = peak_bytes(lambda: mmd(x.requires_grad_(), y.requires_grad_(), bandwidths=BANDWIDTHS))
    backward, _ = peak_bytes(lambda: torch.autograd.grad(value, (x, y)))
    centring = 512 * 32 * 4 * 2
    assert forward < 4 * rows + 3 * block + centring + 64 * 1024
    assert backward - gradients < 6 * rows + 4 * block + centring + 64 * 1024
    assert forward < 1024 * 768 * 4 / 4


def peak_bytes(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Return the peak of the bytes that torch allocates on a CPU during the call."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(torch.tensor(sizes).cumsum(0).max()), result


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


@pytest.mark.parametrize(("n", "sample"), [(9, 9), (9, 10), (9, 4), (500, 7), (9, 1)])
def test_median_bandwidths_see_evenly_spaced_rows_that_weigh(n: int, sample: int) -> None:
    x, y = samples(n, 3, 2)
    weights = torch.ones(n)
    weights[1::3] = 0
    present = x[weights > 0]
    spaced = torch.linspace(0, len(present) - 1, min(sample, len(present))).round().long()
    x[weights == 0] = math.nan
    points = torch.cat([present[spaced], y[:1] if sample == 1 else y])
    expected = [float(torch.nn.functional.pdist(points).median())]
    assert median_bandwidths(x, y, weights_x=weights, sample=sample, multiples=(1.0,)) == pytest.approx(
        expected
    )


def test_points_that_coincide_still_have_a_bandwidth() -> None:
    same = torch.ones(8, 3)
    assert float(mmd(same, same)) == pytest.approx(0, abs=1e-6)
    assert float(mmd(same, same + torch.eye(8, 3))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidths": []}, "bandwidths"),
        ({"bandwidths": [0.0]}, "bandwidths"),
        ({"bandwidths": torch.ones(2, 2)}, r"bandwidths must be \(B,\)"),
        ({"bandwidths": torch.tensor([1.0, -1.0])}, "positive and finite"),
        ({"weights_x": torch.zeros(4)}, "weights_x"),
        ({"weights_x": torch.ones(3)}, "weights_x"),
        ({"weights_y": torch.tensor([1.0, -0.5, 1.0])}, "weights_y"),
        ({"weights_y": torch.tensor([1.0, float("nan"), 1.0])}, "weights_y"),
        ({"weights_y": torch.tensor([0.0, 1.0, 0.0]), "unbiased": True}, "weights_y.*1 positive"),
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
    with pytest.raises(ValueError, match="two rows of each sample; got 1 and 2"):
        mmd(torch.zeros(1, 3), torch.zeros(2, 3), unbiased=True)
    with pytest.raises(ValueError, match="floating point"):
        mmd(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(2, 3))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_large_samples_on_a_gpu(dtype: torch.dtype, masked: bool) -> None:
    device = torch.device("cuda")
    x, y = samples(2049, 4097, 1021, dtype, device)
    weights = (torch.arange(2049, device=device) % 3 > 0).float() if masked else None
    truth = with_gradients(lambda x, y: mmd(x, y, weights_x=weights), x.double(), y.double())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = with_gradients(lambda x, y: mmd(x, y, weights_x=weights), x, y)
    assert torch.cuda.max_memory_allocated() - before < 64e6 + 2 * 4 * (x.numel() + y.numel())
    assert float(ours[0]) == pytest.approx(float(truth[0]), rel=1e-4, abs=1e-6)
    for got, exact in zip(ours[1:], truth[1:], strict=True):
        limit = max(1e-4, 4 * torch.finfo(dtype).eps) * float(exact.abs().max())
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=limit)
    with force_implementation("torch"):
        torch.testing.assert_close(mmd(x, y, weights_x=weights), ours[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mmd(x, y, weights_x=weights), ours[0], rtol=0, atol=0)


@pytest.mark.gpu
@needs_gpu
def test_default_bandwidths_do_not_wait_for_the_gpu() -> None:
    x, y = samples(300, 500, 64, torch.float32, torch.device("cuda"))
    mmd(x.requires_grad_(), y).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mmd(x, y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
