"""What a rank needs at the peak of a training step: what it holds throughout, and what comes and goes.

What is held is :func:`signllm.cluster.zero_costs.planned_model_states`; what a pass keeps is rehearsed
(:mod:`signllm.cluster.simulation`). DeepSpeed 0.19.8 adds a bucket in which gradients wait to be reduced, of
``reduce_bucket_size`` elements whatever the model; under ZeRO-3 also what is gathered: all frozen weights
that are needed again within ``stage3_max_reuse_distance``, and the flat buffer that one prefetch arrives in.

`tools/check_plan` compares it with what torch allocates. Left out: workspace inside operators, what a GPU's
context and NCCL take, and fragmentation: hence the headroom (:mod:`signllm.cluster.setups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signllm.cluster.simulation import SimulatedPass
from signllm.cluster.zero_costs import FP32, Weight, Zero, largest_block, planned_model_states

QUANTISED_BYTES = {8: 1.001, 4: 0.516}
"""Bytes of a weight in bitsandbytes: int8 with a scale per row; NF4 with scales that are quantised again,
0.127 bits of a weight (QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """Bytes of one rank; each part at its own most.

    Attributes:
        weights: all of them: trained and frozen, as this rank holds them, and buffers.
        gradients: of what is trained.
        optimizer: master weights and moments.
        activations: of a forward and backward pass, the batch included.
        buckets: in which gradients wait to be reduced.
        gathered: frozen weights of other ranks, or of the CPU, while they are used; quantised ones unpacked.
        peak: the most that is there at one time; the parts need not be at their most together.
        host: of this rank in the memory of the CPU, where ZeRO offloads; in no other part.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buckets: int
    gathered: int
    peak: int
    host: int = 0


def plan_memory(
    weights: Sequence[Weight],
    zero: Zero,
    settings: Mapping[str, Any],
    rehearsal: SimulatedPass,
    *,
    buffers: int = 0,
    bits: int = 16,
) -> PlannedMemory:
    """Return what a rank needs.

    Args:
        weights: of the model.
        zero: how they are divided.
        settings: DeepSpeed's, complete.
        rehearsal: of this rank's forward and backward pass.
        buffers: bytes of what the model holds beside its weights.
        bits: of the frozen maps of the language model; 8 and 4 as bitsandbytes stores them.
    """
    of_zero = settings["zero_optimization"]
    kept, saved = planned_model_states(weights, zero), quantisation_savings(weights, zero, bits=bits)
    size = 2 if zero.precision == "bf16" else FP32
    bucket = int(of_zero.get("reduce_bucket_size", 0)) * size if zero.stage else 0
    gathered = _gathered(weights, zero, of_zero) if zero.stage == 3 else _unpacked(weights, zero, bits)
    optimizer, gradients, host = kept.optimizer, kept.gradients, 0
    held_weights = kept.weights + kept.frozen - saved + buffers
    if _is_on_cpu(of_zero, "offload_optimizer"):
        host += optimizer + gradients
        optimizer = gradients = 0
    if _is_on_cpu(of_zero, "offload_param"):
        shares = sum(zero.share(w) * zero.element_bytes(w) for w in weights)
        host += shares
        held_weights -= shares
    throughout = held_weights + optimizer + (gradients + bucket if zero.stage == 3 else 0)
    waiting = 0 if zero.stage == 3 else gradients + bucket
    learns_between = any(w.trained and w.name.startswith("language_model") for w in weights)
    after = rehearsal.after_whole_bytes if zero.stage == 0 else rehearsal.after_bytes + waiting
    peaks = (rehearsal.before_bytes + gathered, after + (gathered if learns_between else 0), waiting)
    return PlannedMemory(
        weights=held_weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=max(rehearsal.before_bytes, rehearsal.after_bytes),
        buckets=bucket,
        gathered=gathered,
        peak=throughout + max(peaks),
        host=host,
    )


def quantisation_savings(weights: Sequence[Weight], zero: Zero, *, bits: int) -> int:
    """Return the bytes that a rank does not hold if the frozen maps have so few bits."""
    if bits == 16:
        return 0
    assert zero.stage < 3, "what bitsandbytes packs, ZeRO-3 does not cut"
    packed = [w for w in weights if w.packs]
    return sum(round(w.elements * (zero.element_bytes(w) - QUANTISED_BYTES[bits])) for w in packed)


def _unpacked(weights: Sequence[Weight], zero: Zero, bits: int) -> int:
    """Return the bytes of the largest map, which is unpacked to be multiplied with."""
    if bits == 16:
        return 0
    return max((w.elements * zero.element_bytes(w) for w in weights if w.packs), default=0)


def _gathered(weights: Sequence[Weight], zero: Zero, of_zero: Mapping[str, Any]) -> int:
    """Return what is whole at the turn of a step, and the buffer of a prefetch on its way."""
    copies = zero.ranks > 1 or _is_on_cpu(of_zero, "offload_param")
    if not copies:
        return 0
    cut = [w for w in weights if zero.is_cut(w)]
    waiting = [w for w in cut if w.until_backward is not None and w.until_backward < zero.reuse]
    whole = sum(w.elements * zero.element_bytes(w) for w in waiting)
    block = largest_block(weights, zero)
    size = zero.element_bytes(cut[0]) if cut else 0
    total = sum(w.elements for w in cut) * size
    arriving = min(total, int(of_zero.get("stage3_prefetch_bucket_size", 50_000_000)) * size + block)
    return max(whole, block) + arriving


def _is_on_cpu(of_zero: Mapping[str, Any], key: str) -> bool:
    return bool(of_zero.get(key, {}).get("device", "none") == "cpu")
