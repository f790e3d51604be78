"""Shards over HTTP on loopback: the same bytes as from the disk, whatever the server does to us."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from signllm.data import remote
from signllm.data.clip import Annotations
from signllm.data.index import ShardIndex
from signllm.data.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards import ShardConfig, write_shards
from signllm.errors import UsageError

Maker = Callable[..., Annotations]


class Handler(SimpleHTTPRequestHandler):
    """Ranges as a server should, and the mischief that ``server.mischief`` names, on tars only."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        path = Path(self.translate_path(self.path))
        server.asked[path.name] += 1
        mischief = server.mischief if path.suffix == ".tar" else ""
        if not path.is_file():
            self.send_error(404)
            return
        if mischief == "down" or (mischief == "busy" and server.asked[path.name] % 3):
            self.send_error(503)
            return
        if mischief == "forbidden":
            self.send_error(403)
            return
        first_try = server.asked[path.name] % 2 == 1
        if mischief == "drops" and first_try:
            self.close_connection = True
            return
        data, ranged = path.read_bytes(), self.headers.get("Range")
        if ranged is None or mischief == "ignores ranges":
            self.answer(200, data, {})
            return
        start, _, stop = ranged.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(stop), len(data) - 1)
        if first > last:
            self.send_error(416)
            return
        part = data[first : last + 1]
        if mischief == "wrong range" and first_try:
            first, last = first + 1, last + 1
        self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, mischief, first_try)

    def answer(
        self, status: int, data: bytes, headers: dict[str, str], mischief: str = "", first_try: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if mischief == "truncates" and first_try else data)
        if mischief == "truncates":
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    mischief = ""
    asked: Counter[str]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    config = ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False)
    write_shards(make_clips(8), tmp_path / "shards", config)
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(shards)))
    server.asked = Counter()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize("mischief", ["", "busy", "drops", "ignores ranges", "truncates", "wrong range"])
def test_the_bytes_are_those_of_the_disk(server: Server, shards: Path, mischief: str) -> None:
    here, there = ShardIndex(shards).split("train"), ShardIndex(address(server)).split("train")
    server.mischief = mischief
    assert list(there.samples) == list(here.samples)
    for number in (7, 0, 3):
        assert there.read(number) == here.read(number)


@pytest.mark.parametrize(("mischief", "message"), [("down", "5 tries"), ("forbidden", "the server refuses")])
def test_a_server_that_does_not_answer_is_an_error_that_names_the_shard(
    server: Server, mischief: str, message: str
) -> None:
    split = ShardIndex(address(server)).split("train")
    server.mischief = mischief
    with pytest.raises(UsageError, match=rf"{message}(.|\n)*train-000000\.tar"):
        split.read(0)
    assert server.asked["train-000000.tar"] == (5 if mischief == "down" else 1)
    item = VideoSource(split, DataConfig(size=48)).load(0, seed=0, epoch=0, position=0)
    assert item.bad is not None
    assert "train-000000.tar" in item.bad


def test_a_tar_that_shrank_and_one_that_is_gone(server: Server, shards: Path) -> None:
    split = ShardIndex(address(server)).split("train")
    split_tar = shards / "train-000000.tar"
    split_tar.write_bytes(split_tar.read_bytes()[:600])
    with pytest.raises(UsageError, match=r"ends before sample clip0"):
        split.read(0)
    split_tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        split.read(0)
    with pytest.raises(UsageError, match="no finished shards"):
        ShardIndex(address(server) + "/elsewhere")


def test_batches_over_http_are_those_of_the_disk(server: Server, shards: Path) -> None:
    server.mischief = "busy"
    config = DataConfig(size=48, workers=0)
    batches = [
        list(Loader(VideoSource(ShardIndex(root).split("train"), config), batch_size=3, epochs=1))
        for root in (shards, address(server))
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
