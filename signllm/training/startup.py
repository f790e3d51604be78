"""What a run is about to do, reported before its first step: ranks, batch, model, memory, steps, origin.

The numbers are read from the engine itself, not estimated. Rank 0 writes them to standard error and to
``run/startup.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from signllm.atomic_files import atomic_write
from signllm.distributed.local_ranks import usable_cores
from signllm.training.callbacks import RunContext
from signllm.training.engine import TrainingConfig
from signllm.training.engine_state import optimizer_tensors
from signllm.version import VERSION

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True, kw_only=True)
class ModelStates:
    """Bytes that one rank keeps for the model states throughout; activations and gathered blocks come on top.

    Attributes:
        weights: trainable weights; where ZeRO-3 keeps both the full weights and this rank's part, both count.
        gradients: all of them under ZeRO-0 and 1, this rank's part under 2 and 3.
        optimizer: master weights, where ZeRO keeps separate ones, and both moments of Adam.
        frozen: weights that are not trained.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen: int


def model_states(engine: DeepSpeedEngine) -> ModelStates:
    """Return the bytes of the model states on this rank."""
    parameters = list(engine.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    stepped = optimizer_tensors(engine)
    has_masters = engine.zero_optimization_stage() > 0
    elements = sum(t.numel() for t in stepped)
    if engine.zero_optimization_stage() >= 2:
        gradients = elements * trained[0].element_size()
    else:
        gradients = sum(map(_bytes, trained))
    return ModelStates(
        weights=sum(map(_bytes_on_this_rank, trained)),
        gradients=gradients,
        optimizer=sum(map(_bytes, stepped)) * (3 if has_masters else 2),
        frozen=sum(_bytes_on_this_rank(p) for p in parameters if not p.requires_grad),
    )


def parameters_by_part(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the numbers of (trained, frozen) parameters of each child of a model, unpartitioned."""
    counts: dict[str, tuple[int, int]] = {}
    for name, p in module.named_parameters():
        part = name.split(".")[0]
        trained, frozen = counts.get(part, (0, 0))
        size = int(getattr(p, "ds_numel", p.numel()))
        counts[part] = (trained + size, frozen) if p.requires_grad else (trained, frozen + size)
    return counts


def report_startup(
    engine: DeepSpeedEngine,
    config: TrainingConfig,
    context: RunContext,
    *,
    end: int,
    step: int,
    checkpoint: Path | None,
) -> None:
    """Write the startup report; all ranks call it, and it shows the maximum over the ranks.

    Args:
        engine: the engine before its first step.
        config: how the stage is trained.
        context: run folder, stage and ranks.
        end: the last step.
        step: the step that training starts from.
        checkpoint: the checkpoint that training resumes from, or None.
    """
    run, ranks = context.run, context.ranks
    local = asdict(model_states(engine))
    maxima = torch.tensor(list(local.values()), dtype=torch.float64, device=ranks.device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    if ranks.rank != 0:
        return
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
    record = {
        "stage": context.stage,
        "begun": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ranks": ranks.world,
        "nodes": -(-ranks.world // int(os.environ.get("LOCAL_WORLD_SIZE") or ranks.world)),
        "device": device,
        "processor": processor_name(),
        "versions": package_versions(),
        "zero_stage": engine.zero_optimization_stage(),
        "deepspeed": config.deepspeed,
        "precision": config.precision,
        "batch": {
            "videos": config.batch_size,
            "per_rank": config.videos_per_forward // ranks.world,
            "forward_passes": config.accumulation,
        },
        "steps": {"first": step, "end": end, "epochs": None if end == config.steps else config.epochs},
        "resumes": None if checkpoint is None else str(checkpoint.relative_to(run)),
        "parameters": {
            name: {"trained": trained, "frozen": frozen}
            for name, (trained, frozen) in parameters_by_part(engine.module).items()
        },
        "held_bytes": dict(zip(local, map(int, maxima.tolist()), strict=True)),
    }
    atomic_write(run / "startup.json", json.dumps(record, indent=2) + "\n")
    sys.stderr.write(format_startup(record))
    sys.stderr.flush()


def processor_name() -> str:
    """Return the name of this machine's processor and the number of cores that this process may use."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    return f"{name}, {usable_cores()} cores"


def package_versions() -> dict[str, str]:
    """Return the versions of Python, of SignLLM and of the libraries that a result depends on."""
    installed = {"signllm": VERSION, "python": platform.python_version()}
    for package in ("torch", "deepspeed", "transformers", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def format_startup(record: dict[str, Any]) -> str:
    """Return a startup record as lines of text."""
    batch, steps, ranks = record["batch"], record["steps"], record["ranks"]
    sums = {
        kind: [f"{name} {format_count(of[kind])}" for name, of in record["parameters"].items() if of[kind]]
        for kind in ("trained", "frozen")
    }
    origin = f"from step {steps['first']}, {record['resumes']}" if record["resumes"] else "from the start"
    memory = ", ".join(f"{name} {format_bytes(value)}" for name, value in record["held_bytes"].items())
    count = steps["epochs"]
    epochs = f" in {count} epoch{'s' if count > 1 else ''}" if count else ""
    lines = [
        f"{record['stage']}: {ranks} x {record['device']}, ZeRO-{record['zero_stage']}"
        f" ({record['deepspeed']}), {record['precision']}",
        f"  batch    {batch['videos']} videos = {batch['per_rank']} per rank x {ranks} ranks"
        f" x {batch['forward_passes']} forward pass{'es' if batch['forward_passes'] > 1 else ''}",
        f"  steps    {steps['end']}{epochs}, {origin}",
        f"  trained  {', '.join(sums['trained'])}",
        f"  frozen   {', '.join(sums['frozen']) or 'nothing'}",
        f"  memory   per rank: {memory}",
    ]
    return "\n".join(lines) + "\n"


def _bytes_on_this_rank(p: Any) -> int:
    """Return the bytes of a parameter on this rank: the full tensor if gathered, plus its own part."""
    parameters_by_part = [getattr(p, name, None) for name in ("ds_tensor", "ds_secondary_tensor")]
    return _bytes(p) + sum(_bytes(part) for part in parameters_by_part if part is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def format_count(number: int) -> str:
    """Return a number of parameters as text, ``21.0 M``."""
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"
