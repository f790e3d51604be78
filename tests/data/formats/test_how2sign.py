"""Tests of the How2Sign reader: videos of sentences, recordings, unusual names, and bare quotes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from signllm.data.annotations import read_annotations
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, shard
from signllm.data.video.decoding import decode_video, encode_h264
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.errors import UsageError

from ..conftest import drawn

HEADER = "VIDEO_ID\tVIDEO_NAME\tSENTENCE_ID\tSENTENCE_NAME\tSTART_REALIGNED\tEND_REALIGNED\tSENTENCE\n"
LONG = " ".join(["word"] * 195)
ROWS = [
    ("--7E2sU6zP4-5-rgb_front", "--7E2sU6zP4_10-5-rgb_front", "0.0", "0.6", 'He says "hi and goes.'),
    ("--7E2sU6zP4-5-rgb_front", "--7E2sU6zP4_11-5-rgb_front", "0.6", "1.2", '"Quoted", he says.'),
    ("-fZ__3MpJk-8-rgb_front", "-fZ__3MpJk_0-8-rgb_front", "0.4", "1.0", LONG),
]
TEXTS = [row[4] for row in ROWS]


def of(split: str, name: str) -> str:
    """Return a name that differs in every split."""
    return name[:2] + split[1] + name[3:]


def tables(root: Path, header: str = HEADER, realigned: str = "realigned_") -> Path:
    folder = root / "sentence_level/{}/text/en/raw_text/re_aligned"
    for split in ("train", "val", "test"):
        path = Path(str(folder).format(split)) / f"how2sign_{realigned}{split}.csv"
        path.parent.mkdir(parents=True)
        rows = [
            "\t".join((video[:11], of(split, video), name[:-12], of(split, name), *rest))
            for video, name, *rest in ROWS
        ]
        path.write_text(header + "\n".join(rows) + "\n")
    return root


def put(root: Path, level: str, split: str, names: list[str], frames: int) -> None:
    folder = root / level / split / "rgb_front/raw_videos"
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        (folder / f"{of(split, name)}.mp4").write_bytes(encode_h264(drawn(frames, seed), 25))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Return a copy with sentence videos of train, recordings of val, and nothing of test."""
    root = tables(tmp_path / "How2Sign")
    put(root, "sentence_level", "train", [row[1] for row in ROWS], 14)
    put(root, "video_level", "val", list(dict.fromkeys(row[0] for row in ROWS)), 40)
    return root


def test_videos_of_sentences_and_recordings_are_searched_by_name(release: Path) -> None:
    annotations = read_annotations("how2sign", release)
    assert annotations.splits == ("train", "dev", "test")
    clips = {split: [c for c in annotations.samples if c.split == split] for split in annotations.splits}
    assert [clip.text for clip in clips["train"]] == TEXTS
    assert [(clip.id, clip.signer) for clip in clips["dev"]] == [
        (of("val", row[1]), signer) for row, signer in zip(ROWS, "558", strict=True)
    ]
    assert [clip.time_span for clip in clips["train"]] == [None] * 3
    assert [clip.time_span for clip in clips["dev"]] == [(0, 0.6), (0.6, 1.2), (0.4, 1.0)]
    assert not any(clip.video.exists() for clip in clips["test"])


def test_shards_of_it(release: Path, tmp_path: Path) -> None:
    config = ShardConfig(encode="frames", max_bad="3", show_progress=False)
    manifest = shard("how2sign", release, tmp_path / "out", config)
    assert [entry["split"] for entry in manifest["left_out"]] == ["test"] * 3
    for entry in manifest["left_out"]:  # the path that was tried, and a folder that exists
        assert f"the video is missing: {release}" in entry["reason"]
        assert f"{entry['id']}.mp4" in entry["reason"]
    assert manifest["warnings"] == ["test: 0 samples here, 2357 in the official release"]
    index = ShardIndex(tmp_path / "out")
    assert [sample.text for sample in index.split("train").samples] == TEXTS
    assert [sample.frames for sample in index.split("dev").samples] == [15, 15, 15]
    complete = decode_video(release / "video_level/val/rgb_front/raw_videos" / f"{of('val', ROWS[0][0])}.mp4")
    np.testing.assert_array_equal(decode_stored_frames(index.split("dev").read(1)), complete[15:30])
    assert not any(sample.key.startswith("-") for sample in index.split("dev").samples)


def test_without_the_realigned_file_and_from_flat_folders(tmp_path: Path) -> None:
    header = HEADER.replace("_REALIGNED", "")
    root = tables(tmp_path, header, realigned="")
    for row in ROWS:
        (root / f"{of('train', row[0])}.mp4").touch()
    assert read_annotations("how2sign", root).samples[1].time_span == (0.6, 1.2)


def test_rows_and_files_that_do_not_fit(release: Path, tmp_path: Path) -> None:
    (table,) = release.rglob("how2sign_realigned_val.csv")
    video = of("val", ROWS[0][0])
    table.write_text(
        HEADER + f"a\t{video}\ta\ta\t2\t1\ttext\nb\t{video}\tb\tb\t0\t\ttext\nc\t{video}\tc\tc\n"
    )
    assert [entry.reason for entry in read_annotations("how2sign", release).left_out] == [
        "line 2: the sample ends at 1 s, but starts at 2 s",
        "line 3 states no end of the sample",
        "line 4 has another number of fields than the header",
    ]
    table.write_text("VIDEO_NAME,SENTENCE\n")
    with pytest.raises(
        UsageError, match="columns are missing: SENTENCE_NAME; the table has: VIDEO_NAME, SENTENCE"
    ):
        read_annotations("how2sign", release)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not How2Sign"):
        read_annotations("how2sign", tmp_path / "empty")
