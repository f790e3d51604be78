"""Tests of the statistics, the verification and the contact sheet of shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from signllm.data.shards import shard_inspection
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.preview import preview_shards
from signllm.data.shards.shard_inspection import format_info_table, summarize_shards, verify_shards
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.errors import UsageError

Maker = Callable[..., Annotations]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    both = Annotations(samples=make_clips(6).samples + make_clips(2, split="dev").samples)
    write_shards(both, tmp_path / "shards", ShardConfig(encode="copy", show_progress=False))
    return tmp_path / "shards"


def test_info_counts(shards: Path) -> None:
    info = summarize_shards(shards)
    train = info["splits"]["train"]
    assert (train["samples"], train["frames"], train["shortest_frames"]) == (6, 5 * 14 + 10 + 14, 14)
    assert train["hours"] == pytest.approx(94 / 25 / 3600, abs=1e-4)
    assert (train["signers"], train["distinct_texts"], train["words_per_text"]) == ({"s": 6}, 6, 2)
    assert info["splits"]["dev"]["samples"] == 2
    assert info["made"]["encode"] == "copy"


def test_the_summary_has_overlaps_of_splits_and_word_counts(make_clips: Maker, tmp_path: Path) -> None:
    train, dev = make_clips(3).samples, make_clips(2, split="dev").samples
    texts = ["snow in the north", "rain", "snow and rain"]
    clips = [dataclasses.replace(clip, text=text) for clip, text in zip(train, texts, strict=True)]
    clips += [
        dataclasses.replace(dev[0], text="rain", signer="t"),
        dataclasses.replace(dev[1], text="今天好", language="Chinese"),
    ]
    config = ShardConfig(encode="copy", show_progress=False)
    write_shards(Annotations(samples=tuple(clips)), tmp_path, config)
    info = summarize_shards(tmp_path)
    assert info["overlap"] == {"train-dev": {"texts": 1, "signers": 1}}
    result = info["splits"]["train"]
    assert [result[f"{what}_words"] for what in ("fewest", "median", "most", "distinct")] == [1, 3, 4, 6]
    assert result["words_seen_once"] == 4
    assert info["splits"]["dev"]["distinct_characters"] == 7
    assert info["warnings"] == []


def test_complete_shards_pass_the_verification(shards: Path) -> None:
    assert verify_shards(shards) == {"splits": {"train": 6, "dev": 2}, "decoded": True, "damaged": 0}


@pytest.mark.parametrize("member", ["mp4", "txt", "json", "header"])
def test_a_flipped_byte_is_detected(shards: Path, member: str) -> None:
    split = ShardIndex(shards).split("train")
    offset = 8 if member == "header" else split.samples[3].members[member][0] + 5
    with split.tars[0].open("r+b") as tar:
        tar.seek(offset)
        byte = tar.read(1)[0]
        tar.seek(offset)
        tar.write(bytes([byte ^ 1]))
    for options in ({"workers": 2}, {"decode": False}):
        with pytest.raises(
            UsageError, match=r"shards are damaged: (.|\n)*train-000000\.tar: the sha256 differs"
        ):
            verify_shards(shards, **options)


def test_the_sample_that_does_not_decode_is_named(shards: Path) -> None:
    split = ShardIndex(shards).split("train")
    offset, size = split.samples[3].members["mp4"]
    with split.tars[0].open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\xff" * size)
    with pytest.raises(UsageError, match="clip3: not a video"):
        verify_shards(shards)


def test_verify_advances_a_few_samples_at_a_time(
    make_clips: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(make_clips(20), tmp_path, ShardConfig(encode="copy", show_progress=False))
    message: list[int] = []
    bar = SimpleNamespace(advance=message.append)
    monkeypatch.setattr(shard_inspection, "progress", lambda *args, **options: nullcontext(bar))
    for workers in (1, 2):
        assert verify_shards(tmp_path, workers=workers)["splits"] == {"train": 20}
        assert message == [8, 8, 4]
        message.clear()


def test_preview_names_what_it_cannot_show_or_write(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: (.|\n)*remedy"):
        preview_shards(shards, "/proc/none/sheet.png")
    split = ShardIndex(shards).split("train")
    offset, size = split.samples[0].members["mp4"]
    with split.tars[0].open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\xff" * size)
    with pytest.raises(UsageError, match=r"clip0: not a video(.|\n)*train-000000\.tar"):
        preview_shards(shards, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_preview_shows_every_split(shards: Path, tmp_path: Path) -> None:
    with Image.open(preview_shards(shards, tmp_path / "sheet.png", samples=4)) as sheet:
        assert sheet.size == (6 * 112, 4 * (112 + 32))
        assert len(sheet.getcolors(1 << 20) or []) > 50


def test_the_table_has_a_column_for_each_split(shards: Path) -> None:
    lines = format_info_table(summarize_shards(shards)).splitlines()
    assert lines[1].split() == ["train", "dev"]
    assert ["samples", "6", "2"] in [line.split() for line in lines]
    assert any(line.startswith("made by: encode copy") for line in lines)
    assert lines[-1] == "samples in the source: 8, left out: 0"
