"""FSQ: bounds, digits, straight-through gradient, the projected grid as codebook, resuming, settings."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from signllm.cra.word_codebook import fingerprint
from signllm.errors import UsageError
from signllm.models.vq_sign.finite_scalar_quantization import bound_numbers, grid_index, grid_points
from signllm.models.vq_sign.quantizer import Quantizer, QuantizerConfig
from signllm.models.vq_sign.vq_sign import VQSignConfig, fingerprinted_tensor

LEVELS = [(8, 6, 5), (2, 3), (7,)]
WIDTH, COUNTS = 8, torch.tensor([30, 20])


def quantizer(levels: tuple[int, ...] = (4, 3), **changes: object) -> Quantizer:
    config = QuantizerConfig(**{"update": "fsq", "levels": levels, "codes": math.prod(levels)} | changes)
    return Quantizer(config, WIDTH)


def some_vectors(seed: int = 0) -> torch.Tensor:
    return torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", LEVELS)
def test_every_number_is_rounded_to_exactly_its_levels(levels: tuple[int, ...]) -> None:
    numbers = torch.linspace(-20, 20, 4001)[:, None].expand(-1, len(levels))
    rounded = bound_numbers(numbers, levels).round()
    for column, count in zip(rounded.T, levels, strict=True):
        assert column.unique().tolist() == list(range(-(count // 2), count - count // 2))
    torch.testing.assert_close(
        bound_numbers(torch.zeros(1, len(levels)), levels), torch.zeros(1, len(levels))
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_the_index_of_every_grid_point_is_its_row(levels: tuple[int, ...]) -> None:
    points = grid_points(levels)
    assert len(points.unique(dim=0)) == math.prod(levels)
    assert points.min() == -1
    assert points.max() <= 1
    integers = (points * torch.tensor([count // 2 for count in levels])).round()
    assert torch.equal(grid_index(integers, levels), torch.arange(math.prod(levels)))


def test_the_first_digit_of_a_character_changes_fastest() -> None:
    expected = [[-1, -1], [-0.5, -1], [0, -1], [0.5, -1], [-1, 0], [-0.5, 0], [0, 0], [0.5, 0]]
    assert grid_points((4, 3))[:8].tolist() == expected


def vectors_of_all_codes(model: Quantizer) -> torch.Tensor:
    """Return (K, D) vectors whose bounded numbers are the K grid points: the bounding function inverted."""
    levels = model.config.levels
    counts = torch.tensor(levels, dtype=torch.float64)
    half, offset = (counts - 1) * (1.001 / 2), torch.where(counts % 2 == 0, 0.5, 0.0)
    points = torch.cartesian_prod(*[torch.arange(c) - c // 2 for c in levels]).reshape(-1, len(levels))
    scalars = torch.atanh((points + offset) / half) - torch.atanh(offset / half)
    return (scalars @ torch.linalg.pinv(model.scalars.encode_weight.detach().double()).T).float()


@pytest.mark.parametrize("levels", LEVELS)
def test_all_codes_are_reachable_and_counted(levels: tuple[int, ...]) -> None:
    model, codes = quantizer(levels), math.prod(levels)
    result = model(vectors_of_all_codes(model), torch.tensor([codes]))
    assert sorted(result.index.tolist()) == list(range(codes))
    assert result.metrics["codes_used"] == codes
    torch.testing.assert_close(result.metrics["perplexity"], torch.tensor(float(codes)))
    assert model.recent_use.tolist() == [1.0] * codes


def test_vectors_are_rows_of_the_codebook_and_the_loss_is_zero() -> None:
    model = quantizer()
    result = model(some_vectors(), COUNTS)
    assert torch.equal(result.codes, model.codebook[result.index])
    torch.testing.assert_close(result.vectors, result.codes)
    expected = grid_points((4, 3)) @ model.scalars.decode_weight.T + model.scalars.decode_bias
    torch.testing.assert_close(model.codebook, expected)
    assert result.loss.item() == 0
    assert len(result.index.unique()) > 6


def test_the_gradient_passes_through_the_rounding() -> None:
    model, upstream = quantizer(), some_vectors(seed=1)
    z = some_vectors().requires_grad_()
    names = [name for name, _ in model.named_parameters()]
    (model(z, COUNTS).vectors * upstream).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()} | {"z": z.grad.clone()}
    scalars = (
        (z.detach() @ model.scalars.encode_weight.T + model.scalars.encode_bias).detach().requires_grad_()
    )
    bounded = bound_numbers(scalars, (4, 3)) / torch.tensor([2, 1])
    (slope,) = torch.autograd.grad(
        (bounded * (upstream @ model.scalars.decode_weight.detach())).sum(), scalars
    )
    rounded = grid_points((4, 3))[model.recorded(z.detach())]
    expected = {
        "z": slope @ model.scalars.encode_weight.detach(),
        "scalars.encode_weight": slope.T @ z.detach(),
        "scalars.encode_bias": slope.sum(dim=0),
        "scalars.decode_weight": upstream.T @ rounded,
        "scalars.decode_bias": upstream.sum(dim=0),
    }
    assert {*names, "z"} == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_padding_videos_are_not_counted() -> None:
    model, z = quantizer(), some_vectors()
    alone = model(z[:30], COUNTS[:1])
    padded = model(z, COUNTS, torch.tensor([True, False]))
    assert padded.metrics == alone.metrics


def test_recorded_characters_come_back_as_constant_rows_of_the_codebook() -> None:
    model, z = quantizer(), some_vectors()
    recorded = model.recorded(z)
    assert torch.equal(recorded, model(z, COUNTS).index)
    result = model(recorded, COUNTS)
    assert torch.equal(result.vectors, model.codebook[recorded])
    assert not result.vectors.requires_grad


def train(model: Quantizer, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        z = some_vectors(seed=step)
        (model(z, COUNTS).vectors - z).square().mean().backward()
        optimizer.step()


def test_evaluation_and_recorded_characters_use_the_stored_codebook() -> None:
    model, z = quantizer(), some_vectors()
    train(model, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    index = model.recorded(z)
    with torch.no_grad():
        model.train()(z, COUNTS)
        assert torch.equal(model.eval()(z, COUNTS).vectors, before["codebook"][index])
    torch.testing.assert_close(model(z, COUNTS).vectors, before["codebook"][index])
    assert torch.equal(model(index, COUNTS).vectors, before["codebook"][index])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_quantizer_keeps_its_codebook_in_training_mode() -> None:
    model = quantizer()
    train(model, 3)
    before = model.codebook.clone()
    model.requires_grad_(False).train()(some_vectors().requires_grad_(), COUNTS)
    assert torch.equal(model.codebook, before)


def test_training_from_a_checkpoint_goes_on_as_without_interruption() -> None:
    model, resumed = quantizer(), quantizer(seed=5)
    train(model, 3)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    for each in (model, resumed):
        train(each, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_fingerprint_changes_when_the_projection_has_learnt() -> None:
    model = quantizer()
    config = VQSignConfig(quantizer=model.config)
    fingerprints = []
    for _ in range(2):
        weights = {f"quantizer.{name}": value for name, value in model.state_dict().items()}
        fingerprints.append(fingerprint(fingerprinted_tensor(weights, config)))
        train(model, 2)
    assert len(set(fingerprints)) == 2


def test_in_16_bits_the_characters_are_those_of_the_16_bit_weights_in_32_bits() -> None:
    model = quantizer((8, 6)).bfloat16()
    z = some_vectors().bfloat16()
    result = model(z, COUNTS)
    assert result.vectors.dtype == torch.bfloat16
    assert torch.equal(result.index, copy.deepcopy(model).float().recorded(z.float()))


def test_a_start_spreads_the_characters_and_puts_codes_near_the_vectors() -> None:
    directions = torch.linalg.qr(some_vectors(seed=3)[:WIDTH])[0]
    scales = torch.tensor([2.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    sample = torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(2)) * scales @ directions.T + 30
    counts = torch.tensor([4000])
    model = quantizer((8, 5))
    before = model(sample, counts)
    model.start(sample)
    started = model(sample, counts)
    assert started.metrics["perplexity"] > 25 > before.metrics["perplexity"]
    residual = (started.codes - sample).square().mean()
    assert residual < 0.25 * sample.var(dim=0).mean()


def test_a_start_on_few_directions_keeps_random_weights_for_the_others() -> None:
    model = quantizer((4, 3))
    random = model.scalars.encode_weight[1].clone()
    model.start(torch.linspace(-1, 1, 50)[:, None] * torch.ones(WIDTH))
    assert torch.equal(model.scalars.encode_weight[1], random)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_values_that_are_not_finite_are_reported() -> None:
    z = some_vectors()
    z[3, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        quantizer()(z, COUNTS)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"codes": 256, "levels": (8, 6, 5)}, "240"),
        ({"levels": (), "codes": 12}, "empty"),
        ({"levels": (8, 1)}, "2 or more"),
        ({"levels": (2, 2), "update": "ema"}, "only finite scalar"),
        ({"revive_dead_after": 3}, "EMA"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        quantizer(**settings)
