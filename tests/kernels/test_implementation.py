"""Which implementation is used, and that it can be forced."""

import subprocess
import sys

import pytest
import torch

from signllm.errors import UsageError
from signllm.kernels import implementation
from signllm.kernels.implementation import choose, force_implementation

CPU = torch.device("cpu")


def in_a_process(variable: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch; from signllm.kernels.implementation import choose; print(choose(torch.device('cpu')))"
    )
    environment = {"SIGNLLM_KERNELS": variable, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_a_cpu_uses_the_torch_reference() -> None:
    chosen = choose(CPU)
    assert chosen.implementation == "torch"
    assert "cpu" in chosen.reason


def test_forcing_lasts_as_long_as_the_block(implementation: implementation.Implementation) -> None:
    assert choose(CPU).implementation == implementation
    with force_implementation("torch"):
        assert choose(CPU).implementation == "torch"
    assert choose(CPU).implementation == implementation


def test_triton_cannot_be_forced_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(implementation, "_has_triton", lambda: True)
    with force_implementation("triton"), pytest.raises(UsageError, match="cannot run on cpu"):
        choose(CPU)
    monkeypatch.setattr(implementation, "_has_triton", lambda: False)
    with force_implementation("triton"), pytest.raises(UsageError, match="not installed"):
        choose(CPU)


def test_the_environment_variable_decides_for_a_process() -> None:
    assert "forced by SIGNLLM_KERNELS" in in_a_process("torch").stdout
    wrong = in_a_process("cuda")
    assert wrong.returncode != 0
    assert "SIGNLLM_KERNELS=cuda" in wrong.stderr
