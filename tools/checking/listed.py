"""The parts of `tools/gpu_check`, the most important first, with their time limits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from checking.parts import Part

TOOLS = Path(__file__).parents[1]
TRAINING_NEEDS = (
    "hjson",
    "pydantic",
    "msgpack",
    "einops",
    "cpuinfo",
    "tokenizers",
    "safetensors",
    "transformers",
    "deepspeed",
)
"""Imports of tools/bench_training; DeepSpeed's own come first, so that the one that is missing is named."""
QUANTISED_NEEDS = (*TRAINING_NEEDS, "accelerate", "peft", "bitsandbytes")
TRANSLATING_NEEDS = ("tokenizers", "safetensors", "transformers")


def parts(out: Path, *, rehearsal: bool = False, limit_factor: float = 1.0) -> list[Part]:
    """Return all parts, the most important first.

    Args:
        out: folder of the figures.
        rehearsal: on a CPU and in small, only to see whether the parts run.
        limit_factor: what every time limit is multiplied by.
    """
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "tests/kernels"]
    device = ["--device", "cpu", "--quick"] if rehearsal else ["--device", "cuda"]

    def training(name: str, limit_s: float, *options: str, by_default: bool = False) -> Part:
        command = [python, str(TOOLS / "bench_training"), "--size", "7b", "--device", "cuda", *options]
        if rehearsal:
            command += ["--size", "tiny", "--device", "cpu", "--rounds", "1", "--steps", "2"]
        command += ["--json", str(out / f"{name}.json")]
        return Part(name=name, command=command, limit_s=limit_s, needs=TRAINING_NEEDS, by_default=by_default)

    def translating(name: str, limit_s: float, *options: str) -> Part:
        command = [python, str(TOOLS / "bench_translate"), "--size", "7b", "--device", "cuda", *options]
        if rehearsal:
            command += ["--size", "tiny", "--device", "cpu", "--rounds", "1", "--videos", "4"]
        command += ["--json", str(out / f"{name}.json")]
        return Part(name=name, command=command, limit_s=limit_s, needs=TRANSLATING_NEEDS, by_default=False)

    full = ("--work", "full", "--rounds", "4", "--steps", "3")
    bench = [python, str(TOOLS / "bench_kernels"), *device, "--json", str(out / "bench.json")]
    quantised = [python, "-m", "checking.quantised", "cpu" if rehearsal else "cuda"]
    plan = [python, str(TOOLS / "check_plan"), "--ranks", "1", "--deepspeed", "zero2"]
    plan += ["--size", "tiny", "--no-checkpointing"] if rehearsal else ["--size", "1b", "--precision", "bf16"]
    plan += ["--device", "cpu" if rehearsal else "cuda", "--json", str(out / "plan.json")]
    listed = [
        Part(
            name="compile",
            command=[python, "-m", "checking.compiling", str(out / "compiled.json")],
            limit_s=60,
        ),
        Part(name="tests-gpu", command=[*pytest, "-m", "gpu"], limit_s=70),
        training("training", 75, by_default=True),
        training("training-full", 85, *full, by_default=True),
        Part(name="bench", command=bench, limit_s=120),
        Part(name="tests", command=[*pytest, "-m", "not gpu"], limit_s=100),
        training("training-zero2", 85, "--deepspeed", "zero2"),
        training("training-full-zero2", 120, *full, "--deepspeed", "zero2"),
        training("training-recomputed", 120, *full, "--checkpointing"),
        Part(name="quantised", command=quantised, limit_s=60, needs=QUANTISED_NEEDS, by_default=False),
        training("training-video", 180, "--signs", "video", "--videos", "16"),
        Part(name="plan", command=plan, limit_s=150, needs=TRAINING_NEEDS, by_default=False),
        translating("translating", 120),
        translating("translating-beams", 150, "--beams", "4", "--videos", "16"),
    ]
    return [replace(part, limit_s=limit_factor * part.limit_s) for part in listed]
