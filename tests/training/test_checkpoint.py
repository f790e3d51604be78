"""A checkpoint is whole or not there, refuses what does not belong to it, gives back what it was given."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from signllm.errors import UsageError
from signllm.storage import StorageError
from signllm.training import checkpoint
from signllm.training.checkpoint import (
    TrainingState,
    install_weights,
    last_checkpoint,
    load_moments,
    load_weights,
    save_checkpoint,
)
from tests.clock import Clock

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
MOMENTS = {"exp_avg/a": torch.ones(2, 3), "exp_avg_sq/a": torch.zeros(2, 3)}


def saved(run: Path, step: int, *, keep: int = 2) -> Path:
    state = TrainingState(stage="toy", step=step, order={"seed": 1, "epoch": 0, "samples_consumed": step})
    return save_checkpoint(run, state, WEIGHTS, MOMENTS, keep=keep)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path, 7)
    for saved_tensors, loaded in ((WEIGHTS, load_weights(tmp_path)), (MOMENTS, load_moments(folder))):
        assert loaded.keys() == saved_tensors.keys()
        assert all(torch.equal(loaded[name], saved_tensors[name]) for name in saved_tensors)
    state = checkpoint.read_state(folder, stage="toy")
    assert (state.step, state.order["samples_consumed"]) == (7, 7)


def test_only_the_last_ones_are_kept_and_nothing_else_lies_around(tmp_path: Path) -> None:
    for step in (5, 99_999_999, 100_000_000, 15):
        saved(tmp_path, step)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-100000000", "step-99999999"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-100000000", "steps count as numbers"


def test_the_best_one_outlives_the_last_ones(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(UsageError, match="there is no best one"):
        checkpoint.best_checkpoint(tmp_path)
    for step in (2, 3, 4, 5):
        best = {"checkpoint": checkpoint.checkpoint_name(2), "name": "loss", "value": 0.5}
        save_checkpoint(tmp_path, TrainingState(stage="toy", step=step, best=best), WEIGHTS, MOMENTS, keep=1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000005"]
    assert checkpoint.best_checkpoint(tmp_path).name == "step-00000002"
    (tmp_path / "checkpoints" / "step-00000002" / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match="best checkpoint is damaged"):
        checkpoint.best_checkpoint(tmp_path)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000003.partial"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path) is None
    saved(tmp_path, 7)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]


def test_a_checkpoint_made_of_another_counts_as_later_and_never_stands_in_its_place(tmp_path: Path) -> None:
    first = saved(tmp_path, 3)
    made = save_checkpoint(
        tmp_path, checkpoint.read_state(first), {"a": torch.zeros(2)}, {}, keep=2, revision=1
    )
    assert (made.name, last_checkpoint(tmp_path)) == ("step-00000003.1", made)
    (made / "COMPLETE").unlink()
    assert last_checkpoint(tmp_path) == first
    later = saved(tmp_path, 4, keep=1)
    assert last_checkpoint(tmp_path) == later
    assert not first.exists()
    assert not made.exists()


def test_files_of_the_stage_belong_to_the_checkpoint(tmp_path: Path) -> None:
    state = TrainingState(stage="toy", step=1)

    def extra_files(folder: Path) -> None:
        (folder / "words.json").write_text("{}")

    folder = save_checkpoint(tmp_path, state, WEIGHTS, MOMENTS, keep=2, extra_files=[extra_files])
    assert json.loads((folder / "COMPLETE").read_text())["words.json"] == {
        "bytes": 2,
        "crc32": zlib.crc32(b"{}"),
    }
    assert last_checkpoint(tmp_path) == folder
    (folder / "words.json").unlink()
    assert last_checkpoint(tmp_path) is None

    def broken(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UsageError, match="disk is full"):
        save_checkpoint(tmp_path, replace(state, step=2), WEIGHTS, MOMENTS, keep=2, extra_files=[broken])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "damage", ["no mark", "short file", "empty mark", "lost file", "other bytes", "a mark of nonsense"]
)
def test_a_damaged_one_is_passed_over_for_the_last_whole_one(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    complete, broken = saved(tmp_path, 1), saved(tmp_path, 2)
    if damage == "no mark":
        (broken / "COMPLETE").unlink()
    elif damage == "empty mark":
        (broken / "COMPLETE").write_text("")
    elif damage == "a mark of nonsense":
        (broken / "COMPLETE").write_text('["weights.safetensors"]')
    elif damage == "other bytes":
        content = bytearray((broken / "weights.safetensors").read_bytes())
        content[-3] ^= 1
        (broken / "weights.safetensors").write_bytes(content)
    elif damage == "lost file":
        (broken / "moments.safetensors").unlink()
    else:
        content = (broken / "weights.safetensors").read_bytes()
        (broken / "weights.safetensors").write_bytes(content[:-3])
    assert last_checkpoint(tmp_path) == complete
    assert "step-00000002" in caplog.text


def test_a_full_disk_is_one_message_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = saved(tmp_path, 1)

    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", no_space)
    with pytest.raises(UsageError, match="disk is full"):
        saved(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [complete.name]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_checkpoint_on_a_far_disk_that_hiccups_is_not_passed_over(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    saved(tmp_path, 1)
    last = saved(tmp_path, 2)
    troubles, read_text, open_file = ["read_text", "open"], Path.read_text, Path.open

    def failing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *arguments: Any, **named: Any) -> Any:
            if last in path.parents and name in troubles:
                troubles.remove(name)
                raise OSError(number, os.strerror(number), str(path))
            return method(path, *arguments, **named)

        return call

    monkeypatch.setattr(Path, "read_text", failing("read_text", read_text))
    monkeypatch.setattr(Path, "open", failing("open", open_file))
    assert last_checkpoint(tmp_path) == last
    assert not troubles


@pytest.mark.parametrize("failures", [1, 1000])
def test_a_save_is_tried_again_for_a_minute_and_leaves_the_one_before(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    before, left, began_s = saved(tmp_path, 1), [failures], clock.now_s
    sync = checkpoint.sync

    def failing(path: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", failing)
    if failures == 1:
        assert saved(tmp_path, 2) == last_checkpoint(tmp_path) != before
    else:
        with pytest.raises(StorageError, match=r"60 s(.|\n)*step-00000002"):
            saved(tmp_path, 2)
        assert clock.now_s - began_s == pytest.approx(60, abs=1)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]
        assert last_checkpoint(tmp_path) == before


def test_another_stage_another_version_and_an_empty_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no complete checkpoint"):
        load_weights(tmp_path)
    folder = saved(tmp_path, 1)
    with pytest.raises(UsageError, match="stage 'toy', not of 'finetune'"):
        load_weights(tmp_path, stage="finetune")
    state = json.loads((folder / "state.json").read_text()) | {"version": 99}
    (folder / "state.json").write_text(json.dumps(state).ljust((folder / "state.json").stat().st_size))
    # sizes without checksums: what checkpoints of before told
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMPLETE"}
    (folder / "COMPLETE").write_text(json.dumps(sizes))
    with pytest.raises(UsageError, match="version 99"):
        load_weights(tmp_path)


def test_weights_are_installed_under_a_prefix_and_must_fit() -> None:
    target = nn.Linear(3, 2)
    weight, bias = torch.randn(2, 3), torch.randn(2)
    install_weights(target, {"x.weight": weight, "x.bias": bias, "y.other": bias}, where="here", prefix="x.")
    assert torch.equal(target.weight, weight)
    for wrong, problem in (
        ({"weight": weight}, "gets no value for"),
        ({"weight": weight, "bias": bias, "more": bias}, "has no place for"),
        ({"weight": weight.T, "bias": bias}, "has other shapes for"),
    ):
        with pytest.raises(UsageError, match=problem):
            install_weights(target, wrong, where="here")
