"""Tests of unavailable storage: no sample is lost because of it, and damage is still reported."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from signllm import storage
from signllm.data.loading.batch import Batch
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards import parallel_encoding
from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.parallel_encoding import map_in_processes
from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample
from signllm.data.shards.shard_inspection import verify_shards
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample
from signllm.data.video.decoding import encode_h264
from signllm.errors import UsageError
from signllm.storage import DataLostError, StorageError, storage_wait_policy, wait_for_storage
from tests.clock import Clock
from tests.data.http_server import Refusal, serving

Maker = Callable[..., Annotations]
CONFIG = ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False)


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    write_shards(make_clips(8), tmp_path / "shards", CONFIG)
    return tmp_path / "shards"


def failing_once(
    monkeypatch: pytest.MonkeyPatch, method: str, suffix: str, number: int = errno.ESTALE
) -> Counter[str]:
    """Let the first call of a method of ``Path`` fail for each file; return the calls of this process."""
    calls: Counter[str] = Counter()
    plain = getattr(Path, method)

    def fail_or_call(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.suffix == suffix:
            calls[path.name] += 1
            if calls[path.name] == 1:
                raise OSError(number, os.strerror(number), str(path))
        return plain(path, *arguments, **named)

    monkeypatch.setattr(Path, method, fail_or_call)
    return calls


def batches_of(split: Split, workers: int) -> list[Batch]:
    source = VideoSource(split, DataConfig(size=48, window=2))
    return list(Loader(source, batch_size=3, seed=5, epochs=2, workers=workers))


def same(item: Batch, other: Batch) -> bool:
    assert item.frames is not None
    assert other.frames is not None
    is_same = torch.equal(item.is_real, other.is_real) and torch.equal(item.frames, other.frames)
    return item.ids == other.ids and is_same


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_failed_read_of_each_shard_changes_nothing(
    shards: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, workers: int, number: int
) -> None:
    """A shard that existed when the run started and is absent now counts as not mounted."""
    split = ShardIndex(shards).split("train")
    undisturbed = batches_of(split, 0)
    calls = failing_once(monkeypatch, "open", ".tar", number)
    disturbed = batches_of(split, workers)
    assert workers or min(calls.values()) > 1
    assert len(disturbed) == len(undisturbed) == 6
    assert all(map(same, undisturbed, disturbed))
    assert not any(batch.bad for batch in disturbed)


@pytest.mark.parametrize("method", ["read_bytes", "stat"])
def test_a_failed_read_of_the_index_is_not_a_missing_shard(
    shards: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    here = ShardIndex(shards).split("train")
    failing_once(monkeypatch, method, ".json" if method == "read_bytes" else ".tar")
    again = ShardIndex(shards).split("train")
    assert list(again.samples) == list(here.samples)


def test_a_wrong_folder_and_a_missing_shard_are_reported_at_the_start(shards: Path, clock: Clock) -> None:
    began_s = clock.now_s
    with pytest.raises(UsageError, match="no finished shards"):
        ShardIndex(shards / "nowhere")
    (shards / "train-000001.tar").unlink()
    with pytest.raises(UsageError, match=r"train-000001\.tar"):
        ShardIndex(shards).split("train")
    assert clock.now_s == began_s


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_report_an_outage_of_two_real_seconds_only_once(
    shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = logging.FileHandler(tmp_path / "log")  # to which all processes append
    log.setLevel(logging.WARNING)
    monkeypatch.setattr(storage.log, "handlers", [log])
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(storage, "LONGEST_DELAY_S", 0.2)
    monkeypatch.setattr(storage, "ANNOUNCED_AFTER_S", 0.5)
    monkeypatch.setattr(storage, "_announcer", storage._Announcer())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"test-{os.getpid()}-{workers}")
    undisturbed = batches_of(ShardIndex(shards).split("train"), 0)
    with serving(shards) as server:
        split = ShardIndex(server.address).split("train")
        refused_s: list[float] = []

        def refuse_for_two_seconds(path: Path) -> Refusal | None:
            """Begin the outage with the first read, because workers may start late on a busy machine."""
            refused_s.append(time.monotonic())
            return (503, {}) if refused_s[-1] < refused_s[0] + 2 else None

        server.rule = refuse_for_two_seconds
        disturbed = batches_of(split, workers)
    assert refused_s[-1] >= refused_s[0] + 2
    assert all(map(same, undisturbed, disturbed))
    gone, back = (tmp_path / "log").read_text().splitlines()
    assert "503" in gone
    assert "back" in back


@pytest.mark.parametrize("workers", [0, 1])
def test_storage_that_stays_away_is_no_grey_picture(
    shards: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    split = ShardIndex(shards).split("train")
    source = VideoSource(split, DataConfig(size=48, storage_timeout_s=0.1, max_bad=1.0))
    loader = Loader(source, batch_size=3, seed=5, workers=workers)
    batches = iter(loader)
    next(batches)
    (shards / "train-000000.tar").rename(shards / "moved")
    (shards / "train-000001.tar").rename(shards / "moved1")
    more: list[Batch] = []
    with pytest.raises(DataLostError, match=r"0\.1 s(.|\n)*No such file(.|\n)*train-00000[01]\.tar"):
        more.extend(batches)
    (shards / "moved").rename(shards / "train-000000.tar")
    (shards / "moved1").rename(shards / "train-000001.tar")
    state = loader.state_dict()
    resumed, complete = (Loader(source, batch_size=3, seed=5, epochs=4, workers=0) for _ in range(2))
    resumed.load_state_dict(state)
    assert next(iter(resumed)).ids == list(complete)[1 + len(more)].ids


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_dropped_does_not_wait_for_storage(
    shards: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    split = ShardIndex(shards).split("train")
    loader = Loader(VideoSource(split, DataConfig(size=48)), batch_size=2, seed=5, workers=workers)
    batches = cast("Iterator[Batch]", iter(loader))
    next(batches)
    for tar in shards.glob("*.tar"):
        tar.rename(tar.with_suffix(".moved"))
    time.sleep(0.5)
    batches.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_a_shard_that_may_not_be_read_ends_the_run_and_a_damaged_sample_does_not(
    shards: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    split, began_s = ShardIndex(shards).split("train"), clock.now_s
    source = VideoSource(split, DataConfig(size=48))
    offset, size = split.samples[0].members["mp4"]
    with split.tars[0].open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\0" * size)
    assert source.load(0, seed=0, epoch=0, position=0).bad is not None

    def refuse(path: Path, *arguments: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"Permission denied(.|\n)*train-000000\.tar"):
        source.load(0, seed=0, epoch=0, position=0)
    assert clock.now_s == began_s


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", ["read_bytes", "stat"])
def test_sharding_waits_for_its_videos(
    make_clips: Maker, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    write_shards(make_clips(8), tmp_path / "undisturbed", CONFIG)
    failing_once(monkeypatch, method, ".mp4")
    manifest = write_shards(make_clips(8), tmp_path / "disturbed", CONFIG)
    assert manifest["left_out"] == []
    assert contents(tmp_path / "disturbed") == contents(tmp_path / "undisturbed")


def copied(annotations: Annotations, folder: Path) -> Annotations:
    """Return samples with their own copies of the videos, which a test may move away."""
    folder.mkdir(parents=True)
    clips = []
    for clip in annotations.samples:
        video = folder / clip.video.name
        video.write_bytes(clip.video.read_bytes())
        clips.append(dataclasses.replace(clip, video=video))
    return Annotations(samples=tuple(clips))


def test_a_folder_of_videos_that_is_unmounted_is_waited_for_and_a_missing_video_is_left_out(
    make_clips: Maker, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = copied(make_clips(8), tmp_path / "mount" / "videos")
    write_shards(annotations, tmp_path / "undisturbed", CONFIG)
    gone = SourceSample(id="gone", video=tmp_path / "mount" / "videos" / "gone.mp4", text="x", split="train")
    nowhere = SourceSample(id="nowhere", video=tmp_path / "elsewhere" / "gone.mp4", text="x", split="train")
    annotations = Annotations(samples=(*annotations.samples[:3], gone, nowhere, *annotations.samples[3:]))
    away, taken = tmp_path / "away", itertools.count()

    def advance(seconds: float) -> None:
        clock.now_s += seconds
        if away.exists() and clock.now_s > 1020:
            away.rename(tmp_path / "mount")

    encode_sample = parallel_encoding.encode_sample

    def unmount(clip: SourceSample, config: EncodeConfig) -> EncodedSample | LeftOutSample:
        if next(taken) == 5:
            (tmp_path / "mount").rename(away)
        return encode_sample(clip, config)

    monkeypatch.setattr(parallel_encoding, "encode_sample", unmount)
    monkeypatch.setattr(clock, "sleep", advance)
    config = dataclasses.replace(CONFIG, max_bad="2")
    manifest = write_shards(annotations, tmp_path / "disturbed", config)
    assert clock.now_s > 1020
    assert [entry["id"] for entry in manifest["left_out"]] == ["gone", "nowhere"]
    item, other = (ShardIndex(tmp_path / name).split("train") for name in ("undisturbed", "disturbed"))
    assert [item.read(number) for number in range(8)] == [other.read(number) for number in range(8)]


def test_sharding_stops_after_a_long_outage_and_continues_afterwards(
    make_clips: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = copied(make_clips(8), tmp_path / "videos")
    write_shards(annotations, tmp_path / "undisturbed", CONFIG)
    config = dataclasses.replace(CONFIG, storage_timeout_s=0.1)
    taken, encode_sample = itertools.count(), parallel_encoding.encode_sample

    def unmount(clip: SourceSample, config: EncodeConfig) -> EncodedSample | LeftOutSample:
        if next(taken) == 5:
            (tmp_path / "videos").rename(tmp_path / "away")
        return encode_sample(clip, config)

    with monkeypatch.context() as patch:
        patch.setattr(parallel_encoding, "encode_sample", unmount)
        with pytest.raises(StorageError, match=r"0\.1 s(.|\n)*clip5\.mp4"):
            write_shards(annotations, tmp_path / "out", config)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "away").rename(tmp_path / "videos")
    write_shards(annotations, tmp_path / "out", config)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_worker_processes_wait_as_their_parent_and_no_longer_than_it(tmp_path: Path) -> None:
    with storage_wait_policy(0.1), pytest.raises(StorageError, match=r"0\.1 s(.|\n)*x\.mp4"):
        list(map_in_processes(_wait, [(tmp_path / "x.mp4",)], 2))
    (tmp_path / "there").touch()
    with storage_wait_policy(1e6):
        results = map_in_processes(_wait, [(tmp_path / "there",), (tmp_path / "x.mp4",)], 2)
        assert next(results) is None
        results.close()


def _wait(path: Path) -> None:
    wait_for_storage(path.stat, path, exists=True)


class FailingFile(io.FileIO):
    """A file whose reads fail as ``storage`` prescribes, after which its handle stays stale."""

    storage: Iterator[int | None]
    stale = False

    def readinto(self, buffer: Any) -> int:
        number = errno.ESTALE if self.stale else next(self.storage, None)
        if number is not None:
            self.stale = True
            raise OSError(number, os.strerror(number))
        return super().readinto(buffer)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_failed_read_anywhere_in_a_recording_changes_no_clip_of_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """FFmpeg would take the error for the end of the file or for damage, so it must never get it."""
    generator = np.random.default_rng(0)
    video = tmp_path / "recording.mp4"
    video.write_bytes(encode_h264(generator.integers(0, 256, (100, 64, 64, 3), np.uint8), 25))
    clip = SourceSample(id="a", video=video, text="a", split="train", start_s=1.0, end_s=2.0)
    undisturbed = parallel_encoding.encode_sample(clip, EncodeConfig())
    assert isinstance(undisturbed, EncodedSample)
    opened = Path.open

    def open_failing(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if path == video:
            return io.BufferedReader(FailingFile(path))
        return opened(path, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", open_failing)
    for reads_before in itertools.count():
        FailingFile.storage = iter([None] * reads_before + [number])
        assert parallel_encoding.encode_sample(clip, EncodeConfig()) == undisturbed
        if next(FailingFile.storage, None) is not None:
            break  # fewer reads than that
    assert reads_before > 3


def test_verify_waits_and_does_not_take_an_outage_for_damage(
    shards: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = verify_shards(shards)
    failing_once(monkeypatch, "open", ".tar")
    assert verify_shards(shards) == undisturbed
    (shards / "train-000001.tar").rename(shards / "moved")
    (shards / "train-000001.tar").write_bytes((shards / "moved").read_bytes()[:-512])
    with pytest.raises(UsageError, match=r"train-000001\.tar"):
        verify_shards(shards)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_shards_on_a_full_disk_say_what_is_free_and_go_on_when_there_is_room(
    make_clips: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_shards(make_clips(8), tmp_path / "undisturbed", CONFIG)
    out, synced = tmp_path / "out", itertools.count()

    def fill(descriptor: int) -> None:
        if next(synced) > 3:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(UsageError, match=rf"{os.strerror(number)}.*\d MB are free(.|\n)*{out}"):
            write_shards(make_clips(8), out, CONFIG)
    assert list(out.glob("*.tar"))
    assert not list(out.glob(".*"))
    assert not (out / "manifest.json").exists()
    write_shards(make_clips(8), out, CONFIG)
    assert contents(out) == contents(tmp_path / "undisturbed")
