"""Tests of the table of samples: they are returned unchanged, and no object is stored per sample."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signllm.data.shards.sample_table import SampleTable, ShardSample

numbers = st.integers(0, 2**40)
samples = st.builds(
    ShardSample,
    key=st.text(max_size=8),
    id=st.text(st.characters(), max_size=8),  # lone surrogates too: names of files that are not UTF-8
    text=st.text(max_size=30),
    language=st.sampled_from(["English", "中文", ""]),
    signer=st.sampled_from(["", "a", "English"]),
    frames=numbers,
    fps=st.floats(1, 240),
    width=numbers,
    height=numbers,
    shard=numbers,
    members=st.dictionaries(st.sampled_from(["mp4", "txt", "json", "0001.png"]), st.tuples(numbers, numbers)),
)


@given(st.lists(samples, max_size=12))
def test_samples_are_returned_unchanged(originals: list[ShardSample]) -> None:
    table = SampleTable(iter(originals))
    assert list(table) == originals
    assert table[1:-1] == originals[1:-1]
    assert list(table.ids) == [sample.id for sample in originals]
    assert table.frames.tolist() == [sample.frames for sample in originals]
    assert table.languages() == Counter(sample.language for sample in originals)
    assert table.signers() == Counter(sample.signer for sample in originals)
    assert list(pickle.loads(pickle.dumps(table))) == originals  # a spawned worker gets it so


def test_places_count_from_both_ends() -> None:
    item = ShardSample(
        key="k", id="i", text="t", language="English", signer="", frames=3, fps=25, width=4, height=5,
        shard=0, members={"mp4": (512, 9)},
    )  # fmt: skip
    table = SampleTable([item, item])
    assert table[-2] == table[0] == item
    with pytest.raises(IndexError):
        table[2]
    assert not SampleTable()


def test_a_sample_takes_some_300_bytes() -> None:
    def many() -> SampleTable:
        return SampleTable(
            ShardSample(
                key=f"clip{number}", id=f"clip{number}", text="a sentence of about eighty characters, " * 2,
                language="English", signer=f"s{number % 9}", frames=100, fps=25.0, width=256, height=256,
                shard=0, members={"json": (0, 400), "mp4": (1024, 80_000), "txt": (90_000, 78)},
            )
            for number in range(1000)
        )  # fmt: skip

    assert len(pickle.dumps(many())) < 300 * 1000
