"""Which implementation the operators use on a device: decided once, told by ``signllm doctor``.

Triton on CUDA, torch elsewhere: the torch reference is the CPU implementation, not a stand-in. The choice
depends on the device and the machine alone, never on shapes: a run uses one implementation throughout. Tests
and benchmarks can force the other.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from signllm.errors import UsageError

Implementation = Literal["torch", "triton"]

VARIABLE = "SIGNLLM_KERNELS"
"""Environment variable that forces ``torch`` or ``triton`` for a whole process; read once."""

OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first generation whose tensor cores take bfloat16, which the kernels assume."""

_forced: list[Implementation] = []  # a stack for all threads: autograd runs CUDA's backward in another one


@dataclass(frozen=True)
class Choice:
    """An implementation and the reason for it, fit to be read by a user."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True, kw_only=True)
class KernelVariant:
    """A Triton kernel with types and constants as it is launched: what can be compiled without a GPU.

    Attributes:
        name: what to call it in a table.
        kernel: the ``triton.jit`` function.
        signature: type of every argument, ``"*fp32"``, ``"i32"``, ``"constexpr"``.
        constants: values of the constexpr arguments.
        options: ``num_warps``, ``num_stages``.
        is_aligned: it is launched only where pointers, widths and strides are multiples of 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)
    is_aligned: bool = False


def choose(device: torch.device) -> Choice:
    """Return what the operators use for tensors on ``device``.

    Raises:
        UsageError: an implementation was forced that this machine cannot run on that device.
    """
    if _forced:
        return _demand(_forced[-1], device.type, "a caller's `force_implementation`")
    return _choose(device.type, device.index)


@contextmanager
def force_implementation(implementation: Implementation) -> Iterator[None]:
    """Use one implementation inside the block, whatever the device: for tests and benchmarks."""
    _forced.append(implementation)
    try:
        yield
    finally:
        _forced.pop()


@functools.cache
def _choose(kind: str, index: int | None) -> Choice:
    wanted = os.environ.get(VARIABLE, "")
    for implementation in get_args(Implementation):
        if wanted == implementation:
            return _demand(implementation, kind, VARIABLE)
    if wanted:
        raise UsageError(f"{VARIABLE}={wanted}", where="environment", remedy="torch or triton, or unset it")
    if kind != "cuda":
        return Choice("torch", f"on {kind} the torch reference is the implementation")
    if not _has_triton():
        return Choice("torch", "Triton is not installed")
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return Choice("torch", f"compute capability {capability[0]}.{capability[1]} is below 8.0")
    return Choice("triton", f"CUDA, compute capability {capability[0]}.{capability[1]}")


def _demand(implementation: Implementation, kind: str, who: str) -> Choice:
    if implementation == "triton" and not _has_triton():
        raise UsageError("Triton is not installed", where=who, remedy="pip install triton, or choose torch")
    if implementation == "triton" and kind != "cuda" and not _is_interpreted():
        raise UsageError(
            f"Triton cannot run on {kind}",
            where=who,
            remedy="TRITON_INTERPRET=1 interprets it, slowly; or choose torch",
        )
    return Choice(implementation, f"forced by {who}")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
