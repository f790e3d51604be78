"""Thumbnails show the frames that the model reads; videos that cannot be read are reported, not raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from signllm.inference.evaluate import EvaluateConfig, evaluate
from signllm.reporting import write_report
from signllm.reporting.video_frames import load_videos
from tests.inference import trained


def test_frames_are_subsampled_as_for_the_model(shards: Path) -> None:
    problems: list[str] = []
    videos = load_videos(shards, "test", ["clip2", "clip6", "nobody"], problems, most=trained.MAX_FRAMES)
    assert problems == []
    assert set(videos) == {"clip2", "clip6"}
    assert np.array_equal(videos["clip2"].frames, trained.decode_sample(shards, "test", "clip2"))
    complete = trained.decode_sample(shards, "test", "clip6")
    assert len(complete) > len(videos["clip6"].frames) == trained.MAX_FRAMES
    assert np.array_equal(videos["clip6"].frames[[0, -1]], complete[[0, -1]])


def test_missing_shards_are_reported(shards: Path, tmp_path: Path) -> None:
    problems: list[str] = []
    assert load_videos(None, "test", ["clip0"], problems) == {}
    assert problems == []
    assert load_videos(shards, "dev", ["clip0"], problems) == {}
    assert load_videos(tmp_path, "test", ["clip0"], problems) == {}
    assert len(problems) == 2


def test_a_report_of_an_evaluated_run_shows_its_videos(run: Path, shards: Path) -> None:
    evaluate(run, shards, "test", EvaluateConfig(shuffled=True))
    page = write_report(run, shards=shards).read_text()
    assert page.count('href="data:image/jpeg') == 4
    assert "test.shuffled" in page
    assert "Token timeline of clip0" in page
    assert write_report(run).read_text().count("data:image/jpeg") == 0  # there are no shards next to this run
