"""Tests of writing shards: their format, and that neither crashes nor bad input leave invalid files."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from signllm.data.annotations import read_annotations
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.shard_inspection import verify_shards
from signllm.data.shards.writing import ShardConfig, format_warnings, shard, write_shards
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample
from signllm.data.video.decoding import decode_video
from signllm.data.video.frame_folder import encode_png
from signllm.data.video.stored_frames import decode_stored_frames
from signllm.errors import UsageError

from .conftest import drawn

ROOT = Path(__file__).parents[2]
QUIET = ShardConfig(encode="copy", show_progress=False)
Maker = Callable[..., Annotations]


def contents(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def small_shards(annotations: Annotations, clips_per_shard: int) -> ShardConfig:
    size = sum(clip.video.stat().st_size + 1800 for clip in annotations.samples) / len(annotations.samples)
    return dataclasses.replace(QUIET, shard_size_mb=size * (clips_per_shard - 0.5) / 1e6)


def test_webdataset_alone_reads_our_shards(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(10)
    manifest = write_shards(annotations, tmp_path, small_shards(annotations, 4))
    tars = sorted(str(path) for path in tmp_path.glob("train-*.tar"))
    assert len(tars) == len(manifest["splits"]["train"]["shards"]) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [clip.id for clip in annotations.samples]
    for sample, clip in zip(samples, annotations.samples, strict=True):
        assert sample["mp4"] == clip.video.read_bytes()
        assert sample["txt"].decode() == clip.text
        described = json.loads(sample["json"])
        assert described["id"] == clip.id
        assert described["source_sha256"] == hashlib.sha256(clip.video.read_bytes()).hexdigest()
        assert (described["frames"], described["fps"], described["width"]) == (
            len(decode_video(clip.video)),
            25,
            48,
        )


def test_hazardous_names_survive_in_the_json(make_clips: Maker, tmp_path: Path) -> None:
    names = ["Mci9oyb5V2E-00:00:05.333-00:00:11.166", "-fZc293MpJk", "a/b", "a.b", "../../escape", "a__b"]
    clips = [
        dataclasses.replace(clip, id=name) for clip, name in zip(make_clips(6).samples, names, strict=True)
    ]
    write_shards(Annotations(samples=tuple(clips)), tmp_path, QUIET)
    samples = list(
        webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False, empty_check=False)
    )
    assert [json.loads(sample["json"])["id"] for sample in samples] == names
    assert all(set(sample) >= {"mp4", "txt", "json"} and "/" not in sample["__key__"] for sample in samples)
    assert [sample.id for sample in ShardIndex(tmp_path).split("train").samples] == names


@pytest.mark.parametrize("encode", ["copy", "frames"])
def test_frame_folders_pass_losslessly(tmp_path: Path, encode: str) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    frames = drawn(11)
    for number, frame in enumerate(frames):
        (folder / f"{number}.png").write_bytes(encode_png(frame))
    clip = SourceSample(id="c", video=folder, text="t", split="dev", fps=12.5)
    write_shards(Annotations(samples=(clip,)), tmp_path / "out", dataclasses.replace(QUIET, encode=encode))
    split = ShardIndex(tmp_path / "out").split("dev")
    members = split.read(0)
    assert members["0011.png"] == (folder / "10.png").read_bytes()
    assert (split.samples[0].fps, split.samples[0].frames) == (12.5, 11)
    np.testing.assert_array_equal(decode_stored_frames(members), frames)


def test_videos_as_lossless_frames_and_as_smaller_h264(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(2)
    write_shards(annotations, tmp_path / "frames", dataclasses.replace(QUIET, encode="frames"))
    stored = decode_stored_frames(ShardIndex(tmp_path / "frames").split("train").read(1))
    np.testing.assert_array_equal(stored, decode_video(annotations.samples[1].video))
    config = ShardConfig(encode="h264", size=32, fps=12.5, show_progress=False)
    write_shards(annotations, tmp_path / "h264", config)
    sample = ShardIndex(tmp_path / "h264").split("train").samples[0]
    assert (sample.width, sample.height, sample.frames, sample.fps) == (32, 32, 7, 12.5)
    assert verify_shards(tmp_path / "h264")["splits"] == {"train": 2}


def test_real_clips_and_phoenix(realdata: Path, tmp_path: Path) -> None:
    config = ShardConfig(size=96, show_progress=False, workers=2)
    shard("table", realdata / "clips.tsv", tmp_path / "table", config)
    assert verify_shards(tmp_path / "table")["splits"] == {"train": 11}
    shard("phoenix2014t", realdata, tmp_path / "phoenix", ShardConfig(encode="frames", show_progress=False))
    index = ShardIndex(tmp_path / "phoenix")
    assert {name: [sample.frames for sample in index.split(name).samples] for name in index.splits} == {
        "train": [2],
        "dev": [2],
        "test": [2],
    }
    real = read_annotations("phoenix2014t", realdata).samples[0]
    np.testing.assert_array_equal(
        decode_stored_frames(index.split("train").read(0)), decode_video(real.video)
    )


def test_workers_do_not_change_a_byte(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(12)
    config = dataclasses.replace(small_shards(annotations, 5), encode="h264")
    write_shards(annotations, tmp_path / "one", config)
    write_shards(annotations, tmp_path / "three", dataclasses.replace(config, workers=3))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from signllm.data.shards.writing import ShardConfig, shard
if __name__ == "__main__":
    shard("table", {src!r}, {out!r}, ShardConfig(shard_size_mb=0.02, workers=2, show_progress=False))
"""


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_in_the_middle_the_same_command_ends_with_the_same_bytes(
    make_clips: Maker, tmp_path: Path
) -> None:
    clips = make_clips(60, frames=60).samples
    rows = [f"{clip.video}\t{clip.text}\t\t" for clip in clips[:30]]
    rows += [f"{clips[30].video}\tpart {n}\t{n / 20}\t{n / 20 + 0.6}" for n in range(30)]
    src = tmp_path / "clips.tsv"
    src.write_text("\n".join(["video\ttext\tstart_s\tend_s", *rows]))
    out, script = tmp_path / "killed", tmp_path / "run.py"
    script.write_text(RUN.format(root=str(ROOT), src=str(src), out=str(out)))
    for finished in (1, 4):
        process = subprocess.Popen([sys.executable, script])
        while len(list(out.glob("*.json"))) < finished and process.poll() is None:
            time.sleep(0.002)
        workers = children(process.pid)
        process.kill()
        assert process.wait() == -9, "the run ended before it could be killed"
        assert not (out / "manifest.json").exists()
        with pytest.raises(UsageError, match="no finished shards"):
            ShardIndex(out)
        deadline = time.monotonic() + 60
        while any(map(runs, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(runs, workers))
    kept = {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if path.with_suffix(".json").exists()
    }
    config = ShardConfig(shard_size_mb=0.02, show_progress=False)
    shard("table", src, out, config)
    shard("table", src, tmp_path / "whole", config)
    assert contents(out) == contents(tmp_path / "whole")
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}.items()
    assert len(kept) >= 4


