"""Tests of the page in a real browser: files, the camera, errors, https proxies, no other hosts."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from signllm.inference.translate import load
from tests.serving.conftest import LARGEST_MB, Model, Served, serve
from tests.serving.tls_proxy import TlsProxy, write_certificate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: the page is not checked"
)
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
DONE = re.compile("^Done")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def text_becomes(page: Any, selector: str, text: Any) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=60_000)


@contextmanager
def visit(browser: Any, address: str, *, may_log_errors: bool = False) -> Iterator[Any]:
    """Open the page; at the end it must have had no error and no request to another host."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, ignore_https_errors=True)
    page, wrong, hosts = context.new_page(), [], set()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(address)
    page.get_by_role("heading", name="Sign language to text").wait_for()
    yield page
    context.close()
    assert wrong == [] or may_log_errors
    assert hosts - {""} == {urlsplit(address).netloc}  # "": blob and data addresses have no host


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    with visit(browser, served.address) as page:
        page.get_by_role("button", name="clip0").wait_for()
        yield page


def upload(page: Any, file: Path) -> None:
    """Choose a file, in place of the one that is shown, if there is one."""
    if page.get_by_label("Clear").count():
        page.get_by_label("Clear").click()
    page.set_input_files("input[type=file]", file)


def test_a_file_becomes_text_a_timeline_and_alternatives(page: Any, served: Served) -> None:
    videos = [*served.videos.values()]
    translations = zip(videos, load(served.run).translate(videos), strict=True)
    video, expected = next((video, result) for video, result in translations if result.text)
    page.get_by_text("Settings").click()
    page.get_by_role("spinbutton", name="Alternatives").fill("1")
    upload(page, video)
    text_becomes(page, ".status", DONE)
    assert page.locator(".piece .text").text_content() == expected.text
    blocks = page.locator(".timeline rect")
    assert blocks.count() == len(expected.characters)
    numbers = page.locator(".timeline text.number").all_text_contents()
    assert numbers == [str(code) for code in expected.characters]
    brackets = page.locator(".timeline .bracket, .timeline .single").count()
    assert brackets == len(expected.words)
    assert page.locator(".timeline image").count() == 1
    assert page.locator(".others").count() == 0
    page.get_by_role("spinbutton", name="Alternatives").fill("3")
    page.get_by_label("Language of the text").fill("German")
    page.get_by_role("button", name="Translate").click()
    page.locator(".others li").nth(1).wait_for()  # equal alternatives are listed once
    first = page.locator(".others li").first.text_content()
    assert first.startswith(page.locator(".piece .text").text_content())
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")  # fits a phone


def test_a_video_longer_than_the_model_reads_gets_a_notice(page: Any, served: Served) -> None:
    upload(page, served.videos["clip0"])
    text_becomes(page, ".status", DONE)
    assert "were read" not in page.locator(".piece .about").text_content()
    upload(page, served.videos["clip6"])
    page.locator(".piece .about", has_text="Only 45 of 57 frames were read").wait_for()


def test_an_example_is_cut_into_windows(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("A long recording is").click()
    page.get_by_role("option", name="cut into windows").click()
    page.get_by_label("Seconds of a window").fill("1")
    page.get_by_role("button", name="clip6").click()
    text_becomes(page, ".status", "Done: 3 pieces.")
    assert page.locator(".piece .times").all_text_contents()[1] == "1.0 s to 2.0 s"
    assert page.locator(".timeline").count() == 3


def record(page: Any) -> None:
    """Record the camera for a second, and wait for the translation."""
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("button", has_text="Record").click()
    page.wait_for_timeout(1500)
    page.locator("button", has_text="Stop").click()
    text_becomes(page, ".status", DONE)
    assert page.locator(".timeline rect").count() > 0


def test_the_camera_is_recorded_and_translated(page: Any) -> None:
    record(page)


def test_a_file_that_is_no_video_is_reported(page: Any, tmp_path: Path) -> None:
    text = tmp_path / "a text.mp4"
    text.write_text("no video\n" * 100)
    upload(page, text)
    text_becomes(page, ".status.bad", re.compile("cannot be read"))
    assert page.locator(".piece").count() == 0


def test_a_file_that_is_too_large_is_reported(browser: Any, served: Served, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(b"x" * (LARGEST_MB * 10**6 + 1))
    with visit(browser, served.address, may_log_errors=True) as page:
        upload(page, large)
        page.get_by_text(re.compile("maximum allowed size.*large.mp4")).first.wait_for()
    assert not list(served.uploads.rglob("large.mp4"))


def test_videos_are_deleted_when_the_page_is_closed(browser: Any, served: Served, tmp_path: Path) -> None:
    def kept() -> list[Path]:
        return list(served.uploads.rglob("a video.mp4"))

    video = shutil.copy(served.videos["clip2"], tmp_path / "a video.mp4")
    with visit(browser, served.address) as page:
        upload(page, video)
        text_becomes(page, ".status", DONE)
        assert len(kept()) == 1
    give_up = time.monotonic() + 20
    while kept():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def translate_and_record(browser: Any, address: str, video: Path) -> None:
    """Check that the page works at an address of https: with a file, and with the camera."""
    with visit(browser, address) as page:
        upload(page, video)
        text_becomes(page, ".status", DONE)
        page.get_by_label("Clear").click()
        record(page)


def test_behind_an_https_proxy_that_forwards_the_host(browser: Any, model: Model, tmp_path: Path) -> None:
    proxy = TlsProxy(tmp_path, forwards=True, keeps_host=True)
    options = ("--host", "0.0.0.0", "--port", "0")
    with (
        serve(tmp_path / "serve", model, *options, end=signal.SIGTERM) as served,
        proxy.running(urlsplit(served.address).port or 0),
    ):
        translate_and_record(browser, proxy.address, model.videos["clip0"])


def test_below_a_path_of_an_https_proxy_that_forwards_nothing(
    browser: Any, model: Model, tmp_path: Path
) -> None:
    proxy = TlsProxy(tmp_path, prefix="/signs", forwards=False, keeps_host=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(tmp_path / "serve", model, "--port", port, "--public-url", proxy.address) as served:
        assert served.address == proxy.address
        with proxy.running(port):
            translate_and_record(browser, f"{proxy.address}/", model.videos["clip0"])


def test_with_a_certificate_of_its_own(browser: Any, model: Model, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    options = ("--port", "0", "--ssl-certfile", certificate, "--ssl-keyfile", key)
    with serve(tmp_path / "serve", model, *options) as served:
        assert served.address.startswith("https://")
        translate_and_record(browser, served.address, model.videos["clip0"])
