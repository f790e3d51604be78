"""Timelines: every character is drawn once, at its time; brackets cover the characters of their words."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from signllm.reporting.pages import render_timeline
from signllm.reporting.timeline import Span, build_spans, lay_out_timeline
from signllm.reporting.video_frames import VideoFrames


def draw(characters: list[int], spans: list[Span], frames: VideoFrames | None = None) -> str:
    return render_timeline(lay_out_timeline(characters, spans, frames, "label"))


def blocks(drawing: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(w))
        for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    ]


def test_spans_follow_the_slots() -> None:
    spans = build_spans([70, 3, 71], [0, 0, 0, 1, 2, 2], [(1, 2), (3,), (4, 5)])
    assert [(span.word, span.start, span.stop, span.is_composed) for span in spans] == [
        (70, 0, 3, True), (3, 3, 4, False), (71, 4, 6, True),
    ]  # fmt: skip
    # a word without characters (the slowing down token alone) has no span
    assert [span.word for span in build_spans([1, 64, 2], [0, 2], [(1,), (64,), (2,)])] == [1, 2]


@pytest.mark.parametrize("count", [1, 5, 31, 32, 33, 200])
def test_every_character_is_drawn_once_without_overlap(count: int) -> None:
    drawing = draw([place % 7 for place in range(count)], [])
    drawn = blocks(drawing)
    assert len(drawn) == count
    rows = drawing.count("<g transform") or 1
    assert sum(after <= x for (x, _), (after, _) in pairwise(drawn)) == rows - 1
    for (x, width), (after, _) in pairwise(drawn):
        assert after <= x or after >= x + width
    assert max(x + width for x, width in drawn) <= 1000


def test_brackets_cover_their_characters() -> None:
    spans = [Span(word=64, start=0, stop=3, spelling=(1, 2)), Span(word=5, start=3, stop=4, spelling=(5,))]
    drawing = draw([1, 1, 2, 5], spans)
    drawn = blocks(drawing)
    left, right = map(float, re.findall(r'<path d="M([\d.]+) [\d.]+V[\d.]+H([\d.]+)V', drawing)[0])
    assert drawn[0][0] <= left < drawn[0][0] + drawn[0][1]
    assert drawn[2][0] < right <= drawn[2][0] + drawn[2][1] + 1
    assert ">w64<" in drawing
    assert ">w5<" not in drawing  # a word of a single character has no name


def test_a_word_over_the_end_of_a_row_is_drawn_in_both() -> None:
    drawing = draw([1] * 60, [Span(word=70, start=20, stop=40, spelling=(1, 2))])
    assert drawing.count(">w70<") == 2


def test_thumbnails_show_the_frames_of_their_time() -> None:
    frames = np.zeros((160, 8, 8, 3), dtype=np.uint8)
    frames[80:] = 255
    video = VideoFrames(frames=frames)
    drawing = draw([0] * 32, [], video)
    assert drawing.count('href="data:image/jpeg;base64,') == 1
    import base64
    import io

    from PIL import Image

    data = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', drawing)[0]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).mean(axis=0)
    # characters 0..31 are drawn below frames 4..132; white begins at frame 80, (80 - 4) / 128 of the width
    first_white = int((strip > 128).argmax()) / len(strip)
    assert first_white == pytest.approx(76 / 128, abs=1 / (len(strip) / video.width))
