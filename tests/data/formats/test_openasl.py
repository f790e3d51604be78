"""Tests of the OpenASL reader: names with colons, recordings, and superfluous spaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from signllm.data.annotations import read_annotations
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, shard
from signllm.data.video.decoding import encode_h264
from signllm.errors import UsageError

from ..conftest import drawn

HEADER = "vid\tyid\tstart\tend\traw-text\ttokenized-text\tgloss\tsplit\n"
NAMES = [
    "Mci9oyb5V2E-00:00:00.320-00:00:01.000",
    "Mci9oyb5V2E-00:00:01.000-00:00:01.480",
    "-x.y__5V2E0-00:01:05.333-00:01:11.166",
    "gone5V2E000-00:00:05.333-00:00:11.166",
]
SPLITS = ["train", "valid", "test", "test"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Return a copy with a recording for the first two samples, a cropped third one, and no fourth one."""
    root = tmp_path / "OpenASL"
    for folder in ("data", "raw-video", "video-clip"):
        (root / folder).mkdir(parents=True)
    rows = [
        "\t".join((name, name[:11], name[12:24], name[25:], ' He said  "hi. ', 'he said "hi', "", split))
        for name, split in zip(NAMES, SPLITS, strict=True)
    ]
    (root / "data/openasl-v1.0.tsv").write_text(HEADER + "\n".join(rows) + "\n")
    (root / "raw-video/Mci9oyb5V2E.mp4").write_bytes(encode_h264(drawn(50), 25))
    (root / "video-clip" / (NAMES[2].replace(":", "%") + ".mp4")).write_bytes(encode_h264(drawn(16), 25))
    return root


def test_the_release(release: Path) -> None:
    annotations = read_annotations("openasl", release)
    assert [(clip.id, clip.split, clip.time_span) for clip in annotations.samples] == [
        (NAMES[0], "train", (0.32, 1)),
        (NAMES[1], "dev", (1, 1.48)),
        (NAMES[2], "test", None),
        (NAMES[3], "test", None),
    ]
    assert {clip.text for clip in annotations.samples} == {'He said "hi.'}


def test_clips_with_colons_in_their_own_names(release: Path) -> None:
    old = release / "video-clip" / (NAMES[2].replace(":", "%") + ".mp4")
    old.rename(old.with_name(NAMES[2] + ".mp4"))
    assert read_annotations("openasl", release).samples[2].video.name == NAMES[2] + ".mp4"


def test_shards_of_it(release: Path, tmp_path: Path) -> None:
    manifest = shard("openasl", release, tmp_path / "out", ShardConfig(max_bad="25%", show_progress=False))
    ((id, reason),) = [(entry["id"], entry["reason"]) for entry in manifest["left_out"]]
    assert id == NAMES[3]
    assert reason.startswith(f"the video is missing: {release}")
    assert manifest["warnings"] == [
        "dev: 1 samples here, 967 in the official release",
        "test: 1 samples here, 976 in the official release",
    ]
    index = ShardIndex(tmp_path / "out")
    result = [index.split(name).samples[0] for name in ("train", "dev", "test")]
    assert [(sample.id, sample.frames) for sample in result] == list(zip(NAMES, (17, 12, 16), strict=False))
    assert not any(set(sample.key) & set(".:%") for sample in result)


def test_what_does_not_fit(release: Path, tmp_path: Path) -> None:
    table = release / "data/openasl-v1.0.tsv"
    table.write_text(HEADER + "a\tMci9oyb5V2E\tsoon\t1\tx\tx\t\ttrain\nb\tMci9oyb5V2E\n")
    assert [entry.reason for entry in read_annotations("openasl", release).left_out] == [
        "line 2: 'soon' is not a time in seconds",
        "line 3 has another number of fields than the header",
    ]
    table.write_text("vid\ttext\n")
    with pytest.raises(UsageError, match="columns are missing: yid, start, end, raw-text, split"):
        read_annotations("openasl", release)
    table.unlink()
    with pytest.raises(UsageError, match="not OpenASL"):
        read_annotations("openasl", release)
