"""Bad samples are counted over all ranks: two ranks stop at the same step with the same message, or go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from signllm.data.clip import Annotations, Clip
from signllm.data.index import ShardIndex
from signllm.data.shards import ShardConfig, write_shards
from signllm.data.video import encode_h264

ROOT = Path(__file__).parents[2]
RANK = """
import sys
import torch.distributed as dist
from signllm.data.index import ShardIndex
from signllm.data.pipeline import DataConfig, VideoSource
from signllm.errors import UsageError
from signllm.stages.batches import training_batches
from signllm.training.engine import Ranks, TrainingConfig
rank, port, shards, max_bad = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
source = VideoSource(ShardIndex(shards).split("train"), DataConfig(size=32, workers=0, max_bad=max_bad))
training = TrainingConfig(steps=5, batch_size=2)
loader = training_batches(source, training, Ranks(rank=rank, world=2, device="cpu"))
steps, real = 0, 0
try:
    for batch in loader:
        steps, real = steps + 1, real + int(batch.is_real.sum())
        if steps == 15:
            break
    print("went on", steps, real)
except UsageError as error:
    print("stopped", steps, error.what)
"""


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Ten clips, two of them zeros."""
    import numpy as np

    clips = []
    for number in range(10):
        video = tmp_path / f"clip{number}.mp4"
        video.write_bytes(encode_h264(np.full((14, 32, 32, 3), 20 * number, np.uint8), 25))
        clips.append(Clip(id=f"clip{number}", video=video, text="a sentence", split="train", signer="s"))
    out = tmp_path / "shards"
    write_shards(Annotations(clips=tuple(clips)), out, ShardConfig(encode="copy", show_progress=False))
    split = ShardIndex(out).split("train")
    with (out / "train-000000.tar").open("r+b") as tar:
        for number in (2, 7):
            offset, size = split.samples[number].members["mp4"]
            tar.seek(offset)
            tar.write(b"\0" * size)
    return out


def both_ranks(shards: Path, max_bad: float, port: int) -> list[str]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(port), str(shards), str(max_bad)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=300)[0].strip() for process in processes]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_too_many_over_all_ranks_stops_both_at_the_same_step(damaged: Path, free_port: int) -> None:
    told = both_ranks(damaged, 0.1, free_port)
    assert told[0] == told[1]
    assert told[0].startswith("stopped")
    assert told[0].endswith("2 samples could not be read, allowed 1 (data.max_bad of all)")


def test_within_the_budget_both_go_on_however_many_epochs(damaged: Path, free_port: int) -> None:
    told = [line.split() for line in both_ranks(damaged, 0.2, free_port)]
    assert [line[:3] for line in told] == [["went", "on", "15"]] * 2
    assert sum(int(line[3]) for line in told) == 3 * 8
