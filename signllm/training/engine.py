"""One DeepSpeed engine for every stage: start the ranks, complete the ZeRO file, build the optimizer.

The files in ``ds_configs/`` say how memory is divided (:mod:`signllm.training.zero_file`); batch sizes,
clipping and precision belong to :class:`TrainingConfig`. The same code runs as one plain process without any
environment variable, under torchrun and under Slurm.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.errors import UsageError
from signllm.training.zero3 import (
    cast_beside_cut_parts,
    gather_frozen_blocks_at_once,
    keep_no_inputs_of_frozen_maps,
    keep_trainable_whole,
    place_buffers,
)
from signllm.training.zero_file import complete, read_zero_file

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

PLAIN_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a stage is trained; every number that the paper gives is set by a recipe, not here.

    ``batch_size`` counts videos per optimizer step over all ranks and all ``accumulation`` forward passes,
    so a run means the same on any number of GPUs. Training ends at ``epochs`` or ``steps``, whichever comes
    first; batches that are left at the end of the epochs and too few for another step are not used.
    ``show`` is the number of held-out videos that TensorBoard shows at each validation, 0 for none.
    ``validate_every`` is the number of steps between two validations on ``dev``: None validates after every
    epoch, 0 at the end only.
    ``keep_best`` names the validated value whose best checkpoint is kept beside the last ``keep``: the lowest
    of a loss or, in fine-tuning, the highest of a score such as ``bleu4``, for which each validation
    translates ``dev``; None keeps none.
    ``profile`` is a number of steps to trace (:mod:`signllm.training.profile`).
    Where several ranks have made no step for ``hang_s`` they end (:mod:`signllm.training.watchdog`).
    """

    deepspeed: str = "zero2"
    precision: Literal["fp32", "bf16"] = "fp32"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_factor: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    log_every: int = 10
    save_every: int = 500
    validate_every: int | None = None
    keep: int = 2
    keep_best: str | None = "loss"
    tensorboard: bool = True
    show: int = 4
    profile: int = 0
    seed: int = 0
    timeout_s: float = 1800.0
    hang_s: float = 900.0

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise UsageError(
                "training has no end: neither epochs nor steps is set",
                remedy="set --training.epochs or .steps",
            )
        for name in ("batch_size", "accumulation", "log_every", "save_every", "keep"):
            _require_at_least_one(name, getattr(self, name))
        for name, what in (("profile", "steps"), ("show", "videos"), ("validate_every", "steps")):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy=f"give a number of {what}, or 0")
        if self.learning_rate <= 0.0:
            raise UsageError(
                f"learning_rate is {self.learning_rate}; it must be above 0", where="TrainingConfig"
            )
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be divided into {self.accumulation} forward passes",
                where="TrainingConfig.accumulation",
                remedy="choose a divisor of batch_size",
            )

    @property
    def videos_per_forward(self) -> int:
        """Videos of one forward pass over all ranks: the batch size a loader is built with."""
        return self.batch_size // self.accumulation


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} is {value}; it must be at least 1", where=f"TrainingConfig.{name}")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate; ``None`` takes the configuration's value.

    ``start_step``: the group stands still before it and warms up from it (an encoder that joins later).
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float | None = None
    weight_decay: float | None = None
    start_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Who takes part: this process's ``rank`` of ``world``, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default=None)  # type: ignore[assignment]


def start_distributed(*, timeout_s: float = 1800.0) -> Ranks:
    """Join the process group of the environment (torchrun, Slurm), or be one rank alone; safe to call twice.

    gloo on CPU, nccl on GPU. ``timeout_s`` bounds every wait for another rank: a collective that takes
    longer fails.
    """
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Without it ZeRO-3 asks `numactl --hardware`, a process of its own, in every step.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not dist.is_initialized():
        # Who ran alone leaves its RANK to the processes it starts; launchers name a MASTER_ADDR too.
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
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for a device number
        torch.cuda.set_device(device)
    return Ranks(rank=dist.get_rank(), world=dist.get_world_size(), device=device)


def deepspeed_settings(config: TrainingConfig, *, world: int) -> dict[str, Any]:
    """Return the complete settings of a run: its ZeRO file with the run's batch, clipping and precision.

    Also what ``transformers.integrations.HfDeepSpeedConfig`` needs before a ZeRO-3 language model is loaded.
    """
    settings, path = read_zero_file(config.deepspeed, world=world)
    if config.batch_size % (config.accumulation * world):
        raise UsageError(
            f"batch_size {config.batch_size} does not divide over {world} ranks"
            f" x {config.accumulation} forward passes",
            where="TrainingConfig.batch_size",
            remedy=f"choose a multiple of {config.accumulation * world}",
        )
    if config.precision == "bf16" and settings["zero_optimization"]["stage"] == 0:
        raise UsageError(
            "bf16 needs master weights, which ZeRO-0 does not keep", where=path, remedy="use zero1, 2 or 3"
        )
    given = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.videos_per_forward // world,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clip,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return complete(settings, given, path)


