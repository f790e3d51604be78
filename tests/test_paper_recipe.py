"""The paper's recipe itself: of its settings only sizes and lengths are smaller."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signllm.data.loading.mixture import open_mixture
from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.inference.export import export
from signllm.inference.translate import load
from signllm.stages.compose import compose
from signllm.stages.pretrain import pretrain
from signllm.training.checkpoint import load_weights
from tests.models import parts
from tests.stages import path


@pytest.fixture(scope="module")
def run(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pretrain`` and the fine-tuned run ``paper-zero3-of-2``, of two ranks.

    What follows pretraining does without the folder that the backbone came from.
    """
    from transformers import ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("paper")
    ResNetModel(ResNetConfig(**parts.TINY_RESNET)).save_pretrained(folder / "backbone")
    made = path.paper_recipe(folder / "backbone", composed / "llm")
    (folder / "shards").symlink_to(composed / "shards")
    pretrain(made.pretrain, folder / "pretrain", open_mixture(folder / "shards"))
    (folder / "backbone").rename(folder / "elsewhere")
    compose(folder / "pretrain", open_mixture(folder / "shards"), made.compose)
    path.on_ranks(folder, composed / "llm", "paper-zero3", processes=2)
    return folder


def validated(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] == line["loss"] for line in lines if "loss" in line)
    return [line["step"] for line in lines if "validate/loss" in line]


def test_both_stages_are_validated_after_every_epoch(run: Path) -> None:
    assert validated(run / "pretrain") == [3, 6]
    assert validated(run / "paper-zero3-of-2") == [3, 6]


def test_stopped_and_resumed_in_16_bits_it_ends_with_the_same_weights(
    run: Path, composed: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "elsewhere", tmp_path / "backbone")
    made = path.paper_recipe(tmp_path / "backbone", composed / "llm").pretrain
    ends = {}
    for name, stops in (("straight", [None]), ("resumed", [2, 4, None])):
        for steps in stops:  # with the cosine, the end decides the rates
            training = replace(made.training, steps=steps, schedule="constant")
            pretrain(replace(made, training=training), tmp_path / name, open_mixture(run / "shards"))
            if steps == 2:
                shutil.rmtree(tmp_path / "backbone")  # the checkpoint has it
        ends[name] = load_weights(tmp_path / name)
    assert ends["straight"].keys() == ends["resumed"].keys()
    parted = [n for n, tensor in ends["straight"].items() if not torch.equal(tensor, ends["resumed"][n])]
    assert parted == []


def test_its_run_is_evaluated(run: Path) -> None:
    scores = evaluate(run / "paper-zero3-of-2", run / "shards", "dev", EvaluateConfig(checkpoint="best"))
    assert scores["samples"] == len(path.LENGTHS["dev"])


def test_its_export_stands_alone(run: Path, composed: Path, tmp_path: Path) -> None:
    tuned = run / "paper-zero3-of-2"
    exported = export(tuned, tmp_path / "model", with_llm=True)
    frames = composed / "dev0"
    assert load(exported).translate(frames).characters == load(tuned).translate(frames).characters
