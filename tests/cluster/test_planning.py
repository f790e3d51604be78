"""``signllm plan``: every family runs on shapes alone, its figures are arithmetic, its commands parse.

Memory against measured memory: tests/tools/test_check_plan.py.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from signllm import cli, verbs
from signllm.cluster.planning.command_line import format_command, launch_arguments
from signllm.cluster.planning.gpus import find_gpu
from signllm.cluster.planning.known_models import KNOWN
from signllm.cluster.planning.meta_model import PassSize, build_meta_model, simulate_step
from signllm.cluster.planning.model_tensors import no_words, sign_llm_parts
from signllm.cluster.planning.planning import PlanRequest, PlanResult, make_plan
from signllm.cluster.planning.roofline import Machine, pass_seconds
from signllm.cluster.planning.setups import SETUPS, Project, Setup, open_project, plan_setup
from signllm.cluster.planning.simulation import EMPTY_PASS, META, simulate_pass
from signllm.command import get_job_options
from signllm.config import FinetuneConfig
from signllm.models.language_model.language_model import LanguageModelConfig
from signllm.models.sign_llm import LoraConfig, SignLLMConfig
from signllm.recipes import phoenix2014t
from signllm.training.engine import TrainingConfig
from tests.models import parts
from tests.models.families import save_family

PARAMETERS = {"llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192}
TINY = ("plan", "phoenix2014t", "--gpus", "2", "--gpu", "h100", "--frames", "29", "--text-tokens", "8")


def config_of(llm: Path, *, batch: int = 8, **changes: Any) -> FinetuneConfig:
    model = LanguageModelConfig(path=str(llm), dtype="fp32", **changes)
    return FinetuneConfig(
        sign_llm=SignLLMConfig(vq_sign=parts.vq_config(), language_model=model),
        data=replace(FinetuneConfig(training=TrainingConfig(steps=1)).data, size=32),
        training=TrainingConfig(steps=1, batch_size=batch),
    )


def project_of(llm: Path, **changes: Any) -> Project:
    return open_project(config_of(llm, **changes), str(llm), frames=29, text_tokens=8, words=None)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_language_model(tmp_path_factory.mktemp("planning") / "llm")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2", "t5", "mbart50"])
def test_any_family_is_rehearsed_forward_and_backward(family: str, tmp_path: Path) -> None:
    config = config_of(save_family(tmp_path, family), too_long="error")
    kept, recomputed = (
        stand_in_of(replace(config, sign_llm=with_checkpointing(config, on))) for on in (False, True)
    )
    work = PassSize(videos=2, frames=29, text_tokens=8)
    setup, other = (simulate_step(model, work, size=32, video=False) for model in (kept, recomputed))
    assert setup.before_bytes > other.before_bytes
    assert other.operations.sum() > setup.operations.sum() > 0
    assert all(p.grad is None for p in kept.parameters())


def with_checkpointing(config: FinetuneConfig, on: bool) -> SignLLMConfig:
    model = replace(config.sign_llm.language_model, gradient_checkpointing=on)
    return replace(config.sign_llm, language_model=model)


def stand_in_of(config: FinetuneConfig) -> Any:
    missing: list[str] = []
    result = sign_llm_parts(config, None, missing)
    assert [line.partition(":")[0] for line in missing] == ["offsets of composed words"]
    return build_meta_model(dict(result.items()), config, no_words(12))


def test_what_is_kept_between_forward_and_backward_is_what_autograd_saves() -> None:
    with META:
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 1, bias=False))

    def run() -> torch.Tensor:
        return model(torch.empty(4, 8, device=META)).sum()

    result = simulate_pass(model, run)
    batch, hidden, loss = 4 * 8 * 4, 4 * 16 * 4, 4 * 4
    assert batch + hidden + loss <= result.before_bytes <= batch + 3 * hidden + 3 * loss
    assert result.operations.sum() == 2 * 4 * (8 * 16 + 16) + 2 * 4 * (8 * 16 + 2 * 16)


def test_operations_are_those_that_the_model_counts_itself(llm: Path) -> None:
    config = config_of(llm)
    model = stand_in_of(config)
    counted: list[float] = []
    work = PassSize(videos=2, frames=29, text_tokens=8)

    def run() -> torch.Tensor:
        from signllm.cluster.planning.meta_model import batch_of

        shares = model(batch_of(work, size=32, video=True))
        counted.append(float(shares["count/operations"]))
        return shares["loss"]

    result = simulate_pass(model, run)
    assert result.operations.sum() == pytest.approx(counted[0], rel=0.1)


def test_adapters_learn_in_the_rehearsal(llm: Path) -> None:
    project = project_of(llm, lora=LoraConfig(rank=2))
    trained = [w for w in project.weights(project.config) if w.trained and "lora" in w.name]
    assert trained
    assert (
        project.simulated_pass(project.config, 2).after_bytes
        > project_of(llm).simulated_pass(project_of(llm).config, 2).after_bytes
    )


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_known_models_have_their_published_size(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(KNOWN[name])
    with META:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.fixture(scope="module")
def answered(llm: Path) -> PlanResult:
    recipe = phoenix2014t()
    config = config_of(llm)
    assert config.sign_llm.vq_sign is not None
    asked = PlanRequest(
        recipe="phoenix2014t",
        default=recipe.finetune,
        config=config,
        vq_sign=config.sign_llm.vq_sign,
        llm=str(llm),
        frames=29,
        text_tokens=8,
    )
    return make_plan(asked, Machine(gpu=find_gpu("h100"), gpus=2))


def test_all_ways_hold_what_they_should(answered: PlanResult) -> None:
    result = {setup.setup: setup for setup in answered.setups}
    assert tuple(result) == SETUPS
    parts = ("weights", "gradients", "optimizer", "activations", "buckets", "gathered")
    for setup in result.values():
        assert setup.fits
        assert setup.seconds is not None
        assert 0 < setup.memory.peak <= sum(getattr(setup.memory, name) for name in parts)
        assert setup.config.training.videos_per_forward == 8
    plain, cut, offload = (
        result[Setup(deepspeed=name, checkpointing=False)] for name in ("zero2", "zero3", "zero3_offload")
    )
    packed = result[Setup(deepspeed="zero2", checkpointing=False, bits=4)]
    assert cut.sent_bytes > 0 < plain.sent_bytes
    assert packed.memory.weights < plain.memory.weights
    assert offload.memory.host > 0 == cut.memory.host
    assert offload.memory.weights < cut.memory.weights
    assert result[Setup(deepspeed="zero0", checkpointing=False)].config.training.precision == "fp32"
    assert packed.config.sign_llm.language_model.quantize == "4bit"
    assert answered.best is not None
    assert answered.best.seconds.total == min(setup.seconds.total for setup in answered.setups if setup.fits)


def test_a_small_gpu_takes_more_forward_passes_of_the_same_batch(answered: PlanResult) -> None:
    way, machine = Setup(deepspeed="zero2", checkpointing=False), answered.machine
    at_once = next(setup for setup in answered.setups if setup.setup == way)
    gpu = replace(machine.gpu, memory_gib=at_once.memory.peak / 2**30)  # a tenth of which stays free
    project = answered.project
    parted = plan_setup(project, replace(machine, gpu=gpu), way)
    assert at_once.config.training.accumulation == 1
    assert parted.config.training.accumulation > 1
    assert parted.config.training.batch_size == 8
    assert parted.memory.activations < at_once.memory.activations
    limited = replace(parted.config, data=replace(parted.config.data, max_frames_per_batch=2 * 300))
    assert project.videos(limited, 1) < project.videos(parted.config, 1) or project.frames < 300


def test_time_follows_the_slowest_of_computing_moving_and_launching() -> None:
    gpu = replace(find_gpu("h100"), bandwidth=1000)
    machine = Machine(gpu=gpu, compute_share=0.5, memory_share=1.0, launch_us=10)
    rehearsal = replace(
        EMPTY_PASS,
        operations=np.array([gpu.peak, 0, 0, gpu.peak_wide]),
        bytes=np.array([0, 2e12, 0, 0]),
        is_wide=np.array([False, False, False, True]),
    )
    assert pass_seconds(rehearsal, machine) == pytest.approx(2 + 2 + 1e-5 + 2)
    between = replace(machine, nodes=2, network=10, link_share=1.0)
    assert (machine.link(), between.link()) == (450e9 * 0.8, 10e9)


def test_the_command_line_parses_to_the_planned_configuration(llm: Path) -> None:
    recipe = phoenix2014t()
    machine = Machine(gpu=find_gpu("h200"), nodes=2, gpus=4)
    changed = replace(
        recipe.finetune,
        training=replace(recipe.finetune.training, batch_size=64, accumulation=2, deepspeed="zero2"),
        sign_llm=replace(
            recipe.finetune.sign_llm,
            language_model=replace(
                recipe.finetune.sign_llm.language_model,
                gradient_checkpointing=False,
                lora=LoraConfig(rank=4),
                path="elsewhere",
            ),
        ),
        data=replace(recipe.finetune.data, max_frames_per_batch=900),
    )
    words = launch_arguments(
        "phoenix2014t",
        default=recipe.finetune,
        chosen=changed,
        machine=machine,
        llm=str(llm),
        init="runs/p",
        data="s",
        run="runs/f",
    )
    text = format_command(words)
    assert shlex.split(text.replace("\\\n", " ")) == ["signllm", *words]
    assert max(map(len, text.splitlines())) <= 112
    verbs.prepare(words)
    cut = words.index("--")
    assert words[:cut] == ["launch", "h100", "--nodes", "2", "--gpus", "4"]
    parsed = get_job_options(verbs.prepare(words[cut + 1 :]))
    assert parsed["llm"] == str(llm)
    default = recipe.finetune.sign_llm.language_model.path
    result = parsed["config"].with_llm("elsewhere")
    assert result == changed
    assert parsed["config"].sign_llm.language_model.path == default


def test_the_plan_lists_all_setups_and_the_command_that_launches_the_best(answered: PlanResult) -> None:
    text = "\n".join([*answered.head(), *answered.rows(), *answered.foot()])
    for way in ("zero0 fp32", "zero1 fp32 recomputed", "zero2 4 bit fp32", "zero3_offload fp32 recomputed"):
        assert f"\n{way} " in text
    assert "not measured on a GPU" in text
    assert "-> encoder and segmentation" in text
    command = text[text.index("signllm launch") : text.index("\n\ntranslate")]
    words = shlex.split(command.replace("\\\n", " "))
    assert words == ["signllm", *answered.command()]
    verbs.prepare(words[1:])


def test_a_folder_with_a_configuration_alone_is_enough(
    llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((llm / "config.json").read_bytes())
    options = ["--data.size", "32", "--frozen-epochs", "20", "--json"]  # characters: no encoder to rehearse
    assert cli.main([*TINY, "--llm", str(tmp_path), *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["language_model"] == str(tmp_path)
    assert record["measured"] is False
    assert len(record["ways"]) == len(SETUPS)
    assert "--frozen-epochs" in record["command"]
    assert 0 < record["translation"]["encoder_share"] < 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--gpu", "tpu"], "a100-40, a100-80, h100, h200"),
        (["--llm", "nowhere"], "llama-13b, llama-33b"),
        (["--gpus", "3"], "choose a multiple of 3"),
        (["--compute-share", "2"], "--compute-share"),
        (["--memory-gib", "0"], "--memory-gib"),
        (["--frames", "0"], "--frames"),
        (["--init", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_reported_with_its_remedy(
    options: list[str], expected: str, llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, "--llm", str(llm), *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert expected in err
    assert err.count("remedy:") == 1


def test_if_nothing_fits_the_smallest_need_is_reported(llm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--llm", str(llm), "--memory-gib", "0.01"]) == 1
    out, err = capsys.readouterr()
    assert "> " in out
    assert "signllm launch" not in out
    assert "nothing fits: the smallest" in err
    assert "remedy: more --gpus" in err
