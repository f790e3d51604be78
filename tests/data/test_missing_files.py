"""Tests of missing videos: the tried path, the nearest existing path, and other spellings of a name."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from signllm.data.missing_files import describe_missing, find_path_by_spelling
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.errors import UsageError


@pytest.mark.parametrize(
    ("missing", "existing"),
    [
        ("videos/Clip1.mp4", "videos/clip1.mp4"),
        ("videos/clip1.mp4", "videos/clip1.mkv"),
        ("videos/clip_1.mp4", "videos/clip-1.mp4"),
        ("video/deep/clip.mp4", "videos"),
        ("features/fullFrame-210x260px/train/a", "features/fullFrame-256x256px"),
    ],
)
def test_the_nearest_is_named(tmp_path: Path, missing: str, existing: str) -> None:
    for name in (existing, f"{Path(existing).parent}/quite another"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    reason = describe_missing(tmp_path / missing)
    assert str(tmp_path / missing) in reason
    assert reason.endswith(f"{tmp_path / existing}")


def test_without_a_similar_name_the_folder_is_named(tmp_path: Path) -> None:
    assert f"the folder {tmp_path}, which contains nothing" in describe_missing(tmp_path / "clip.mp4")
    for name in ("xyz", "uvw"):
        (tmp_path / name).touch()
    assert f"the folder {tmp_path}, which contains uvw, xyz" in describe_missing(tmp_path / "clip.mp4")


def test_nothing_is_written_where_no_video_exists(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    clips = [
        SourceSample(id=str(n), video=tmp_path / f"video/{n}.mp4", text="t", split="train") for n in range(3)
    ]
    with pytest.raises(UsageError, match="none of the 3 videos exists") as raised:
        write_shards(Annotations(samples=tuple(clips)), tmp_path / "out", ShardConfig(show_progress=False))
    assert str(tmp_path / "video/0.mp4") in str(raised.value)
    assert str(tmp_path / "videos") in str(raised.value.where)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("on_disk", "named"),
    [
        (unicodedata.normalize("NFD", "Grüße.mp4"), "Grüße.mp4"),
        ("Grüße.mp4", unicodedata.normalize("NFD", "Grüße.mp4")),
        ("a/b.mp4", "a\\b.mp4"),
        ("plain.mp4", "plain.mp4"),
    ],
)
def test_names_in_another_spelling_match(tmp_path: Path, on_disk: str, named: str) -> None:
    (tmp_path / on_disk).parent.mkdir(exist_ok=True)
    (tmp_path / on_disk).touch()
    assert find_path_by_spelling(tmp_path, named) == tmp_path / on_disk
