"""The server over HTTP: what translate says, mistakes told, other sites refused, one after another."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from signllm import cli
from signllm.errors import UsageError
from signllm.evaluation.translate import Candidate, Translation, TranslationOutcome, load
from signllm.plain import to_plain
from signllm.serving.service import Service, TranslationRequest
from tests.data.made_videos import browser_webm, webcam_times_ms
from tests.serving.conftest import LARGEST_MB, Served


def asked(
    served: Served, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], list[Any]]:
    """Return status, headers and the lines of JSON that a request gets."""
    address = urlsplit(served.address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    is_json = "json" in answer.headers.get_content_type()
    return (
        answer.status,
        dict(answer.headers),
        [json.loads(line) for line in text.splitlines()] if is_json else [],
    )


def assert_nothing_is_kept(served: Served) -> None:
    """What was uploaded goes with the answer, a moment after its last byte."""
    give_up = time.monotonic() + 20
    while list(served.uploads.glob("signllm-*")):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_an_answer_is_what_translate_says(served: Served) -> None:
    video = served.videos["clip6"]
    expected = to_plain(load(served.run).translate(video))
    status, _, (found, done) = asked(served, "POST", "/translate", video.read_bytes())
    assert (status, done) == (200, {"done": True})
    assert len(found.pop("spellings")) == len(found["words"])
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    _, _, (best, _) = asked(served, "POST", "/translate?candidates=3&language=German", video.read_bytes())
    assert len(best["candidates"]) == 3
    assert best["candidates"][0]["text"] == best["text"]
    assert_nothing_is_kept(served)


def test_a_recording_in_windows_is_told_piece_by_piece(served: Served) -> None:
    body = served.videos["clip6"].read_bytes()
    _, _, (*pieces, done) = asked(served, "POST", "/translate?cut=windows&seconds=1", body)
    assert done == {"done": True}
    assert [piece["start_s"] for piece in pieces] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/translate", b"", 400, "there is no video"),
        ("/translate?candidates=99", b"x", 400, "99 candidates"),
        ("/translate?candidates=x", b"x", 400, "invalid literal"),
        ("/translate?cut=never", b"x", 400, "cut is 'never'"),
        ("/translate?frames=2", b"x", 400, "no setting 'frames'"),
        ("/translate", b"this is a text\n" * 50, 200, "cannot be read"),
        ("/translate?cut=windows&seconds=0", b"x", 200, "windows of 0 s"),
        ("/translate", b"x" * (LARGEST_MB * 10**6 + 1), 413, "larger than 1 MB"),
        ("/../etc/passwd", None, 404, "Not Found"),
    ],
)
def test_mistakes_are_told(served: Served, path: str, body: bytes | None, status: int, said: str) -> None:
    method = "GET" if body is None else "POST"
    found, _, (line,) = asked(served, method, path, body, X_Name="../../a%20file.mp4")
    assert found == status
    assert said in line["error"]["what"]
    assert_nothing_is_kept(served)


def test_other_sites_of_the_same_browser_are_refused(served: Served) -> None:
    port = urlsplit(served.address).port
    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        status, _, (line,) = asked(served, "POST", "/translate", b"x", **headers)
        assert status == 403, headers
        assert "the request" in line["error"]["what"]
    assert asked(served, "GET", "/about", Origin=served.address)[0] == 200
    for path in ("/", "/page.js", "/page.css"):
        status, headers, _ = asked(served, "GET", path, Host=f"localhost:{port}")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_port_that_is_taken_is_told(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(urlsplit(served.address).port)
    assert cli.main(["serve", "--run", str(served.run), "--port", port]) == 2
    assert f"port {port} is in use" in capsys.readouterr().err


PIECE = Translation(
    text="rain", score=-1.0, characters=(), words=(), word_times=(),
    candidates=(Candidate(text="rain", score=-1.0),), start_s=0.0, end_s=1.0, frames=25, frames_read=25,
    seconds=0.1,
)  # fmt: skip


class _Slow:
    """A translator that tells a piece whenever it is let."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Semaphore(0), 0
        self.config = SimpleNamespace(generation=None)
        self.model = SimpleNamespace(words=None)

    def stream(self, videos: Any, **_: Any) -> Iterator[TranslationOutcome]:
        self.begun += 1
        for _piece in range(3):
            self.go.acquire()
            yield TranslationOutcome(0, videos[0].name, translation=PIECE)


def test_requests_wait_for_each_other_and_who_leaves_lets_the_next_one_in() -> None:
    async def scene() -> None:
        slow = _Slow()
        service = Service(slow)  # type: ignore[arg-type]
        one, two, three = (
            service.translate(Path("x"), name, TranslationRequest()) for name in ("one", "two", "three")
        )
        slow.go.release()
        assert (await anext(one))["text"] == "rain"
        assert await anext(two) == {"waiting": 1}
        assert await anext(three) == {"waiting": 2}
        await two.aclose()
        assert await anext(three) == {"waiting": 1}
        assert slow.begun == 1
        leaving = asyncio.ensure_future(one.aclose())  # its page was closed: it ends after this piece
        await asyncio.sleep(0)
        slow.go.release()
        await leaving
        slow.go.release(3)
        async with aclosing(three) as lines:
            told = [line async for line in lines if "waiting" not in line]
        assert [line.get("text") for line in told] == ["rain"] * 3 + [None]
        assert told[-1] == {"done": True}
        assert slow.begun == 2

    asyncio.run(scene())


def test_an_error_of_ours_is_told_too() -> None:
    class Broken(_Slow):
        def stream(self, videos: Any, **_: Any) -> Iterator[TranslationOutcome]:
            raise RuntimeError("out of memory")
            yield

    lines: list[Any] = []

    async def scene() -> None:
        async for line in Service(Broken()).translate(Path("x"), "one", TranslationRequest()):  # type: ignore[arg-type]
            lines.append(line)

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(scene())
    assert [line["error"]["what"] for line in lines] == ["RuntimeError: out of memory"]


def test_an_address_that_is_none() -> None:
    from signllm.serving.server import is_loopback, listen

    with pytest.raises(UsageError, match="cannot listen at"):
        listen("203.0.113.1", 0)
    with pytest.raises(UsageError, match="port 70000"):
        listen("127.0.0.1", 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="is in use"):
            listen("127.0.0.1", taken.getsockname()[1])
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "192.168.0.1", "evil.example"))


def test_a_recording_of_a_browser_lasts_as_long_as_it_did(served: Served) -> None:
    """WebM without a frame rate, as the page records it."""
    times_ms = webcam_times_ms()
    status, _, (found, done) = asked(served, "POST", "/translate", browser_webm(times_ms))
    assert (status, done) == (200, {"done": True})
    assert found["frames"] == len(times_ms)
    assert found["end_s"] == pytest.approx(times_ms[-1] / 1000 * 60 / 59, abs=0.01)
