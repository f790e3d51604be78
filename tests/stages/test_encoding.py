"""Encoding a split: the same characters on any number of ranks; none is idle, and all fail or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.frame_folder import encode_png
from tests.models import parts
from tests.stages.encoding_on_ranks import BATCH, BROKEN, LENGTHS, MAX_BAD, encode_on_ranks

SHARDS_OF_MB = {"one": 100.0, "two": 0.3, "five": 0.08}
WORLDS = (1, 2, 3)
Left = dict[int, dict[str, Any]]


def damage(shards: Path, videos: tuple[int, ...]) -> None:
    """Make some videos of the train split unreadable, where they lie."""
    split = ShardIndex(shards).split("train")
    for sample in (split.samples[video] for video in videos):
        with split.tars[sample.shard].open("r+b") as tar:
            for name, (offset, _) in sample.members.items():
                if name.endswith("png"):
                    tar.seek(offset)
                    tar.write(b"none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenarios: seven videos in one, two and five shards; some unreadable; a rank that fails."""
    folder = tmp_path_factory.mktemp("encoding")
    clips = []
    for number, frames in enumerate(parts.frames_of(LENGTHS)):
        video = folder / "videos" / str(number)
        video.mkdir(parents=True)
        for t, frame in enumerate(frames):
            picture = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            (video / f"{t:04d}.png").write_bytes(encode_png(picture))
        clips.append(
            SourceSample(id=f"v/{number}", video=video, text="rain", split="train", language="English")
        )
    sizes = SHARDS_OF_MB | {"one-bad": 100.0, "two-bad": 100.0, BROKEN: 0.3}
    for scenario, megabytes in sizes.items():
        config = ShardConfig(encode="frames", size=parts.SIZE, shard_size_mb=megabytes, show_progress=False)
        write_shards(Annotations(samples=tuple(clips), left_out=()), folder / scenario, config)
    damage(folder / "one-bad", (3,))
    damage(folder / "two-bad", (3, 5))
    return folder


@pytest.fixture(scope="module")
def left(folder: Path) -> Left:
    """What each number of ranks left of every scenario: files by name."""
    results: Left = {}
    for world in WORLDS:
        out = encode_on_ranks(folder, world)
        results[world] = {
            scenario.name: {path.stem: path.read_text() for path in scenario.iterdir()}
            for scenario in out.iterdir()
        }
    return results


def written(files: dict[str, str]) -> dict[str, str]:
    """The shards alone."""
    return {name: text for name, text in files.items() if name.startswith("shard")}


def ranks_of(files: dict[str, str]) -> list[dict[str, Any]]:
    """What each rank read and how it failed."""
    return [json.loads(text) for name, text in sorted(files.items()) if name.startswith("rank")]


@pytest.mark.parametrize("scenario", SHARDS_OF_MB)
def test_every_number_of_ranks_writes_the_same_bytes(folder: Path, left: Left, scenario: str) -> None:
    alone = written(left[1][scenario])
    split = ShardIndex(folder / scenario).split("train")
    assert len(alone) == len(split.tars) == {"one": 1, "two": 2, "five": 5}[scenario]
    characters = [
        (id, len(sequence)) for shard in sorted(alone) for id, sequence in json.loads(alone[shard]).items()
    ]
    assert characters == [(sample.id, (sample.frames - 13) // 4 + 1) for sample in split.samples]
    assert len({code for text in alone.values() for one in json.loads(text).values() for code in one}) > 3
    assert written(left[2][scenario]) == written(left[3][scenario]) == alone


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("scenario", SHARDS_OF_MB)
def test_no_rank_is_idle_and_none_reads_what_another_does(left: Left, scenario: str, world: int) -> None:
    read = [set(rank["read"]) for rank in ranks_of(left[world][scenario])]
    assert len(read) == world
    assert all(read)
    assert sum(len(videos) for videos in read) == len(set.union(*read)) == len(LENGTHS)


def test_batches_of_one_shard_are_dealt_in_turn(left: Left) -> None:
    read = [sorted(set(rank["read"])) for rank in ranks_of(left[3]["one"])]
    batches = [[f"v/{video}" for video in range(len(LENGTHS))][at : at + BATCH] for at in range(0, 7, BATCH)]
    assert read == [sorted(batches[0] + batches[3]), batches[1], batches[2]]


@pytest.mark.parametrize("world", WORLDS)
def test_an_unreadable_video_that_is_allowed_is_left_out(left: Left, world: int) -> None:
    (text,) = written(left[world]["one-bad"]).values()
    complete = json.loads(written(left[1]["one"])["shard-0"])
    assert json.loads(text) == {id: sequence for id, sequence in complete.items() if id != "v/3"}
    assert text == written(left[1]["one-bad"])["shard-0"]


@pytest.mark.parametrize("world", WORLDS)
def test_too_many_on_all_ranks_together_are_refused_by_all_alike(left: Left, world: int) -> None:
    assert 1 < MAX_BAD * len(LENGTHS) < 2
    (failure,) = {rank["failure"] for rank in ranks_of(left[world]["two-bad"])}
    assert failure.startswith("UsageError: 2 samples could not be read, allowed 1.4")
    assert "where:  v/5: not an image" in failure
    assert not written(left[world]["two-bad"])


@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_that_fails_fails_all_and_nothing_is_written(left: Left, world: int) -> None:
    *others, last = [rank["failure"] for rank in ranks_of(left[world][BROKEN])]
    assert last == "RuntimeError: out of memory"
    assert others == [f"RunFailedError: rank {world - 1} failed: {last}"] * (world - 1)
    assert not written(left[world][BROKEN])
