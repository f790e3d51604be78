"""The plan: what it says is held is what an engine holds; a 16-node dry run shows it before anyone waits.

On two ranks, and for traffic: tests/tools/test_count_traffic.py.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from signllm import cli
from signllm.cluster.dry_run import configuration_lines
from signllm.cluster.planning.model_tensors import BACKBONES, list_weights, phase_tensors
from signllm.cluster.planning.zero_costs import (
    Collective,
    Weight,
    Zero,
    largest_block,
    planned_model_states,
    read_zero,
    step_traffic,
)
from signllm.config import FinetuneConfig, PretrainConfig, save_config
from signllm.errors import UsageError
from signllm.models.language_model.adapters import VIRTUAL, LoraConfig, PromptTuningConfig
from signllm.models.vq_sign.backbone import build_backbone
from signllm.recipes import phoenix2014t
from signllm.training import startup
from signllm.training.engine import TrainingConfig, build_engine, deepspeed_settings, import_deepspeed
from signllm.validation import to_plain
from tests.models import parts
from tests.models.on_ranks import sign_llm

LLAMA_7B = 6_738_415_616
PRETRAIN = ["pretrain", "phoenix2014t", "--data", "shards", "--run", "runs/p"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_language_model(tmp_path_factory.mktemp("plan") / "llm")


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("zero0", "fp32"),
        *((f"zero{stage}", precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")),
    ],
)
def test_what_is_planned_is_what_one_rank_holds(stage: str, precision: Any, llm: Path) -> None:
    config = TrainingConfig(deepspeed=stage, precision=precision, steps=1, batch_size=4)
    import_deepspeed()
    settings = deepspeed_settings(config, world=1)
    model = sign_llm(llm, deepspeed=settings, dtype=precision)
    weights = list_weights(model)
    planned = planned_model_states(weights, read_zero(settings, ranks=1))
    assert planned == startup.model_states(build_engine(model, None, config))
    assert planned.frozen
    assert planned.optimizer


def test_an_outline_has_the_tensors_of_the_real_model(llm: Path) -> None:
    model = sign_llm(llm)
    config = FinetuneConfig(sign_llm=model.config, training=TrainingConfig(epochs=3), frozen_epochs=2)
    resting, joint = phase_tensors(config, words=model.words)
    assert (resting.missing, joint.missing) == ((), ())
    assert by_name(joint.weights) == by_name(list_weights(model))
    model.vq_sign.requires_grad_(False)
    model.vq_sign.saved_when_frozen = True
    assert by_name(resting.weights) == by_name(list_weights(model))
    assert {w.stays_gathered for w in resting.weights if w.name.startswith("vq_sign")} == {True}


def test_an_outline_has_adapters_and_a_frozen_backbone(llm: Path) -> None:
    model = sign_llm(llm)
    adapted = replace(model.config.language_model, lora=LoraConfig(rank=3))
    vq_sign = replace(model.config.vq_sign, encoder=parts.encoder_config(freeze_backbone=True))
    changed = replace(model.config, language_model=adapted, vq_sign=vq_sign)
    (phase,) = phase_tensors(
        FinetuneConfig(sign_llm=changed, training=TrainingConfig(steps=1)), words=model.words
    )
    trained = {w.name: w.elements for w in phase.weights if w.trained}
    assert sum(size for name, size in trained.items() if "lora" in name) == 2 * 2 * 3 * (16 + 16)
    learnt = replace(model.config.language_model, prompt_tuning=PromptTuningConfig(tokens=3))
    changed = replace(model.config, language_model=learnt)
    (tuned,) = phase_tensors(
        FinetuneConfig(sign_llm=changed, training=TrainingConfig(steps=1)), words=model.words
    )
    assert {w.name: w.elements for w in tuned.weights if w.trained}[VIRTUAL] == 3 * 16
    backbone = [w for w in phase.weights if "backbone" in w.name]
    assert backbone
    assert all(w.stays_gathered and not w.trained for w in backbone)


@pytest.mark.parametrize(
    ("name", "elements"), [("resnet18", 11_176_512), ("resnet50", 23_508_032), ("dinov2-small", 22_056_576)]
)
def test_backbones_with_a_short_name_have_their_published_size(name: str, elements: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, random=BACKBONES[name])
    assert sum(p.numel() for p in backbone.parameters()) == elements


def test_what_is_missing_on_this_machine_is_reported() -> None:
    recipe = phoenix2014t()
    (phase,) = phase_tensors(recipe.finetune)
    assert not phase.weights
    assert [line.partition(":")[0] for line in phase.missing] == [
        "language model",
        "encoder, word vectors and projector",
    ]


def model_of(trained: int, frozen: int, blocks: int) -> list[Weight]:
    """One trained tensor, and frozen blocks of one tensor each, in 16 bits."""
    learns = Weight(name="trained", elements=trained, element_bytes=4, trained=True, stays_gathered=True)
    return [learns] + [
        Weight(
            name=f"block{number}",
            elements=frozen,
            element_bytes=2,
            trained=False,
            stays_gathered=False,
            block=number,
            until_backward=frozen * (blocks - 1 - number),
        )
        for number in range(blocks)
    ]


@given(
    ranks=st.integers(2, 1024),
    trained=st.integers(1, 10**9),
    frozen=st.integers(10**5, 10**9),
    passes=st.integers(1, 4),
)
def test_laws_of_dividing(ranks: int, trained: int, frozen: int, passes: int) -> None:
    weights = model_of(trained, frozen, blocks=3)
    zero1, zero2, zero3 = (Zero(stage=stage, ranks=ranks, reuse=10**12) for stage in (1, 2, 3))
    plain = planned_model_states(weights, Zero(stage=0, ranks=ranks))
    assert plain.gradients == plain.weights == 4 * trained
    assert planned_model_states(weights, zero1).optimizer == planned_model_states(weights, zero2).optimizer
    assert 12 * trained <= ranks * planned_model_states(weights, zero2).optimizer < 12 * (trained + 2 * ranks)
    assert 2 * 3 * frozen <= ranks * planned_model_states(weights, zero3).frozen < 2 * 3 * (frozen + ranks)
    assert planned_model_states(weights, zero2).frozen == 2 * 3 * frozen
    assert largest_block(weights, zero3) == 2 * frozen
    assert largest_block(weights, zero2) == 0
    stepping = {zero.stage: step_traffic(weights, zero, forward_passes=passes) for zero in (zero1, zero2)}
    assert stepping[1][1] == stepping[2][1]
    assert stepping[2][0].bytes == passes * stepping[1][0].bytes == passes * 4 * trained
    kept = step_traffic(weights, zero3, forward_passes=passes)[0].bytes
    let_go = step_traffic(weights, replace(zero3, reuse=2 * frozen), forward_passes=passes)[0].bytes
    assert kept * 4 == let_go * 3, "of three blocks, only what follows the first is as long as the distance"


def test_one_rank_sends_nothing_and_a_ring_its_share() -> None:
    assert step_traffic(model_of(10, 10**6, 2), Zero(stage=3, ranks=1)) == []
    assert Collective(kind="all-reduce", purpose="", bytes=800).sent(8) == 1400
    assert Collective(kind="all-gather", purpose="", bytes=800).sent(8) == 700


def test_zero_plus_plus_has_no_plan() -> None:
    settings = deepspeed_settings(TrainingConfig(deepspeed="zero3", steps=1, batch_size=8), world=8)
    settings["zero_optimization"]["zero_hpz_partition_size"] = 8
    with pytest.raises(UsageError, match="no plan for zero_hpz_partition_size"):
        read_zero(settings, ranks=8)


def test_a_16_node_dry_run_shows_configuration_batch_and_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    LlamaConfig().save_pretrained("another-7b")
    recipe = phoenix2014t()
    (tmp_path / "pretrained").mkdir()
    save_config(tmp_path / "pretrained", recipe.pretrain)
    before = sorted(tmp_path.rglob("*"))
    verb = ["finetune", "phoenix2014t", "--init", "pretrained", "--data", "s3", "--run", "runs/f"]
    options = [
        "--training.batch-size",
        "512",
        "--training.accumulation",
        "2",
        "--generation.language",
        "German",
        "--llm",
        "another-7b",
    ]
    assert cli.main(["launch", "a100", "--nodes", "16", "--dry-run", "--", *verb, *options]) == 0
    text = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    sbatch, _, comments = text.partition("# configuration of finetune, as runs/f/config.json will hold it\n")
    assert sbatch.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=16\n" in sbatch
    assert all(line.startswith("#") and not line.startswith("#SBATCH") for line in comments.splitlines())
    assert subprocess.run(["/bin/bash", "-n"], input=text, text=True).returncode == 0
    assert "#   16 nodes x 8 tasks = 128 ranks\n" in comments
    assert "#   512 videos per optimizer step = 2 per rank x 128 ranks x 2 forward passes\n" in comments
    assert "# plan: ZeRO-3 (zero3), bf16\n" in comments
    assert "language_model 6,738.4 M" in comments
    share, norms = LLAMA_7B // 128, 65 * 4096
    assert f"frozen {startup.format_bytes(2 * (share + norms))}; together" in comments
    assert "per step, all-gather of frozen weights" in comments
    assert "not counted: offsets of composed words" in comments
    resolved = replace(
        recipe.finetune,
        sign_llm=replace(recipe.finetune.sign_llm, vq_sign=recipe.pretrain.vq_sign),
        training=replace(recipe.finetune.training, batch_size=512, accumulation=2),
        generation=replace(recipe.finetune.generation, language="German"),
    ).with_llm("another-7b")
    for line in configuration_lines(resolved):
        assert f"# {line}\n" in comments


def test_every_setting_is_printed_as_config_json_holds_it() -> None:
    config: PretrainConfig = phoenix2014t().pretrain
    odd = replace(config, training=replace(config.training, deepspeed="a folder/x=1  y.json"))
    lines = configuration_lines(odd)
    assert max(map(len, lines)) <= 108
    assert dict(read_back(lines)) == dict(leaves(to_plain(odd)))


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_batch_that_does_not_divide_is_refused_as_the_job_would(
    dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as in_the_job:
        deepspeed_settings(phoenix2014t().pretrain.training, world=128)
    assert cli.main(["launch", "a100", "--nodes", "16", *dry, "--", *PRETRAIN]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"signllm: {in_the_job.value}\n"
    assert "choose a multiple of 128" in printed.err
    assert not printed.out
    assert not list(tmp_path.iterdir())


def by_name(weights: Any) -> dict[str, dict[str, Any]]:
    return {w.name: dataclasses.asdict(w) for w in weights}


def leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_back(lines: list[str]) -> Iterator[tuple[str, Any]]:
    """Read configuration lines: a part's name alone, then NAME=VALUE below it."""
    part, decoder = "", json.JSONDecoder()
    for line in lines:
        text = line.strip()
        if "=" not in text:
            part = f"{text}."
        while "=" in text:
            key, _, rest = text.partition("=")
            value, end = decoder.raw_decode(rest)
            yield part + key, value
            text = rest[end:].strip()
