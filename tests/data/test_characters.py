"""Tests of character files: saved sequences are loaded unchanged, and other files are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from signllm.data.loading.characters import (
    characters_path,
    load_characters,
    load_packed_characters,
    load_split_characters,
    read_provenance,
    save_characters,
)
from signllm.errors import UsageError


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 255)), max_size=5
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, characters: dict[str, list[int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "characters.safetensors"
    save_characters(
        path, {name: np.array(sequence, np.int64) for name, sequence in characters.items()}, "abc"
    )
    loaded, codebook = load_characters(path)
    assert codebook == "abc"
    assert {name: sequence.tolist() for name, sequence in loaded.items()} == characters
    assert all(sequence.dtype == np.int64 for sequence in loaded.values())


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({"a": [1]}))
    for name, message in (
        ("other.safetensors", "no character sequences"),
        ("a.pickle", "no character"),
        ("none", "no character"),
    ):
        with pytest.raises(UsageError, match=message):
            load_characters(tmp_path / name)


def test_a_split_is_its_files_in_the_order_of_the_shards(tmp_path: Path) -> None:
    for shard, names in enumerate(("ab", "", "c")):
        sequences = {name: np.arange(ord(name) - ord("a") + 1) for name in names}
        save_characters(characters_path(tmp_path, "train", shard), sequences, "book", {"shard": shard})
    save_characters(characters_path(tmp_path, "dev", 0), {"d": np.arange(9)}, "book")
    characters, codebook = load_split_characters(tmp_path, "train")
    assert {name: sequence.tolist() for name, sequence in characters.items()} == {
        "a": [0],
        "b": [0, 1],
        "c": [0, 1, 2],
    }
    assert codebook == "book"
    packed, counts = load_packed_characters(
        [characters_path(tmp_path, "train", shard) for shard in (0, 1, 2)]
    )
    assert (packed.tolist(), counts.tolist()) == ([0, 0, 1, 0, 1, 2], [1, 2, 3])
    assert packed.dtype == np.uint8
    assert read_provenance(characters_path(tmp_path, "train", 2)) == {"codebook": "book", "shard": 2}
    assert read_provenance(characters_path(tmp_path, "train", 3)) is None


def test_the_single_file_of_an_older_version_is_read_as_a_split(tmp_path: Path) -> None:
    save_characters(tmp_path / "characters.train.safetensors", {"a": np.array([4, 5])}, "book")
    characters, _ = load_split_characters(tmp_path, "train")
    assert characters["a"].tolist() == [4, 5]


def test_no_files_and_files_of_two_codebooks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no character sequences of the split 'train'"):
        load_split_characters(tmp_path, "train")
    for shard, codebook in enumerate(("one", "two")):
        save_characters(characters_path(tmp_path, "train", shard), {}, codebook)
    with pytest.raises(UsageError, match=r"codebook two .*codebook one"):
        load_split_characters(tmp_path, "train")
