"""Tests of the loader: each sample once, the same for any number of ranks, and resumable anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.loading.batch import Batch
from signllm.data.loading.characters import load_characters, save_characters
from signllm.data.loading.pipeline import AugmentConfig, CharacterSource, DataConfig, Loader, VideoSource
from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.data.video.decoding import decode_video
from signllm.errors import UsageError

Maker = Callable[..., Annotations]
ROOT = Path(__file__).parents[2]
SMALL = DataConfig(size=48, workers=0, window=2)


@pytest.fixture(scope="module")
def shards(make_clips: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 23 samples, a number that no batch size and no number of ranks divides."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(make_clips(23), out, ShardConfig(encode="copy", shard_size_mb=0.012, show_progress=False))
    return out


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    result = ShardIndex(shards).split("train")
    assert 3 < len(result.tars) < 12
    return result


def limited(max_frames_per_batch: int | None) -> DataConfig:
    return DataConfig(size=48, workers=0, window=2, max_frames=30, max_frames_per_batch=max_frames_per_batch)


def characters_of(split: Split) -> CharacterSource:
    characters = {sample.id: np.arange(number + 1) for number, sample in enumerate(split.samples)}
    return CharacterSource(split, characters, SMALL)


def real_ids(batches: list[Batch]) -> list[str]:
    return [
        name
        for batch in batches
        for name, real in zip(batch.ids, batch.is_real.tolist(), strict=True)
        if real
    ]


def same(item: Batch, other: Batch) -> bool:
    assert item.frames is not None
    assert other.frames is not None
    return (
        (item.ids, item.texts, item.epoch, item.seed) == (other.ids, other.texts, other.epoch, other.seed)
        and torch.equal(item.frames, other.frames)
        and torch.equal(item.is_real, other.is_real)
        and torch.equal(item.positions, other.positions)
    )


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1), (3, 2), (5, 3)])
def test_audit_every_sample_once_per_epoch(split: Split, world: int, workers: int) -> None:
    loaders = [
        Loader(
            VideoSource(split, SMALL),
            batch_size=2 * world,
            rank=rank,
            world=world,
            workers=workers,
            epochs=2,
            seed=4,
        )
        for rank in range(world)
    ]
    until_second = loaders[0].batches_until(2)
    batches = [list(loader) for loader in loaders]
    assert {len(of_rank) for of_rank in batches} == {until_second}
    for epoch in range(2):
        seen = [
            name
            for of_rank in batches
            for name in real_ids([batch for batch in of_rank if batch.epoch == epoch])
        ]
        assert sorted(seen) == sorted(sample.id for sample in split.samples)
    assert all(len(batch) == 2 for of_rank in batches for batch in of_rank)


@pytest.mark.parametrize(("world", "workers", "limit"), [(5, 0, None), (3, 2, 60)])
def test_audit_fewer_shards_than_ranks(
    make_clips: Maker, tmp_path: Path, world: int, workers: int, limit: int | None
) -> None:
    write_shards(make_clips(23), tmp_path, ShardConfig(encode="copy", show_progress=False))
    single = ShardIndex(tmp_path).split("train")
    assert len(single.tars) == 1
    source = VideoSource(single, limited(limit))
    ranks = [
        list(Loader(source, batch_size=2 * world, rank=r, world=world, workers=workers, epochs=1))
        for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [name for batches in ranks for name in real_ids(batches)]
    assert sorted(seen) == sorted(sample.id for sample in single.samples)


@pytest.mark.parametrize(("before", "after"), [((3, 1), (1, 0)), ((2, 0), (3, 1))])
@pytest.mark.parametrize("limit", [None, 60])
def test_resume_under_another_layout_of_ranks_and_workers(
    split: Split, before: tuple[int, int], after: tuple[int, int], limit: int | None
) -> None:
    source = VideoSource(split, limited(limit))
    seen: list[str] = []
    state = {"seed": 8, "epoch": 0, "samples_consumed": 0}
    for (world, workers), steps in ((before, 2), (after, None)):
        for rank in range(world):
            loader = Loader(source, batch_size=6, rank=rank, world=world, workers=workers, epochs=1)
            loader.load_state_dict(state)
            batches = list(islice(loader, steps))
            seen += real_ids(batches)
        state = loader.state_dict()
    assert sorted(seen) == sorted(sample.id for sample in split.samples)


def test_batches_limited_by_frames_are_the_same_on_every_layout(split: Split) -> None:
    source = VideoSource(split, limited(60))
    alone = list(Loader(source, batch_size=5, seed=1, epochs=2))
    assert all(int(batch.frame_counts.sum()) <= 60 for batch in alone)
    for world in (2, 3):
        parts = [
            list(Loader(source, batch_size=5, rank=r, world=world, seed=1, epochs=2)) for r in range(world)
        ]
        for step, complete in enumerate(alone):
            step_ids = [real_ids([part[step]]) for part in parts]
            assert step_ids == [complete.ids[r::world] for r in range(world)]
            assert {len(part[step]) for part in parts} == {-(-len(complete) // world)}
            padded = torch.stack([part[step].positions for part in parts], dim=1).reshape(-1)
            assert padded[: len(complete)].tolist() == complete.positions.tolist()
            assert not padded[len(complete) :].any()


def test_ranks_hold_the_parts_of_the_global_batch(split: Split) -> None:
    source = VideoSource(split, SMALL)
    complete = list(Loader(source, batch_size=6, seed=1, epochs=1))
    for world in (2, 3, 6):
        parts = [
            list(Loader(source, batch_size=6, rank=rank, world=world, seed=1, epochs=1))
            for rank in range(world)
        ]
        for step, batch in enumerate(complete):
            for rank in range(world):
                assert parts[rank][step].ids == batch.ids[rank::world]
                assert parts[rank][step].positions.tolist() == batch.positions[rank::world].tolist()
                assert parts[rank][step].is_real.tolist() == batch.is_real[rank::world].tolist()


def test_the_last_batch_is_masked_and_repeats_real_samples(split: Split) -> None:
    last = list(Loader(VideoSource(split, SMALL), batch_size=20, seed=2, epochs=1))[-1]
    assert last.is_real.tolist() == [True] * 3 + [False] * 17
    assert set(last.ids[3:]) == set(last.ids[:3])
    assert last.positions.tolist() == list(range(20, 40))


def test_frames_are_those_of_the_files(split: Split, make_clips: Maker) -> None:
    clips = {clip.id: clip for clip in make_clips(23).samples}
    for batch in Loader(VideoSource(split, SMALL), batch_size=5, epochs=1):
        assert batch.frames is not None
        for name, text, frames in zip(
            batch.ids, batch.texts, batch.frames.split(batch.frame_counts.tolist()), strict=True
        ):
            np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), decode_video(clips[name].video))
            assert text == clips[name].text


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(split: Split, workers: int) -> None:
    config = DataConfig(size=40, window=2, augment=AugmentConfig(shift=0.2, brightness=0.2))
    source = VideoSource(split, config)
    here = list(Loader(source, batch_size=4, seed=3, epochs=2, workers=0))
    ahead = list(Loader(source, batch_size=4, seed=3, epochs=2, workers=workers))
    assert len(here) == len(ahead) == 12
    assert all(map(same, here, ahead))


def test_augmentation_does_not_depend_on_the_layout(split: Split) -> None:
    config = DataConfig(size=40, workers=0, window=2, augment=AugmentConfig(shift=0.2, contrast=0.3))
    source = VideoSource(split, config)
    item = next(iter(Loader(source, batch_size=4, seed=3)))
    two = next(iter(Loader(source, batch_size=4, rank=1, world=2, seed=3)))
    assert item.frames is not None
    assert two.frames is not None
    assert torch.equal(
        item.frames.split(item.frame_counts.tolist())[3], two.frames.split(two.frame_counts.tolist())[1]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_state_is_that_of_the_batches_handed_out(split: Split, workers: int) -> None:
    source = VideoSource(split, SMALL)
    complete = list(Loader(source, batch_size=4, seed=6, epochs=2))
    stopped = Loader(source, batch_size=4, seed=6, epochs=2, workers=workers)
    assert stopped.state_dict() == {"seed": 6, "epoch": 0, "samples_consumed": 0}
    batches = iter(stopped)
    for step in range(8):
        next(batches)
        state = stopped.state_dict()
        assert state == {"seed": 6, "epoch": (step + 1) // 6, "samples_consumed": (step + 1) % 6 * 4}
    del batches
    resumed = Loader(source, batch_size=4, seed=0, epochs=2, workers=workers)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 4
    assert all(map(same, rest, complete[8:]))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_stop_anywhere_and_resume_under_another_layout(split: Split, data: st.DataObject) -> None:
    source = characters_of(split)
    before, after = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    size_before, size_after = before * data.draw(st.integers(1, 4)), after * data.draw(st.integers(1, 4))
    first = [
        Loader(source, batch_size=size_before, rank=r, world=before, seed=8, epochs=1) for r in range(before)
    ]
    steps = data.draw(st.integers(0, first[0].batches_until(1)))
    seen: list[str] = []
    for loader in first:
        batches = iter(loader)
        seen += real_ids([next(batches) for _ in range(steps)])
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)
    second = [
        Loader(source, batch_size=size_after, rank=r, world=after, seed=8, epochs=1) for r in range(after)
    ]
    lengths = set()
    for loader in second:
        loader.load_state_dict(states[0])
        batches_left = list(loader)
        lengths.add(len(batches_left))
        seen += real_ids(batches_left)
    assert len(lengths) == 1
    assert sorted(seen) == sorted(sample.id for sample in split.samples)


def test_a_loader_dropped_in_the_middle_leaves_no_thread(split: Split) -> None:
    batches = cast("Generator[Batch]", iter(Loader(characters_of(split), batch_size=2, workers=0)))
    next(batches)
    assert any(thread.name.startswith("batches") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_evaluation_keeps_the_order_and_can_be_repeated(split: Split) -> None:
    loader = Loader(VideoSource(split, SMALL), batch_size=7, shuffle=False, epochs=1)
    for _ in range(2):
        assert real_ids(list(loader)) == [sample.id for sample in split.samples]
    training = Loader(VideoSource(split, SMALL), batch_size=7, epochs=1)
    assert len(list(training)) == 4
    assert list(training) == []


def test_training_without_end(split: Split) -> None:
    loader = Loader(characters_of(split), batch_size=23, seed=1)
    batches = iter(loader)
    orders = {tuple(next(batches).ids) for _ in range(10)}
    assert len(orders) == 10
    assert loader.state_dict()["epoch"] == 10


def test_long_videos_are_thinned_evenly(split: Split) -> None:
    source = VideoSource(split, DataConfig(size=48, workers=0, max_frames=13))
    item = source.load(4, seed=0, epoch=0, position=0)  # 18 frames
    assert item.frames is not None
    full = VideoSource(split, SMALL).load(4, seed=0, epoch=0, position=0).frames
    assert full is not None
    np.testing.assert_array_equal(item.frames, full[np.linspace(0, 17, 13).round().astype(int)])


def test_cached_videos_are_the_same(split: Split) -> None:
    cached = VideoSource(split, DataConfig(size=48, workers=0, window=2, cache_gb=0.001))
    plain = list(Loader(VideoSource(split, SMALL), batch_size=4, seed=1, epochs=2))
    assert all(map(same, plain, Loader(cached, batch_size=4, seed=1, epochs=2)))
    assert 0 < len(cached._cache) < 23  # a megabyte holds some of them


def test_characters_flow_in_the_same_order_as_videos(split: Split, tmp_path: Path) -> None:
    sequences = {sample.id: np.arange(number + 1) for number, sample in enumerate(split.samples)}
    save_characters(tmp_path / "c.safetensors", sequences, "book")
    loaded, _ = load_characters(tmp_path / "c.safetensors")
    characters = list(Loader(CharacterSource(split, loaded, SMALL), batch_size=4, seed=3, epochs=1))
    videos = list(Loader(VideoSource(split, SMALL), batch_size=4, seed=3, epochs=1))
    assert [batch.ids for batch in characters] == [batch.ids for batch in videos]
    for batch in characters:
        assert batch.frames is None
        assert batch.characters is not None
        assert batch.character_counts is not None
        for name, part in zip(
            batch.ids, batch.characters.split(batch.character_counts.tolist()), strict=True
        ):
            assert part.tolist() == sequences[name].tolist()
    with pytest.raises(UsageError, match="22 of 23 videos"):
        CharacterSource(split, {"clip0": np.arange(2)})


@pytest.fixture
def damaged(make_clips: Maker, tmp_path: Path) -> Split:
    write_shards(make_clips(10), tmp_path, ShardConfig(encode="copy", show_progress=False))
    split = ShardIndex(tmp_path).split("train")
    with split.tars[0].open("r+b") as tar:
        for number in (2, 7):
            offset, size = split.samples[number].members["mp4"]
            tar.seek(offset)
            tar.write(b"\0" * size)
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_padding_on_its_rank_and_nobody_waits(damaged: Split, workers: int) -> None:
    source = VideoSource(damaged, DataConfig(size=48, max_bad=0.2))
    ranks = [list(Loader(source, batch_size=4, rank=r, world=2, workers=workers, epochs=1)) for r in range(2)]
    assert {len(batches) for batches in ranks} == {3}
    everything = [batch for batches in ranks for batch in batches]
    assert sorted(real_ids(everything)) == sorted(f"clip{n}" for n in range(10) if n not in (2, 7))
    assert sorted(name for batch in everything for name, _ in batch.bad) == ["clip2", "clip7"]
    assert all(int(batch.frame_counts.min()) >= 13 for batch in everything)


def test_more_bad_samples_than_allowed(damaged: Split, caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(VideoSource(damaged, DataConfig(size=48, max_bad=0.1)), batch_size=2, workers=0, epochs=1)
    with pytest.raises(UsageError, match=r"2 samples could not be read, allowed 1 (.|\n)*not a video"):
        list(loader)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] in (
        ["clip2", "clip7"],
        ["clip7", "clip2"],
    )


def test_what_cannot_be_shared_or_resumed(split: Split) -> None:
    source = characters_of(split)
    with pytest.raises(UsageError, match="batch_size = 5 videos per step cannot be shared by 2 ranks"):
        Loader(source, batch_size=5, rank=0, world=2)
    with pytest.raises(UsageError, match=r"sample 24, .* only 23"):
        Loader(source, batch_size=5).load_state_dict({"seed": 0, "epoch": 0, "samples_consumed": 24})
    with pytest.raises(UsageError, match=r"max_frames_per_batch = 299 .* 300 frames"):
        DataConfig(max_frames_per_batch=299)
    with pytest.raises(UsageError, match=r"data\.cache_gb"):
        DataConfig(cache_gb=1, workers=2)
    with pytest.raises(UsageError, match=r"size is 8"):
        DataConfig(size=8)


STREAM = """
import os, sys, signal
sys.path.insert(0, {root!r})
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
from signllm.data.shards.index import ShardIndex
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
source = VideoSource(ShardIndex({shards!r}).split("train"), DataConfig(size=48))
batches = iter(Loader(source, batch_size=2, workers=2))
next(batches)
print("started", flush=True)
sys.stdin.readline()
print(sum(len(next(batches)) for _ in range(40)), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_ignore_preemption_and_go_with_their_trainer(shards: Path) -> None:
    script = STREAM.format(root=str(ROOT), shards=str(shards))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    tasks = Path(f"/proc/{process.pid}/task")
    workers = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    assert len(workers) >= 2
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            os.kill(worker, number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "80\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, workers))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
