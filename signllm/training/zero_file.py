"""A run's ZeRO file: read, checked, and completed with the settings that the recipe decides.

The files in ``ds_configs/`` decide how memory is divided and how large the communication buckets are. Batch
sizes, clipping, precision, optimizer and schedule belong to :class:`signllm.training.engine.TrainingConfig`.
A file that sets them to other values is refused, because a reader of either would be misled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from signllm.errors import UsageError
from signllm.package_files import find_package_file

RECIPE_SETTINGS = {
    "train_batch_size": "--training.batch-size",
    "train_micro_batch_size_per_gpu": "--training.batch-size",
    "gradient_accumulation_steps": "--training.accumulation",
    "gradient_clipping": "--training.gradient-clip",
    "bf16.enabled": "--training.precision",
    "fp16.enabled": "--training.precision",
    "zero_allow_untested_optimizer": None,
    "zero_force_ds_cpu_optimizer": None,
}
"""DeepSpeed settings that do not belong into a ZeRO file, and the option that sets each."""


def read_zero_file(name: str, *, world: int) -> tuple[dict[str, Any], Path]:
    """Read a shipped ZeRO file by its name, or any file by its path; return its settings and its path.

    Args:
        name: name of a shipped file, or a path.
        world: number of ranks.

    Raises:
        UsageError: the file does not exist, is not JSON, names no ZeRO stage, uses "auto" where DeepSpeed
            does not support it, contains an optimizer or a schedule, or asks for what this number of ranks or
            a CPU cannot do.
    """
    path = find_package_file("ds_configs", name, ".json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"this file is not JSON: {error}", where=path, remedy="correct the file") from None
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else {}
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UsageError(
            "the file names no ZeRO stage",
            where=path,
            remedy='give "zero_optimization": {"stage": 0, 1, 2 or 3}',
        )
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UsageError(
                f"this file has a section {key!r}, but the recipe decides these settings",
                where=path,
                remedy="remove it and use options such as --training.learning-rate and --training.schedule",
            )
    unknown = [key for key in _auto_keys(settings) if key not in RECIPE_SETTINGS]
    if unknown:
        raise UsageError(
            f'{unknown[0]} is "auto", which only other trainers replace', where=path, remedy="give a value"
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
            "compute_grad_norm is false, but the norm decides whether a step is valid",
            where=path,
            remedy="remove it from the file",
        )
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    if on_cpu and zero["stage"] in (1, 2) and not zero.get("contiguous_gradients", True):
        raise UsageError(
            "contiguous_gradients is false: on CPU DeepSpeed then loses gradients (its issue 8381)",
            where=path,
            remedy="set it to true",
        )


def fill_in_recipe_settings(
    settings: dict[str, Any], values: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Write the recipe's values into a file's settings, one for each key of ``RECIPE_SETTINGS``.

    Raises:
        UsageError: the file sets one of them to another value.
    """
    for key, option in RECIPE_SETTINGS.items():
        section, _, name = key.rpartition(".")
        place = settings.setdefault(section, {}) if section else settings
        value = place.get(name, "auto")
        if value not in ("auto", values[key]):
            raise UsageError(
                f"{key} is {json.dumps(value)} in this file, and {json.dumps(values[key])} by the recipe",
                where=path,
                remedy="remove it from the file" + (f"; {option} sets it" if option else ""),
            )
        place[name] = values[key]
    return settings


def _auto_keys(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _auto_keys(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"
