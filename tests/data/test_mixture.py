"""Tests of mixtures of datasets: weights, the language of each sample, and exact resuming."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from signllm.data.loading.mixture import open_mixture, parse_mixture
from signllm.data.loading.pipeline import DataConfig, Loader, VideoSource
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations
from signllm.errors import UsageError

Maker = Callable[..., Annotations]


@pytest.fixture
def both(make_clips: Maker, tmp_path: Path) -> str:
    """Return six German and five English samples; the ids of the latter also occur among the former."""
    for name, count, language in (("A", 6, "German"), ("B", 5, "English")):
        clips = tuple(dataclasses.replace(clip, language=language) for clip in make_clips(count).samples)
        write_shards(
            dataclasses.replace(make_clips(count), samples=clips),
            tmp_path / name,
            ShardConfig(encode="copy", shard_size_mb=0.008, show_progress=False),
        )
    return f"{tmp_path}/A:2,{tmp_path}/B"


def test_weights_are_how_often_an_epoch_uses_a_sample(both: str) -> None:
    split = open_mixture(both).split("train")
    source = VideoSource(split, DataConfig(size=48, workers=0))
    complete = list(Loader(source, batch_size=4, epochs=1, seed=1))
    assert len({len(batch) for batch in complete}) == 1
    seen: Counter[str] = Counter()
    for batch in complete:
        for name, language, real in zip(batch.ids, batch.languages, batch.is_real.tolist(), strict=True):
            seen[name] += real
            assert language == ("German" if name.startswith("A/") else "English")
    assert seen == {f"A/clip{n}": 2 for n in range(6)} | {f"B/clip{n}": 1 for n in range(5)}

    stopped = Loader(source, batch_size=4, epochs=1, seed=1)
    next(iter(stopped))
    ranks = [Loader(source, batch_size=4, rank=rank, world=2, epochs=1) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(stopped.state_dict())
    rest = [list(loader) for loader in ranks]
    for step, batch in enumerate(complete[1:]):
        assert [rest[0][step].ids, rest[1][step].ids] == [batch.ids[0::2], batch.ids[1::2]]


def test_evaluation_takes_every_sample_once(both: str) -> None:
    split = open_mixture(both).split("train")
    loader = Loader(
        VideoSource(split, DataConfig(size=48, workers=0)), batch_size=11, shuffle=False, epochs=1
    )
    assert next(iter(loader)).ids == [sample.id for sample in split.samples]
    assert len(split) == 11


def test_what_data_may_name(both: str, tmp_path: Path) -> None:
    assert open_mixture(both).labels == ("A", "B")
    single = open_mixture(f"{tmp_path}/A:2")
    assert single.labels == (), "the ids of a single dataset have no prefix"
    assert [record.weight for record in single.records("train")] == [1.0]
    assert single.split("train") is single.split("train"), "a split is read once"
    assert parse_mixture("http://host:8000,s3://bucket/b:0.5") == [
        ("http://host:8000", 1.0),
        ("s3://bucket/b", 0.5),
    ]
    with pytest.raises(UsageError, match="a weight is not above 0"):
        parse_mixture("A:0,B:1")
    with pytest.raises(UsageError, match="named twice"):
        open_mixture(f"{tmp_path}/A,{tmp_path}/A:2")
    with pytest.raises(UsageError, match="no split 'dev'"):
        open_mixture(both).split("dev")
