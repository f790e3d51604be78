"""What a checkpoint keeps: the trainable, its buffers, and what a module asks to keep although frozen."""

from __future__ import annotations

import torch
from torch import nn

from signllm.training.partitions import install, kept_tensors, trainable_parameters
from tests.training.toy import build


def test_trainable_weights_and_their_buffers_are_kept_frozen_parts_are_not() -> None:
    model = build()
    assert not any(name.startswith("head") for name in trainable_parameters(model))
    assert set(kept_tensors(model)) == {"mean"}


def test_a_buffer_in_a_module_without_parameters_is_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].register_buffer("codebook", torch.zeros(3, 2))
    model[1].register_buffer("cache", torch.zeros(3), persistent=False)
    assert set(kept_tensors(model)) == {"1.codebook"}


def test_a_frozen_module_that_asks_for_it_is_kept_whole() -> None:
    model = build()
    model.head.saved_when_frozen = True
    expected = {"mean", "head.table", *(f"head.{name}" for name, _ in model.head.named_parameters())}
    assert set(kept_tensors(model)) == expected


def test_install_copies_into_parameters_and_buffers() -> None:
    model, other = build(), build()
    values = {"body.bias": torch.full((13,), 2.0), "mean": torch.full((13,), 3.0)}
    install(model, values)
    assert torch.equal(model.body.bias, values["body.bias"])
    assert torch.equal(model.mean, values["mean"])
    assert torch.equal(model.body.weight, other.body.weight)
