"""The counted operations equal those of torch's own counter, for each part, frozen or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from signllm.models.language_model.builder import build_language_model
from signllm.models.language_model.language_model import LanguageModelConfig, LoraConfig
from signllm.models.operation_counts import projector_operations, work_counts
from signllm.models.projector import Projector, ProjectorConfig
from signllm.models.vq_sign.backbone import frame_cost
from signllm.models.vq_sign.operation_counts import (
    encoder_operations,
    predictor_operations,
    quantizer_operations,
)
from signllm.models.vq_sign.quantizer import Quantizer, QuantizerConfig
from tests.models import on_ranks, parts

LENGTHS = (41, 29, 5)


def count_operations(forward: object) -> int:
    """Return the operations that torch counts in ``forward()`` and its backward pass."""
    with FlopCounterMode(display=False) as counter:
        forward().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"freeze_backbone": True},
        {"pooling": "flatten"},
        {"backbone_config": {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 2,
                             "num_attention_heads": 2, "patch_size": 8, "image_size": 32,
                             "attn_implementation": "eager"}},
    ],
    ids=["trained", "frozen", "flatten", "transformer"],
)  # fmt: skip
def test_the_encoder(settings: dict) -> None:
    encoder = parts.vq_sign(parts.vq_config(encoder=settings)).encoder
    frames, frame_counts = torch.cat(parts.frames_of(LENGTHS)), torch.tensor(LENGTHS)
    result = encoder_operations(encoder, LENGTHS, (parts.SIZE, parts.SIZE))
    assert result == count_operations(lambda: encoder(frames, frame_counts)[0])


def test_counting_a_backbone_draws_no_random_numbers_and_needs_no_weights() -> None:
    backbone = parts.vq_sign().encoder.backbone
    torch.manual_seed(3)
    before = torch.get_rng_state()
    cost = frame_cost(backbone.model, (64, 96))
    assert torch.equal(torch.get_rng_state(), before)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert cost.cells == maps.shape[2] * maps.shape[3]
    assert 2 * cost.frozen < cost.trained < 3 * cost.frozen, "the pixels need no gradient"


def test_the_context_network_and_its_heads() -> None:
    predictor = parts.vq_sign().predictor
    codes = torch.randn(9, 8, requires_grad=True)

    def forward() -> Tensor:
        hidden = predictor._context(codes, torch.tensor([9]))
        return torch.stack([head(hidden[: 9 - k]).sum() for k, head in enumerate(predictor.heads, start=1)])

    start = 2 * 3 * 8 * 8  # the state before the first place is zero and takes no gradient
    assert predictor_operations(predictor, [9]) == count_operations(forward) + start


def test_finite_scalar_quantization() -> None:
    quantizer = Quantizer(QuantizerConfig(codes=20, update="fsq", levels=(5, 4)), 8)
    z = torch.randn(6, 8, requires_grad=True)
    codebook = 2 * 20 * 2 * 8  # the projection of the codebook is not counted
    expected = count_operations(lambda: quantizer(z, torch.tensor([6])).vectors) - codebook
    assert quantizer_operations(quantizer, 6) == expected


def test_the_projector() -> None:
    projector = Projector(ProjectorConfig(hidden=12), 8, 16)
    rows = torch.randn(5, 8, requires_grad=True)
    assert projector_operations(projector, 5) == count_operations(lambda: projector(rows))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["frozen", "adapters"])
def test_a_frozen_language_model_costs_four_per_weight_and_place(llm: Path, lora: LoraConfig | None) -> None:
    config = LanguageModelConfig(path=str(llm), dtype="fp32", attention="eager", lora=lora)
    model, length, layers, width = build_language_model(config), 11, 2, 16
    inputs = torch.randn(1, length, width, requires_grad=True)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    frozen = sum(m.weight.numel() for m in linears if not m.weight.requires_grad)
    trained = sum(m.weight.numel() for m in linears if m.weight.requires_grad)
    causal = 3 * layers * 2 * width * length * (length + 1)
    result = model.cost.operations([length])
    assert result == (4 * frozen + 6 * trained) * length + causal
    full = 3 * layers * 4 * width * length**2  # torch counts the half above the diagonal too
    assert result - causal + full == pytest.approx(
        count_operations(lambda: model.model(inputs_embeds=inputs).logits), rel=0.01
    )  # 1 %: rotary tables are products as well


def test_a_training_step_tells_frames_clips_and_tokens_and_an_evaluation_nothing(llm: Path) -> None:
    model, batch = on_ranks.sign_llm(llm).train(), parts.batch_of()
    shares = model(batch)
    message = {name: float(shares[name]) for name in work_counts()}
    assert message["count/frames"] == sum(parts.LENGTHS)
    assert message["count/clips"] == sum((length - 13) // 4 + 1 for length in parts.LENGTHS)
    assert message["count/tokens"] > float(shares["text_tokens"])
    recorded = model(parts.with_characters(batch, parts.vq_sign()))
    assert recorded["count/frames"] == 0
    assert recorded["count/clips"] == shares["count/clips"]
    assert recorded["count/operations"] < shares["count/operations"]
    assert not set(model.eval()(batch)) & set(work_counts())
