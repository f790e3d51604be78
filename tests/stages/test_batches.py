"""Bad samples are counted over all ranks: two ranks stop at the same step with the same message, or go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264
from tests import warm


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Ten clips, two of them zeros."""
    import numpy as np

    clips = []
    for number in range(10):
        video = tmp_path / f"clip{number}.mp4"
        video.write_bytes(encode_h264(np.full((14, 32, 32, 3), 20 * number, np.uint8), 25))
        clips.append(
            SourceSample(id=f"clip{number}", video=video, text="a sentence", split="train", signer="s")
        )
    out = tmp_path / "shards"
    write_shards(Annotations(samples=tuple(clips)), out, ShardConfig(encode="copy", show_progress=False))
    split = ShardIndex(out).split("train")
    with (out / "train-000000.tar").open("r+b") as tar:
        for number in (2, 7):
            offset, size = split.samples[number].members["mp4"]
            tar.seek(offset)
            tar.write(b"\0" * size)
    return out


def both_ranks(shards: Path, max_bad: float) -> list[str]:
    done = warm.run_ranks("tests.stages.damaged_on_ranks", str(shards), str(max_bad), ranks=2)
    assert done.codes == [0, 0], done.stderr
    return done.stdout.splitlines()


def test_too_many_over_all_ranks_stops_both_at_the_same_step(damaged: Path) -> None:
    printed = both_ranks(damaged, 0.1)
    assert printed[0] == printed[1]
    assert printed[0].startswith("stopped")
    assert printed[0].endswith("2 samples could not be read, allowed 1 (data.max_bad of all)")


def test_within_the_budget_both_go_on_however_many_epochs(damaged: Path) -> None:
    printed = [line.split() for line in both_ranks(damaged, 0.2)]
    assert [line[:3] for line in printed] == [["went", "on", "15"]] * 2
    assert sum(int(line[3]) for line in printed) == 3 * 8