def test_a_second_run_keeps_everything(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(10)
    config = small_shards(annotations, 3)
    first = write_shards(annotations, tmp_path, config)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("train*")}
    assert write_shards(annotations, tmp_path, config) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("train*")} == times


def test_a_changed_text_renews_its_shard_only(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(10)
    config = small_shards(annotations, 3)
    write_shards(annotations, tmp_path, config)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("train*.tar")}
    changed = dataclasses.replace(annotations.samples[4], text="sentence X")
    clips = (*annotations.samples[:4], changed, *annotations.samples[5:])
    write_shards(Annotations(samples=clips), tmp_path, config)
    after = {path.name: path.stat().st_ino for path in tmp_path.glob("train*.tar")}
    # nothing behind a new shard is kept: where it ends decides where the next begins
    assert [before[name] == after[name] for name in sorted(before)] == [True, False, False, False]
    assert ShardIndex(tmp_path).split("train").samples[4].text == "sentence X"
    assert verify_shards(tmp_path)["damaged"] == 0


def test_stale_shards_go_and_other_files_stay(make_clips: Maker, tmp_path: Path) -> None:
    annotations = make_clips(10)
    both = Annotations(samples=annotations.samples + make_clips(3, split="dev").samples)
    write_shards(both, tmp_path, small_shards(annotations, 3))
    (tmp_path / "holiday-000001.tar").write_bytes(b"mine")
    (tmp_path / "notes-000001.json").write_text("{}")
    (tmp_path / ".train-000009.tar.part").write_bytes(b"half")
    write_shards(Annotations(samples=annotations.samples[:4]), tmp_path, small_shards(annotations, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "holiday-000001.tar",
        "manifest.json",
        "notes-000001.json",
        *(f"train-00000{n}.{kind}" for n in (0, 1) for kind in ("json", "tar")),
    ]
    assert ShardIndex(tmp_path).splits == ("train",)


def spoiled(make_clips: Maker, folder: Path) -> Annotations:
    good = list(make_clips(5).samples)
    (folder / "zero.mp4").touch()
    (folder / "noise.mp4").write_bytes(os.urandom(3000))
    bad = [
        SourceSample(id="missing", video=folder / "nowhere.mp4", text="t", split="train"),
        SourceSample(id="zero", video=folder / "zero.mp4", text="t", split="train"),
        SourceSample(id="noise", video=folder / "noise.mp4", text="t", split="train"),
        dataclasses.replace(good[0], id="silent", text=""),
        dataclasses.replace(good[1]),
    ]
    entries = (LeftOutSample(id="row", split="train", reason="line 9 names no video"),)
    return Annotations(samples=tuple(good + bad), left_out=entries)


def test_every_clip_left_out_is_listed_with_its_reason(make_clips: Maker, tmp_path: Path) -> None:
    annotations = spoiled(make_clips, tmp_path)
    config = dataclasses.replace(QUIET, max_bad="6", shard_size_mb=0.01)
    manifest = write_shards(annotations, tmp_path / "out", config)
    reasons = {entry["id"]: entry["reason"] for entry in manifest["left_out"]}
    assert len(reasons) == 6
    assert f"the video is missing: {tmp_path}" in reasons["missing"]
    assert "nowhere.mp4; " in reasons["missing"]
    assert reasons["zero"] == "the file has zero bytes"
    assert reasons["noise"].startswith("not a video that FFmpeg can decode")
    assert reasons["silent"] == "the text is empty"
    assert reasons["clip1"] == "the id occurs twice in this split"
    assert (manifest["clips_in_source"], manifest["splits"]["train"]["samples"]) == (11, 5)
    assert write_shards(annotations, tmp_path / "out", config) == manifest


def test_more_left_out_than_allowed_fails_and_leaves_no_manifest(make_clips: Maker, tmp_path: Path) -> None:
    annotations = spoiled(make_clips, tmp_path)
    with pytest.raises(
        UsageError, match=r"6 of 11 samples cannot be used, allowed 5 (.|\n)*train/row: line 9 names no video"
    ):
        write_shards(annotations, tmp_path / "out", dataclasses.replace(QUIET, max_bad="46%"))
    with pytest.raises(UsageError, match="no finished shards"):
        ShardIndex(tmp_path / "out")


def test_short_clips_and_uncopyable_ones(make_clips: Maker, realdata: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(QUIET, max_bad="100%", min_frames=16)
    manifest = write_shards(make_clips(5), tmp_path / "short", config)
    assert [entry["reason"] for entry in manifest["left_out"]] == [
        "the video has 14 frames, fewer than min_frames = 16",
        "the video has 15 frames, fewer than min_frames = 16",
    ]
    with pytest.raises(UsageError, match=r"\.gif cannot be copied"):
        shard("table", realdata / "clips.tsv", tmp_path / "gif", QUIET)


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from signllm.data.shards.writing import ShardConfig, shard
from signllm.errors import UsageError
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
try:
    shard("folder", {src!r}, {out!r}, ShardConfig(encode="copy", show_progress=False))
except UsageError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_gives_one_message_and_leaves_no_files(make_clips: Maker, tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    for clip in make_clips(12).samples:
        (src / f"{clip.id}.mp4").symlink_to(clip.video)
        (src / f"{clip.id}.txt").write_text(clip.text)
    script = FULL.format(root=str(ROOT), src=str(src), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("the shards cannot be written: File too large")
    assert "remedy" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


def test_two_writers_do_not_meet(make_clips: Maker, tmp_path: Path) -> None:
    kept = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(kept, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="another signllm shard writes"):
            write_shards(make_clips(2), tmp_path, QUIET)
    finally:
        os.close(kept)
    assert write_shards(make_clips(2), tmp_path, QUIET)["splits"]["train"]["samples"] == 2


def test_nothing_to_write_and_split_names(make_clips: Maker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sample left to write"):
        write_shards(Annotations(samples=()), tmp_path, QUIET)
    clip = dataclasses.replace(make_clips(1).samples[0], split="../x")
    with pytest.raises(UsageError, match="cannot be part of a file name"):
        write_shards(Annotations(samples=(clip,)), tmp_path, QUIET)


@pytest.mark.parametrize(
    "wrong",
    [
        {"encode": "mp5"},
        {"size": 2},
        {"fps": 0},
        {"crf": 60},
        {"shard_size_mb": 0},
        {"max_bad": "lots"},
        {"max_bad": "101%"},
        {"max_bad": "-1"},
        {"workers": 0},
    ],
)
def test_values_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ShardConfig(**wrong)


@pytest.mark.parametrize(
    ("max_bad", "clips", "allowed"), [("1%", 11, 0), ("1%", 250, 2), ("0", 9, 0), ("7", 3, 7), ("100%", 4, 4)]
)
def test_budget(max_bad: str, clips: int, allowed: int) -> None:
    assert ShardConfig(max_bad=max_bad).bad_allowed(clips) == allowed


def test_what_the_reader_of_a_dataset_assumed_is_in_the_manifest(make_clips: Maker, tmp_path: Path) -> None:
    annotations = dataclasses.replace(make_clips(2), notices=("clips are taken from another folder",))
    manifest = write_shards(annotations, tmp_path / "out", QUIET)
    assert manifest["warnings"] == ["clips are taken from another folder"]
    assert "warning: clips are taken from another folder" in format_warnings(manifest)
