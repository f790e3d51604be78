"""Tests of the reader of folders with pairs of videos and texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.annotations import read_annotations
from signllm.errors import UsageError


def pair(folder: Path, video: str | None, text: str | None) -> None:
    for name, content in ((video, "v"), (text, "a  sentence\n")):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)


def test_pairs_at_any_depth_and_splits_by_first_level(tmp_path: Path) -> None:
    pair(tmp_path, "b.mp4", "b.txt")
    pair(tmp_path, "dev/x/a.mkv", "dev/x/a.txt")
    pair(tmp_path, "other/c.d.gif", "other/c.d.txt")
    clips = {clip.id: clip for clip in read_annotations("folder", tmp_path).samples}
    assert {name: clip.split for name, clip in clips.items()} == {
        "b": "train",
        "x/a": "dev",
        "other/c.d": "train",
    }
    assert clips["x/a"].text == "a sentence"


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    pair(tmp_path, "test/clip/0001.png", "test/clip.txt")
    pair(tmp_path, "test/clip/0002.png", None)
    (clip,) = read_annotations("folder", tmp_path).samples
    assert (clip.id, clip.split, clip.video) == ("clip", "test", tmp_path / "test/clip")


def test_files_without_or_with_several_partners_are_left_out(tmp_path: Path) -> None:
    pair(tmp_path, "a.mp4", "a.txt")
    pair(tmp_path, "b.mp4", None)
    pair(tmp_path, None, "c.txt")
    pair(tmp_path, "d.mp4", "d.txt")
    pair(tmp_path, "d.gif", None)
    annotations = read_annotations("folder", tmp_path)
    assert [clip.id for clip in annotations.samples] == ["a"]
    assert {entry.id: entry.reason for entry in annotations.left_out} == {
        "b": "there is no b.txt for b.mp4",
        "c": "c.txt needs one video of that name; found: none",
        "d": "d.txt needs one video of that name; found: d.gif, d.mp4",
    }


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    pair(tmp_path, "a.mp4", None)
    with pytest.raises(UsageError, match="1 videos, 0 texts"):
        read_annotations("folder", tmp_path)


def test_splits_by_any_usual_name_and_any_suffix(tmp_path: Path) -> None:
    pair(tmp_path, "Training/a.MTS", "Training/a.TXT")
    pair(tmp_path, "val/b.3gp", "val/b.txt")
    pair(tmp_path, "Test/c.flv", "Test/c.txt")
    pair(tmp_path, "Test/c.jpg", None)
    annotations = read_annotations("folder", tmp_path)
    assert {(clip.id, clip.split) for clip in annotations.samples} == {
        ("a", "train"),
        ("b", "dev"),
        ("c", "test"),
    }
    assert annotations.left_out == ()


def test_names_that_a_mac_decomposed_and_texts_of_windows(tmp_path: Path) -> None:
    pair(tmp_path, "Gru\u0308n.mp4", None)
    (tmp_path / "Grün.txt").write_bytes("grün".encode("cp1252"))
    pair(tmp_path, "b.mp4", None)
    (tmp_path / "b.txt").write_bytes("Straße\r\n".encode("utf-16"))
    annotations = read_annotations("folder", tmp_path)
    assert [(clip.id, clip.text) for clip in annotations.samples] == [("Grün", "grün"), ("b", "Straße")]
    assert "Windows-1252" in annotations.notices[0]
