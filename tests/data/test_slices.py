"""Tests of slices: merging them gives the same bytes as one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from signllm import cli
from signllm.data.shards.index import Split
from signllm.data.shards.sample_encoding import EncodeConfig
from signllm.data.shards.shard_inspection import verify_shards
from signllm.data.shards.slices import Slice, merge_slices, parse_slice, unfinished_slices, write_slice
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.errors import UsageError

Maker = Callable[..., Annotations]
SMALL = ShardConfig(shard_size_mb=0.02, max_bad="3", show_progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def annotations(make_clips: Maker) -> Annotations:
    """Return two splits with a repeated id, a missing video, and parts of one recording."""
    train, dev = make_clips(12).samples, make_clips(3, split="dev").samples
    gone = dataclasses.replace(train[4], id="gone", video=Path("nowhere.mp4"))
    cut = [dataclasses.replace(train[4], id=f"cut.{n}", start_s=n / 10, end_s=n / 10 + 0.2) for n in range(3)]
    return Annotations(samples=(*train[:5], gone, train[2], *cut, *dev, *train[5:]))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_merged_slices_are_the_bytes_of_one_run(annotations: Annotations, tmp_path: Path, count: int) -> None:
    write_shards(annotations, tmp_path / "one", SMALL)
    for number in reversed(range(1, count + 1)):
        write_slice(annotations, tmp_path / "many", Slice(number, count), SMALL)
    manifest = merge_slices(annotations, tmp_path / "many", count, SMALL)
    assert len(manifest["left_out"]) == 2
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert verify_shards(tmp_path / "many", workers=2)["damaged"] == 0
    # the merged shards are kept by a run without slices: same inputs, same options
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("*.tar")}
    write_shards(annotations, tmp_path / "many", SMALL)
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("*.tar")}


def test_an_interrupted_merge_can_be_repeated(
    annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge is interrupted between two shards, and during the removal of the slices."""
    write_shards(annotations, tmp_path / "one", SMALL)
    out = tmp_path / "two"
    for number in (1, 2):
        write_slice(annotations, out, Slice(number, 2), SMALL)
    read, reads = Split.read, iter(range(9))

    def stopping(split: Split, number: int) -> dict[str, bytes]:
        if next(reads, None) is None:
            raise KeyboardInterrupt
        return read(split, number)

    with monkeypatch.context() as stopped:
        stopped.setattr(Split, "read", stopping)
        with pytest.raises(KeyboardInterrupt):
            merge_slices(annotations, out, 2, SMALL)
    assert list(out.glob("*.json"))
    assert not (out / "manifest.json").exists()
    merge_slices(annotations, out, 2, SMALL)
    (out / ".slices.done").mkdir()
    merge_slices(annotations, out, 2, SMALL)
    assert contents(tmp_path / "one") == contents(out)


def test_slices_of_splits_by_signer(make_clips: Maker, tmp_path: Path) -> None:
    signed = tuple(
        dataclasses.replace(clip, signer=f"s{number % 4}")
        for number, clip in enumerate(make_clips(12).samples)
    )
    config = dataclasses.replace(SMALL, split_by="signer", proportions=(0.5, 0.25, 0.25))
    write_shards(Annotations(samples=signed), tmp_path / "one", config)
    for number in (1, 2):
        write_slice(Annotations(samples=signed), tmp_path / "two", Slice(number, 2), config)
    manifest = merge_slices(Annotations(samples=signed), tmp_path / "two", 2, config)
    assert {name: split["samples"] for name, split in manifest["splits"].items()} == {
        "train": 6,
        "dev": 3,
        "test": 3,
    }
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_merge_waits_for_every_slice(annotations: Annotations, tmp_path: Path) -> None:
    write_slice(annotations, tmp_path, Slice(2, 3), SMALL)
    with pytest.raises(UsageError, match=r"2 of 3 slices are not finished: 1/3, 3/3"):
        merge_slices(annotations, tmp_path, 3, SMALL)


