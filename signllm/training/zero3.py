"""ZeRO-3 for a small trainable part and a large frozen one, where DeepSpeed 0.19.8 needs help.

DeepSpeed gathers every weight layer by layer, forward and backward, through Python hooks on every module.
Here only the frozen language model is worth partitioning. The trainable weights stay gathered on every rank
(their moments and gradients are still partitioned); they are gathered once per step in one collective, and
their modules have no hooks. The same holds for frozen parts that belong to them (``saved_when_frozen``, for
example an image backbone): DeepSpeed loses track of their gathering when a forward pass without gradient
follows training ("tracing error").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def mark_frozen_blocks_as_leaves(model: nn.Module) -> None:
    """Let ZeRO-3 gather a frozen block (a decoder layer) in one collective, not one per layer.

    Call it before the engine is built; without ZeRO-3 it has no effect. Only frozen blocks are marked: a
    trainable block that is marked can stop learning without any error (OpenRLHF issue 1258).
    """
    from deepspeed.utils import set_z3_leaf_module

    for block in frozen_blocks(model):
        set_z3_leaf_module(block, True)


def frozen_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the frozen blocks of a model, in its order."""
    unpartitioned = unpartitioned_ids(model)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return [
        block
        for part in lists
        if not any(id(p) in unpartitioned for p in part.parameters())
        for block in part
    ]


def keep_trainable_gathered(engine: DeepSpeedEngine) -> None:
    """Keep the trainable part gathered on every rank under ZeRO-3; without ZeRO-3 this has no effect."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return
    gathered = list(offload.persistent_parameters)
    parameters: list[Any] = list(engine.module.parameters())
    ids = unpartitioned_ids(engine.module)
    for p in parameters:
        if id(p) in ids and not p.ds_persist:
            p.ds_persist = True
            gathered.append(p)
    _remove_hooks(engine.module, [*offload.forward_hooks, *offload.backward_hooks])
    engine.optimizer.persistent_parameters = offload.persistent_parameters = _CoalescedGather(gathered)
    regather_parameters(engine)


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers of a model to the device of its rank; call it before the engine is built.

    If a part of a model was partitioned while it was loaded, DeepSpeed 0.19.8 moves every parameter but no
    buffer: a codebook or the mean of the pixels would stay on the CPU.
    """
    for part in model.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def cast_unpartitioned_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters that are not partitioned yet; call it before the engine is built.

    DeepSpeed 0.19.8 casts all parameters of a model, or none if a part of it was partitioned while it was
    loaded.
    """
    for p in model.parameters():
        if not hasattr(p, "ds_id") and p.is_floating_point():
            p.data = p.data.to(dtype)


def drop_inputs_of_frozen_linears(engine: DeepSpeedEngine) -> None:
    """Let partitioned frozen linear layers keep no inputs for the backward pass.

    DeepSpeed's own linear function keeps the input, which only the gradient of the weight needs; torch's does
    not.
    """
    if getattr(engine.optimizer, "parameter_offload", None) is None:
        return
    for part in engine.module.modules():
        parameters: list[Any] = list(part.parameters())
        if type(part) is nn.Linear and not any(p.requires_grad or p.ds_persist for p in parameters):
            part.forward = MethodType(_frozen_forward, part)  # type: ignore[method-assign]


def _frozen_forward(linear: nn.Linear, x: Tensor) -> Tensor:
    mapped: Tensor = _FrozenLinear.apply(x, linear.weight, linear.bias)
    return mapped


class _FrozenLinear(torch.autograd.Function):
    """x W' + b with a gradient for x only; W is the parameter that ZeRO-3 gathers when needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        mapped = x.matmul(weight.t())
        return mapped if bias is None else mapped.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        weight = ctx.weight
        is_partitioned = (
            weight.ds_status is ZeroParamStatus.NOT_AVAILABLE
        )  # if the forward pass was recomputed
        if is_partitioned:
            weight.all_gather()
        try:
            return gradients[0].matmul(weight), None, None
        finally:
            if is_partitioned:
                weight.partition()


def regather_parameters(engine: DeepSpeedEngine) -> None:
    """Gather again what :func:`keep_trainable_gathered` keeps gathered, after weights were loaded."""
    persistent = getattr(engine.optimizer, "persistent_parameters", None)
    if isinstance(persistent, _CoalescedGather):
        persistent.all_gather()


def install_gather_hooks(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Let a frozen model that was partitioned while loading gather its weights block by block.

    For evaluation, where there is no engine; all ranks must then call the model equally often.
    """
    import deepspeed

    mark_frozen_blocks_as_leaves(model)
    deepspeed.initialize(model=model, config=dict(settings))


def unpartitioned_ids(model: nn.Module) -> set[int]:
    """Return the ids of parameters that stay gathered: trainable ones, and frozen ones that are saved."""
    saved = [part for part in model.modules() if getattr(part, "saved_when_frozen", False)]
    return {id(p) for p in model.parameters() if p.requires_grad} | {
        id(p) for part in saved for p in part.parameters()
    }


def _remove_hooks(module: nn.Module, handles: Sequence[Any]) -> None:
    """Remove DeepSpeed's hooks from the modules below the root whose parameters all stay gathered."""
    removable = {handle.id: handle for handle in handles}
    for part in module.modules():
        parameters: list[Any] = list(part.parameters())
        if part is module or not all(p.ds_persist for p in parameters):
            continue
        for key in [*part._forward_hooks, *part._forward_pre_hooks]:
            if key in removable:
                removable[key].remove()


class _CoalescedGather:
    """Replaces DeepSpeed's list of persistent parameters, on which it calls ``list[0].all_gather(list)``."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.parameters = list(parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, place: int) -> _CoalescedGather:
        return self

    def all_gather(self, parameters: object = None) -> None:
        """Gather what the step has changed in one collective; DeepSpeed itself uses one per parameter.

        Under hpZ a copy within the node (``ds_secondary_tensor``) would be gathered instead: DeepSpeed 0.19.8
        drops it only after this call, so every step would start with the weights of the step before.
        """
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        changed = [p for p in self.parameters if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
        if changed:
            for p in changed:
                p.ds_secondary_tensor = None
            changed[0].all_gather_coalesced(changed).wait()


def clear_partitioned_gradients(engine: DeepSpeedEngine) -> None:
    """Clear the gradients that ZeRO-3 keeps from the last step; call it once at the start of a step.

    A parameter without a gradient in this step (a branch that was not taken) would otherwise be updated with
    its gradient of the last step: DeepSpeed 0.19.8 overwrites that buffer only for parameters that got one.
    Stages 0 to 2 do not have this defect.
    """
    partitions = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if partitions is not None:
        partitions.zero_()
        for group in engine.optimizer.fp32_partitioned_groups_flat:
            if group.grad is not None:
                group.grad.zero_()
