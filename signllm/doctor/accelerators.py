"""What torch can compute on here, and what several ranks can talk through."""

from __future__ import annotations

import torch

from signllm.doctor.finding import Finding

GIB = 2**30


def findings() -> list[Finding]:
    """Return the processor as torch uses it, the GPUs, and the distributed backends."""
    capability = torch.backends.cpu.get_cpu_capability()
    told = f"torch uses {capability}, {torch.get_num_threads()} threads"
    processor = Finding(group="torch", name="CPU", told=told, facts={"capability": capability})
    return [processor, *_gpus(), _distributed()]


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
        told = f"none that torch can use ({built}): runs are on the processor"
        return [Finding(group="torch", name="GPU", state="absent", told=told)]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    bfloat16 = properties.major >= 8
    memory = f"{properties.total_memory / GIB:.0f} GiB"
    precision = "bf16" if bfloat16 else "no bf16: train with --training.precision fp32"
    told = f"{properties.name}, {memory}, capability {capability}, {precision}, CUDA {torch.version.cuda}"
    facts = {"name": properties.name, "total_bytes": properties.total_memory, "capability": capability}
    return Finding(group="torch", name=f"GPU {index}", told=told, facts={**facts, "bf16": bfloat16})


def _distributed() -> Finding:
    distributed = torch.distributed
    is_there = distributed.is_available()
    gloo, nccl = is_there and distributed.is_gloo_available(), is_there and distributed.is_nccl_available()
    needs_nccl = torch.cuda.device_count() > 1
    told = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in (("gloo", gloo), ("nccl", nccl)))
    is_wrong = not gloo or (needs_nccl and not nccl)
    return Finding(
        group="torch",
        name="distributed",
        state="wrong" if is_wrong else "ok",
        told=told,
        remedy="install a torch that has it: several ranks talk through it" if is_wrong else "",
        facts={"gloo": gloo, "nccl": nccl},
    )
