"""Tests of keys: any name becomes a key that WebDataset and a file system accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm.data.source_samples import KEY_LENGTH, is_safe_split, safe_key, tidy_text


@pytest.mark.parametrize(
    "name", ["clip7", "25October_2010_Monday_tagesschau-17", "a__b", "S000005_P0004_T00"]
)
def test_a_harmless_name_is_its_own_key(name: str) -> None:
    assert safe_key(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "Mci9oyb5V2E-00:00:05.333-00:00:11.166",
        "-fZc293MpJk_2-1-rgb_front",
        "train/01April/x",
        "../../x",
        "",
        "." * 300,
        "日本",
    ],
)
def test_a_hazardous_name_becomes_harmless(name: str) -> None:
    key = safe_key(name)
    assert 0 < len(key) <= KEY_LENGTH
    assert not set(key) & set("./:\\ ")
    assert not key.startswith("-")
    assert key.isascii()


@given(st.text(), st.text())
def test_different_names_have_different_keys(item: str, other: str) -> None:
    assert (safe_key(item) == safe_key(other)) == (item == other)


def test_names_with_equal_valid_parts_get_different_keys() -> None:
    assert len({safe_key(name) for name in ("a.b", "a:b", "a/b", "a_b", "-a_b")}) == 5


def test_texts_lose_outer_and_repeated_spaces() -> None:
    assert tidy_text("  a  b\u00a0c \t\n") == "a b c"


@pytest.mark.parametrize(
    ("split", "safe"), [("train", True), ("dev_2", True), ("a/b", False), ("..", False), ("", False)]
)
def test_split_names_that_may_be_file_names(split: str, safe: bool) -> None:
    assert is_safe_split(split) is safe
