"""A run's ZeRO file: read, checked, and completed with what the recipe decides.

The files in ``ds_configs/`` say how memory is divided and how big the buckets are. Batch sizes, clipping,
precision, optimizer and schedule belong to :class:`signllm.training.engine.TrainingConfig`: a file of one's
own that says otherwise is refused, because a reader of either would be misled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.package_files import find_package_file

OF_THE_RECIPE = {
    "train_batch_size": "--training.batch-size",
    "train_micro_batch_size_per_gpu": "--training.batch-size",
    "gradient_accumulation_steps": "--training.accumulation",
    "gradient_clipping": "--training.gradient-clip",
    "bf16.enabled": "--training.precision",
    "fp16.enabled": "--training.precision",
    "zero_allow_untested_optimizer": None,
    "zero_force_ds_cpu_optimizer": None,
}
"""Settings of DeepSpeed that do not belong into a file, and the option that sets them."""


def read_zero_file(name: str, *, world: int) -> tuple[dict[str, Any], Path]:
    """Read a shipped file by its name or any file by its path; return its settings and where it is.

    Raises:
        UsageError: there is no such file, it is no JSON, names no ZeRO stage, holds "auto" where DeepSpeed
            knows none, an optimizer or schedule, or what this number of ranks or a CPU cannot do.
    """
    path = find_package_file("ds_configs", name, ".json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"this is no JSON: {error}", where=path, remedy="correct the file") from None
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else {}
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UsageError(
            "no ZeRO stage is named", where=path, remedy='give "zero_optimization": {"stage": 0, 1, 2 or 3}'
        )
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UsageError(
                f"this file has a section {key!r}, which the recipe decides",
                where=path,
                remedy="take it out; the options are --training.learning-rate, .schedule and their like",
            )
    unknown = [key for key in _automatic(settings) if key not in OF_THE_RECIPE]
    if unknown:
        raise UsageError(
            f'{unknown[0]} is "auto", which is a word of another trainer', where=path, remedy="give a value"
        )
    _require_possible(zero, path, world)
    return settings, path


def _require_possible(zero: Mapping[str, Any], path: Path, world: int) -> None:
    secondary = zero.get("zero_hpz_partition_size", 1)
    if secondary > 1 and world % secondary:
        raise UsageError(
            f"zero_hpz_partition_size is {secondary}, which does not divide {world} ranks",
            where=path,
            remedy="copy the file, set it to the number of ranks per node, and name the copy",
        )
    if not zero.get("compute_grad_norm", True):
        raise UsageError(
            "compute_grad_norm is false, but the norm tells whether a step may be taken",
            where=path,
            remedy="take it out of the file",
        )
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    if on_cpu and zero["stage"] in (1, 2) and not zero.get("contiguous_gradients", True):
        raise UsageError(
            "contiguous_gradients is false: on CPU DeepSpeed then loses gradients (its issue 8381)",
            where=path,
            remedy="set it to true",
        )


def complete(settings: dict[str, Any], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write the recipe's values into a file's settings: one for each key of ``OF_THE_RECIPE``.

    Raises:
        UsageError: the file says otherwise.
    """
    for key, option in OF_THE_RECIPE.items():
        section, _, name = key.rpartition(".")
        place = settings.setdefault(section, {}) if section else settings
        found = place.get(name, "auto")
        if found not in ("auto", given[key]):
            raise UsageError(
                f"{key} is {json.dumps(found)} in this file, and {json.dumps(given[key])} by the recipe",
                where=path,
                remedy="take it out of the file" + (f"; {option} sets it" if option else ""),
            )
        place[name] = given[key]
    return settings


def _automatic(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _automatic(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"
