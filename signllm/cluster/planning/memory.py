"""The memory that a rank needs at the peak of a training step: constant and temporary parts.

The constant part is :func:`signllm.cluster.planning.zero_costs.planned_model_states`; what a pass allocates
is simulated (:mod:`signllm.cluster.planning.simulation`). DeepSpeed 0.19.8 adds a bucket in which gradients
wait to be reduced, of ``reduce_bucket_size`` elements for any model. Under ZeRO-3 it also adds what is
gathered: all frozen weights that are needed again within ``stage3_max_reuse_distance``, and the flat buffer
that receives one prefetch.

`tools/check_plan` compares the result with what torch allocates. Not included are workspace inside operators,
a GPU's context, NCCL and fragmentation, for which headroom is left (:mod:`signllm.cluster.planning.setups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signllm.cluster.planning.simulation import SimulatedPass
from signllm.cluster.planning.zero_costs import FP32, Weight, Zero, largest_block, planned_model_states

QUANTIZED_BYTES = {8: 1.001, 4: 0.516}
"""Bytes of a weight in bitsandbytes, by bits.

int8 has a scale per row; NF4 has scales that are quantized again, 0.127 bits per weight (QLoRA, arXiv
2305.14314, section 3).
"""


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """Bytes of one rank; each part is at its own maximum.

    Attributes:
        weights: trained and frozen weights as this rank keeps them, and buffers.
        gradients: gradients of the trained weights.
        optimizer: master weights and moments.
        activations: activations of a forward and backward pass, including the batch.
        buckets: buffer in which gradients wait to be reduced.
        gathered: frozen weights of other ranks or of the CPU while they are used; quantized ones unpacked.
        peak: maximum of the total; the parts need not reach their maxima at the same time.
        host: memory of the CPU that this rank uses for offloading; not part of the others.
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
    simulated: SimulatedPass,
    *,
    buffers: int = 0,
    bits: int = 16,
) -> PlannedMemory:
    """Return the memory that a rank needs.

    Args:
        weights: weights of the model.
        zero: how they are divided.
        settings: complete settings of DeepSpeed.
        simulated: this rank's forward and backward pass.
        buffers: bytes of the model's buffers.
        bits: bits of the language model's frozen linear layers; 8 and 4 are stored by bitsandbytes.
    """
    zero_settings = settings["zero_optimization"]
    states, savings = planned_model_states(weights, zero), quantization_savings(weights, zero, bits=bits)
    size = 2 if zero.precision == "bf16" else FP32
    bucket = int(zero_settings.get("reduce_bucket_size", 0)) * size if zero.stage else 0
    gathered = _gathered(weights, zero, zero_settings) if zero.stage == 3 else _unpacked(weights, zero, bits)
    optimizer, gradients, host = states.optimizer, states.gradients, 0
    constant_weights = states.weights + states.frozen - savings + buffers
    if _is_on_cpu(zero_settings, "offload_optimizer"):
        host += optimizer + gradients
        optimizer = gradients = 0
    if _is_on_cpu(zero_settings, "offload_param"):
        shares = sum(zero.share(w) * zero.element_bytes(w) for w in weights)
        host += shares
        constant_weights -= shares
    constant = constant_weights + optimizer + (gradients + bucket if zero.stage == 3 else 0)
    reducing = 0 if zero.stage == 3 else gradients + bucket
    trains_language_model = any(w.trained and w.name.startswith("language_model") for w in weights)
    after = simulated.after_full_bytes if zero.stage == 0 else simulated.after_bytes + reducing
    peaks = (simulated.before_bytes + gathered, after + (gathered if trains_language_model else 0), reducing)
    return PlannedMemory(
        weights=constant_weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=max(simulated.before_bytes, simulated.after_bytes),
        buckets=bucket,
        gathered=gathered,
        peak=constant + max(peaks),
        host=host,
    )


def quantization_savings(weights: Sequence[Weight], zero: Zero, *, bits: int) -> int:
    """Return the bytes that a rank saves if the frozen linear layers have this number of bits."""
    if bits == 16:
        return 0
    assert zero.stage < 3, "ZeRO-3 does not partition what bitsandbytes packs"
    packed = [w for w in weights if w.packs]
    return sum(round(w.elements * (zero.element_bytes(w) - QUANTIZED_BYTES[bits])) for w in packed)


def _unpacked(weights: Sequence[Weight], zero: Zero, bits: int) -> int:
    """Return the bytes of the largest quantized layer, which is unpacked for its multiplication."""
    if bits == 16:
        return 0
    return max((w.elements * zero.element_bytes(w) for w in weights if w.packs), default=0)


def _gathered(weights: Sequence[Weight], zero: Zero, of_zero: Mapping[str, Any]) -> int:
    """Return the bytes of gathered frozen weights at the start of backward, plus one prefetch buffer."""
    copies = zero.ranks > 1 or _is_on_cpu(of_zero, "offload_param")
    if not copies:
        return 0
    cut = [w for w in weights if zero.is_cut(w)]
    waiting = [w for w in cut if w.until_backward is not None and w.until_backward < zero.reuse]
    full = sum(w.elements * zero.element_bytes(w) for w in waiting)
    block = largest_block(weights, zero)
    size = zero.element_bytes(cut[0]) if cut else 0
    total = sum(w.elements for w in cut) * size
    arriving = min(total, int(of_zero.get("stage3_prefetch_bucket_size", 50_000_000)) * size + block)
    return max(full, block) + arriving


def _is_on_cpu(of_zero: Mapping[str, Any], key: str) -> bool:
    return bool(of_zero.get(key, {}).get("device", "none") == "cpu")