def parameter_groups_of(model: nn.Module, groups: Sequence[ParameterGroup] | None) -> list[ParameterGroup]:
    """Return groups that hold every trainable parameter exactly once, without frozen ones and empty groups.

    Raises:
        UsageError: nothing is trainable.
        ValueError: a trainable parameter is in no group or in two.
    """
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UsageError("no parameter of the model is trainable", remedy="unfreeze a part of it")
    if groups is None:
        groups = [ParameterGroup(name="all", parameters=list(model.parameters()))]
    kept = [(group, [p for p in group.parameters if id(p) in trainable]) for group in groups]
    seen = [id(p) for _, parameters in kept for p in parameters]
    if sorted(seen) != sorted(trainable):
        missing = [name for key, name in trainable.items() if key not in seen]
        raise ValueError(
            f"parameter groups miss {missing[:5]} or hold a parameter twice ({len(seen)} of {len(trainable)})"
        )
    return [
        ParameterGroup(
            name=group.name,
            parameters=parameters,
            learning_rate=group.learning_rate,
            weight_decay=group.weight_decay,
            start_step=group.start_step,
        )
        for group, parameters in kept
        if parameters
    ]


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed (0.4 s beyond torch) without its compiler run and its noise; joins the ranks first.

    On CPU DeepSpeed would probe all its C++ operators and compile one that only its inference uses: 90 s at
    the first run, 1 s at each later one, and a compiler that a laptop may not have. An empty table of
    operators says no to all. Its Muon, an optimizer that is not used here, is decorated by ``torch.compile``,
    for which torch would import its compiler at every start.
    """
    start_distributed()
    import deepspeed

    compiled = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compiled

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    for handler in deepspeed.utils.logger.handlers:
        if handler.stream is sys.stdout:  # which belongs to results; a handler of somebody else's stays
            handler.setStream(sys.stderr)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _as_it_is(function: Any = None, **settings: Any) -> Any:
    """Stand in for ``torch.compile``, as a function or a decorator."""
    return function if function is not None else _as_it_is


def build_engine(
    model: nn.Module, parameter_groups: Sequence[ParameterGroup] | None, config: TrainingConfig
) -> DeepSpeedEngine:
    """Wrap ``model`` into a DeepSpeed engine with Adam over its trainable parameters (all ranks).

    The groups of ``engine.basic_optimizer`` carry ``name``, ``base_lr`` and ``start_step`` for the
    schedule. torch's fused AdamW works on CPU and GPU without compiling anything and equals Adam at
    ``weight_decay=0``.
    """
    ranks = start_distributed(timeout_s=config.timeout_s)
    deepspeed = import_deepspeed()

    settings = deepspeed_settings(config, world=ranks.world)
    groups = [
        {
            "params": list(group.parameters),
            "lr": config.learning_rate if group.learning_rate is None else group.learning_rate,
            "base_lr": config.learning_rate if group.learning_rate is None else group.learning_rate,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            "name": group.name,
            "start_step": group.start_step,
        }
        for group in parameter_groups_of(model, parameter_groups)
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.adam_epsilon, fused=True)
    gather_frozen_blocks_at_once(model)
    place_buffers(model, ranks.device)
    if config.precision == "bf16":
        cast_beside_cut_parts(model, torch.bfloat16)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    keep_trainable_whole(engine)
    keep_no_inputs_of_frozen_maps(engine)
    return engine


def take_step(engine: DeepSpeedEngine) -> float | None:
    """Step the optimizer, if the last forward pass of a step is done; all ranks.

    Returns:
        The norm of the global gradient before clipping, equal on all ranks; infinite if a gradient is not a
        number; None after other forward passes. A step of infinite norm is skipped by DeepSpeed under ZeRO-1
        to 3 and taken under ZeRO-0, without a word either way.
    """
    norm: float | Tensor | None = None
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    norm = float(engine.get_global_grad_norm() if norm is None else norm)
    return norm if math.isfinite(norm) and norm >= 0.0 else math.inf  # DeepSpeed's sign of trouble is -1
