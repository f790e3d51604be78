"""What a checkpoint keeps: the trainable, its buffers, and what a module asks to keep although frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from signllm.training.engine_state import install_tensors, partition_of, saved_tensors, trainable_parameters
from tests.training.toy import build


def test_trainable_weights_and_their_buffers_are_kept_frozen_parts_are_not() -> None:
    model = build()
    assert not any(name.startswith("head") for name in trainable_parameters(model))
    assert set(saved_tensors(model)) == {"mean"}


def test_a_buffer_in_a_module_without_parameters_is_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].register_buffer("codebook", torch.zeros(3, 2))
    model[1].register_buffer("cache", torch.zeros(3), persistent=False)
    assert set(saved_tensors(model)) == {"1.codebook"}


def test_a_frozen_module_that_asks_for_it_is_kept_whole() -> None:
    model = build()
    model.head.saved_when_frozen = True
    expected = {"mean", "head.table", *(f"head.{name}" for name, _ in model.head.named_parameters())}
    assert set(saved_tensors(model)) == expected


def test_install_copies_into_parameters_and_buffers() -> None:
    model, other = build(), build()
    values = {"body.bias": torch.full((13,), 2.0), "mean": torch.full((13,), 3.0)}
    install_tensors(model, values)
    assert torch.equal(model.body.bias, values["body.bias"])
    assert torch.equal(model.mean, values["mean"])
    assert torch.equal(model.body.weight, other.body.weight)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 1024])
@pytest.mark.parametrize("shape", [(1,), (6,), (7, 3), (2, 0)])
def test_the_shares_of_all_ranks_are_the_tensor_and_zeros(shape: tuple[int, ...], ranks: int) -> None:
    full = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape)
    shares = [partition_of(full, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    flat = torch.cat(shares)
    assert torch.equal(flat[: full.numel()], full.flatten())
    assert not flat[full.numel() :].any()
    assert flat.numel() - full.numel() < ranks
