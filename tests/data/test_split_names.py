"""Tests of the standard names of splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.index import ShardIndex
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.data.split_names import find_split, standardize_split, standardize_splits


@pytest.mark.parametrize(
    ("names", "standard"),
    [
        ("train Train TRAINING training", "train"),
        ("dev Dev val Valid VALIDATION validation develop development", "dev"),
        ("test Test testing", "test"),
    ],
)
def test_usual_names(names: str, standard: str) -> None:
    assert {standardize_split(name) for name in names.split()} == {standard}


def test_other_names_stay() -> None:
    assert [standardize_split(name) for name in ("eval", "val_unseen", "test2")] == [
        "eval",
        "val_unseen",
        "test2",
    ]


def test_a_dataset_with_dev_and_val_keeps_them_apart() -> None:
    assert standardize_splits(["train", "val", "Dev"]) == {"train": "train", "val": "val", "Dev": "dev"}
    assert standardize_splits(["val", "valid", "Training"]) == {
        "val": "dev",
        "valid": "dev",
        "Training": "train",
    }


def test_a_split_is_available_under_any_of_its_names() -> None:
    assert find_split("val", ["train", "dev"]) == "dev"
    assert find_split("dev", ["train", "Validation"]) == "Validation"
    assert find_split("val", ["dev", "val"]) == "val"
    assert find_split("test", ["train"]) is None


def test_older_shards_of_val_are_dev(make_clips: Callable[..., Annotations], tmp_path: Path) -> None:
    clips = make_clips(2, split="val").samples
    a, b = tmp_path / "a", tmp_path / "b"
    for out in (a, b):
        write_shards(Annotations(samples=clips), out, ShardConfig(encode="copy", show_progress=False))
    assert "val" in json.loads((a / "manifest.json").read_text())["splits"]
    for index in (ShardIndex(a), open_mixture(f"{a}:2,{b}")):
        assert index.splits == ("dev",)
        names = {name: index.split(name).name for name in ("dev", "val", "validation")}
        assert set(names.values()) == {"dev"}
    assert ShardIndex(a).split("val").read(0)["txt"] == b"sentence 0"
