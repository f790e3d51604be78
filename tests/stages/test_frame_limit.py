"""Stage 1 with a limit of frames: epochs of unequally many steps, and N epochs are N epochs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from signllm.data.loading.mixture import open_mixture
from signllm.data.loading.pipeline import Loader, VideoSource
from signllm.stages.pretrain import pretrain
from signllm.training.checkpoint import last_checkpoint, load_weights, read_state
from signllm.training.training_log import read_log
from tests.stages import path

END = {"seed": 0, "epoch": 3, "samples_consumed": 0}


def place(run: Path) -> tuple[int, dict[str, int]]:
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    state = read_state(checkpoint)
    return state.step, state.order


@pytest.fixture(scope="module")
def straight(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight")
    path.pretrain_limited(run, composed / "shards", stop=None)
    return run


def test_it_ends_with_the_last_epoch_and_not_after_as_many_steps_as_the_first_would_make(
    straight: Path, composed: Path
) -> None:
    source = VideoSource(open_mixture(composed / "shards").split("train"), path.LIMITED.data)
    loader = Loader(source, batch_size=path.LIMITED.training.batch_size)
    until = [loader.batches_until(epoch) for epoch in range(4)]
    steps = [after - before for before, after in pairwise(until)]
    assert len(set(steps)) > 1, "a test of unequal epochs needs some"
    assert place(straight) == (until[3], END)
    epochs = [line["epoch"] for line in read_log(straight) if "loss" in line]
    assert [epochs.count(epoch) for epoch in range(3)] == steps


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_in_the_middle_it_ends_there_too(straight: Path, composed: Path, ranks: int) -> None:
    [run] = path.on_ranks(composed, composed / "llm", "limited", processes=ranks)
    assert place(run) == place(straight)
    losses = [[line["loss"] for line in read_log(r) if "loss" in line] for r in (run, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    weights = load_weights(straight)
    for name, tensor in load_weights(run).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=1e-3)


def test_resumed_with_another_batch_size_and_limit_it_ends_there_too(composed: Path, tmp_path: Path) -> None:
    halfway = replace(path.LIMITED, training=replace(path.LIMITED.training, steps=2))
    pretrain(halfway, run=tmp_path, dataset=open_mixture(composed / "shards"))
    other = replace(
        path.LIMITED,
        data=replace(path.LIMITED.data, max_frames_per_batch=45),
        training=replace(path.LIMITED.training, batch_size=3),
    )
    pretrain(other, run=tmp_path, dataset=open_mixture(composed / "shards"))
    step, order = place(tmp_path)
    assert order == END
    assert step == 2 + sum(line["step"] > 2 and "loss" in line for line in read_log(tmp_path))
