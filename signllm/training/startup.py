"""What a run sets out to do, told before its first step: ranks, batch, parts, memory, steps, origin.

Read off the engine as it stands, not estimated: rank 0 writes it to standard error and to
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
from signllm.training.engine import Ranks, TrainingConfig
from signllm.training.local_ranks import usable_cores
from signllm.training.partitions import stepped_tensors
from signllm.version import VERSION

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that one rank holds throughout; activations and gathered blocks come on top.

    Attributes:
        weights: of what is trained, with this rank's share of them where ZeRO-3 keeps both.
        gradients: whole under ZeRO-0 and 1, this rank's share under 2 and 3.
        optimizer: master weights, where ZeRO keeps some apart, and both moments of Adam.
        frozen: weights that nothing trains.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen: int


def held(engine: DeepSpeedEngine) -> Held:
    """Return what this rank holds."""
    parameters = list(engine.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    stepped = stepped_tensors(engine)
    apart = engine.zero_optimization_stage() > 0
    elements = sum(t.numel() for t in stepped)
    if engine.zero_optimization_stage() >= 2:
        gradients = elements * trained[0].element_size()
    else:
        gradients = sum(map(_bytes, trained))
    return Held(
        weights=sum(map(_held_bytes, trained)),
        gradients=gradients,
        optimizer=sum(map(_bytes, stepped)) * (3 if apart else 2),
        frozen=sum(_held_bytes(p) for p in parameters if not p.requires_grad),
    )


def parts(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (trained, frozen) parameters of each part of a model, whole, by the part's name."""
    found: dict[str, tuple[int, int]] = {}
    for name, p in module.named_parameters():
        part = name.split(".")[0]
        trained, frozen = found.get(part, (0, 0))
        size = int(getattr(p, "ds_numel", p.numel()))
        found[part] = (trained + size, frozen) if p.requires_grad else (trained, frozen + size)
    return found


def announce(
    engine: DeepSpeedEngine,
    config: TrainingConfig,
    ranks: Ranks,
    *,
    run: Path,
    stage: str,
    end: int,
    step: int,
    checkpoint: Path | None,
) -> None:
    """Tell what begins; all ranks call it, rank 0 writes the most that any rank holds."""
    mine = asdict(held(engine))
    most = torch.tensor(list(mine.values()), dtype=torch.float64, device=ranks.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if ranks.rank != 0:
        return
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
    record = {
        "stage": stage,
        "begun": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ranks": ranks.world,
        "nodes": -(-ranks.world // int(os.environ.get("LOCAL_WORLD_SIZE") or ranks.world)),
        "device": device,
        "processor": processor(),
        "versions": versions(),
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
            for name, (trained, frozen) in parts(engine.module).items()
        },
        "held_bytes": dict(zip(mine, map(int, most.tolist()), strict=True)),
    }
    atomic_write(run / "startup.json", json.dumps(record, indent=2) + "\n")
    sys.stderr.write(told(record))
    sys.stderr.flush()


def processor() -> str:
    """Return the name of this machine's processor and how many cores this process may use."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    return f"{name}, {usable_cores()} cores"


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"signllm": VERSION, "python": platform.python_version()}
    for package in ("torch", "deepspeed", "transformers", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def told(record: dict[str, Any]) -> str:
    """Return a start as lines for a reader."""
    batch, steps, ranks = record["batch"], record["steps"], record["ranks"]
    sums = {
        kind: [f"{name} {count_text(of[kind])}" for name, of in record["parameters"].items() if of[kind]]
        for kind in ("trained", "frozen")
    }
    origin = f"from step {steps['first']}, {record['resumes']}" if record["resumes"] else "from the start"
    memory = ", ".join(f"{name} {size_text(value)}" for name, value in record["held_bytes"].items())
    epochs = f" in {steps['epochs']} epochs" if steps["epochs"] else ""
    lines = [
        f"{record['stage']}: {ranks} x {record['device']}, ZeRO-{record['zero_stage']}"
        f" ({record['deepspeed']}), {record['precision']}",
        f"  batch    {batch['videos']} videos = {batch['per_rank']} per rank x {ranks} ranks"
        f" x {batch['forward_passes']} forward pass{'es' if batch['forward_passes'] > 1 else ''}",
        f"  steps    {steps['end']}{epochs}, {origin}",
        f"  trained  {', '.join(sums['trained'])}",
        f"  frozen   {', '.join(sums['frozen']) or 'nothing'}",
        f"  a rank holds {memory}",
    ]
    return "\n".join(lines) + "\n"


def _held_bytes(p: Any) -> int:
    """Return the bytes of a parameter here: what of it is whole, and this rank's shares if it is cut."""
    shares = [getattr(p, name, None) for name in ("ds_tensor", "ds_secondary_tensor")]
    return _bytes(p) + sum(_bytes(share) for share in shares if share is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def count_text(number: int) -> str:
    """Return a number of parameters as a reader wants it: ``21.0 M``."""
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def size_text(count: int) -> str:
    """Return a number of bytes as a reader wants it: ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"
