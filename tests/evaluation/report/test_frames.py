"""Thumbnails come from the shards, show what the model read, and their absence is told, never raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from signllm.evaluation.evaluate import EvaluateConfig, evaluate
from signllm.evaluation.report import write_report
from signllm.evaluation.report.video_frames import films
from tests.evaluation import trained


def test_frames_are_those_of_the_shards_thinned_as_the_model_read_them(shards: Path) -> None:
    problems: list[str] = []
    found = films(shards, "test", ["clip2", "clip6", "nobody"], problems, most=trained.MAX_FRAMES)
    assert problems == []
    assert set(found) == {"clip2", "clip6"}
    assert np.array_equal(found["clip2"].frames, trained.pixels(shards, "test", "clip2"))
    whole = trained.pixels(shards, "test", "clip6")
    assert len(whole) > len(found["clip6"].frames) == trained.MAX_FRAMES
    assert np.array_equal(found["clip6"].frames[[0, -1]], whole[[0, -1]])


def test_no_shards_no_pictures(shards: Path, tmp_path: Path) -> None:
    problems: list[str] = []
    assert films(None, "test", ["clip0"], problems) == {}
    assert problems == []
    assert films(shards, "dev", ["clip0"], problems) == {}
    assert films(tmp_path, "test", ["clip0"], problems) == {}
    assert len(problems) == 2


def test_a_report_of_an_evaluated_run_shows_its_videos(run: Path, shards: Path) -> None:
    evaluate(run, shards, "test", EvaluateConfig(shuffled=True))
    page = write_report(run, shards=shards).read_text()
    assert page.count('href="data:image/jpeg') == 4
    assert "test.shuffled" in page
    assert "Token timeline of clip0" in page
    assert write_report(run).read_text().count("data:image/jpeg") == 0  # no shards beside this run
