"""The quantizer: nearest code, straight-through gradient, EMA, revival, k-means initialization."""

from __future__ import annotations

import pytest
import torch

from signllm.errors import UsageError
from signllm.models.vq_sign.quantizer import Quantizer, QuantizerConfig, kmeans

COUNTS = torch.tensor([3, 2])


def quantizer(**changes: object) -> Quantizer:
    return Quantizer(QuantizerConfig(**{"codes": 4} | changes), 2)


def with_codes(model: Quantizer, codes: list[list[float]]) -> Quantizer:
    with torch.no_grad():
        model.codebook.copy_(torch.tensor(codes))
        if model.config.update == "ema":
            model.sums.copy_(model.codebook * model.members[:, None])
    return model


SQUARE = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def test_values_are_the_nearest_codes_and_gradients_pass_straight_through() -> None:
    model = with_codes(quantizer(commitment=0.0), SQUARE)
    z = torch.tensor([[0.1, 0.2], [0.9, 0.1], [0.2, 0.7], [0.8, 0.9], [0.4, 0.4]], requires_grad=True)
    result = model(z, COUNTS)
    assert result.index.tolist() == [0, 1, 2, 3, 0]
    assert torch.equal(result.codes, model.codebook[result.index])
    torch.testing.assert_close(result.vectors, result.codes)
    upstream = torch.randn(5, 2)
    (gradient,) = torch.autograd.grad((result.vectors * upstream).sum(), z)
    assert torch.equal(gradient, upstream)


def test_the_loss_is_the_mean_square_with_commitment_and_moves_both_sides() -> None:
    model = with_codes(quantizer(commitment=0.25), SQUARE)
    z = (torch.tensor(SQUARE[:1]).repeat(5, 1) + torch.tensor([0.2, 0.0])).requires_grad_()
    loss = model(z, COUNTS).loss
    torch.testing.assert_close(loss, torch.tensor(1.25 * 0.2**2 / 2))
    loss.backward()
    torch.testing.assert_close(z.grad, torch.tensor([[0.25 * 0.2 / 5, 0.0]]).expand(5, 2))
    torch.testing.assert_close(model.codebook.grad[0], torch.tensor([-0.2, 0.0]))


def test_padding_videos_weigh_nothing() -> None:
    model = with_codes(quantizer(), SQUARE)
    z = torch.randn(5, 2)
    alone = model(z[:3], COUNTS[:1])
    padded = model(z, COUNTS, torch.tensor([True, False]))
    torch.testing.assert_close(padded.loss, alone.loss)
    assert padded.metrics == alone.metrics


def test_perplexity_counts_the_codes_in_even_use() -> None:
    model = with_codes(quantizer(), SQUARE)
    metrics = model(torch.tensor(SQUARE), torch.tensor([4])).metrics
    torch.testing.assert_close(metrics["perplexity"], torch.tensor(4.0))
    assert metrics["codes_used"] == 4


def test_ema_converges_to_the_means_of_the_members() -> None:
    model = with_codes(quantizer(update="ema", decay=0.5), SQUARE)
    z = torch.tensor([[0.1, 0.1], [0.3, 0.1], [1.1, 1.1], [1.1, 1.3], [1.1, 1.2]])
    for _ in range(60):
        model(z, COUNTS)
    torch.testing.assert_close(model.codebook[0], torch.tensor([0.2, 0.1]))
    torch.testing.assert_close(model.codebook[3], torch.tensor([1.1, 1.2]))
    torch.testing.assert_close(model.codebook[1:3], torch.tensor(SQUARE[1:3]))  # nobody's codes stay


