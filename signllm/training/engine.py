"""The DeepSpeed engine of every stage: join the process group, complete the ZeRO file, build the optimizer.

The files in ``ds_configs/`` decide how memory is divided (:mod:`signllm.training.zero_file`); batch sizes,
clipping and precision belong to :class:`TrainingConfig`. The same code runs as a single process without any
environment variable, under torchrun, and under Slurm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from signllm.distributed.ranks import start_distributed
from signllm.errors import UsageError
from signllm.training.zero3 import (
    cast_unpartitioned_parameters,
    drop_inputs_of_frozen_linears,
    keep_trainable_gathered,
    mark_frozen_blocks_as_leaves,
    place_buffers,
)
from signllm.training.zero_file import fill_in_recipe_settings, read_zero_file
from signllm.validation import (
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    validated,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

TrackerName = Literal["wandb", "mlflow"]


@validated
class TrainingConfig:
    """How a stage is trained. Numbers that the paper gives are set by a recipe, not here.

    Attributes:
        deepspeed: ZeRO file: a name in ``ds_configs`` or a path.
        precision: precision of weights and activations in training.
        epochs: epochs to train. Training ends after ``epochs`` or ``steps``, whichever comes first; batches
            at the end that are too few for another step are not used.
        steps: optimizer steps to train.
        batch_size: videos per optimizer step, over all ranks and all ``accumulation`` forward passes, so that
            a run means the same on any number of GPUs.
        accumulation: forward passes per optimizer step.
        learning_rate: learning rate after the warmup.
        warmup_steps: steps of linear warmup.
        schedule: shape of the learning rate after the warmup.
        final_factor: factor of the learning rate at the end of the cosine.
        betas: decay rates of Adam's moments.
        adam_epsilon: Adam's epsilon.
        weight_decay: decoupled weight decay; 0 makes AdamW equal to Adam.
        gradient_clip: norm to which the gradient is clipped.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints.
        validate_every: steps between two validations on ``dev``; None validates after every epoch, 0 only at
            the end.
        keep: number of the latest checkpoints to keep.
        keep_best: validated value whose best checkpoint is kept in addition: a loss (lower is better) or, in
            fine-tuning, a score such as ``bleu4`` (higher is better), for which each validation translates
            ``dev``; None keeps none.
        patience: number of validations in a row in which the value of ``keep_best`` does not improve, after
            which training ends early; None trains to the end.
        tensorboard: write TensorBoard files.
        trackers: experiment trackers that receive settings and numbers
            (:mod:`signllm.training.trackers`); they need the extra ``tracking``.
        show: number of dev videos that TensorBoard shows after each validation; 0 shows none.
        profile: number of steps to trace with torch's profiler (:mod:`signllm.training.trace`); 0 traces
            none.
        seed: random seed of initialisation, sample order and dropout.
        timeout_s: seconds after which a collective fails.
        hang_s: seconds without progress after which several ranks end with a report
            (:mod:`signllm.distributed.watchdog`).
    """

    deepspeed: str = "zero2"
    precision: Literal["fp32", "bf16"] = "fp32"
    epochs: NonNegativeInt | None = None
    steps: NonNegativeInt | None = None
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_factor: NonNegativeFloat = 0.0
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    adam_epsilon: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: NonNegativeFloat = 1.0
    log_every: PositiveInt = 10
    save_every: PositiveInt = 500
    validate_every: NonNegativeInt | None = None
    keep: PositiveInt = 2
    keep_best: str | None = "loss"
    patience: PositiveInt | None = None
    tensorboard: bool = True
    trackers: tuple[TrackerName, ...] = ()
    show: NonNegativeInt = 4
    profile: NonNegativeInt = 0
    seed: int = 0
    timeout_s: float = 1800.0
    hang_s: float = 900.0

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise UsageError(
                "training would never end: neither epochs nor steps is set",
                where="epochs",
                remedy="set training.epochs or training.steps",
            )
        if self.patience is not None and self.keep_best is None:
            raise UsageError(
                f"patience is {self.patience}, but keep_best is None, so no value can improve",
                where="patience",
                remedy="set training.keep_best to loss, or leave training.patience out",
            )
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be divided into {self.accumulation} forward passes",
                where="accumulation",
                remedy="choose a divisor of batch_size",
            )

    @property
    def videos_per_forward(self) -> int:
        """Videos of one forward pass over all ranks: the batch size that a loader is built with."""
        return self.batch_size // self.accumulation


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with a common learning rate.

    Attributes:
        name: name of the group in the log.
        parameters: the parameters; frozen ones are ignored.
        learning_rate: learning rate; None takes that of the configuration.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float | None = None


def deepspeed_settings(config: TrainingConfig, *, world: int) -> dict[str, Any]:
    """Return a run's complete DeepSpeed settings: its ZeRO file with the recipe's batch and precision.

    ``transformers.integrations.HfDeepSpeedConfig`` needs them too, before a language model is loaded under
    ZeRO-3.

    Args:
        config: how the stage is trained.
        world: number of ranks.

    Raises:
        UsageError: the batch size does not divide over the ranks, or ZeRO-0 is combined with bf16.
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
            "bf16 needs master weights, which ZeRO-0 does not keep",
            where=path,
            remedy="use zero1, zero2 or zero3",
        )
    values = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.videos_per_forward // world,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clip,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return fill_in_recipe_settings(settings, values, path)


