"""ZeRO-3 keeps whole what belongs to the trainable part: through checkpoints, validation and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from signllm.package_files import package_folder
from signllm.training import engine as engine_module
from signllm.training.engine import TrainingConfig, build_engine, deepspeed_settings, import_deepspeed
from signllm.training.training_log import read_log
from tests.training.test_loop import FLOAT_NOISE, launch, order
from tests.training.toy import build


@pytest.mark.timeout(600)
def test_a_frozen_part_that_is_saved_stays_whole_after_saving_validating_and_going_on(tmp_path: Path) -> None:
    # Cut when a checkpoint read it, DeepSpeed gathered it unasked: "tracing error" two steps on.
    orders = []
    for stage in ("zero3", "zero0"):
        for steps in (3, 6):
            config = {"steps": steps, "schedule": "constant", "save_every": 1, "validate_every": 1}
            orders.append(order(tmp_path / stage, stage, **config) | {"saved_head": True})
    done = launch(orders, ranks=2)
    assert not any(done.codes), done.stderr[-3000:]
    for stage in ("zero3", "zero0"):
        for rank in (0, 1):
            ended = json.loads((tmp_path / stage / f"rank-{rank}.json").read_text())
            assert ended.get("step") == 6, ended
    logs = [read_log(tmp_path / stage) for stage in ("zero3", "zero0")]
    losses = [[line["validate/loss"] for line in log if "validate/loss" in line] for log in logs]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=FLOAT_NOISE)


def test_buffers_are_on_the_rank_s_device_also_next_to_a_partitioned_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a GPU the codebook and the pixels' mean stayed on the CPU; torch's meta device stands for the GPU.
    config = TrainingConfig(steps=1, batch_size=4, deepspeed="zero3")
    deepspeed = import_deepspeed()
    model = build()
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_settings(config, world=1)):
        model.head = torch.nn.Linear(5, 3).requires_grad_(False)
    here = engine_module.start_distributed()
    away = replace(here, device=torch.device("meta"))
    monkeypatch.setattr(engine_module, "start_distributed", lambda **_: away)
    engine = build_engine(model, None, config)
    assert {name: buffer.device.type for name, buffer in engine.module.named_buffers()} == {"mean": "meta"}


class FrozenAbove(torch.nn.Module):
    """A map that learns below two frozen ones, which are recomputed in the backward pass or not."""

    def __init__(self, *, is_recomputed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(7, 64)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(64, 320), torch.nn.Linear(320, 5, bias=False)])
        self.blocks.requires_grad_(False)
        self.is_recomputed = is_recomputed

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        for block in self.blocks:
            y = checkpoint(block, 2 * y, use_reentrant=False) if self.is_recomputed else block(2 * y)
        return y.square().mean()


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_frozen_map_keeps_no_input_and_passes_the_gradient_on(is_recomputed: bool, tmp_path: Path) -> None:
    gradient_of = import_deepspeed().utils.safe_get_full_grad
    settings = json.loads((package_folder("ds_configs") / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "cut.json").write_text(json.dumps(settings))
    config = TrainingConfig(steps=1, batch_size=4, deepspeed=str(tmp_path / "cut.json"))
    x, plain = torch.randn(4, 7), FrozenAbove(is_recomputed=False)
    plain(x).backward()
    engine = build_engine(FrozenAbove(is_recomputed=is_recomputed), None, config)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = engine(x)
    assert engine.module.blocks[0].weight.numel() == 0, "it is cut between its turns"
    assert (4, 7) in kept, "the map that learns needs its input"
    if not is_recomputed:
        assert not {(4, 64), (4, 320)} & set(kept)
    engine.backward(loss)
    for name, p in engine.module.body.named_parameters():
        torch.testing.assert_close(gradient_of(p), plain.body.get_parameter(name).grad)
