"""How long a step should take, by a roofline over its operators and the links between ranks: not measured.

An operator takes the longest of its operations at a share of the GPU's peak, its bytes at a share of the
memory's rate, and the launch of a kernel (Williams et al. 2009, Roofline). Nothing is fused and nothing
overlaps: ZeRO's files have ``overlap_comm`` false. What ranks send goes around a ring, whose slowest link
counts: from node to node, or within the node where there is but one. Not in it: waiting for data, Python.

The shares are settings, not findings. 0.5 of the peak is about what large models reach (PaLM, arXiv
2204.02311, table 3: 0.46; Korthikanti et al., arXiv 2205.05198, table 5: 0.52 to 0.57 of A100s); 0.8 of the
data sheet's rate is usual for copies and for all-reduce on NVLink; a kernel's launch takes about 5 µs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from signllm.cluster.gpus import Gpu, find_gpu
from signllm.cluster.memory import PlannedMemory
from signllm.cluster.simulation import SimulatedPass
from signllm.cluster.zero_costs import Weight, Zero, planned_model_states, step_traffic
from signllm.errors import UsageError

GIGA = 1e9
ADAM_PASSES = 7
"""How often Adam reads or writes a number of 32 bits: the gradient, and weight and moments both ways."""
UNPACKING_BYTES = {8: 1.0 + 2 + 2, 4: 0.516 + 2 + 2}
"""A quantised weight is read, written in 16 bits and read again, each time it is multiplied with."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run is to take place.

    Attributes:
        gpu: of all ranks.
        nodes: machines.
        gpus: of each.
        network: GB/s in one direction that a node sends to another: 50 is 400 Gbit/s.
        host_bandwidth: GB/s of the CPU's memory that a rank has, for an offloaded optimizer.
        compute_share: of the GPU's peak that products reach.
        memory_share: of the data sheet's rate that reading and writing reaches.
        link_share: the same of NVLink and network.
        launch_us: microseconds that an operator takes at least.
    """

    gpu: Gpu
    nodes: int = 1
    gpus: int = 8
    network: float = 50.0
    host_bandwidth: float = 20.0
    compute_share: float = 0.5
    memory_share: float = 0.8
    link_share: float = 0.8
    launch_us: float = 5.0

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", where=f"--{name}", remedy="give 1 or more"
                )
        for name in ("compute_share", "memory_share", "link_share"):
            if not 0 < getattr(self, name) <= 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{name} is {getattr(self, name)}", where=option, remedy="give a share above 0, up to 1"
                )
        if self.network <= 0 or self.launch_us < 0:
            raise UsageError(
                f"network is {self.network}, launch_us {self.launch_us}", remedy="give more than 0"
            )

    @property
    def ranks(self) -> int:
        """Ranks of the job: one per GPU."""
        return self.nodes * self.gpus

    def link(self) -> float:
        """Bytes per second through the slowest link of a ring over all ranks."""
        slowest = min(self.gpu.link, self.network) if self.nodes > 1 else self.gpu.link
        return slowest * GIGA * self.link_share

    def host_rate(self) -> float:
        """Bytes per second between a GPU and the memory of its CPU."""
        return self.gpu.host * GIGA * self.link_share

    def memory_rate(self) -> float:
        """Bytes per second of a GPU's memory."""
        return self.gpu.bandwidth * GIGA * self.memory_share


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """A machine as the command line describes it.

    Attributes:
        nodes: machines.
        gpus: of each.
        gpu: its name: a100-40, a100-80, h100, h200, b200, a40, l40s, rtx-4090, rtx-3090.
        memory_gib: of a GPU, instead of its own.
        bandwidth: of a GPU's memory in GB/s, instead of its own.
        link: GB/s in one direction between the GPUs of a node, instead of theirs.
        network: GB/s in one direction between nodes, of a node.
        compute_share: of the GPU's peak that products are taken to reach.
        memory_share: of its memory's rate that reading and writing is taken to reach.
        link_share: of links and network.
        launch_us: microseconds that an operator is taken to need at least.
    """

    nodes: int = 1
    gpus: int = 8
    gpu: str = "h100"
    memory_gib: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float = 50.0
    compute_share: float = 0.5
    memory_share: float = 0.8
    link_share: float = 0.8
    launch_us: float = 5.0

    def machine(self) -> Machine:
        """Return it.

        Raises:
            UsageError: no such GPU, or a figure that cannot be.
        """
        same = ("nodes", "gpus", "network", "compute_share", "memory_share", "link_share", "launch_us")
        gpu = find_gpu(self.gpu, memory_gib=self.memory_gib, bandwidth=self.bandwidth, link=self.link)
        return Machine(gpu=gpu, **{name: getattr(self, name) for name in same})


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Of a step: operators, links between ranks, the optimizer and the way to the CPU's memory."""

    compute: float
    network: float
    optimizer: float
    host: float

    @property
    def total(self) -> float:
        """The sum: nothing overlaps."""
        return self.compute + self.network + self.optimizer + self.host


