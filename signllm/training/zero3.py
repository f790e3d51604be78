"""ZeRO-3 for a small trainable part beside a big frozen one: what DeepSpeed 0.19.8 leaves to the caller.

DeepSpeed gathers every weight map by map, forward and backward, through Python hooks on every module. Here
only the frozen language model is worth cutting: the trainable weights stay whole on every rank (their
moments and gradients are still cut), are gathered once per step in one collective, and their modules carry
no hooks. So do frozen parts that belong to them (``saved_when_frozen``: an image backbone), of whose
gathering DeepSpeed loses track when a forward pass without gradient follows training ("tracing error").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def gather_frozen_blocks_at_once(model: nn.Module) -> None:
    """Let ZeRO-3 gather a block of a frozen part (a decoder layer) in one collective, not one per linear map.

    Call it before the engine is built; without ZeRO-3 it does nothing. Only frozen blocks: a trainable one
    marked so can stop learning without a word (OpenRLHF issue 1258).
    """
    from deepspeed.utils import set_z3_leaf_module

    for block in frozen_blocks(model):
        set_z3_leaf_module(block, True)


def frozen_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are gathered at once, in the model's order."""
    whole = kept_whole(model)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists if not any(id(p) in whole for p in part.parameters()) for block in part]


def keep_trainable_whole(engine: DeepSpeedEngine) -> None:
    """Keep the trainable part whole on every rank under ZeRO-3; without ZeRO-3 it does nothing."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return
    whole = list(offload.persistent_parameters)
    parameters: list[Any] = list(engine.module.parameters())
    kept = kept_whole(engine.module)
    for p in parameters:
        if id(p) in kept and not p.ds_persist:
            p.ds_persist = True
            whole.append(p)
    _remove_hooks(engine.module, [*offload.forward_hooks, *offload.backward_hooks])
    engine.optimizer.persistent_parameters = offload.persistent_parameters = _GatheredAtOnce(whole)
    gather_whole(engine)


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers of a model to the device of its rank; call it before the engine is built.

    DeepSpeed 0.19.8 moves every parameter, but no buffer of a model of which a part was cut as it was loaded:
    a codebook or the mean of the pixels would stay on the CPU.
    """
    for part in model.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def cast_beside_cut_parts(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters of a model of which a part was cut as it was loaded; call it before the engine.

    DeepSpeed 0.19.8 casts a model as a whole or, if any part of it is cut already, not at all.
    """
    for p in model.parameters():
        if not hasattr(p, "ds_id") and p.is_floating_point():
            p.data = p.data.to(dtype)


def keep_no_inputs_of_frozen_maps(engine: DeepSpeedEngine) -> None:
    """Let a frozen linear map that ZeRO-3 cuts keep nothing for its backward pass; call it once, afterwards.

    DeepSpeed's own keeps the input too, which only the gradient of the weight needs; torch alone does not.
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
    """x W' + b with a gradient for x alone; W is the parameter itself, which ZeRO-3 gathers in time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        mapped = x.matmul(weight.t())
        return mapped if bias is None else mapped.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        weight = ctx.weight
        is_cut = weight.ds_status is ZeroParamStatus.NOT_AVAILABLE  # again, by a forward pass recomputed
        if is_cut:
            weight.all_gather()
        try:
            return gradients[0].matmul(weight), None, None
        finally:
            if is_cut:
                weight.partition()


def gather_whole(engine: DeepSpeedEngine) -> None:
    """Make whole again what :func:`keep_trainable_whole` keeps so, after weights were put in."""
    whole = getattr(engine.optimizer, "persistent_parameters", None)
    if isinstance(whole, _GatheredAtOnce):
        whole.all_gather()


def gather_when_called(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Let a frozen model that was partitioned as it was loaded gather its weights block by block.

    For evaluation, where there is no engine: all ranks then call it equally often.
    """
    import deepspeed

    gather_frozen_blocks_at_once(model)
    deepspeed.initialize(model=model, config=dict(settings))


def kept_whole(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that are trainable, or frozen in a part that is saved all the same."""
    saved = [part for part in model.modules() if getattr(part, "saved_when_frozen", False)]
    return {id(p) for p in model.parameters() if p.requires_grad} | {
        id(p) for part in saved for p in part.parameters()
    }


def _remove_hooks(module: nn.Module, handles: Sequence[Any]) -> None:
    """Remove DeepSpeed's hooks from the modules below the root in which every parameter is kept whole."""
    removable = {handle.id: handle for handle in handles}
    for part in module.modules():
        parameters: list[Any] = list(part.parameters())
        if part is module or not all(p.ds_persist for p in parameters):
            continue
        for key in [*part._forward_hooks, *part._forward_pre_hooks]:
            if key in removable:
                removable[key].remove()


class _GatheredAtOnce:
    """Stands where DeepSpeed lists whole parameters; after a step it calls ``list[0].all_gather(list)``."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.parameters = list(parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, place: int) -> _GatheredAtOnce:
        return self

    def all_gather(self, parameters: object = None) -> None:
        """Gather in one collective what the step has changed; DeepSpeed's own does one per parameter.

        Under hpZ a copy within the node (``ds_secondary_tensor``) would be gathered instead: DeepSpeed 0.19.8
        drops it only after this call, so every step would begin with the weights of the step before.
        """
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        changed = [p for p in self.parameters if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
        if changed:
            for p in changed:
                p.ds_secondary_tensor = None
            changed[0].all_gather_coalesced(changed).wait()


def forget_gradients(engine: DeepSpeedEngine) -> None:
    """Clear what ZeRO-3 keeps of the last step's gradients; call it before the first backward of a step.

    A parameter without a gradient in this step (a branch not taken) would otherwise be moved by its
    gradient of the last step: DeepSpeed 0.19.8 overwrites that buffer only for parameters that got one.
    Stages 0 to 2 do it right.
    """
    partitions = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if partitions is not None:
        partitions.zero_()
        for group in engine.optimizer.fp32_partitioned_groups_flat:
            if group.grad is not None:
                group.grad.zero_()
