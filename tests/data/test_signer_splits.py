"""Tests of splits by signer: disjoint, near the requested shares, and reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signllm.data.shards.signer_splits import SPLITS, split_by_signer
from signllm.data.source_samples import Annotations, SourceSample
from signllm.errors import UsageError


def clips(sizes: dict[str, int]) -> Annotations:
    return Annotations(
        samples=tuple(
            SourceSample(id=f"{signer}{n}", video=Path("v"), text="t", split="all", signer=signer)
            for signer, size in sizes.items()
            for n in range(size)
        ),
        official={"train": {"samples": 1}},
    )


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=2), st.integers(1, 9), min_size=3, max_size=12))
def test_no_signer_is_in_two_splits_and_no_split_is_empty(sizes: dict[str, int]) -> None:
    annotations = clips(sizes)
    made = split_by_signer(annotations, (0.8, 0.1, 0.1))
    signers = {name: {clip.signer for clip in made.samples if clip.split == name} for name in SPLITS}
    assert all(signers.values())
    assert sum(map(len, signers.values())) == len(sizes)
    assert sorted(clip.id for clip in made.samples) == sorted(clip.id for clip in annotations.samples)
    assert made == split_by_signer(annotations, (0.8, 0.1, 0.1))
    assert made.splits == SPLITS
    assert not made.official


def test_the_shares_are_met_where_signers_allow() -> None:
    made = split_by_signer(clips({f"s{n:02}": 5 for n in range(20)}), (8, 1, 1))
    assert [sum(clip.split == name for clip in made.samples) for name in SPLITS] == [80, 10, 10]
    without_dev = split_by_signer(clips({"a": 3, "b": 1}), (0.75, 0, 0.25))
    assert [(clip.signer, clip.split) for clip in without_dev.samples] == [
        *[("a", "train")] * 3,
        ("b", "test"),
    ]


def test_what_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="2 of 5 samples"):
        split_by_signer(clips({"": 2, "a": 3}), (0.8, 0.1, 0.1))
    with pytest.raises(UsageError, match=r"2 signers .* 3 splits"):
        split_by_signer(clips({"b": 2, "a": 3}), (0.8, 0.1, 0.1))
