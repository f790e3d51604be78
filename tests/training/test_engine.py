"""Settings are complete and contradictions are found before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from signllm.errors import UsageError
from signllm.shipped import shipped_folder
from signllm.training.engine import ParameterGroup, TrainingConfig, deepspeed_settings, parameter_groups_of

FILES = sorted(shipped_folder("ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_complete(path: Path) -> None:
    assert '"auto"' not in path.read_text()
    zero = json.loads(path.read_text())["zero_optimization"]
    assert zero["stage"] == int(path.stem.removeprefix("zero")[0])
    if zero["stage"] in (1, 2):
        assert zero["contiguous_gradients"], "without it DeepSpeed drops gradients on CPU (issue 8381)"


def test_the_configuration_is_written_over_the_file() -> None:
    config = TrainingConfig(steps=1, batch_size=24, accumulation=3, gradient_clip=0.5, precision="bf16")
    settings = deepspeed_settings(config, world=2)
    assert settings["train_batch_size"] == 24
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither epochs nor steps"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"steps": 1, "batch_size": 4, "accumulation": 3}, "3 forward passes"),
    ],
)
def test_a_broken_rule_fails_at_once(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "world", "message"),
    [
        ({"batch_size": 4}, 3, "over 3 ranks"),
        ({"deepspeed": "zero9"}, 1, "zero9"),
        ({"deepspeed": "missing.json"}, 1, "missing.json"),
        ({"deepspeed": "zero0", "precision": "bf16"}, 1, "master weights"),
    ],
)
def test_a_contradiction_of_settings_fails_before_the_engine(fields: dict, world: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deepspeed_settings(TrainingConfig(steps=1, **fields), world=world)


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    first = ParameterGroup(name="first", parameters=list(model[0].parameters()), learning_rate=0.1)
    rest = ParameterGroup(name="rest", parameters=list(model[2].parameters()))
    frozen = ParameterGroup(name="frozen", parameters=list(model[1].parameters()))
    assert [g.name for g in parameter_groups_of(model, [first, frozen, rest])] == ["first", "rest"]
    assert len(parameter_groups_of(model, None)[0].parameters) == 4
    with pytest.raises(ValueError, match=r"miss \['2.weight'"):
        parameter_groups_of(model, [first])
    with pytest.raises(ValueError, match="twice"):
        parameter_groups_of(model, [first, first, rest])
    with pytest.raises(UsageError, match="trainable"):
        parameter_groups_of(model.requires_grad_(False), None)
