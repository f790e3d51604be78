"""A run goes on with another number of ranks and another ZeRO stage: the losses of one rank left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from signllm.training.checkpoint import last_checkpoint, load_weights
from signllm.training.training_log import read_log
from tests import warm
from tests.training.elastic import FINETUNE_ENDS, FINETUNED, RANKS, STRETCHES, TOY_ENDS

TOY_NOISE, FINETUNE_NOISE = 2e-6, 2e-4
"""Of losses, relative: other ranks add the same fp32 numbers in another order, and Adam carries it on."""
TOY_WEIGHTS, FINETUNE_WEIGHTS = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 0.05, "atol": 2e-3}
"""Of weights; those of fine-tuning as in tests/stages: 2e-3 is two of Adam's steps, of which 8 are taken."""


def stretched(*arguments: str) -> None:
    """Train all the runs in a process of their own: one that has started no thread may fork."""
    done = warm.run("tests.training.elastic", *arguments)
    assert done.codes == [0], done.stderr[-4000:]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    stretched("toy", str(folder))
    return folder


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, composed: Path) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    stretched("finetune", str(folder), str(composed))
    return folder


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(run) if "loss" in line}


def assert_same_run(
    run: Path, alone: Path, ends: tuple[int, ...], noise: float, near: dict[str, float]
) -> None:
    expected = losses(alone)
    assert list(expected) == list(range(1, ends[-1] + 1))
    assert losses(run) == pytest.approx(expected, rel=noise)
    started = json.loads((run / "startup.json").read_text())
    assert (started["ranks"], started["resumes"]) == (RANKS[-1], f"checkpoints/step-{ends[-2]:08d}")
    weights, other_weights = load_weights(alone), load_weights(run)
    assert other_weights.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            other_weights[name], tensor, **near, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", STRETCHES)
def test_the_toy_on_1_2_3_and_1_ranks(toys: Path, name: str) -> None:
    assert_same_run(toys / name, toys / "alone", TOY_ENDS, TOY_NOISE, TOY_WEIGHTS)


@pytest.mark.parametrize("name", FINETUNED)
def test_fine_tuning_on_1_2_3_and_1_ranks(finetuned: Path, name: str) -> None:
    assert_same_run(finetuned / name, finetuned / "alone", FINETUNE_ENDS, FINETUNE_NOISE, FINETUNE_WEIGHTS)


def test_a_checkpoint_is_the_same_files_whoever_wrote_it(toys: Path) -> None:
    """Nothing in it tells ranks or stage, so nothing is converted."""
    content = {}
    for name in ("alone", *STRETCHES):
        folder = last_checkpoint(toys / name)
        assert folder is not None
        content[name] = {
            path.name: path.stat().st_size for path in folder.iterdir() if path.suffix == ".safetensors"
        }
    assert len(content["alone"]) == 2
    assert all(sizes == content["alone"] for sizes in content.values())
