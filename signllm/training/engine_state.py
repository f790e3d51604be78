"""Full tensors of a DeepSpeed engine by name, gathered and loaded for any ZeRO stage and number of ranks.

ZeRO divides master weights and Adam moments over the ranks in an order of its own. As full, named tensors
they can be divided again in any other way. Every function here is a collective: all ranks call it with the
same arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.training.zero3 import regather_parameters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer updates, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint contains besides trainable parameters.

    These are persistent buffers (EMA codebooks, running statistics) of every module, except inside modules
    whose parameters are all frozen, such as the language model: those come from their own source. A module
    with ``saved_when_frozen = True`` (an encoder that an earlier stage has trained) keeps its buffers and its
    frozen parameters too.
    """
    frozen, saved = [], []
    for name, part in module.named_modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.append(f"{name}." if name else "")
        if getattr(part, "saved_when_frozen", False):
            saved.append(f"{name}." if name else "")
    tensors = {}
    for name, tensor in _persistent(module):
        in_saved = name.startswith(tuple(saved)) if saved else False
        in_frozen = name.startswith(tuple(frozen)) if frozen else False
        if in_saved or (not isinstance(tensor, nn.Parameter) and not in_frozen):
            tensors[name] = tensor
    return tensors


def _persistent(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return frozen parameters and persistent buffers by name, each once."""
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    buffers = []
    for prefix, part in module.named_modules():
        transient = part._non_persistent_buffers_set
        own = part.named_buffers(recurse=False)
        buffers += [(f"{prefix}.{name}" if prefix else name, b) for name, b in own if name not in transient]
    return frozen + buffers


def gather_engine_state(
    engine: DeepSpeedEngine, *, keep: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the master weights with the saved tensors, and the moments (``exp_avg/NAME``), on the CPU.

    Call it after at least one step, because Adam has no moments before.

    Args:
        engine: the engine.
        keep: False takes part in the collectives and returns nothing, so that a node of eight ranks does not
            hold eight copies.
    """
    _link_moments(engine)
    weights, moments = {}, {}
    for name, p in trainable_parameters(engine.module).items():
        weights[name] = _full_tensor(engine, p, None)
        for key in MOMENTS:
            moments[f"{key}/{name}"] = _full_tensor(engine, p, key)
        if not keep:
            weights, moments = {}, {}
    for name, tensor in saved_tensors(engine.module).items():
        weights[name] = _gathered_copy(tensor)
    return (weights, moments) if keep else ({}, {})


def _link_moments(engine: DeepSpeedEngine) -> None:
    """Let ZeRO-1 and ZeRO-2 find the moments of all parameter groups.

    DeepSpeed 0.19.8 links them once, after the first step of the first group, when the other groups have none
    yet.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _full_tensor(engine: DeepSpeedEngine, p: nn.Parameter, key: str | None) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _is_partitioned(p):
        full = safe_get_full_fp32_param(p) if key is None else safe_get_full_optimizer_state(p, key)
        shape = getattr(p, "ds_shape", p.shape)
    else:
        full, shape = (p.detach() if key is None else engine.basic_optimizer.state[p][key]), p.shape
    return full.detach().reshape(shape).to("cpu", copy=True).contiguous()


def _is_partitioned(p: Tensor) -> bool:
    return hasattr(p, "ds_id") or hasattr(p, "_hp_mapping")


def _gathered_copy(tensor: Tensor) -> Tensor:
    """Return a copy of a frozen parameter or a buffer on the CPU, gathered if ZeRO-3 has partitioned it.

    A tensor that is already gathered is only copied: leaving ``GatheredParameters`` would partition it,
    although its module still relies on the full tensor.
    """
    status: Any = getattr(tensor, "ds_status", None)
    if status is None or status.name == "AVAILABLE":
        return tensor.detach().to("cpu", copy=True).contiguous()
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):
        return tensor.detach().to("cpu", copy=True).contiguous()


def install_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy full tensors into parameters and buffers by name, whether ZeRO-3 has partitioned them or not.

    Raises:
        KeyError: the module has no such name.
    """
    targets = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in tensors.items():
        target = targets[name]
        if hasattr(target, "ds_id"):
            from deepspeed import zero

            with zero.GatheredParameters([target], modifier_rank=0), torch.no_grad():
                target.copy_(value.to(target.device))
        else:
            with torch.no_grad():
                target.copy_(value.to(target.device))


def load_engine_state(
    engine: DeepSpeedEngine, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], step: int
) -> None:
    """Load full weights and moments into a new engine and set Adam's step count."""
    install_tensors(engine.module, weights)
    optimizer = engine.optimizer
    _start_moments(engine, step)
    _link_moments(engine)
    for name, p in trainable_parameters(engine.module).items():
        _set_full_tensor(engine, p, None, weights[name])
        for key in MOMENTS:
            _set_full_tensor(engine, p, key, moments[f"{key}/{name}"])
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    regather_parameters(engine)


def optimizer_tensors(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return the tensors that Adam updates on this rank: flat master weights, or under ZeRO-0 the weights."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        flat = getattr(engine.optimizer, name, None)
        if flat is not None:
            return list(flat)
    return [p for group in engine.basic_optimizer.param_groups for p in group["params"]]


def _start_moments(engine: DeepSpeedEngine, step: int) -> None:
    """Create the state of the flat tensors that Adam would create in its first step."""
    for p in optimizer_tensors(engine):
        state = engine.basic_optimizer.state[p]
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=p.device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(p)


def partition_of(value: Tensor, rank: int, ranks: int) -> Tensor:
    """Return a rank's part of a full tensor as ZeRO-3 divides it: flat, equal, padded with zeros."""
    piece = -(-value.numel() // ranks)
    flat = value.flatten()[rank * piece : (rank + 1) * piece]
    return nn.functional.pad(flat, (0, piece - flat.numel()))


def _set_full_tensor(engine: DeepSpeedEngine, p: Any, key: str | None, value: Tensor) -> None:
    if hasattr(p, "ds_id"):
        group = p.ds_process_group
        share = partition_of(value, dist.get_rank(group=group), dist.get_world_size(group))
        assert share.numel() == p.ds_tensor.numel(), "DeepSpeed partitions this tensor differently"
        p._z3_optimizer.set_local_hp_param(share, p, key)
    elif hasattr(p, "_hp_mapping"):
        p.set_full_hp_param(value.to(p.device), key)
    elif key is not None:
        engine.basic_optimizer.state[p][key].copy_(value)
