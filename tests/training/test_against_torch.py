"""The loop against the same training written out in torch: rates, warm-up, accumulation, clipping, bf16."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from signllm.distributed.ranks import start_distributed
from signllm.training.checkpoint import last_checkpoint, load_weights
from signllm.training.engine import ParameterGroup, TrainingConfig
from signllm.training.loop import fit
from signllm.training.training_log import read_log
from tests.training.toy import ToyBatch, ToyLoader, ToyModel, build, toy_context

STEPS, WARM_UP, RATE, HEAD_RATE, CLIP, DECAY = 9, 3, 0.05, 0.2, 0.08, 0.1
EXACT = 1e-6
"""fp32 sums in another order; weights are about 0.3."""


class InItsDtype(ToyModel):
    """The toy on inputs, and with a running mean, of its own precision."""

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        x = batch.x.to(self.body.weight.dtype)
        self.mean = self.mean.to(x.dtype)
        return super().forward(ToyBatch(x, batch.videos, batch.number, batch.epoch))


def toy() -> ToyModel:
    model = build()
    model.__class__ = InItsDtype
    return model


def factor(step: int, schedule: str) -> float:
    """Linear to 1 over the warm-up, which the last step of it does not yet reach; then constant or cosine."""
    if step < WARM_UP:
        return (step + 1) / (WARM_UP + 1)
    return (
        1.0
        if schedule == "constant"
        else 0.5 + 0.5 * math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))
    )


def in_torch(
    *, schedule: str, accumulation: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], list[float]]:
    """Train without DeepSpeed; return master weights by name and the norms before clipping."""
    start_distributed()  # the toy's running mean is a sum over ranks
    model = toy().to(dtype)  # DeepSpeed's masters too begin as the weights in 16 bits
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    masters = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [masters[name] for name in names if name.startswith("body")], "base": RATE},
        {"params": [masters[name] for name in names if not name.startswith("body")], "base": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=DECAY)
    stream = iter(ToyLoader(batch_size=4 // accumulation, rank=0, world=1))
    norms = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor(step, schedule)
        model.zero_grad()
        for batch in islice(stream, accumulation):
            (model(batch)["loss"] / accumulation).backward()
        for name, p in model.named_parameters():
            if name in masters:
                # DeepSpeed moves a weight without gradient too: by what Adam remembers, and by its decay
                masters[name].grad = torch.zeros_like(masters[name]) if p.grad is None else p.grad.float()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(masters.values()), CLIP)))
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in masters:
                    p.copy_(masters[name])
    return masters, norms


def in_the_loop(run: Path, **settings: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Train through ``fit``; return the master weights of the last checkpoint and the logged norms."""
    config = TrainingConfig(
        **{"steps": STEPS, "batch_size": 4, "learning_rate": RATE, "warmup_steps": WARM_UP} | settings,
        gradient_clip=CLIP,
        weight_decay=DECAY,
        log_every=1,
        tensorboard=False,
    )
    model = toy()
    body = list(model.body.parameters())
    rest = list(model.branches.parameters())
    groups = [
        ParameterGroup(name="body", parameters=body),
        ParameterGroup(name="rest", parameters=rest, learning_rate=HEAD_RATE),
    ]
    loader = ToyLoader(batch_size=config.videos_per_forward, rank=0, world=1)
    fit(model, loader, config=config, context=toy_context(run), parameter_groups=groups)
    trained = last_checkpoint(run)
    assert trained is not None
    return load_weights(trained), [line["grad_norm"] for line in read_log(run)]


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rates_warm_up_accumulation_and_clipping(tmp_path: Path, stage: str, schedule: str) -> None:
    expected, norms = in_torch(schedule=schedule, accumulation=2, dtype=torch.float32)
    trained, logged = in_the_loop(tmp_path, deepspeed=stage, schedule=schedule, accumulation=2)
    assert logged == pytest.approx(norms, abs=EXACT)
    assert max(norms) > 2 * CLIP > 2 * min(norms), "some steps are clipped, some are not"
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, atol=EXACT, rtol=0)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_bf16_computes_in_16_bits_and_keeps_32(tmp_path: Path, stage: str) -> None:
    expected, norms = in_torch(schedule="cosine", accumulation=1, dtype=torch.bfloat16)
    trained, logged = in_the_loop(tmp_path, deepspeed=stage, precision="bf16")
    assert logged == pytest.approx(norms, rel=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, atol=EXACT, rtol=0)
        assert not torch.equal(trained[name], trained[name].bfloat16().float()), "masters have 32 bits"
    precise, _ = in_torch(schedule="cosine", accumulation=1, dtype=torch.float32)
    assert max((precise[name] - expected[name]).abs().max() for name in expected) > 100 * EXACT
