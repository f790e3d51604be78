"""Tests of reading pickles: plain values are returned, and no code is executed."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.formats.plain_pickle import read_plain_pickle
from signllm.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
    ),
)


@settings(deadline=None, max_examples=50)
@given(VALUES, st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)))
def test_plain_values_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.pkl"
    path.write_bytes(pickle.dumps([value, value], protocol))
    assert read_plain_pickle(path) == [value, value]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "value", [Harmful(), {"info": [Harmful()]}, collections.OrderedDict(a=1), Path("x"), len, {1}, b"x", 1j]
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_anything_else_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UsageError, match="more than plain values"):
        read_plain_pickle(tmp_path / "a.pkl")
    assert not (tmp_path / "harmed").exists()


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    complete = pickle.dumps({"info": [{"name": "a", "label_char": ["天"], "length": 300}] * 3})
    for size in range(len(complete)):
        (tmp_path / "a.pkl").write_bytes(complete[:size])
        with pytest.raises(UsageError, match="not a pickle"):
            read_plain_pickle(tmp_path / "a.pkl")


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60))
def test_noise_is_an_error_or_a_value(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    path.write_bytes(b"\x80\x04" + noise + b".")
    try:
        read_plain_pickle(path)
    except UsageError:
        pass


def test_texts_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02U\x03\xe5\xa4\xa9q\x00.")
    assert read_plain_pickle(tmp_path / "a.pkl") == "天"
