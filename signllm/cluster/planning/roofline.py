"""The duration of a training step by a roofline model of its operators and of the links between ranks.

It is an estimate, not a measurement. An operator takes the longest of three times: its operations at a share
of the GPU's peak, its bytes at a share of the memory's rate, and the launch of a kernel (Williams et al.
2009, Roofline). Nothing is fused and nothing overlaps, because the ZeRO files set ``overlap_comm`` to false.
Ranks send in a ring whose slowest link counts: between nodes, or within the node if there is only one.
Waiting for data and Python itself are not included.

The shares are settings, not results. 0.5 of the peak is about what large models reach (PaLM, arXiv
2204.02311, table 3: 0.46; Korthikanti et al., arXiv 2205.05198, table 5: 0.52 to 0.57 of A100s); 0.8 of the
data sheet's rate is usual for copies and for all-reduce on NVLink; the launch of a kernel takes about 5 µs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from signllm.cluster.planning.gpus import Gpu, find_gpu
from signllm.cluster.planning.memory import PlannedMemory
from signllm.cluster.planning.simulation import SimulatedPass
from signllm.cluster.planning.zero_costs import Weight, Zero, planned_model_states, step_traffic
from signllm.validation import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    validated,
)

GIGA = 1e9
ADAM_PASSES = 7
"""Number of 32-bit values that Adam reads or writes per weight: gradient, and weight and moments twice."""
UNPACKING_BYTES = {8: 1.0 + 2 + 2, 4: 0.516 + 2 + 2}
"""Bytes moved per quantized weight and multiplication: it is read, written in 16 bits and read again."""


@validated
class Machine:
    """The machine of a planned run.

    Attributes:
        gpu: the GPU of every rank.
        nodes: number of nodes.
        gpus: GPUs per node.
        network: rate at which a node sends to another in one direction, in GB/s: 50 is 400 Gbit/s.
        host_bandwidth: rate of the CPU's memory per rank in GB/s, for an offloaded optimizer.
        compute_share: share of the GPU's peak that matrix products reach.
        memory_share: share of the data sheet's memory rate that is reached.
        link_share: the same for NVLink and network.
        launch_us: minimum duration of an operator in microseconds.
    """

    gpu: Gpu
    nodes: PositiveInt = 1
    gpus: PositiveInt = 8
    network: PositiveFloat = 50.0
    host_bandwidth: PositiveFloat = 20.0
    compute_share: PositiveFraction = 0.5
    memory_share: PositiveFraction = 0.8
    link_share: PositiveFraction = 0.8
    launch_us: NonNegativeFloat = 5.0

    @property
    def ranks(self) -> int:
        """Ranks of the job: one per GPU."""
        return self.nodes * self.gpus

    def link(self) -> float:
        """Return the bytes per second through the slowest link of a ring over all ranks."""
        slowest = min(self.gpu.link, self.network) if self.nodes > 1 else self.gpu.link
        return slowest * GIGA * self.link_share

    def host_rate(self) -> float:
        """Return the bytes per second between a GPU and the memory of its CPU."""
        return self.gpu.host * GIGA * self.link_share

    def memory_rate(self) -> float:
        """Return the bytes per second of a GPU's memory."""
        return self.gpu.bandwidth * GIGA * self.memory_share


