"""What `signllm doctor` tells: through the real command line, and for machines that are not this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from signllm import cli, doctor
from signllm.doctor import accelerators, machine, operators, packages
from signllm.doctor.finding import Finding

CHECKOUT = Path(__file__).parents[2]


def signllm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    command = [sys.executable, "-m", "signllm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def test_a_machine_that_passes_the_tests_is_found_sound() -> None:
    done = signllm("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith((" ", "ok:"))] == [
        "machine",
        "torch",
        "packages",
        "operators",
        "cluster",
    ]
    assert all(line[:6] in ("  ok  ", "  --  ") for line in lines if line.startswith(" "))
    for name in ("vq_assign", "sinkhorn", "mmd"):
        assert any(f"  ok  {name} on cpu" in line and "max error" in line for line in lines), name
    assert done.stderr == ""


def test_json_holds_the_facts_and_the_forced_choice_its_reason() -> None:
    done = signllm("doctor", "--json", SIGNLLM_KERNELS="torch")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert record["works"] is True
    assert set(record) == {"works", "machine", "torch", "packages", "operators", "cluster"}
    assert record["machine"]["processor"]["cores"] >= 1
    assert record["machine"]["memory"]["total_bytes"] > 2**28
    assert record["machine"]["disk"]["free_bytes"] > 0
    assert record["torch"]["torch"]["version"] == metadata.version("torch")
    assert record["torch"]["distributed"]["gloo"] is True
    assert record["packages"]["deepspeed"]["wanted"].startswith(">=")
    for name in ("vq_assign", "sinkhorn", "mmd"):
        result = record["operators"][f"{name} on cpu"]
        assert (result["state"], result["implementation"]) == ("ok", "torch")
        assert result["why"] == "forced by SIGNLLM_KERNELS"
        assert 0 <= result["max_error"] <= 1e-5


def test_a_wrong_choice_is_one_message_and_exit_2() -> None:
    done = signllm("doctor", SIGNLLM_KERNELS="cuda")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "SIGNLLM_KERNELS=cuda" in done.stderr.splitlines()[0]
    assert done.stderr.count("remedy:") == 1
    assert "Traceback" not in done.stderr


def test_what_is_missing_or_too_old_is_reported_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have = {"deepspeed": "0.18.9", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name == "submitit":
            raise metadata.PackageNotFoundError(name)
        return have.get(name, "9999")

    required = {"torch": ">=2.8,<2.14", "deepspeed": ">=0.19.4", "submitit": ">=1.5.3", "peft": ">=0.18"}
    monkeypatch.setattr(packages, "requirements", lambda: required)
    monkeypatch.setattr(packages.metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    printed, failed = capsys.readouterr()
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("  ")}
    assert lines["deepspeed"].startswith("  !!  ")
    assert "0.18.9 (wanted >=0.19.4) (remedy: pip install 'deepspeed>=0.19.4')" in lines["deepspeed"]
    assert "!!" in lines["submitit"]
    assert "not installed" in lines["submitit"]
    assert lines["torch"].startswith("  ok  ")
    assert lines["peft"].startswith("  ok  ")
    assert failed.strip() == "signllm: missing or wrong on this machine: deepspeed, submitit"


@pytest.mark.skipif(
    "avx2" not in machine._processor().facts["extensions"], reason="not a processor with AVX2"
)
def test_the_instruction_set_in_use_and_what_limits_it_are_named() -> None:
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}
    done = signllm("doctor", "--json", **limits)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert record["torch"]["CPU"]["capability"] == "AVX2"
    assert record["torch"]["CPU"]["onednn_instruction_set"] == "Intel AVX2"
    assert record["torch"]["CPU"]["limits"] == limits
    assert "avx2" in record["machine"]["processor"]["extensions"]
    assert record["machine"]["processor"]["name"]
    (line,) = [line for line in signllm("doctor", **limits).stdout.splitlines() if "oneDNN" in line]
    assert line.count("AVX2") >= 3
    assert all(f"{name}={value}" in line for name, value in limits.items())


@pytest.mark.parametrize(
    ("line", "name", "versions"),
    [
        ("torch<2.14,>=2.8", "torch", "<2.14,>=2.8"),
        ('triton>=3.4; platform_system == "Linux" and extra == "test"', "triton", ">=3.4"),
        ("POT (>=0.9.6)", "pot", ">=0.9.6"),
        ("rich", "rich", ""),
    ],
)
def test_a_requirement_is_read_as_metadata_writes_it(line: str, name: str, versions: str) -> None:
    assert packages._split(line) == (name, versions)


def test_requirements_come_from_the_metadata_or_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=2.8", 'triton>=3.4; extra == "test"', 'ruff>=0.14; extra == "dev"']
    monkeypatch.setattr(packages.metadata, "requires", lambda _: lines)
    assert packages.requirements() == {"torch": ">=2.8", "triton": ">=3.4"}

    def not_installed(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "requires", not_installed)
    assert {"torch", "deepspeed", "submitit", "triton"} <= set(packages.requirements())
    assert "ruff" not in packages.requirements()
    monkeypatch.setattr(packages, "CHECKOUT", Path("/nowhere"))
    assert [finding.state for finding in packages.findings()] == ["wrong"]


def test_an_operator_that_is_wrong_or_breaks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    wrong = operators._finding("mmd", lambda _: 0.5, cpu)
    assert (wrong.state, wrong.facts["max_error"]) == ("wrong", 0.5)
    assert "WRONG by 5.0e-01" in wrong.line
    assert "report" in wrong.line

    def breaks(_: torch.device) -> float:
        raise RuntimeError("no such kernel\nand more")

    broken = operators._finding("mmd", breaks, cpu)
    assert broken.state == "wrong"
    assert "torch fails: RuntimeError: no such kernel" in broken.description
    assert "and more" not in broken.description
    assert operators._finding("mmd", lambda _: float("nan"), cpu).state == "wrong"


@pytest.mark.parametrize(
    ("script", "state", "printed"),
    [
        ("echo slurm 24.05.1", "ok", "slurm 24.05.1"),
        ("echo cannot reach the controller >&2; exit 1", "absent", "exit 1): cannot reach the controller"),
        (None, "absent", "no sinfo on the path"),
    ],
)
def test_slurm_is_asked(
    script: str | None, state: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (result,) = machine.cluster_findings()
    assert result.state == state
    assert printed in result.description


def test_without_torch_the_rest_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., object] = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    groups = {finding.group for finding in doctor.examine()}
    assert "operators" not in groups
    assert {"machine", "packages", "cluster"} <= groups


def test_several_gpus_need_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    result: Finding = accelerators._distributed()
    assert result.state == "wrong"
    assert result.facts == {"gloo": True, "nccl": False}
