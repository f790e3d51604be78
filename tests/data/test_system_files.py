"""Tests that the files of operating systems and NAS are never read as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.annotations import read_annotations
from signllm.data.formats.video_tree import VideoTree
from signllm.data.system_files import is_system_name, list_files_recursively
from signllm.data.video.frame_folder import list_frame_files
from signllm.inference.video_input import collect_video_inputs

FOLDERS = (
    "__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000",
    "#recycle", "@Recycle", "lost+found", ".AppleDouble", ".Spotlight-V100", ".git",
)  # fmt: skip
FILES = ("._a.mp4", "._a.txt", ".DS_Store", "Thumbs.db", "desktop.ini", ".a.mp4.swp")


@pytest.mark.parametrize("name", [*FOLDERS, *FILES, "THUMBS.DB", "Desktop.ini", "~$table.xlsx", "@EADIR"])
def test_system_names(name: str) -> None:
    assert is_system_name(name)


@pytest.mark.parametrize(
    "name", ["a.mp4", "--7E2sU6zP4.mp4", "recycling", "@home.mp4", "train", "$5.mp4", "#1.mp4"]
)
def test_names_of_data(name: str) -> None:
    assert not is_system_name(name)


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """Return a dataset folder with a pair in every system folder, and hidden copies of the real pair."""
    root = tmp_path / "data"
    for folder in ("", "train/", *(f"{name}/" for name in FOLDERS), *(f"train/{name}/" for name in FOLDERS)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ("a.mp4", "a.txt", *FILES):
            (root / folder / name).write_text("x")
    return root


def test_the_folder_format_ignores_them(littered: Path) -> None:
    annotations = read_annotations("folder", littered)
    assert [clip.video for clip in annotations.samples] == [littered / "a.mp4", littered / "train/a.mp4"]
    assert annotations.left_out == ()


def test_system_files_are_neither_searched_nor_translated(littered: Path) -> None:
    (littered / "a.mp4").unlink()
    tree = VideoTree(littered)
    assert tree.find("a") == littered / "train/a.mp4"
    assert tree.notices == ()
    assert [video.name for video in collect_video_inputs((str(littered),), bytes, None)] == [
        str(littered / "train/a.mp4")
    ]


def test_frames_of_a_folder(tmp_path: Path) -> None:
    for name in ("1.png", "._1.png", "2.png", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in list_frame_files(tmp_path)] == ["1.png", "2.png"]


def test_a_walk_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    assert [folder for folder, names in list_files_recursively(tmp_path) if names] == [tmp_path / "a"]
