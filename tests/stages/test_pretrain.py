"""Stage 1 from shards to a checkpoint: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signllm.data.loading.mixture import open_mixture
from signllm.data.shards.index import ShardIndex
from signllm.errors import UsageError
from signllm.models.vq_sign.quantizer import QuantizerConfig
from signllm.models.vq_sign.vq_sign import build_vq_sign
from signllm.stages import pretrain as stage
from signllm.stages.pretrain import pretrain
from signllm.training.checkpoint import install_weights, load_weights
from tests.stages import path


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_it_leaves_a_config_a_log_and_a_codebook_in_use(composed: Path) -> None:
    run = composed / "pretrain"
    lines = log_of(run)
    steps = [line for line in lines if "l_cp" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["loss"] == pytest.approx(line["l_cp"] + line["l_q"], rel=1e-5) for line in steps)
    assert any("validate/loss" in line for line in lines)  # there is a dev split
    assert steps[0]["codes_used"] > 2  # the k-means start
    install_weights(build_vq_sign(path.PRETRAIN.vq_sign), load_weights(run, stage="pretrain"), where=run)


def test_stopping_and_going_on_equals_not_stopping(composed: Path, tmp_path: Path) -> None:
    halfway = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=2))
    pretrain(halfway, run=tmp_path, dataset=open_mixture(composed / "shards"))
    outcome = pretrain(path.PRETRAIN, run=tmp_path, dataset=open_mixture(composed / "shards"))
    assert outcome.step == 4
    straight = load_weights(composed / "pretrain")
    for name, tensor in load_weights(tmp_path).items():
        torch.testing.assert_close(tensor, straight[name], msg=lambda text, n=name: f"{n}: {text}")


def test_finite_scalar_quantization_goes_on_where_it_stopped(composed: Path, tmp_path: Path) -> None:
    quantizer = QuantizerConfig(update="fsq", levels=(4, 2), codes=8, kmeans_start=True)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    config = replace(path.PRETRAIN, vq_sign=replace(path.PRETRAIN.vq_sign, quantizer=quantizer))
    halfway = replace(config, training=replace(path.TRAINING, steps=2))
    for settings, run in ((config, straight), (halfway, resumed), (config, resumed)):
        pretrain(settings, run=run, dataset=open_mixture(composed / "shards"))
    weights = load_weights(straight)
    assert {"quantizer.codebook", "quantizer.scalars.encode_weight"} <= weights.keys()
    for name, tensor in load_weights(resumed).items():
        torch.testing.assert_close(tensor, weights[name], msg=lambda text, n=name: f"{n}: {text}")
    steps = [line for line in log_of(straight) if "l_cp" in line]
    assert [line["l_q"] for line in steps] == [0.0] * 4
    assert steps[0]["codes_used"] > 2  # the start spreads the characters


def test_a_finished_run_is_left_as_it_is(composed: Path) -> None:
    before = load_weights(composed / "pretrain")
    assert (
        pretrain(path.PRETRAIN, run=composed / "pretrain", dataset=open_mixture(composed / "shards")).step
        == 4
    )
    after = load_weights(composed / "pretrain")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_other_settings_and_missing_shards_are_refused(composed: Path, tmp_path: Path) -> None:
    other = replace(path.PRETRAIN, vq_sign=replace(path.PRETRAIN.vq_sign, quantizer_weight=2.0))
    with pytest.raises(UsageError, match="quantizer_weight"):
        pretrain(other, run=composed / "pretrain", dataset=open_mixture(composed / "shards"))
    with pytest.raises(UsageError):
        pretrain(path.PRETRAIN, run=tmp_path / "run", dataset=open_mixture(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()


def test_each_split_is_read_once(composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    read_split = ShardIndex.split
    monkeypatch.setattr(ShardIndex, "split", lambda self, name: names.append(name) or read_split(self, name))
    shown = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=1, tensorboard=True))
    pretrain(shown, run=tmp_path, dataset=open_mixture(composed / "shards"))
    assert sorted(names) == ["dev", "train"], "validation and shown videos use the same dev split"


def test_patience_ends_the_stage_as_if_it_were_complete(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("signllm"), "propagate", True)
    monkeypatch.setattr(stage, "make_loss_validator", lambda *_: lambda model, step: {"loss": 1.0})
    config = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=9, validate_every=1, patience=2))
    for _ in range(2):
        outcome = pretrain(config, run=tmp_path, dataset=open_mixture(composed / "shards"))
        assert outcome.step == 3
        outcome.raise_if_preempted()  # it is not: exit code 0
    assert caplog.text.count("step 3 of 9") == 2, "the reason is shown each time"


def test_a_tracker_receives_the_settings_of_the_stage(composed: Path, tmp_path: Path) -> None:
    config = replace(path.PRETRAIN, training=replace(path.TRAINING, steps=2, trackers=("mlflow",)))
    pretrain(config, run=tmp_path / "run", dataset=open_mixture(composed / "shards"))
    (parameters,) = (tmp_path / "run" / "mlruns").glob("[1-9]*/*/params")
    assert (parameters / "vq_sign.quantizer.codes").read_text() == "8"
    assert (parameters / "training.steps").read_text() == "2"


def test_a_missing_tracker_is_refused_before_anything_is_written(
    composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = replace(path.PRETRAIN, training=replace(path.TRAINING, trackers=("mlflow",)))
    with pytest.raises(UsageError, match=r"signllm\[tracking\]"):
        pretrain(config, run=tmp_path / "run", dataset=open_mixture(composed / "shards"))
    assert not (tmp_path / "run").exists()
