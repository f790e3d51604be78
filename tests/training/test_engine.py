"""Settings are complete and contradictions are found before anything is built."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.package_files import package_folder
from signllm.training.engine import ParameterGroup, TrainingConfig, deepspeed_settings, parameter_groups_of
from signllm.training.zero_file import RECIPE_SETTINGS

FILES = sorted(package_folder("ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_say_how_memory_is_divided_and_leave_the_rest_to_the_recipe(path: Path) -> None:
    assert '"auto"' not in path.read_text()
    settings = json.loads(path.read_text())
    assert not {key.split(".")[0] for key in RECIPE_SETTINGS} & set(settings)
    zero = settings["zero_optimization"]
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


def written(folder: Path, settings: object) -> str:
    path = folder / "mine.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(path)


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ZERO2 | {"train_batch_size": 16}, "train_batch_size is 16 in this file, and 32 by the recipe"),
        (ZERO2 | {"train_micro_batch_size_per_gpu": 1}, "per_gpu is 1 in this file, and 16 by the recipe"),
        (ZERO2 | {"gradient_accumulation_steps": 4}, "accumulation_steps is 4 in this file, and 1 by"),
        (ZERO2 | {"gradient_clipping": 0.1}, "gradient_clipping is 0.1 in this file, and 1.0 by"),
        (ZERO2 | {"bf16": {"enabled": True}}, "bf16.enabled is true in this file, and false by"),
        (ZERO2 | {"fp16": {"enabled": True}}, "fp16.enabled is true in this file"),
        (ZERO2 | {"optimizer": {"type": "Adam"}}, "section 'optimizer'"),
        (ZERO2 | {"scheduler": {"type": "WarmupLR"}}, "section 'scheduler'"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, 'reduce_bucket_size is "auto"'),
        ({"zero_optimization": {"stage": 2, "contiguous_gradients": False}}, "loses gradients"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "the norm decides"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "does not divide 2 ranks"),
        ({"zero_optimisation": {"stage": 2}}, "no ZeRO stage"),
        ({"zero_optimization": {"stage": 4}}, "no ZeRO stage"),
        ("[3]", "no ZeRO stage"),
        ("{", "this file is not JSON"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: object, message: str
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = written(tmp_path, settings)
    with pytest.raises(UsageError, match=message) as refused:
        deepspeed_settings(TrainingConfig(steps=1, batch_size=32, deepspeed=path), world=2)
    assert str(refused.value.where) == path


def test_a_file_that_agrees_or_leaves_it_open_is_completed(tmp_path: Path) -> None:
    file = ZERO2 | {"train_batch_size": 32, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    config = TrainingConfig(steps=1, batch_size=32, precision="bf16", deepspeed=written(tmp_path, file))
    settings = deepspeed_settings(config, world=2)
    assert (settings["gradient_clipping"], settings["bf16"]) == (1.0, {"enabled": True})


def test_a_name_is_looked_for_in_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = deepspeed_settings(TrainingConfig(steps=1), world=1)
    (tmp_path / "ds_configs").mkdir()
    file = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 123}}
    (tmp_path / "ds_configs" / "zero2.json").write_text(json.dumps(file))
    assert (
        deepspeed_settings(TrainingConfig(steps=1), world=1)["zero_optimization"] == file["zero_optimization"]
    )
    assert shipped["zero_optimization"]["reduce_bucket_size"] != 123
    (tmp_path / "mine.json").write_text(json.dumps(file))
    read_settings = deepspeed_settings(TrainingConfig(steps=1, deepspeed="mine"), world=1)
    assert read_settings["zero_optimization"] == file["zero_optimization"]


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


@pytest.mark.parametrize(("seen", "index"), [(8, 3), (1, 0), (2, 1)])
def test_a_rank_takes_its_own_gpu_of_those_that_it_sees(
    seen: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm shows a task all GPUs of the node, or with ``--gpus-per-task`` its own alone, as number 0."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("is_initialized", "get_rank", "get_world_size"):
        monkeypatch.setattr(dist, name, lambda: 1)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert start_distributed().device == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    assert os.environ["LOCAL_RANK"] == str(index), "DeepSpeed takes it for a device number"
