"""Tests of the index: it refuses incomplete shards and reads exactly the bytes that were written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.errors import UsageError

Maker = Callable[..., Annotations]


@pytest.fixture
def shards(make_clips: Maker, tmp_path: Path) -> Path:
    config = ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False)
    write_shards(make_clips(8), tmp_path / "shards", config)
    return tmp_path / "shards"


def test_random_reads_give_the_bytes_that_went_in(shards: Path, make_clips: Maker) -> None:
    split = ShardIndex(shards).split("train")
    assert len(split.tars) == len(split.shard_sizes) > 2
    assert sum(split.shard_sizes) == len(split) == 8
    for number in (7, 0, 3, 5):
        clip = make_clips(8).samples[number]
        members = split.read(number)
        assert set(members) == {"mp4", "txt", "json"}
        assert (members["mp4"], members["txt"].decode()) == (clip.video.read_bytes(), clip.text)
        sample = split.samples[number]
        assert (sample.id, sample.text, sample.language, sample.signer) == (
            clip.id,
            clip.text,
            "English",
            "s",
        )


def test_a_split_travels_to_other_processes(shards: Path) -> None:
    split = ShardIndex(shards).split("train")
    assert pickle.loads(pickle.dumps(split)).read(4) == split.read(4)


def test_an_unknown_split_is_reported_with_the_existing_ones(shards: Path) -> None:
    with pytest.raises(UsageError, match=r"no split 'dev'(.|\n)*one of: train"):
        ShardIndex(shards).split("dev")


@pytest.mark.parametrize("damage", ["no tar", "no index", "short tar", "other index", "garbage index"])
def test_an_incomplete_shard_is_refused(shards: Path, damage: str) -> None:
    tar, index = shards / "train-000001.tar", shards / "train-000001.json"
    if damage == "no tar":
        tar.unlink()
    elif damage == "no index":
        index.unlink()
    elif damage == "short tar":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "other index":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": "0" * 64}))
    else:
        index.write_text("[]")
    with pytest.raises(UsageError, match=r"missing, incomplete(.|\n)*train-000001\.tar"):
        ShardIndex(shards).split("train")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no finished shards"),
        ("{", "the manifest cannot be read"),
        ("{}", "not a manifest of signllm shards"),
        ('{"format": "signllm-shards", "version": 99}', "version 99, this signllm reads 1"),
    ],
)
def test_invalid_manifests_are_refused(shards: Path, manifest: str | None, message: str) -> None:
    path = shards / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    with pytest.raises(UsageError, match=message):
        ShardIndex(shards)


def test_a_tar_that_shrinks_while_it_is_read(shards: Path) -> None:
    split = ShardIndex(shards).split("train")
    split.tars[0].write_bytes(split.tars[0].read_bytes()[:600])
    with pytest.raises(UsageError, match=r"ends before sample clip0(.|\n)*train-000000\.tar"):
        split.read(0)
