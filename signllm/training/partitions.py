"""Whole tensors by name out of a DeepSpeed engine, and back in, for any ZeRO stage and number of ranks.

ZeRO cuts master weights and Adam moments into pieces per rank, in an order of its own. Read whole and
named, they fit any other cut. Every function here is a collective: all ranks call it, with the same
arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.training.zero3 import gather_whole

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer moves, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint keeps besides trainable parameters: state that no other file could give back.

    Persistent buffers (EMA codebooks, running statistics) of every module, except inside modules whose
    parameters are all frozen: those come from their own source, like the language model. A module with
    ``saved_when_frozen = True`` keeps its buffers and its frozen parameters too (an encoder trained by an
    earlier stage).
    """
    frozen, whole = [], []
    for name, part in module.named_modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.append(f"{name}." if name else "")
        if getattr(part, "saved_when_frozen", False):
            whole.append(f"{name}." if name else "")
    kept = {}
    for name, tensor in _persistent(module):
        in_whole = name.startswith(tuple(whole)) if whole else False
        in_frozen = name.startswith(tuple(frozen)) if frozen else False
        if in_whole or (not isinstance(tensor, nn.Parameter) and not in_frozen):
            kept[name] = tensor
    return kept


def _persistent(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return frozen parameters and persistent buffers by name, each once."""
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    buffers = []
    for prefix, part in module.named_modules():
        transient = part._non_persistent_buffers_set
        own = part.named_buffers(recurse=False)
        buffers += [(f"{prefix}.{name}" if prefix else name, b) for name, b in own if name not in transient]
    return frozen + buffers


def read_whole(engine: DeepSpeedEngine, *, keep: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (weights, moments) on the CPU: master weights and kept tensors by name; ``exp_avg/NAME`` ...

    Call it after at least one step: before it Adam has no moments. ``keep=False``: this rank takes part and
    keeps nothing of it, so that a node of eight ranks need not hold all of it eight times.
    """
    _link_moments(engine)
    weights, moments = {}, {}
    for name, p in trainable_parameters(engine.module).items():
        weights[name] = _whole(engine, p, None)
        for key in MOMENTS:
            moments[f"{key}/{name}"] = _whole(engine, p, key)
        if not keep:
            weights, moments = {}, {}
    for name, tensor in kept_tensors(engine.module).items():
        weights[name] = _gathered(tensor)
    return (weights, moments) if keep else ({}, {})


def _link_moments(engine: DeepSpeedEngine) -> None:
    """Let ZeRO-1/2 know the moments of all parameter groups.

    DeepSpeed 0.19.8 links them once, behind the first step of the first group, when the others have none.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _whole(engine: DeepSpeedEngine, p: nn.Parameter, key: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _is_partitioned(p):
        whole = safe_get_full_fp32_param(p) if key is None else safe_get_full_optimizer_state(p, key)
        shape = getattr(p, "ds_shape", p.shape)
    else:
        whole, shape = (p.detach() if key is None else engine.basic_optimizer.state[p][key]), p.shape
    return whole.detach().reshape(shape).to("cpu", copy=True).contiguous()


def _is_partitioned(p: Tensor) -> bool:
    return hasattr(p, "ds_id") or hasattr(p, "_hp_mapping")


def _gathered(tensor: Tensor) -> Tensor:
    """Return a copy of a frozen parameter or a buffer on the CPU, gathered if ZeRO-3 has cut it.

    What is whole is only copied: leaving ``GatheredParameters`` would cut it, unknown to the module that
    still counts on it.
    """
    status: Any = getattr(tensor, "ds_status", None)
    if status is None or status.name == "AVAILABLE":
        return tensor.detach().to("cpu", copy=True).contiguous()
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):
        return tensor.detach().to("cpu", copy=True).contiguous()


def install(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into parameters and buffers by name, cut by ZeRO-3 or not.

    Raises:
        KeyError: the module has no such name.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in tensors.items():
        target = own[name]
        if hasattr(target, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([target], modifier_rank=0), torch.no_grad():
                target.copy_(value.to(target.device))
        else:
            with torch.no_grad():
                target.copy_(value.to(target.device))


def write_whole(
    engine: DeepSpeedEngine, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: int
) -> None:
    """Put whole weights and moments into a fresh engine and set Adam's step count; undoes read_whole."""
    install(engine.module, weights)
    optimizer = engine.optimizer
    _start_moments(engine, step)
    _link_moments(engine)
    for name, p in trainable_parameters(engine.module).items():
        _set(engine, p, None, weights[name])
        for key in MOMENTS:
            _set(engine, p, key, moments[f"{key}/{name}"])
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    gather_whole(engine)


def stepped_tensors(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return what Adam steps on at this rank: flat shares of master weights, or under ZeRO-0 the weights."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        flat = getattr(engine.optimizer, name, None)
        if flat is not None:
            return list(flat)
    return [p for group in engine.basic_optimizer.param_groups for p in group["params"]]


def _start_moments(engine: DeepSpeedEngine, step: int) -> None:
    """Give the flat tensors that Adam steps on the moments it would have made in its first step."""
    for p in stepped_tensors(engine):
        state = engine.basic_optimizer.state[p]
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=p.device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(p)


def share_of(value: Tensor, rank: int, ranks: int) -> Tensor:
    """Return a rank's share of a whole tensor as ZeRO-3 cuts it: flat, padded to equal pieces by zeros."""
    piece = -(-value.numel() // ranks)
    flat = value.flatten()[rank * piece : (rank + 1) * piece]
    return nn.functional.pad(flat, (0, piece - flat.numel()))


def _set(engine: DeepSpeedEngine, p: Any, key: str | None, value: Tensor) -> None:
    if hasattr(p, "ds_id"):
        group = p.ds_process_group
        share = share_of(value, dist.get_rank(group=group), dist.get_world_size(group))
        assert share.numel() == p.ds_tensor.numel(), "DeepSpeed cuts otherwise"
        p._z3_optimizer.set_local_hp_param(share, p, key)
    elif hasattr(p, "_hp_mapping"):
        p.set_full_hp_param(value.to(p.device), key)
    elif key is not None:
        engine.basic_optimizer.state[p][key].copy_(value)
