"""Character files: what is saved comes back, and nothing else passes for one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from signllm.data.characters import load_characters, save_characters
from signllm.errors import UsageError


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
        ("other.safetensors", "not a file of character"),
        ("a.pickle", "no character"),
        ("none", "no character"),
    ):
        with pytest.raises(UsageError, match=message):
            load_characters(tmp_path / name)