def test_evaluation_moves_nothing() -> None:
    model = with_codes(quantizer(update="ema", revive_dead_after=1), SQUARE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(torch.randn(5, 2), COUNTS)
    with torch.no_grad():
        model.train()(torch.randn(5, 2), COUNTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dead_codes_become_vectors_of_the_batch_and_are_used() -> None:
    model = with_codes(
        quantizer(update="ema", revive_dead_after=2, decay=0.9), [[0.0, 0.0], [50.0, 0], [60.0, 0], [70.0, 0]]
    )
    torch.manual_seed(0)
    z = torch.randn(5, 2)
    first = model(z, COUNTS)
    assert first.metrics["codes_used"] == 1
    for _ in range(6):
        last = model(z, COUNTS)
    assert last.metrics["codes_used"] == 4


def test_codes_that_words_are_spelled_in_are_not_revived() -> None:
    model = with_codes(
        quantizer(update="ema", revive_dead_after=2), [[0.0, 0.0], [50.0, 0], [60.0, 0], [70.0, 0]]
    )
    model.keeps_codes = True
    for _ in range(6):
        last = model(torch.randn(5, 2), COUNTS)
    assert last.metrics["codes_used"] == 1
    assert model.revivals == 0


def test_characters_come_back_as_constant_codes() -> None:
    model = with_codes(quantizer(), SQUARE)
    result = model(torch.tensor([3, 0, 0, 1, 2]), COUNTS)
    assert torch.equal(result.vectors, model.codebook[[3, 0, 0, 1, 2]])
    assert not result.vectors.requires_grad


def test_kmeans_finds_separate_groups_and_is_deterministic() -> None:
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    sample = (middles[:, None] + 0.1 * torch.randn(4, 50, 2)).reshape(-1, 2)
    centres = kmeans(sample, 4, seed=3)
    nearest = torch.cdist(middles, centres).min(dim=1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3]
    assert nearest.values.max() < 0.1
    assert torch.equal(centres, kmeans(sample, 4, seed=3))


def test_kmeans_with_fewer_vectors_than_codes_gives_different_codes() -> None:
    centres = kmeans(torch.randn(3, 2), 8, seed=0)
    assert len(torch.unique(centres, dim=0)) == 8


def test_kmeans_of_equal_vectors_does_not_fail() -> None:
    assert torch.isfinite(kmeans(torch.ones(20, 3), 4, seed=0)).all()


def test_a_start_puts_the_codes_where_the_vectors_are() -> None:
    model = quantizer(update="ema")
    sample = torch.tensor(SQUARE).repeat(10, 1) + 5
    model.start(sample)
    assert model(sample[:5], COUNTS).loss < 1e-10
    for _ in range(3):
        model(sample[:5], COUNTS)
    assert model(sample[:5], COUNTS).loss < 1e-10


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="EMA"):
        QuantizerConfig(revive_dead_after=10)
    with pytest.raises(UsageError, match="at least 2"):
        QuantizerConfig(codes=1)
    with pytest.raises(UsageError, match="decay"):
        QuantizerConfig(decay=1.0)
    with pytest.raises(UsageError, match="decay_warmup"):
        QuantizerConfig(decay_warmup=-1)


def share_of_codes_in_use(decay_warmup: int) -> float:
    """Return the share of codes in use after all vectors have moved together, as at the start of training."""
    torch.manual_seed(0)
    group = torch.randn(64, 2)
    model = Quantizer(
        QuantizerConfig(codes=16, update="ema", decay=0.95, decay_warmup=decay_warmup, kmeans_start=True), 2
    )
    model.start(group)
    for step in range(12):
        result = model(group + 0.15 * step, torch.tensor([64]))
    return float(result.metrics["codes_used"]) / 16


def test_warmed_up_codes_keep_up_with_vectors_that_move() -> None:
    assert share_of_codes_in_use(decay_warmup=10) >= 0.85
    assert share_of_codes_in_use(decay_warmup=0) <= 0.65


def test_the_decay_warms_up_to_its_value_and_the_count_is_part_of_the_state() -> None:
    model = with_codes(quantizer(update="ema", decay=0.6, decay_warmup=3), SQUARE)
    z = torch.tensor([[1.0, 1.0]]).repeat(5, 1)
    mass = 1.0  # of code 0, which has no members: the product of the decays so far
    for step in range(4):
        model(z, COUNTS)
        mass *= min(0.6, (1 + step) / (3 + step))
        torch.testing.assert_close(model.members[0], torch.tensor(mass))
    assert model.bfloat16().state_dict()["updates"].tolist() == [4]


def test_without_codes_vectors_pass_as_they_are() -> None:
    model = quantizer(update="none")
    z = torch.randn(5, 2, requires_grad=True)
    result = model(z, COUNTS)
    assert result.vectors is z
    assert result.index.tolist() == [0] * 5
    assert result.loss.item() == 0
    assert result.metrics == {}
    assert torch.equal(model.recorded(z), z)
    before = model.codebook.clone()
    model.start(torch.randn(20, 2))
    assert torch.equal(model.codebook, before)
    assert list(model.parameters()) == []


def test_what_is_recorded_of_a_video_is_its_characters() -> None:
    model = with_codes(quantizer(), SQUARE)
    assert model.recorded(torch.tensor([[0.1, 0.2], [0.8, 0.9]])).tolist() == [0, 3]
