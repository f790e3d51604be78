"""Shards over HTTP on loopback: the same bytes as from the disk, whatever the server does to us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from signllm.data import remote
from signllm.data.clip import Annotations
from signllm.data.index import ShardIndex
from signllm.data.inspection import shards_verify
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards import ShardConfig, write_shards
from signllm.errors import UsageError
from tests.data.http_server import Server, serving

Maker = Callable[..., Annotations]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    config = ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False)
    write_shards(make_clips(8), tmp_path / "shards", config)
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    with serving(shards) as server:
        yield server


@pytest.mark.parametrize("mischief", ["", "busy", "drops", "ignores ranges", "truncates", "wrong range"])
def test_the_bytes_are_those_of_the_disk(server: Server, shards: Path, mischief: str) -> None:
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    server.mischief = mischief
    assert list(there.samples) == list(here.samples)
    for number in (7, 0, 3):
        assert there.read(number) == here.read(number)


@pytest.mark.parametrize(("mischief", "message"), [("down", "5 tries"), ("forbidden", "the server refuses")])
def test_a_server_that_does_not_answer_is_an_error_that_names_the_shard(
    server: Server, mischief: str, message: str
) -> None:
    split = ShardIndex(server.address).split("train")
    server.mischief = mischief
    with pytest.raises(UsageError, match=rf"{message}(.|\n)*train-000000\.tar"):
        split.read(0)
    assert server.asked["train-000000.tar"] == (5 if mischief == "down" else 1)
    item = VideoSource(split, DataConfig(size=48)).load(0, seed=0, epoch=0, position=0)
    assert item.bad is not None
    assert "train-000000.tar" in item.bad


def test_a_tar_that_shrank_and_one_that_is_gone(server: Server, shards: Path) -> None:
    split = ShardIndex(server.address).split("train")
    split_tar = shards / "train-000000.tar"
    split_tar.write_bytes(split_tar.read_bytes()[:600])
    with pytest.raises(UsageError, match=r"ends before sample clip0"):
        split.read(0)
    split_tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        split.read(0)
    with pytest.raises(UsageError, match="no finished shards"):
        ShardIndex(server.address + "/elsewhere")


def test_batches_over_http_are_those_of_the_disk(server: Server, shards: Path) -> None:
    server.mischief = "busy"
    config = DataConfig(size=48, workers=0)
    batches = [
        list(Loader(VideoSource(ShardIndex(root).split("train"), config), batch_size=3, epochs=1))
        for root in (shards, server.address)
    ]
    for here, there in zip(*batches, strict=True):
        assert here.ids == there.ids
        assert here.frames is not None
        assert there.frames is not None
        assert bool((here.frames == there.frames).all())


def test_any_file_system_of_fsspec(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    here, there = ShardIndex(shards).split("train"), ShardIndex("memory://shards").split("train")
    assert there.read(4) == here.read(4)
    with pytest.raises(UsageError, match="cannot be opened"):
        ShardIndex("nosuch://shards")


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_reads_every_byte_over_http(server: Server, shards: Path, workers: int) -> None:
    assert shards_verify(server.address, workers=workers) == shards_verify(shards)
    tar = shards / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[-600] ^= 1
    tar.write_bytes(data)
    (shards / "train-000000.tar").unlink()
    with pytest.raises(UsageError) as told:
        shards_verify(server.address, workers=workers)
    for damage in ("train-000000.tar: missing", "train-000001.tar: sha256 differs", "to that address again"):
        assert damage in str(told.value)


def test_a_span_longer_than_one_fetch(
    server: Server, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = shards / "train-000000.tar"
    for span in (tar.stat().st_size, tar.stat().st_size // 3, 10**9):
        monkeypatch.setattr(remote, "_FETCHED_BYTES", span)
        remote.fetch(f"{server.address}/{tar.name}", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == tar.read_bytes()
