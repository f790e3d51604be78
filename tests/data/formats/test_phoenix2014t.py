"""Tests of the PHOENIX-2014-T reader on a small real release and on variants of copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.annotations import read_annotations
from signllm.data.shards.writing import ShardConfig, format_warnings, shard
from signllm.errors import UsageError

HEADER = "name|video|start|end|speaker|orth|translation\n"


def release(root: Path, rows: str, header: str = HEADER) -> Path:
    manual = root / "annotations" / "manual"
    manual.mkdir(parents=True)
    (manual / "PHOENIX-2014-T.train.corpus.csv").write_text(header + rows, encoding="utf-8")
    return root


def frames_of(root: Path, folder: str) -> Path:
    path = root / "features/fullFrame-210x260px/train" / folder
    path.mkdir(parents=True)
    return path


def test_real_release_has_one_clip_per_split(realdata: Path) -> None:
    annotations = read_annotations("phoenix2014t", realdata / "PHOENIX-2014-T-release-v3")
    assert annotations.splits == ("train", "dev", "test")
    clip = annotations.samples[0]
    assert (clip.id, clip.signer, clip.language) == (
        "25October_2010_Monday_tagesschau-17",
        "Signer01",
        "German",
    )
    assert clip.text.startswith("regen und schnee lassen an den alpen")
    assert len(list(clip.video.glob("*.png"))) == 2
    assert annotations.left_out == ()


def test_the_release_is_found_from_a_folder_above(realdata: Path) -> None:
    inner = realdata / "PHOENIX-2014-T-release-v3/PHOENIX-2014-T"
    assert [clip.text for clip in read_annotations("phoenix2014t", inner).samples] == [
        clip.text for clip in read_annotations("phoenix2014t", realdata).samples
    ]


@pytest.mark.parametrize(("on_disk", "result"), [("NAME", "NAME"), ("NAME/1", "NAME/1"), (None, "NAME")])
def test_frames_in_the_folder_or_one_below(tmp_path: Path, on_disk: str | None, result: str) -> None:
    root = release(tmp_path, "NAME|NAME/1/*.png|-1|-1|Signer01|X|ein text\n")
    if on_disk:
        frames_of(root, on_disk)
    (clip,) = read_annotations("phoenix2014t", root).samples
    assert clip.video == root / "features/fullFrame-210x260px/train" / result


def test_a_quote_is_a_character(tmp_path: Path) -> None:
    root = release(tmp_path, 'a|a/1/*.png|-1|-1|S|X|er sagt "morgen\nb|b/1/*.png|-1|-1|S|X|"regen" kommt\n')
    assert [clip.text for clip in read_annotations("phoenix2014t", root).samples] == [
        'er sagt "morgen',
        '"regen" kommt',
    ]


def test_names_with_slashes(tmp_path: Path) -> None:
    root = release(tmp_path, "day/a-1|day/a-1/1/*.png|-1|-1|S|X|text\n")
    frames_of(root, "day/a-1")
    (clip,) = read_annotations("phoenix2014t", root).samples
    assert (clip.id, clip.video.is_dir()) == ("day/a-1", True)


def test_a_row_that_does_not_fit_is_left_out_by_line(tmp_path: Path) -> None:
    root = release(tmp_path, "a|a/1/*.png|-1|-1|S|X|text\nb|b/1/*.png|-1\n")
    annotations = read_annotations("phoenix2014t", root)
    assert len(annotations.samples) == 1
    assert annotations.left_out[0].id == "b"
    assert "line 3" in annotations.left_out[0].reason


def test_another_layout_is_refused_with_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a PHOENIX-2014-T release"):
        read_annotations("phoenix2014t", tmp_path)
    root = release(tmp_path, "a|b\n", header="name|text\n")
    with pytest.raises(UsageError, match="columns are missing: video, speaker, translation"):
        read_annotations("phoenix2014t", root)


def test_stray_files_holes_and_official_counts(realdata: Path, tmp_path: Path) -> None:
    root = release(tmp_path / "release", "a|a/1/*.png|-1|-1|S|X|ein text\nb|b/1/*.png|-1|-1|S|X|noch einer\n")
    picture = next(realdata.rglob("images0001.png")).read_bytes()
    for name in ("a", "b/1"):
        folder = frames_of(root, name)
        for number in (1, 2, 10):
            (folder / f"images{number:04}.png").write_bytes(picture)
        (folder / "createDnnTrainingLabels-profile.py.lprof").write_bytes(b"stray")
    (folder / "images0002.png").write_bytes(b"")
    manifest = shard("phoenix2014t", root, tmp_path / "out", ShardConfig(max_bad="1", show_progress=False))
    assert [entry["reason"] for entry in manifest["left_out"]] == [
        "1 of 3 frames have zero bytes, first images0002.png"
    ]
    assert manifest["warnings"][:2] == [
        "train: 1 samples here, 7096 in the official release",
        "train: 3 frames here, 827354 in the official release",
    ]
    assert format_warnings(manifest)[-1] == "  train/b: 1 of 3 frames have zero bytes, first images0002.png"


ROWS = "a|a/1/*.png|-1|-1|S|X|ein text\nb|b/1/*.png|-1|-1|S|X|noch einer\n"


@pytest.mark.parametrize(
    "frames",
    [
        "features/fullFrame-256x256px/train/{}",
        "features/fullFrame-227x227px/train/{}/1",
        "features/fullFrame-256x256px/{}",
        "features/train/{}",
        "fullFrame-210x260px/train/{}",
        "videos/train/{}.mp4",
        "train/{}.mkv",
        "videos_phoenix/videos/train/{}.mp4",
    ],
)
def test_frames_in_the_folders_of_copies(tmp_path: Path, frames: str) -> None:
    root = release(tmp_path, ROWS)
    (root / "features/trackedRightHand-92x132px/train/a").mkdir(parents=True)
    for name in "ab":
        path = root / frames.format(name)
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True)
    annotations = read_annotations("phoenix2014t", root)
    assert [clip.video for clip in annotations.samples] == [root / frames.format(name) for name in "ab"]
    (notice,) = annotations.notices
    assert str(root / "features/fullFrame-210x260px/train") in notice


def test_of_two_copies_the_release_s_own_is_taken_with_a_notice(tmp_path: Path) -> None:
    root = release(tmp_path, ROWS)
    for size in ("210x260", "256x256"):
        (root / f"features/fullFrame-{size}px/train/a").mkdir(parents=True)
    annotations = read_annotations("phoenix2014t", root)
    assert annotations.samples[0].video == root / "features/fullFrame-210x260px/train/a"
    (notice,) = annotations.notices
    assert "fullFrame-256x256px" in notice


def test_missing_frames_are_reported_with_the_expected_and_an_existing_folder(tmp_path: Path) -> None:
    root = release(tmp_path, ROWS)
    (root / "features/fullFrame-256x256px/train/other").mkdir(parents=True)
    with pytest.raises(UsageError, match="none of the 2 videos exists") as raised:
        shard("phoenix2014t", root, tmp_path / "out", ShardConfig(show_progress=False))
    assert str(root / "features/fullFrame-210x260px/train/a") in str(raised.value)
    assert str(root / "features/fullFrame-256x256px") in str(raised.value)


def test_frames_of_dev_may_lie_in_val(tmp_path: Path) -> None:
    root = release(tmp_path, ROWS)
    table = root / "annotations/manual/PHOENIX-2014-T.train.corpus.csv"
    table.rename(table.with_name("PHOENIX-2014-T.dev.corpus.csv"))
    (root / "features/fullFrame-256x256px/val/a").mkdir(parents=True)
    clip = read_annotations("phoenix2014t", root).samples[0]
    assert (clip.split, clip.video) == ("dev", root / "features/fullFrame-256x256px/val/a")
