"""Selection of the implementation that the operators use on a device; ``signllm doctor`` prints it.

The operators use Triton on CUDA and torch on other devices. The choice depends only on the device and the
machine, not on shapes, so a run uses the same implementation throughout. Tests and benchmarks can force an
implementation.
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
"""Environment variable that forces ``torch`` or ``triton`` for a process; it is read once."""

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of Ampere, the first generation with bfloat16 tensor cores, which the kernels need."""

_forced: list[
    Implementation
] = []  # a stack shared by all threads, because autograd runs CUDA's backward pass in another thread


@dataclass(frozen=True)
class Choice:
    """An implementation, and the reason for its choice as a text for users."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True, kw_only=True)
class KernelVariant:
    """A Triton kernel with the types and constants of a launch, so that it can be compiled without a GPU.

    Attributes:
        name: name of the variant in a table.
        kernel: ``triton.jit`` function.
        signature: type of every argument: ``"*fp32"``, ``"i32"``, ``"constexpr"``.
        constants: values of the constexpr arguments.
        options: compiler options such as ``num_warps`` and ``num_stages``.
        is_aligned: whether it is only launched with pointers, widths and strides that are multiples of 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)
    is_aligned: bool = False


def choose(device: torch.device) -> Choice:
    """Return the implementation that the operators use for tensors on ``device``.

    Raises:
        UsageError: an implementation is forced that this machine cannot run on that device.
    """
    if _forced:
        return _require_implementation(_forced[-1], device.type, "force_implementation")
    return _choose_for(device.type, device.index)


@contextmanager
def force_implementation(implementation: Implementation) -> Iterator[None]:
    """Use one implementation for all devices inside the block, for tests and benchmarks."""
    _forced.append(implementation)
    try:
        yield
    finally:
        _forced.pop()


@functools.cache
def _choose_for(kind: str, index: int | None) -> Choice:
    requested = os.environ.get(VARIABLE, "")
    for implementation in get_args(Implementation):
        if requested == implementation:
            return _require_implementation(implementation, kind, VARIABLE)
    if requested:
        raise UsageError(
            f"{VARIABLE}={requested} is not an implementation",
            where="environment",
            remedy="set it to torch or triton, or unset it",
        )
    if kind != "cuda":
        return Choice("torch", f"on {kind} the torch reference is the implementation")
    if not _has_triton():
        return Choice("torch", "Triton is not installed")
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return Choice("torch", f"compute capability {capability[0]}.{capability[1]} is below 8.0")
    return Choice("triton", f"CUDA, compute capability {capability[0]}.{capability[1]}")


def _require_implementation(implementation: Implementation, kind: str, who: str) -> Choice:
    if implementation == "triton" and not _has_triton():
        raise UsageError("Triton is not installed", where=who, remedy="pip install triton, or choose torch")
    if implementation == "triton" and kind != "cuda" and not _is_interpreted():
        raise UsageError(
            f"Triton cannot run on {kind}",
            where=who,
            remedy="set TRITON_INTERPRET=1 for its slow interpreter, or choose torch",
        )
    return Choice(implementation, f"forced by {who}")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
