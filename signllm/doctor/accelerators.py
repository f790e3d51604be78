"""Findings about the devices that torch can compute on, and the backends that ranks can communicate with."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile

import torch

from signllm.doctor.finding import Finding

GIB = 2**30
INSTRUCTION_SET_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that restrict the instructions used by torch's own code (the first) and by oneDNN."""


def findings() -> list[Finding]:
    """Return findings about the processor as torch uses it, the GPUs, and the distributed backends."""
    capability = torch.backends.cpu.get_cpu_capability()
    version, instruction_set = _onednn()
    limits = {name: os.environ[name] for name in INSTRUCTION_SET_VARIABLES if name in os.environ}
    description = (
        f"torch uses {capability}, oneDNN {version} uses {instruction_set}, {torch.get_num_threads()} threads"
    )
    if limits:
        description += f" (limited by {', '.join(f'{name}={value}' for name, value in limits.items())})"
    facts = {
        "capability": capability,
        "onednn": version,
        "onednn_instruction_set": instruction_set,
        "limits": limits,
    }
    processor = Finding(group="torch", name="CPU", description=description, facts=facts)
    return [processor, *_gpus(), _distributed()]


@functools.cache  # oneDNN prints it once in a process
def _onednn() -> tuple[str, str]:
    """Return the version of oneDNN, which computes convolutions, and the instruction set that it uses.

    torch does not report them, but oneDNN prints both before the first operation that it logs.
    """
    mkldnn = torch.backends.mkldnn
    if not mkldnn.is_available():
        return "absent", "nothing"
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        try:
            with mkldnn.verbose(mkldnn.VERBOSE_ON):
                torch.conv2d(torch.ones(2, 8, 4, 4), torch.ones(8, 8, 3, 3))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        printed.seek(0)
        lines = printed.read().decode(errors="replace")
    version = re.search(r"oneDNN v?([\d.]+)", lines)
    instruction_set = re.search(r"cpu,isa:(.+)", lines)
    return version[1] if version else "unknown", instruction_set[1].strip() if instruction_set else "unknown"


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
        description = f"none that torch can use ({built}): runs are on the processor"
        return [Finding(group="torch", name="GPU", state="absent", description=description)]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    bfloat16 = properties.major >= 8
    memory = f"{properties.total_memory / GIB:.0f} GiB"
    precision = "bf16" if bfloat16 else "no bf16: train with --training.precision fp32"
    description = (
        f"{properties.name}, {memory}, capability {capability}, {precision}, CUDA {torch.version.cuda}"
    )
    facts = {"name": properties.name, "total_bytes": properties.total_memory, "capability": capability}
    return Finding(
        group="torch", name=f"GPU {index}", description=description, facts={**facts, "bf16": bfloat16}
    )


def _distributed() -> Finding:
    distributed = torch.distributed
    is_there = distributed.is_available()
    gloo, nccl = is_there and distributed.is_gloo_available(), is_there and distributed.is_nccl_available()
    needs_nccl = torch.cuda.device_count() > 1
    description = ", ".join(
        f"{name} {'yes' if has else 'no'}" for name, has in (("gloo", gloo), ("nccl", nccl))
    )
    is_wrong = not gloo or (needs_nccl and not nccl)
    return Finding(
        group="torch",
        name="distributed",
        state="wrong" if is_wrong else "ok",
        description=description,
        remedy="install a torch with this backend, through which ranks communicate" if is_wrong else "",
        facts={"gloo": gloo, "nccl": nccl},
    )
