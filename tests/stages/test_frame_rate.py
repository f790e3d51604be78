"""A run records the rate at which it reads videos, keeps it, and hands it on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from signllm.config import FinetuneConfig, PretrainConfig, load_config
from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.writing import ShardConfig, write_shards
from signllm.data.source_samples import Annotations, SourceSample
from signllm.data.video.decoding import encode_h264
from signllm.errors import UsageError
from signllm.stages.compose import compose
from signllm.stages.initial_run import with_encoder_from
from signllm.stages.pretrain import pretrain
from tests.models import parts
from tests.stages import path

START = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=0))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of videos of 24, 30, 30 and 60 frames per second."""
    folder, clips = tmp_path_factory.mktemp("mixed"), []
    for number, (fps, frames) in enumerate(
        zip((24, 30, 30, 60), parts.frames_of((24, 30, 36, 60)), strict=True)
    ):
        video = folder / f"{number}.mp4"
        video.write_bytes(encode_h264(frames.permute(0, 2, 3, 1).numpy(), fps))
        clips.append(SourceSample(id=str(number), video=video, text=parts.TEXTS[number % 4], split="train"))
    write_shards(
        Annotations(samples=tuple(clips)), folder / "shards", ShardConfig(show_progress=False, encode="copy")
    )
    return folder / "shards"


def rate_of(run: Path) -> float | None:
    return load_config(run, PretrainConfig).data.fps


def test_a_run_records_the_middle_rate_and_keeps_it(mixed: Path, tmp_path: Path) -> None:
    pretrain(START, tmp_path, open_mixture(mixed))
    assert rate_of(tmp_path) == 30
    pretrain(START, tmp_path, open_mixture(mixed))
    assert rate_of(tmp_path) == 30
    with pytest.raises(UsageError, match=r"data\.fps: 30\.0 -> 25"):
        pretrain(replace(START, data=replace(START.data, fps=25.0)), tmp_path, open_mixture(mixed))


def test_a_run_takes_the_rate_that_is_asked_for(mixed: Path, tmp_path: Path) -> None:
    pretrain(replace(START, data=replace(START.data, fps=12.5)), tmp_path, open_mixture(mixed))
    assert rate_of(tmp_path) == 12.5


def test_a_run_of_before_rates_were_recorded_goes_on_without(mixed: Path, tmp_path: Path) -> None:
    pretrain(START, tmp_path, open_mixture(mixed))
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["data"]["fps"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    pretrain(START, tmp_path, open_mixture(mixed))
    assert rate_of(tmp_path) is None


def test_words_and_translation_read_at_the_rate_of_the_encoder(mixed: Path, tmp_path: Path) -> None:
    pretrain(replace(path.PRETRAIN, training=replace(path.TRAINING, steps=1)), tmp_path, open_mixture(mixed))
    words = compose(tmp_path, open_mixture(mixed), path.COMPOSE)
    assert words.config["fps"] == 30
    finetuning = FinetuneConfig(data=path.DATA, training=path.TRAINING)
    assert with_encoder_from(tmp_path, finetuning).data.fps == 30
    with pytest.raises(UsageError, match="30"):
        with_encoder_from(tmp_path, replace(finetuning, data=replace(path.DATA, fps=25.0)))
    with pytest.raises(UsageError, match="30"):
        compose(tmp_path, open_mixture(mixed), replace(path.COMPOSE, data=replace(path.DATA, fps=25.0)))
