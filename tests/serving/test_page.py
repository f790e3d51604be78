"""Tests of the page in a real browser: files, the camera, errors, the keyboard, no other hosts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from signllm.inference.translate import load
from tests.serving.conftest import LARGEST_MB, Served

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
    """Wait for a text; ``wait_for_function`` would need the ``eval`` that the page's policy forbids."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=60_000)


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """Return the open page; at the end it must have had no error and no request to another host."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, wrong, hosts = context.new_page(), [], set()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(served.address)
    text_becomes(page, "#name", "run")
    yield page
    assert wrong == []
    assert hosts - {""} == {urlsplit(served.address).netloc}  # "": blob and data addresses have no host
    context.close()


def test_a_file_becomes_text_words_on_a_timeline_and_alternatives(page: Any, served: Served) -> None:
    videos = [*served.videos.values()]
    translations = zip(videos, load(served.run).translate(videos), strict=True)
    video, expected = next((video, result) for video, result in translations if result.text)
    page.get_by_text("Settings").click()
    page.get_by_label("Alternatives").first.fill("1")
    page.set_input_files("#file", video)
    text_becomes(page, "#status", DONE)
    assert page.locator(".piece .text").text_content() == expected.text
    boxes = page.locator(".words button")
    assert boxes.count() == len(expected.words)
    assert page.locator(".others").is_hidden()
    page.wait_for_selector(".frames canvas")
    left = boxes.last.bounding_box()["x"] - page.locator(".track").bounding_box()["x"]
    width = page.locator(".track").bounding_box()["width"]
    assert left / width == pytest.approx(expected.word_times[-1][0] / expected.end_s, abs=0.01)
    boxes.last.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('video').currentTime") == pytest.approx(
        expected.word_times[-1][0], abs=0.01
    )
    page.get_by_label("Alternatives").first.fill("3")
    page.get_by_label("Language of the text").fill("German")
    page.get_by_role("button", name="Translate again").click()
    page.locator(".others li").nth(1).wait_for()  # equal ones are told once
    assert (
        page.locator(".others li")
        .first.text_content()
        .startswith(page.locator(".piece .text").text_content())
    )
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")  # fits a phone


def test_a_video_longer_than_the_model_reads_gets_a_notice(page: Any, served: Served) -> None:
    page.set_input_files("#file", served.videos["clip0"])
    text_becomes(page, "#status", DONE)
    assert "were read" not in page.locator(".piece .about").text_content()
    page.set_input_files("#file", served.videos["clip6"])
    page.locator(".piece .about", has_text="Only 45 of 57 frames were read").wait_for()
    text_becomes(page, "#status", DONE)


def test_a_dropped_recording_in_windows(page: Any, served: Served) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("A long recording is").select_option("windows")
    page.get_by_label("Seconds of a window").fill("1")
    page.evaluate(
        """async (bytes) => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([new Uint8Array(bytes)], "a video.mp4", { type: "video/mp4" }));
            document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: dropped }));
        }""",
        list(served.videos["clip6"].read_bytes()),
    )
    text_becomes(page, "#status", DONE)
    assert page.locator("#status").text_content() == "Done: 3 pieces."
    assert page.locator(".piece .times").all_text_contents()[1] == "1.0 s to 2.0 s"


def test_the_camera_is_recorded_and_translated(page: Any) -> None:
    page.get_by_role("button", name="Use the camera").click()
    text_becomes(page, "#seconds", "2 s")
    page.get_by_role("button", name="Stop and translate").click()
    text_becomes(page, "#status", DONE)
    assert page.locator(".words button").count() > 0
    assert page.locator("#recording").is_hidden()
    for _ in range(5):  # cancelled before the first frame: no error either
        page.get_by_role("button", name="Use the camera").click()
        page.wait_for_selector("#recording", state="visible")
        page.locator("#cancel").dispatch_event("click")
        page.wait_for_selector("#video", state="hidden")


def test_mistakes_are_shown(page: Any, tmp_path: Path) -> None:
    text, large = tmp_path / "a text.mp4", tmp_path / "large.mp4"
    text.write_text("no video\n" * 100)
    large.write_bytes(b"x" * (LARGEST_MB * 10**6 + 1))
    for file, output in ((text, "cannot be read"), (large, f"larger than {LARGEST_MB} MB")):
        page.set_input_files("#file", file)
        text_becomes(page, "#status.bad", re.compile(output))
    assert page.locator(".piece").count() == 0
