"""Weights & Biases and MLflow, each run for real without a network: what their files contain afterwards."""

from __future__ import annotations

import json
import logging
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.training.callbacks import Callback
from signllm.training.engine import TrainingConfig
from signllm.training.loop import fit
from signllm.training.standard_callbacks import standard_callbacks
from signllm.training.trackers import MlflowRun, require_packages
from signllm.training.training_log import read_log
from tests import warm
from tests.training.toy import StopAt, ToyLoader, build, toy_context

STEPS = 4
KEY = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {"training": {"steps": STEPS, "keep_best": None}, "note": "a setting"}
BLOCK = 32768
"""Bytes of a block of the file of an offline run, which has the format of LevelDB's log."""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep both trackers to this machine, and show the warnings of the package to ``caplog``."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(logging.getLogger("signllm"), "propagate", True)


def train(run: Path, *trackers: str, callbacks: tuple[Callback, ...] = (), steps: int = STEPS) -> int:
    """Train the toy in this process; return the last step."""
    config = TrainingConfig(
        steps=steps,
        batch_size=4,
        log_every=1,
        validate_every=2,
        deepspeed="zero0",
        tensorboard=False,
        trackers=trackers,
    )

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        return {"loss": 1.0 / step}

    outcome = fit(
        build(),
        ToyLoader(batch_size=4, rank=0, world=1),
        config=config,
        context=toy_context(run),
        callbacks=[*standard_callbacks(config, validate, settings=SETTINGS), *callbacks],
    )
    return outcome.step


def logged(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in read_log(run) if name in line}


def read_offline_run(path: Path) -> list[Any]:
    """Return the records of a file of Weights & Biases: blocks with a checksum, a length and a type each."""
    from wandb.proto import wandb_internal_pb2

    content, records, parts, place = path.read_bytes(), [], b"", 7  # the name of the format, its version
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # complete, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def wandb_history(run: Path, name: str) -> dict[int, float]:
    """Return step → value of a number in all files of a run."""
    values: dict[int, float] = {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in read_offline_run(path):
            items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if name in items:
                values[items["step"]] = items[name]
    return values


def mlflow_run(run: Path) -> tuple[Any, Any]:
    """Return a client of the run's own store, and the only run in it."""
    from mlflow import MlflowClient

    client = MlflowClient((run / "mlruns").resolve().as_uri())
    experiment = client.get_experiment_by_name("signllm")
    (only,) = client.search_runs([experiment.experiment_id])
    return client, only


def test_settings_losses_and_validations_are_in_both_and_a_resumed_run_continues_them(tmp_path: Path) -> None:
    run = tmp_path / "toy"
    assert train(run, "wandb", "mlflow", callbacks=(StopAt(2),)) == 2
    ids = json.loads((run / "trackers.json").read_text())
    assert train(run, "wandb", "mlflow") == STEPS
    assert json.loads((run / "trackers.json").read_text()) == ids

    for name in ("loss", "lr", "grad_norm", "validate/loss"):
        expected = logged(run, name)
        assert wandb_history(run, name) == pytest.approx(expected)
        client, only = mlflow_run(run)
        metrics = {m.step: m.value for m in client.get_metric_history(only.info.run_id, name)}
        assert metrics == pytest.approx(expected)
    assert set(logged(run, "loss")) == {1, 2, 3, 4}
    assert logged(run, "validate/loss") == {2: 0.5, 4: 0.25}

    assert only.info.run_id == ids["mlflow"]
    assert only.info.status == "FINISHED"
    assert only.data.params == {"training.steps": "4", "training.keep_best": "null", "note": "a setting"}
    assert only.data.tags["stage"] == "toy"
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{ids['wandb']}.wandb"] * 2
    starts = [record.run for record in read_offline_run(files[0]) if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in starts[0].config.update}
    assert config.items() >= SETTINGS.items()
    assert (starts[0].project, starts[0].job_type) == ("signllm", "toy")


def test_no_key_is_written_into_the_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "toy"
    train(run, "wandb", "mlflow", steps=1)
    for path in run.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert KEY.encode() not in path.read_bytes(), path


def test_of_two_ranks_the_first_alone_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"deepspeed": "zero2", "steps": 3, "trackers": ["wandb", "mlflow"]}
    order = {"run": str(tmp_path / "toy"), "config": config}
    done = warm.run_ranks("tests.training.run_toy", json.dumps([order]), ranks=2)
    assert not any(done.codes), done.stderr[-3000:]
    assert len(list((tmp_path / "toy" / "wandb").glob("offline-run-*"))) == 1
    client, only = mlflow_run(tmp_path / "toy")
    losses = [m.value for m in client.get_metric_history(only.info.run_id, "loss")]
    assert losses == pytest.approx(list(logged(tmp_path / "toy", "loss").values()))
    assert {"lr/body", "lr/others"} <= only.data.metrics.keys(), "the rates of both parameter groups"


def test_a_preempted_run_is_marked_and_continued(tmp_path: Path) -> None:
    config = {"deepspeed": "zero0", "steps": 3, "trackers": ["wandb", "mlflow"]}
    order: dict[str, Any] = {"run": str(tmp_path / "toy"), "config": config}
    preempted = order | {"trouble": {"kind": "usr2", "at": 1, "rank": 0}}
    for asked, status in ((preempted, "KILLED"), (order, "FINISHED")):
        assert not any(warm.run("tests.training.run_toy", json.dumps([asked])).codes)
        _, only = mlflow_run(tmp_path / "toy")
        assert only.info.status == status
    assert set(wandb_history(tmp_path / "toy", "loss")) == {1, 2, 3}


def test_a_tracker_that_fails_on_the_way_is_reported_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MlflowRun.write

    def write_two_steps(self: MlflowRun, step: int, values: Mapping[str, float]) -> None:
        if step > 2:
            raise ConnectionError("https://someone:secretword@server is not reachable")
        write(self, step, values)

    monkeypatch.setattr(MlflowRun, "write", write_two_steps)
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path, "mlflow", "wandb", steps=6) == 6
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("signllm")]
    (warning,) = [text for text in warnings if "mlflow" in text]
    assert "server is not reachable" in warning
    assert "secretword" not in warning
    assert set(wandb_history(tmp_path, "loss")) == {1, 2, 3, 4, 5, 6}, "the other tracker is not affected"
    client, only = mlflow_run(tmp_path)
    assert [m.step for m in client.get_metric_history(only.info.run_id, "loss")] == [1, 2]


def test_a_server_that_is_absent_ends_a_new_run_and_not_a_resumed_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secretword@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UsageError, match="mlflow") as caught:
        train(tmp_path / "new", "mlflow")
    assert not list((tmp_path / "new").glob("checkpoints/step-*"))

    run = tmp_path / "resumed"
    train(run, steps=2)
    (run / "trackers.json").write_text('{"mlflow": "0123456789abcdef"}')
    with caplog.at_level(logging.WARNING):
        assert train(run, "mlflow") == STEPS
    assert caplog.text.count("mlflow cannot be continued") == 1
    assert "secretword" not in caplog.text + str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages(("wandb", "mlflow"), start_distributed())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb") as caught:
        require_packages(("wandb",), start_distributed())
    assert "signllm[tracking]" in str(caught.value)


def test_without_a_key_a_new_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UsageError, match="WANDB_API_KEY"):
        train(tmp_path, "wandb")
