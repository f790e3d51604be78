"""This process's place among the ranks, and how it joins them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

PLAIN_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the ranks: its ``rank``, the number of ranks ``world``, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default=None)  # type: ignore[assignment]


def start_distributed(*, timeout_s: float = 1800.0) -> Ranks:
    """Join the process group of the environment (torchrun, Slurm), or form one alone; safe to call twice.

    The backend is nccl on GPUs and gloo on CPUs.

    Args:
        timeout_s: seconds after which a collective fails.
    """
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Without it ZeRO-3 starts `numactl --hardware` as a process in every step.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not dist.is_initialized():
        # A process that ran alone passes its RANK on to its child processes; launchers also set MASTER_ADDR.
        alone = os.environ.get("WORLD_SIZE", "1") == "1" and "MASTER_ADDR" not in os.environ
        os.environ.update(
            {name: value for name, value in PLAIN_RANK.items() if alone or name not in os.environ}
        )
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            store=dist.HashStore() if alone else None,
            timeout=timedelta(seconds=timeout_s),
        )
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed uses it as the device number
        torch.cuda.set_device(device)
    return Ranks(rank=dist.get_rank(), world=dist.get_world_size(), device=device)
