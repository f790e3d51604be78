"""The paper's recipe itself: of its settings only sizes and lengths are smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from signllm.evaluation.evaluate import EvaluateConfig, evaluate
from signllm.stages.compose import compose
from signllm.stages.pretrain import pretrain
from tests.models import parts
from tests.stages import path


@pytest.fixture(scope="module")
def run(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pretrain`` and the fine-tuned run ``paper-zero3-of-2``, of two ranks."""
    from transformers import ResNetConfig, ResNetModel

    folder = tmp_path_factory.mktemp("paper")
    ResNetModel(ResNetConfig(**parts.TINY_RESNET)).save_pretrained(folder / "backbone")
    made = path.paper_recipe(folder / "backbone", composed / "llm")
    (folder / "shards").symlink_to(composed / "shards")
    pretrain(made.pretrain, folder / "pretrain", folder / "shards")
    compose(folder / "pretrain", folder / "shards", made.compose)
    path.on_ranks(folder, composed / "llm", "paper-zero3", processes=2)
    return folder


def validated(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] == line["loss"] for line in lines if "loss" in line)
    return [line["step"] for line in lines if "validate/loss" in line]


def test_both_stages_are_validated_after_every_epoch(run: Path) -> None:
    assert validated(run / "pretrain") == [3, 6]
    assert validated(run / "paper-zero3-of-2") == [3, 6]


def test_its_run_is_evaluated(run: Path) -> None:
    scores = evaluate(run / "paper-zero3-of-2", run / "shards", "dev", EvaluateConfig(checkpoint="best"))
    assert scores["samples"] == len(path.LENGTHS["dev"])