@validated
class MachineOptions:
    """The machine as the command line describes it.

    Attributes:
        nodes: number of nodes.
        gpus: GPUs per node.
        gpu: kind of GPU: a100-40, a100-80, h100, h200, b200, a40, l40s, rtx-4090, rtx-3090.
        memory_gib: memory of a GPU in GiB, instead of the table's.
        bandwidth: bandwidth of a GPU's memory in GB/s, instead of the table's.
        link: rate between the GPUs of a node in one direction in GB/s, instead of the table's.
        network: rate between nodes in one direction in GB/s, per node.
        compute_share: assumed share of the GPU's peak that matrix products reach.
        memory_share: assumed share of the memory's rate that reading and writing reach.
        link_share: assumed share of the rates of links and network that is reached.
        launch_us: assumed minimum duration of an operator in microseconds.
    """

    nodes: PositiveInt = 1
    gpus: PositiveInt = 8
    gpu: str = "h100"
    memory_gib: PositiveFloat | None = None
    bandwidth: PositiveFloat | None = None
    link: PositiveFloat | None = None
    network: PositiveFloat = 50.0
    compute_share: PositiveFraction = 0.5
    memory_share: PositiveFraction = 0.8
    link_share: PositiveFraction = 0.8
    launch_us: NonNegativeFloat = 5.0

    def machine(self) -> Machine:
        """Return the machine.

        Raises:
            UsageError: there is no such GPU, or a number is impossible.
        """
        names = ("nodes", "gpus", "network", "compute_share", "memory_share", "link_share", "launch_us")
        gpu = find_gpu(self.gpu, memory_gib=self.memory_gib, bandwidth=self.bandwidth, link=self.link)
        return Machine(gpu=gpu, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step: operators, links between ranks, optimizer, and transfers to the CPU's memory."""

    compute: float
    network: float
    optimizer: float
    host: float

    @property
    def total(self) -> float:
        """The sum, because nothing overlaps."""
        return self.compute + self.network + self.optimizer + self.host


def pass_seconds(simulated: SimulatedPass, machine: Machine) -> float:
    """Return the seconds that the operators of a pass take on one GPU."""
    peak = np.where(simulated.is_wide, machine.gpu.peak_wide, machine.gpu.peak) * machine.compute_share
    computing = simulated.operations / peak
    moving = simulated.bytes / machine.memory_rate()
    return float(np.maximum(np.maximum(computing, moving), machine.launch_us * 1e-6).sum())


def step_time(
    weights: Sequence[Weight],
    zero: Zero,
    settings: Mapping[str, Any],
    simulated: SimulatedPass,
    needed: PlannedMemory,
    machine: Machine,
    *,
    forward_passes: int = 1,
    bits: int = 16,
    passes_over_weights: int = 2,
) -> StepTime:
    """Return the duration of a step.

    Args:
        weights: weights of the model.
        zero: how they are divided.
        settings: complete settings of DeepSpeed.
        simulated: one forward and backward pass of a rank.
        needed: the memory of a rank, whose host part tells whether the optimizer is offloaded.
        machine: the machine.
        forward_passes: forward passes per step.
        bits: bits of the language model's frozen linear layers.
        passes_over_weights: how often a pass multiplies with them: 3 if it recomputes activations.
    """
    collectives = step_traffic(weights, zero, forward_passes=forward_passes)
    sent = sum(collective.sent(zero.ranks) for collective in collectives)
    stepped = ADAM_PASSES / 3 * planned_model_states(weights, zero).optimizer
    on_cpu = needed.host > 0
    rate = machine.host_bandwidth * GIGA if on_cpu else machine.memory_rate()
    unpacked = sum(w.elements for w in weights if w.packs) * UNPACKING_BYTES[bits] if bits < 16 else 0.0
    unpacking = unpacked * passes_over_weights / machine.memory_rate()
    return StepTime(
        compute=forward_passes * (pass_seconds(simulated, machine) + unpacking),
        network=sent / machine.link(),
        optimizer=stepped / rate,
        host=_to_and_from_cpu(weights, zero, settings, forward_passes) / machine.host_rate(),
    )


def _to_and_from_cpu(
    weights: Sequence[Weight], zero: Zero, settings: Mapping[str, Any], forward_passes: int
) -> float:
    """Return the bytes that a rank moves to or from its CPU in a step: parts, gradients, new weights."""
    zero_settings = settings["zero_optimization"]
    moved = 0.0
    if zero_settings.get("offload_param", {}).get("device", "none") == "cpu":
        several = replace(zero, ranks=max(2, zero.ranks))  # a single rank gathers from its CPU, too
        gathered = step_traffic(weights, several, forward_passes=forward_passes)
        moved += sum(c.bytes for c in gathered if c.purpose == "frozen weights") / zero.ranks
    if zero_settings.get("offload_optimizer", {}).get("device", "none") == "cpu":
        trained = sum(zero.share(w) * zero.element_bytes(w) for w in weights if w.trained)
        moved += trained * (forward_passes + 1)
    return moved