def pass_seconds(rehearsal: SimulatedPass, machine: Machine) -> float:
    """Return what the operators of a pass take on one GPU."""
    peak = np.where(rehearsal.is_wide, machine.gpu.peak_wide, machine.gpu.peak) * machine.compute_share
    computing = rehearsal.operations / peak
    moving = rehearsal.bytes / machine.memory_rate()
    return float(np.maximum(np.maximum(computing, moving), machine.launch_us * 1e-6).sum())


def step_time(
    weights: Sequence[Weight],
    zero: Zero,
    settings: Mapping[str, Any],
    rehearsal: SimulatedPass,
    needed: PlannedMemory,
    machine: Machine,
    *,
    forward_passes: int = 1,
    bits: int = 16,
    passes_over_weights: int = 2,
) -> StepTime:
    """Return what a step takes.

    Args:
        weights: of the model.
        zero: how they are divided.
        settings: DeepSpeed's, complete.
        rehearsal: of one forward and backward pass of a rank.
        needed: its memory, of which the optimizer's share is read off.
        machine: where.
        forward_passes: of a step.
        bits: of the language model's frozen maps.
        passes_over_weights: how often a pass multiplies with them: 3 where it recomputes.
    """
    sent = sum(one.sent(zero.ranks) for one in step_traffic(weights, zero, forward_passes=forward_passes))
    stepped = ADAM_PASSES / 3 * planned_model_states(weights, zero).optimizer
    on_cpu = needed.host > 0
    rate = machine.host_bandwidth * GIGA if on_cpu else machine.memory_rate()
    unpacked = sum(w.elements for w in weights if w.packs) * UNPACKING_BYTES[bits] if bits < 16 else 0.0
    unpacking = unpacked * passes_over_weights / machine.memory_rate()
    return StepTime(
        compute=forward_passes * (pass_seconds(rehearsal, machine) + unpacking),
        network=sent / machine.link(),
        optimizer=stepped / rate,
        host=_to_and_from_cpu(weights, zero, settings, forward_passes) / machine.host_rate(),
    )


def _to_and_from_cpu(
    weights: Sequence[Weight], zero: Zero, settings: Mapping[str, Any], forward_passes: int
) -> float:
    """Return the bytes that a rank moves to or from its CPU in a step: shares, gradients, stepped weights."""
    of_zero = settings["zero_optimization"]
    moved = 0.0
    if of_zero.get("offload_param", {}).get("device", "none") == "cpu":
        several = replace(zero, ranks=max(2, zero.ranks))  # one rank alone gathers from its CPU what it needs
        gathered = step_traffic(weights, several, forward_passes=forward_passes)
        moved += sum(one.bytes for one in gathered if one.purpose == "frozen weights") / zero.ranks
    if of_zero.get("offload_optimizer", {}).get("device", "none") == "cpu":
        trained = sum(zero.share(w) * zero.element_bytes(w) for w in weights if w.trained)
        moved += trained * (forward_passes + 1)
    return moved
