"""Tests of the server over HTTP: translations, errors, other sites, and waiting requests."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
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
from signllm.inference.translate import Candidate, Translation, TranslationOutcome, load
from signllm.serving.service import Service, TranslationRequest
from signllm.validation import to_plain
from tests.data.made_videos import browser_webm, webcam_times_ms
from tests.serving.conftest import LARGEST_MB, Served


def send_request(
    served: Served, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], list[Any]]:
    """Send a request; return the status, the headers and the lines of JSON of the response."""
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
    """Check that the upload is deleted soon after the last byte of the response."""
    give_up = time.monotonic() + 20
    while set(served.uploads.glob("signllm-*")) - set(served.uploads.glob("signllm-page-*")):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_the_response_equals_the_output_of_translate(served: Served) -> None:
    video = served.videos["clip6"]
    expected = to_plain(load(served.run).translate(video))
    status, _, (result, done) = send_request(served, "POST", "/translate", video.read_bytes())
    assert (status, done) == (200, {"done": True})
    assert len(result.pop("spellings")) == len(result["words"])
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}
    _, _, (best, _) = send_request(
        served, "POST", "/translate?candidates=3&language=German", video.read_bytes()
    )
    assert len(best["candidates"]) == 3
    assert best["candidates"][0]["text"] == best["text"]
    assert_nothing_is_kept(served)


def test_the_windows_of_a_recording_arrive_one_by_one(served: Served) -> None:
    body = served.videos["clip6"].read_bytes()
    _, _, (*pieces, done) = send_request(served, "POST", "/translate?cut=windows&seconds=1", body)
    assert done == {"done": True}
    assert [piece["start_s"] for piece in pieces] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(
    ("path", "body", "status", "output"),
    [
        ("/translate", b"", 400, "there is no video"),
        ("/translate?candidates=99", b"x", 400, "99 candidates"),
        ("/translate?candidates=x", b"x", 400, "invalid literal"),
        ("/translate?cut=never", b"x", 400, "cut is 'never'"),
        ("/translate?frames=2", b"x", 400, "no setting 'frames'"),
        ("/translate", b"this is a text\n" * 50, 200, "cannot be read"),
        ("/translate?cut=windows&seconds=0", b"x", 200, "seconds is 0.0"),
        ("/translate", b"x" * (LARGEST_MB * 10**6 + 1), 413, "larger than 1 MB"),
    ],
)
def test_invalid_requests_are_reported(
    served: Served, path: str, body: bytes, status: int, output: str
) -> None:
    result, _, (line,) = send_request(served, "POST", path, body, X_Name="../../a%20file.mp4")
    assert result == status
    assert output in line["error"]["what"]
    assert_nothing_is_kept(served)


def test_other_sites_of_the_same_browser_are_refused(served: Served) -> None:
    port = urlsplit(served.address).port
    for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        status, _, (line,) = send_request(served, "POST", "/translate", b"x", **headers)
        assert status == 403, headers
        assert "the request" in line["error"]["what"]
    assert send_request(served, "GET", "/about", Origin=served.address)[0] == 200
    status, headers, _ = send_request(served, "GET", "/", Host=f"localhost:{port}")
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


def test_only_uploads_and_files_of_the_page_are_sent(served: Served) -> None:
    for path in (
        "/../etc/passwd",
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={served.run}/config.json",
    ):
        assert send_request(served, "GET", path)[0] in (403, 404)


def test_a_port_in_use_is_reported(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(urlsplit(served.address).port)
    assert cli.main(["serve", "--run", str(served.run), "--port", port]) == 2
    assert f"port {port} is in use" in capsys.readouterr().err


PIECE = Translation(
    text="rain", score=-1.0, characters=(), words=(), word_times=(),
    candidates=(Candidate(text="rain", score=-1.0),), start_s=0.0, end_s=1.0, frames=25, frames_read=25,
    seconds=0.1,
)  # fmt: skip


class _Slow:
    """A translator that yields one piece whenever the test permits it."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Semaphore(0), 0
        self.config = SimpleNamespace(generation=None)
        self.model = SimpleNamespace(words=None)

    def stream(self, videos: Any, **_: Any) -> Iterator[TranslationOutcome]:
        self.begun += 1
        for _piece in range(3):
            self.go.acquire()
            yield TranslationOutcome(0, videos[0].name, translation=PIECE)


def test_requests_wait_in_order_and_a_disconnected_client_is_skipped() -> None:
    async def scene() -> None:
        slow = _Slow()
        service = Service(slow)  # type: ignore[arg-type]
        item, two, three = (
            service.translate(Path("x"), name, TranslationRequest()) for name in ("one", "two", "three")
        )
        slow.go.release()
        assert (await anext(item))["text"] == "rain"
        assert await anext(two) == {"waiting": 1}
        assert await anext(three) == {"waiting": 2}
        await two.aclose()
        assert await anext(three) == {"waiting": 1}
        assert slow.begun == 1
        leaving = asyncio.ensure_future(item.aclose())  # its page was closed: it ends after this piece
        await asyncio.sleep(0)
        slow.go.release()
        await leaving
        slow.go.release(3)
        async with aclosing(three) as lines:
            message = [line async for line in lines if "waiting" not in line]
        assert [line.get("text") for line in message] == ["rain"] * 3 + [None]
        assert message[-1] == {"done": True}
        assert slow.begun == 2

    asyncio.run(scene())


def test_an_internal_error_is_reported_too() -> None:
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


def test_a_missing_gradio_is_one_error(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.startswith("signllm.serving.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["serve", "--run", str(served.run)]) == 2
    error = capsys.readouterr().err
    assert "gradio is not installed" in error
    assert "signllm[serve]" in error


def test_a_wrong_certificate_is_one_error(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pem").write_text("no certificate")
    for options in (["--ssl-certfile", tmp_path / "a.pem"], ["--ssl-keyfile", tmp_path / "a.pem"]):
        assert cli.main(["serve", "--run", str(served.run), *map(str, options)]) == 2
        assert "--ssl-" in capsys.readouterr().err
    assert cli.main(["serve", "--run", str(served.run), "--public-url", "example.org"]) == 2
    assert "--public-url" in capsys.readouterr().err


def test_building_the_page_connects_to_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signllm.serving.server import ServeConfig, make_application

    connected: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    service = Service(_Slow())  # type: ignore[arg-type]
    service.translator.config = SimpleNamespace(generation=SimpleNamespace(language=None))  # type: ignore
    make_application(service, "name", ServeConfig(), tmp_path)
    time.sleep(0.5)  # Gradio reports from a thread
    assert connected == []


def test_invalid_addresses_are_refused() -> None:
    from signllm.serving.request_guard import is_loopback
    from signllm.serving.server import listen

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
    """The page records WebM without a frame rate."""
    times_ms = webcam_times_ms()
    status, _, (result, done) = send_request(served, "POST", "/translate", browser_webm(times_ms))
    assert (status, done) == (200, {"done": True})
    assert result["frames"] == len(times_ms)
    assert result["end_s"] == pytest.approx(times_ms[-1] / 1000 * 60 / 59, abs=0.01)
