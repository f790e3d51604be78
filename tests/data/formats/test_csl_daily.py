"""Tests of the CSL-Daily reader: labels in a pickle, a list of splits, folders of frames."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from signllm.data.annotations import read_annotations
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, shard
from signllm.errors import UsageError

from ..conftest import drawn

LISTED = {
    "S000000_P0000_T00": "train",
    "S000005_P0004_T00": "train",
    "S000001_P0002_T00": "dev",
    "S000002_P0003_T00": "test",
}
LABELLED = ["S000000_P0000_T00", "S000007_P0003_T00", "S000001_P0002_T00", "S000002_P0003_T00"]


def release(root: Path, frames: str = "sentence/frames_512x512", labels: str = "pickle") -> Path:
    folder = root / "sentence_label"
    folder.mkdir(parents=True)
    lines = [f"{name}|{split}" for name, split in LISTED.items()]
    (folder / "split_1.txt").write_text("\n".join(["name|split", *lines]) + "\n")
    if labels == "pickle":
        info = [
            {"name": name, "length": 5, "label_gloss": ["天", "好"], "label_char": ["今", "天", "好", "。"]}
            for name in LABELLED
        ]
        (folder / "csl2020ct_v2.pkl").write_bytes(pickle.dumps({"info": info, "gloss_map": ["天"]}))
    else:
        rows = [f"{n}|{name}|5|天 好|今 天 好 。|今天 好 。|t a x" for n, name in enumerate(LABELLED)]
        header = "index|name|length|gloss|char|word|postag"
        (folder / "video_map.txt").write_text("\n".join([header, *rows]) + "\n")
    for seed, name in enumerate(LABELLED):
        (root / frames / name).mkdir(parents=True)
        for number, frame in enumerate(drawn(12, seed)):
            Image.fromarray(frame).save(root / frames / name / f"{number:06d}.jpg")
    return root


@pytest.mark.parametrize("labels", ["pickle", "video_map"])
@pytest.mark.parametrize("frames", ["sentence/frames_512x512", "sentence_frames-512x512/frames_512x512"])
def test_a_release(tmp_path: Path, labels: str, frames: str) -> None:
    annotations = read_annotations("csl-daily", release(tmp_path, frames, labels))
    assert [(clip.id, clip.split) for clip in annotations.samples] == list(
        zip(LABELLED, LISTED.values(), strict=True)
    )
    clip = annotations.samples[1]
    assert (clip.text, clip.signer, clip.language, clip.fps) == ("今天好。", "P0003", "Chinese", 30)
    assert clip.video == tmp_path / frames / "S000007_P0003_T00"
    assert annotations.left_out == ()


def test_frames_become_samples_and_holes_leave_a_clip_out(tmp_path: Path) -> None:
    root = release(tmp_path)
    frames = root / "sentence/frames_512x512"
    (frames / LABELLED[0] / "Thumbs.db").write_bytes(b"stray")
    (frames / LABELLED[2] / "000007.jpg").write_bytes(b"")
    config = ShardConfig(encode="frames", max_bad="1", show_progress=False)
    manifest = shard("csl-daily", root, tmp_path / "out", config)
    (left_out,) = manifest["left_out"]
    assert (left_out["id"], left_out["reason"]) == (
        LABELLED[2],
        "1 of 12 frames have zero bytes, first 000007.jpg",
    )
    split = ShardIndex(tmp_path / "out").split("train")
    assert [(sample.frames, sample.fps) for sample in split.samples] == [(12, 30), (12, 30)]
    assert split.read(0)["0001.jpg"] == (frames / LABELLED[0] / "000000.jpg").read_bytes()
    assert manifest["warnings"] == [
        "train: 2 samples here, 18401 in the official release",
        "dev: 0 samples here, 1077 in the official release",
        "test: 1 samples here, 1176 in the official release",
    ]


def test_disagreeing_lists_are_reported(tmp_path: Path) -> None:
    root = release(tmp_path)
    with (root / "sentence_label/split_1.txt").open("a") as lines:
        lines.write("S999999_P0000_T00|dev\n")
    labels = pickle.loads((root / "sentence_label/csl2020ct_v2.pkl").read_bytes())
    labels["info"].append({"name": "extra", "label_char": ["天"]})
    (root / "sentence_label/csl2020ct_v2.pkl").write_bytes(pickle.dumps(labels))
    assert [dataclasses.astuple(entry) for entry in read_annotations("csl-daily", root).left_out] == [
        ("S999999_P0000_T00", "dev", "it is listed in split_1.txt, but has no label"),
        ("extra", "train", "it has a label, but is not listed in split_1.txt"),
    ]


def test_a_folder_that_is_not_the_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a CSL-Daily release"):
        read_annotations("csl-daily", tmp_path)
    root = release(tmp_path / "a")
    pickled = root / "sentence_label/csl2020ct_v2.pkl"
    for value, message in (
        ([], "no list under the key info"),
        ({"info": [{"name": "x"}]}, "no name or no characters"),
    ):
        pickled.write_bytes(pickle.dumps(value))
        with pytest.raises(UsageError, match=message):
            read_annotations("csl-daily", root)
    pickled.unlink()
    with pytest.raises(UsageError, match="no labels"):
        read_annotations("csl-daily", root)
    (root / "sentence_label/split_1.txt").write_text("a,b\n")
    with pytest.raises(UsageError, match="columns are missing: name, split; the table has: a, b"):
        read_annotations("csl-daily", root)


@pytest.mark.parametrize(
    ("clips", "suffix"),
    [
        ("sentence", ".mp4"),
        ("sentence", ""),
        ("sentence/frames_256x256", ""),
        ("sentence-crop", ".MP4"),
        ("frames/sentence", ""),
        ("videos", ".avi"),
    ],
)
def test_clips_in_the_folders_of_copies(tmp_path: Path, clips: str, suffix: str) -> None:
    root = release(tmp_path, "elsewhere/not/here")
    shutil.rmtree(root / "elsewhere")
    for name in LABELLED:
        path = root / clips / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if suffix else path.mkdir()
    annotations = read_annotations("csl-daily", root)
    assert {clip.video for clip in annotations.samples} == {root / clips / f"{n}{suffix}" for n in LABELLED}
    assert str(root / "sentence/frames_512x512") in annotations.notices[0]


def test_frames_come_before_videos_and_splits_have_their_usual_names(tmp_path: Path) -> None:
    root = release(tmp_path)
    for name in LABELLED:
        (root / "sentence" / f"{name}.mp4").touch()
    listed = root / "sentence_label/split_1.txt"
    listed.write_text(listed.read_text().replace("|dev", "|val"))
    annotations = read_annotations("csl-daily", root)
    assert annotations.splits == ("train", "dev", "test")
    assert annotations.samples[0].video.parent == root / "sentence/frames_512x512"
    assert str(root / "sentence") in annotations.notices[0]
