"""Tests of shards over HTTP: the same bytes as from the disk, for many faults of a server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest

from signllm import storage
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards import remote
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.shard_inspection import verify_shards
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.errors import UsageError
from signllm.storage import StorageError, storage_wait_policy
from tests.clock import Clock
from tests.data.http_server import Server, serving

Maker = Callable[..., Annotations]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    config = ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False)
    write_shards(make_clips(8), tmp_path / "shards", config)
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.001)
    with serving(shards) as server:
        yield server


@pytest.mark.parametrize("mischief", ["", "busy", "drops", "ignores ranges", "truncates", "wrong range"])
def test_the_bytes_are_those_of_the_disk(server: Server, shards: Path, mischief: str) -> None:
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    server.mischief = mischief
    assert list(there.samples) == list(here.samples)
    for number in (7, 0, 3):
        assert there.read(number) == here.read(number)


@pytest.mark.parametrize(("mischief", "message"), [("down", "503"), ("forbidden", "403")])
def test_a_server_that_does_not_answer_is_an_error_that_names_the_shard(
    server: Server, mischief: str, message: str
) -> None:
    split = ShardIndex(server.address).split("train")
    server.mischief = mischief
    source = VideoSource(split, DataConfig(size=48))
    for read in (lambda: split.read(0), lambda: source.load(0, seed=0, epoch=0, position=0)):
        with (
            storage_wait_policy(0.05),
            pytest.raises(StorageError, match=rf"{message}(.|\n)*train-000000\.tar"),
        ):
            read()
    assert (server.asked["train-000000.tar"] > 4) == (mischief == "down")


def test_a_shortened_tar_and_a_missing_tar(server: Server, shards: Path) -> None:
    split = ShardIndex(server.address).split("train")
    tar = shards / "train-000000.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(StorageError, match=rf"600 bytes, but {size}(.|\n)*train-000000\.tar"):
        split.read(0)
    tar.unlink()
    with storage_wait_policy(60), pytest.raises(StorageError, match=r"404(.|\n)*train-000000\.tar"):
        split.read(0)  # never read before, and the server has the manifest: it is not waited for
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
    with pytest.raises(UsageError, match="nosuch"):
        ShardIndex("nosuch://shards")


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_reads_every_byte_over_http(server: Server, shards: Path, workers: int) -> None:
    assert verify_shards(server.address, workers=workers) == verify_shards(shards)
    tar = shards / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[-600] ^= 1
    tar.write_bytes(data)
    (shards / "train-000000.tar").unlink()
    with pytest.raises(UsageError) as message:
        verify_shards(server.address, workers=workers)
    for damage in (
        "train-000000.tar: missing",
        "train-000001.tar: the sha256 differs",
        "to that address again",
    ):
        assert damage in str(message.value)


def test_a_byte_range_longer_than_one_request(
    server: Server, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = shards / "train-000000.tar"
    for span in (tar.stat().st_size, tar.stat().st_size // 3, 10**9):
        monkeypatch.setattr(remote, "_FETCHED_BYTES", span)
        remote.download(f"{server.address}/{tar.name}", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == tar.read_bytes()


def test_a_server_that_is_away_for_twenty_seconds_loses_nothing(
    server: Server, shards: Path, clock: Clock
) -> None:
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    back_s = clock.now_s + 20
    server.rule = lambda path: (503, {}) if clock.now_s < back_s else None
    assert there.read(2) == here.read(2)
    assert 20 <= clock.now_s - back_s + 20 < 60


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_throttles_is_obeyed(server: Server, shards: Path, clock: Clock, status: int) -> None:
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    began_s = clock.now_s
    date = "Mon, 30 Nov 2026 15:00:15 GMT"
    server.refusals += [
        (status, {"Retry-After": "15"}),
        (status, {"Retry-After": date, "Date": "Mon, 30 Nov 2026 15:00:00 GMT"}),
    ]
    assert there.read(3) == here.read(3)
    assert 30 <= clock.now_s - began_s < 40
    assert server.asked["train-000001.tar"] == 3


def test_a_server_that_is_not_up_yet_when_a_run_starts(shards: Path, clock: Clock) -> None:
    """First connections are refused, then a proxy finds no server, then the server answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def sleep(seconds: float, sleep: Callable[[float], None] = clock.sleep) -> None:
            sleep(seconds)
            if clock.now_s > 1010 and not servers:
                servers.append(stack.enter_context(serving(shards, port)))
                servers[0].refusals += [(502, {})] * 2

        servers: list[Server] = []
        patch.setattr(clock, "sleep", sleep)
        index = ShardIndex(f"http://127.0.0.1:{port}")
    assert index.splits == ("train",)
    assert clock.now_s > 1010


