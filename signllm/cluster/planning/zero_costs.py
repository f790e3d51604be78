"""What a rank keeps in memory and sends per step under ZeRO, computed from the sizes of a model's tensors.

It follows DeepSpeed 0.19.8 as :mod:`signllm.training.engine` and :mod:`signllm.training.zero3` use it. ZeRO-1
and 2 reduce gradients by an all-reduce, twice the traffic of a reduce-scatter. Under ZeRO-3 the optimizer
steps on everything that is partitioned, so all that stays gathered is gathered once per step. A frozen block
is gathered once per forward pass, and again for its backward pass if it was released in between
(``stage3_max_reuse_distance``).

:func:`planned_model_states` equals what `startup.json` records (tests/cluster/test_zero_costs.py), and
:func:`step_traffic` equals what `tools/count_traffic` counts. Activations, buckets and gathered blocks come
on top of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from signllm.errors import UsageError
from signllm.training.startup import ModelStates

FP32 = 4
ALIGNMENT = 2
"""DeepSpeed pads a rank's part of the flat weights to a multiple of this under ZeRO-1 and 2."""
Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One tensor of a model.

    Attributes:
        name: name in ``named_parameters``.
        elements: number of elements of the full tensor.
        element_bytes: bytes per element as the model is built; training in 16 bits casts it.
        trained: whether the optimizer updates it.
        stays_gathered: whether it stays gathered on every rank under ZeRO-3
            (:func:`signllm.training.zero3.unpartitioned_ids`).
        block: number of the frozen block with which it is gathered; None outside of a block.
        until_backward: elements that a forward pass visits between the tensor's last use in it and its use in
            the backward pass; None if the backward pass does not use it.
        packs: whether it is a linear layer in the language model's blocks, which bitsandbytes can quantize.
    """

    name: str
    elements: int
    element_bytes: int
    trained: bool
    stays_gathered: bool
    block: int | None = None
    until_backward: int | None = None
    packs: bool = False


@dataclass(frozen=True, kw_only=True)
class Zero:
    """How ZeRO divides a model.

    Attributes:
        stage: ZeRO stage, 0 to 3.
        ranks: number of ranks.
        precision: precision of the training, which weights and gradients have.
        persistence: number of elements up to which ZeRO-3 keeps a tensor gathered.
        reuse: number of elements up to which a gathered block is kept for its next use.
    """

    stage: int
    ranks: int
    precision: Literal["fp32", "bf16"] = "fp32"
    persistence: int = 0
    reuse: int = 0

    def is_cut(self, weight: Weight) -> bool:
        """Return whether this tensor is partitioned, so that no rank keeps all of it."""
        return self.stage == 3 and not weight.stays_gathered and weight.elements > self.persistence

    def element_bytes(self, weight: Weight) -> int:
        """Return the bytes of one element of a tensor on a rank."""
        return 2 if self.precision == "bf16" else weight.element_bytes

    def share(self, weight: Weight) -> int:
        """Return the number of elements of a rank's part of a tensor under ZeRO-3."""
        return -(-weight.elements // self.ranks)


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The traffic of all ranks in a step for one purpose.

    Attributes:
        kind: kind of collective.
        purpose: what is exchanged, for messages.
        bytes: bytes of the full tensor that is reduced, or of the parts of all ranks together, summed over
            the step.
    """

    kind: Kind
    purpose: str
    bytes: int

    def sent(self, ranks: int) -> float:
        """Return the bytes that each rank sends in a ring: (R-1)/R of all, twice that for an all-reduce."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1) * (ranks - 1) / ranks


def read_zero(settings: Mapping[str, Any], *, ranks: int) -> Zero:
    """Return how ZeRO divides a model, from a run's complete DeepSpeed settings.

    Args:
        settings: result of :func:`signllm.training.engine.deepspeed_settings`.
        ranks: number of ranks.

    Raises:
        UsageError: the settings use ZeRO++, which the plan does not cover.
    """
    zero = settings["zero_optimization"]
    for name in ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"):
        if int(zero.get(name, 0)) > 1 or zero.get(name) is True:
            raise UsageError(
                f"there is no plan for {name}",
                remedy="remove it from the ZeRO file to see the plan without it",
            )
    bf16 = bool(settings["bf16"]["enabled"])
    return Zero(
        stage=zero["stage"],
        ranks=ranks,
        precision="bf16" if bf16 else "fp32",
        persistence=int(zero.get("stage3_param_persistence_threshold", 100_000)),
        reuse=int(zero.get("stage3_max_reuse_distance", 1_000_000_000)),
    )


def planned_model_states(weights: Sequence[Weight], zero: Zero) -> ModelStates:
    """Return the bytes of the model states on one rank; master weights and Adam's moments have 32 bits."""
    trained = [w for w in weights if w.trained]
    frozen = [w for w in weights if not w.trained]
    full = sum(w.elements * zero.element_bytes(w) for w in trained)
    size = zero.element_bytes(trained[0]) if trained else FP32
    share = _share_of_trained(trained, zero)
    return ModelStates(
        weights=full + (share * size if zero.stage == 3 else 0),
        gradients=share * size if zero.stage >= 2 else full,
        optimizer=2 * full if zero.stage == 0 else 3 * FP32 * share,
        frozen=sum(_frozen_elements(w, zero) * zero.element_bytes(w) for w in frozen),
    )


def step_traffic(weights: Sequence[Weight], zero: Zero, *, forward_passes: int = 1) -> list[Collective]:
    """Return what the ranks exchange for ZeRO in one optimizer step of ``forward_passes`` forward passes.

    Not included are a few bytes of norms and flags, and the model's own collectives (codes and words of all
    videos), which depend on the videos.
    """
    if zero.ranks == 1:
        return []
    trained = [w for w in weights if w.trained]
    size = 2 if zero.precision == "bf16" else FP32
    if zero.stage == 3:
        return _traffic_when_cut(weights, zero, size, forward_passes)
    passes = forward_passes if zero.stage == 2 else 1
    gradients = sum(w.elements for w in trained) * size * passes
    collectives = [Collective(kind="all-reduce", purpose="gradients", bytes=gradients)]
    if zero.stage and trained:
        flat = _share_of_trained(trained, zero) * zero.ranks * zero.element_bytes(trained[0])
        collectives.append(Collective(kind="all-gather", purpose="stepped weights", bytes=flat))
    return collectives


def largest_block(weights: Sequence[Weight], zero: Zero) -> int:
    """Return the bytes of the largest block that ZeRO-3 gathers for its computation; 0 without one."""
    blocks: dict[object, int] = {}
    for w in weights:
        if zero.is_cut(w):
            key = w.name if w.block is None else w.block
            blocks[key] = blocks.get(key, 0) + w.elements * zero.element_bytes(w)
    return max(blocks.values(), default=0)


def _share_of_trained(trained: Sequence[Weight], zero: Zero) -> int:
    """Return the number of elements of the trained weights that one rank updates."""
    if zero.stage == 3:
        return sum(map(zero.share, trained))
    elements = sum(w.elements for w in trained)
    return elements if zero.stage == 0 else ALIGNMENT * -(-elements // (ALIGNMENT * zero.ranks))


def _frozen_elements(frozen: Weight, zero: Zero) -> int:
    """Return a rank's elements of a frozen tensor; ZeRO-3 keeps a part of a gathered tensor as well."""
    share = zero.share(frozen) if zero.stage == 3 else 0
    return share if zero.is_cut(frozen) else frozen.elements + share


def _traffic_when_cut(
    weights: Sequence[Weight], zero: Zero, gradient_bytes: int, forward_passes: int
) -> list[Collective]:
    padded = {w.name: zero.share(w) * zero.ranks for w in weights}
    stepped = sum(padded[w.name] * zero.element_bytes(w) for w in weights if not zero.is_cut(w))
    cut = [w for w in weights if zero.is_cut(w)]
    gathered = sum(padded[w.name] * zero.element_bytes(w) * _gathers(w, zero) for w in cut)
    gradients = sum(padded[w.name] for w in weights if w.trained) * gradient_bytes
    collectives = [
        Collective(kind="all-gather", purpose="frozen weights", bytes=gathered * forward_passes),
        Collective(kind="reduce-scatter", purpose="gradients", bytes=gradients * forward_passes),
        Collective(kind="all-gather", purpose="gathered weights", bytes=stepped),
    ]
    return [collective for collective in collectives if collective.bytes]


def _gathers(cut: Weight, zero: Zero) -> int:
    """Return how often a forward and backward pass gathers a tensor."""
    let_go = cut.until_backward is not None and cut.until_backward >= zero.reuse
    return 2 if let_go else 1
