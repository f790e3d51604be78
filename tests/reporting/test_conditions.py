"""The table of hardware, versions and hours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from signllm.reporting.conditions import format_duration, measure_training_time, training_conditions
from signllm.reporting.run_folder import read_run
from signllm.training.startup import package_versions, processor_name


def test_every_step_counts_once() -> None:
    log = [
        {"step": 10, "seconds": 2.0},
        {"step": 10, "validate/loss": 1.0},
        {"step": 20, "seconds": 3.0},
        {"step": 30, "seconds": 9.0},
        {"step": 30, "seconds": 1.0},
    ]
    assert measure_training_time(log) == (30, 10 * 2 + 10 * 3 + 10 * 1)
    assert measure_training_time([]) == (0, 0.0)


def test_hardware_versions_and_hours_are_shown(tmp_path: Path) -> None:
    start = {
        "ranks": 16,
        "nodes": 2,
        "device": "NVIDIA H200",
        "processor": "AMD EPYC, 96 cores",
        "versions": {"signllm": "0.1.0", "torch": "2.13.0"},
        "deepspeed": "zero3",
        "zero_stage": 3,
        "precision": "bf16",
        "batch": {"videos": 32, "forward_passes": 2},
        "parameters": {"vq_sign": {"trained": 1500, "frozen": 500}},
        "begun": "2026-11-23 12:00 UTC",
    }
    (tmp_path / "config.json").write_text('{"stage": "finetune"}')
    (tmp_path / "startup.json").write_text(json.dumps(start))
    (tmp_path / "log.jsonl").write_text('{"stage": "finetune", "step": 900, "seconds": 4.0}\n')
    values = [value for _, value in training_conditions(read_run(tmp_path))]
    for value in (
        "16 ranks on 2 nodes: NVIDIA H200, AMD EPYC, 96 cores",
        "signllm 0.1.0, torch 2.13.0",
        "zero3 (ZeRO-3), bf16",
        "32 videos per step, 2 forward passes",
        "1,500 trained, 500 frozen",
        "900",
        "1 h 0 min; 16.00 rank hours",
    ):
        assert value in values


def test_a_run_that_recorded_nothing_has_no_conditions(tmp_path: Path) -> None:
    assert training_conditions(read_run(tmp_path)) == []


def test_versions_and_processor_are_those_of_this_machine() -> None:
    import torch

    assert package_versions()["torch"] == torch.__version__
    assert re.fullmatch(r".+, \d+ cores", processor_name())


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (65, "1 min 5 s"), (7260, "2 h 1 min")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