def test_a_server_that_stalls_in_the_middle_of_an_answer(
    server: Server, shards: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    server.mischief = "stalls"
    assert there.read(3) == here.read(3)
    assert server.asked["train-000001.tar"] == 2
    server.resumed.set()


def test_a_file_that_vanishes_with_all_of_its_server_is_waited_for(
    server: Server, shards: Path, clock: Clock
) -> None:
    """A proxy of an unmounted folder answers 404 to everything; an incomplete upload lacks one file."""
    here, there = ShardIndex(shards).split("train"), ShardIndex(server.address).split("train")
    back_s = clock.now_s + 20
    server.rule = lambda path: (404, {}) if clock.now_s < back_s else None
    assert there.read(0) == here.read(0)
    again_s = clock.now_s + 20
    server.rule = lambda path: (404, {}) if clock.now_s < again_s and path.suffix == ".tar" else None
    assert there.read(0) == here.read(0)  # it was read before
    assert clock.now_s >= again_s


def test_without_its_package_an_address_names_the_extra(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UsageError, match=r"aiohttp(.|\n)*signllm\[remote\]"):
        ShardIndex(server.address)


EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>Request has expired at noon</Message></Error>"


def test_an_expired_address_and_a_redirection_loop(server: Server, clock: Clock) -> None:
    split, began_s = ShardIndex(server.address).split("train"), clock.now_s
    server.rule = lambda path: (403, {}, EXPIRED)
    with pytest.raises(StorageError, match=r"403(.|\n)*ExpiredToken, Request has expired(.|\n)*renew"):
        split.read(0)
    server.rule = lambda path: (302, {"Location": f"/{path.name}"})
    with pytest.raises(UsageError, match=r"302(.|\n)*manifest\.json"):
        ShardIndex(server.address)
    with pytest.raises(UsageError, match=r"port(.|\n)*manifest\.json"):
        ShardIndex("http://127.0.0.1:port")
    assert clock.now_s == began_s


def test_a_shard_that_was_replaced_under_a_run(server: Server, shards: Path, clock: Clock) -> None:
    """A shard of another size ends the run; in one of the same size, samples differ from the index."""
    split, began_s = ShardIndex(server.address).split("train"), clock.now_s
    first = split.read(0)
    tar = shards / "train-000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data + bytes(512))
    with pytest.raises(StorageError, match=rf"{len(data) + 512} bytes, but {len(data)}"):
        split.read(0)
    tar.write_bytes(data.replace(first["txt"], first["txt"][::-1]))
    item = VideoSource(split, DataConfig(size=48)).load(0, seed=0, epoch=0, position=0)
    assert item.bad is not None
    assert "train-000000.tar" in item.bad
    assert clock.now_s == began_s


def test_errors_of_the_libraries_behind_fsspec(
    shards: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/throttled/{path.name}", path.read_bytes())
    split, here = ShardIndex("memory://throttled").split("train"), ShardIndex(shards).split("train")
    slow_down = Exception("SlowDown")
    slow_down.response = {"Error": {"Code": "SlowDown"}}  # type: ignore[attr-defined]
    denied = Exception("AccessDenied")
    denied.response = {"ResponseMetadata": {"HTTPStatusCode": 403}}  # type: ignore[attr-defined]
    troubles: list[Exception] = [slow_down, OSError(16, "busy"), TimeoutError()]
    cat_file = memory.cat_file

    def fail_or_read(*arguments: object, **named: object) -> object:
        if troubles:
            raise troubles.pop()
        return cat_file(*arguments, **named)

    monkeypatch.setattr(memory, "cat_file", fail_or_read)
    assert split.read(4) == here.read(4)
    troubles += [denied]
    with pytest.raises(StorageError, match=r"AccessDenied(.|\n)*memory://throttled/train-"):
        split.read(4)