def parameter_groups_of(model: nn.Module, groups: Sequence[ParameterGroup] | None) -> list[ParameterGroup]:
    """Return groups that contain every trainable parameter exactly once, and no frozen one.

    Raises:
        UsageError: no parameter is trainable.
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
    return [dataclasses.replace(group, parameters=parameters) for group, parameters in kept if parameters]


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed without its compiler check and its messages; joins the process group first.

    On a CPU, DeepSpeed would probe all its C++ operators and compile one that only its inference uses, which
    takes 90 s in the first run, 1 s in each later one, and a compiler that a laptop may not have. An empty
    table of operators tells it that none is compatible. Its optimizer Muon, which is not used here, is
    decorated by ``torch.compile``, for which torch would import its compiler at every start. The import
    itself takes 0.4 s on top of torch.
    """
    start_distributed()
    import deepspeed

    compiled = torch.compile
    torch.compile = _without_compiling  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compiled

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    for handler in deepspeed.utils.logger.handlers:
        if handler.stream is sys.stdout:  # standard output is for results only
            handler.setStream(sys.stderr)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _without_compiling(function: Any = None, **settings: Any) -> Any:
    """Replace ``torch.compile``, as a function or a decorator: return the function unchanged."""
    return function if function is not None else _without_compiling


def build_engine(
    model: nn.Module, parameter_groups: Sequence[ParameterGroup] | None, config: TrainingConfig
) -> DeepSpeedEngine:
    """Wrap ``model`` into a DeepSpeed engine with Adam over its trainable parameters (all ranks).

    The groups of ``engine.basic_optimizer`` have the keys ``name`` and ``base_lr``, which the schedule uses.
    torch's fused AdamW works on CPU and GPU without compiling anything, and equals Adam for
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
            "weight_decay": config.weight_decay,
            "name": group.name,
        }
        for group in parameter_groups_of(model, parameter_groups)
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.adam_epsilon, fused=True)
    mark_frozen_blocks_as_leaves(model)
    place_buffers(model, ranks.device)
    if config.precision == "bf16":
        cast_unpartitioned_parameters(model, torch.bfloat16)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    keep_trainable_gathered(engine)
    drop_inputs_of_frozen_linears(engine)
    return engine


def take_step(engine: DeepSpeedEngine) -> float | None:
    """Step the optimizer if this was the last forward pass of a step (all ranks).

    Returns:
        The norm of the global gradient before clipping, equal on all ranks, or None if more forward passes
        follow. It is infinite if a gradient is not finite; DeepSpeed then skips the step under ZeRO-1 to 3
        and takes it under ZeRO-0, in both cases without a message.
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
    return norm if math.isfinite(norm) and norm >= 0.0 else math.inf  # DeepSpeed returns -1 on overflow