@pytest.mark.parametrize(("count", "empty"), [(4, 1), (9, 3)])
def test_a_slice_may_be_empty(make_clips: Maker, tmp_path: Path, count: int, empty: int) -> None:
    """One of 4 slices has only unusable samples; one of 9 slices of 8 samples has no samples."""
    clips = make_clips(8).samples
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = [dataclasses.replace(clip, video=tmp_path / "broken.mp4") for clip in clips[4:6]]
    annotations = Annotations(samples=(*clips[:4], *broken, *clips[6:]))
    config = dataclasses.replace(SMALL, max_bad="2")
    write_shards(annotations, tmp_path / "one", config)
    slices = [
        write_slice(annotations, tmp_path / "many", Slice(number, count), config)
        for number in range(1, count + 1)
    ]
    assert [bool(manifest["splits"]) for manifest in slices].count(False) == empty
    assert len(merge_slices(annotations, tmp_path / "many", count, config)["left_out"]) == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_a_slice_that_ends_with_a_clip_left_out_stays_finished(
    annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full shard the sample is in no shard, so the merge encodes it again and may be interrupted."""
    one_each = dataclasses.replace(SMALL, shard_size_mb=0.001)
    last = dataclasses.replace(annotations.samples[-1], video=Path("nowhere.mp4"), id="last")
    annotations = Annotations(samples=(*annotations.samples, last))
    for number in (1, 2):
        write_slice(annotations, tmp_path, Slice(number, 2), one_each)

    def stopping(clip: SourceSample, config: EncodeConfig) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("signllm.data.shards.parallel_encoding.encode_sample", stopping)
        with pytest.raises(KeyboardInterrupt):
            merge_slices(annotations, tmp_path, 2, one_each)
    assert unfinished_slices(annotations, tmp_path, 2, one_each) == ()
    assert len(merge_slices(annotations, tmp_path, 2, one_each)["left_out"]) == 3


def test_unfinished_slices_are_listed(annotations: Annotations, tmp_path: Path) -> None:
    def numbers(config: ShardConfig) -> list[str]:
        return [str(part) for part in unfinished_slices(annotations, tmp_path, 3, config)]

    other = dataclasses.replace(SMALL, size=32)
    assert numbers(SMALL) == ["1/3", "2/3", "3/3"]
    write_slice(annotations, tmp_path, Slice(2, 3), SMALL)
    assert numbers(SMALL) == ["1/3", "3/3"]
    assert numbers(other) == ["1/3", "2/3", "3/3"]
    for number in (1, 3):
        write_slice(annotations, tmp_path, Slice(number, 3), SMALL)
    assert numbers(SMALL) == []
    merge_slices(annotations, tmp_path, 3, SMALL)
    assert numbers(dataclasses.replace(SMALL, workers=2, max_bad="9")) == []
    assert numbers(other) == ["1/3", "2/3", "3/3"]


def test_the_budget_is_that_of_all_slices_together(make_clips: Maker, tmp_path: Path) -> None:
    clips = [*make_clips(4).samples]
    for number in (0, 3):
        clips[number] = dataclasses.replace(clips[number], video=Path("nowhere.mp4"))
    annotations, config = Annotations(samples=tuple(clips)), dataclasses.replace(SMALL, max_bad="1")
    for number in (1, 2):
        write_slice(annotations, tmp_path, Slice(number, 2), config)
    with pytest.raises(UsageError, match="2 of 4 samples cannot be used, allowed 1"):
        merge_slices(annotations, tmp_path, 2, config)
    assert not (tmp_path / "manifest.json").exists()
    allowed = merge_slices(annotations, tmp_path, 2, dataclasses.replace(config, max_bad="2"))
    assert allowed["splits"]["train"]["samples"] == 2


def test_slices_without_any_usable_clip_are_refused_at_the_merge(make_clips: Maker, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    empty = [dataclasses.replace(clip, video=tmp_path / "empty.mp4") for clip in make_clips(3).samples]
    for number in (1, 2):
        write_slice(Annotations(samples=tuple(empty)), tmp_path, Slice(number, 2), SMALL)
    with pytest.raises(UsageError, match="no sample left to write"):
        merge_slices(Annotations(samples=tuple(empty)), tmp_path, 2, SMALL)


def test_a_slice_may_be_all_missing_but_not_the_dataset(make_clips: Maker, tmp_path: Path) -> None:
    clips = [*make_clips(4).samples]
    gone = [dataclasses.replace(clip, video=Path("nowhere.mp4")) for clip in clips]
    annotations = Annotations(samples=(*gone[:2], *clips[2:]))
    manifest = write_slice(annotations, tmp_path, Slice(1, 2), dataclasses.replace(SMALL, max_bad="2"))
    assert len(manifest["left_out"]) == 2
    with pytest.raises(UsageError, match="none of the 4 videos exists"):
        write_slice(Annotations(samples=tuple(gone)), tmp_path, Slice(1, 2), SMALL)


def test_the_command_line(make_clips: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{clip.video}\t{clip.text}\t{clip.id}" for clip in make_clips(12).samples]
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(["video\ttext\tid", *rows, "gone.mp4\ttext\tgone"]) + "\n")
    command = ["shard", "table", str(table), str(tmp_path / "out"), "--max-bad", "1"]
    for options in (["--slice", "1/2"], ["--slice", "2/2"], ["--merge", "2", "--json"]):
        assert cli.main([*command, *options]) == 0
    output = capsys.readouterr()
    assert "slice 2 of 2 is finished; after all: --merge 2" in output.out
    assert (
        "left out: 1 of 13 samples; manifest.json lists them all:\n  train/gone: the video is missing"
        in output.err
    )
    assert not (tmp_path / "out" / "slices").exists()
    assert cli.main([*command, "--slice", "3/2"]) == 2


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/3/5", ""])
def test_invalid_slices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="slice = "):
        parse_slice(text)
    assert parse_slice("3/8") == Slice(3, 8)
