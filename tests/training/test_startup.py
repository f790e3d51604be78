"""What a start tells about memory is what the engine holds once it has stepped."""

from __future__ import annotations

import pytest

from signllm.training.engine import TrainingConfig, build_engine
from signllm.training.engine_state import optimizer_tensors
from signllm.training.startup import format_startup, model_states, parameters_by_part
from tests.training.toy import ToyLoader, build

TRAINED, FROZEN = 104 + 140, 84
FP32 = 4


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_bytes_are_those_that_the_optimizer_then_holds(stage: str) -> None:
    engine = build_engine(build(), None, TrainingConfig(deepspeed=stage, steps=1, batch_size=4))
    states = model_states(engine)
    loss = engine(next(iter(ToyLoader(batch_size=4, rank=0, world=1))))["loss"]
    engine.backward(loss)
    engine.step()
    state = engine.basic_optimizer.state
    moments = sum(
        state[p][key].nbytes for p in optimizer_tensors(engine) for key in ("exp_avg", "exp_avg_sq")
    )
    masters = 0 if stage == "zero0" else sum(p.nbytes for p in optimizer_tensors(engine))
    assert states.optimizer == moments + masters
    assert moments == pytest.approx(2 * FP32 * TRAINED, abs=64), "alignment"
    assert states.gradients == pytest.approx(FP32 * TRAINED, abs=64)
    copies = 2 if stage == "zero3" else 1  # whole, and the share that it is gathered from
    assert states.weights == pytest.approx(copies * FP32 * TRAINED, abs=64)
    assert states.frozen == pytest.approx(copies * FP32 * FROZEN, abs=64)
    assert parameters_by_part(engine.module) == {"body": (104, 0), "branches": (140, 0), "head": (0, 84)}


def test_the_lines_name_batch_steps_parts_and_bytes() -> None:
    lines = format_startup(
        {
            "stage": "finetune",
            "ranks": 2,
            "device": "cpu",
            "zero_stage": 3,
            "deepspeed": "zero3",
            "precision": "bf16",
            "batch": {"videos": 32, "per_rank": 8, "forward_passes": 2},
            "steps": {"first": 400, "end": 1200, "epochs": 20},
            "resumes": "checkpoints/step-00000400",
            "parameters": {
                "projector": {"trained": 21_000_000, "frozen": 0},
                "language_model": {"trained": 0, "frozen": 6_738_415_616},
            },
            "held_bytes": {"weights": 1536, "gradients": 10, "optimizer": 3 * 2**20, "frozen": 6 * 2**30},
        }
    ).splitlines()
    assert lines == [
        "finetune: 2 x cpu, ZeRO-3 (zero3), bf16",
        "  batch    32 videos = 8 per rank x 2 ranks x 2 forward passes",
        "  steps    1200 in 20 epochs, from step 400, checkpoints/step-00000400",
        "  trained  projector 21.0 M",
        "  frozen   language_model 6,738.4 M",
        "  memory   per rank: weights 1.5 KiB, gradients 10 B, optimizer 3 MiB, frozen 6 GiB",
    ]
