"""Validation of the JSON files next to the tars: manifests, and the index ("sidecar") of each shard.

A file that differs from what ``signllm shard`` writes is refused here. Code that gets a validated manifest or
index can rely on names, types and ranges: names stay inside the folder, every byte range lies inside its tar,
and numbers are finite. No number in a file can cause a large allocation, because the size of a shard bounds
that of its samples.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from signllm.data.frame_folder import MAX_PIXELS
from signllm.data.pictures import MAX_FRAMES
from signllm.data.source_samples import KEY_LENGTH, is_safe_split

SHARD_FORMAT = "signllm-shards"
SHARD_VERSION = 1
SHARD_NAME = re.compile(r"\w+-\d{6,}\.(tar|json)")
_KEY = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{KEY_LENGTH - 1}}}")
_MOST = 1 << 53
"""Largest accepted number; no file is larger, and up to here float represents every integer exactly."""


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, contains NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def has_shard_format(value: Any) -> bool:
    """Return whether a JSON value is a manifest or an index of any version of our format."""
    return isinstance(value, dict) and value.get("format") == SHARD_FORMAT


def is_valid_manifest(value: dict[str, Any]) -> bool:
    """Return whether a manifest of our format has all fields; the manifest of a slice may have no splits."""
    splits = value.get("splits")
    return (
        isinstance(splits, dict)
        and all(is_safe_split(name) and _is_split(name, split) for name, split in splits.items())
        and isinstance(value.get("made"), dict)
        and _is_count(value.get("clips_in_source"))
        and _are_left_out(value.get("left_out"))
        and isinstance(value.get("warnings", []), list)
    )


def _is_split(name: str, value: Any) -> bool:
    """Return whether a value is a split of a manifest, with distinct shards."""
    shards = value.get("shards") if isinstance(value, dict) else None
    if not isinstance(shards, list) or not shards or not all(_is_shard(name, shard) for shard in shards):
        return False
    return len({shard["tar"] for shard in shards}) == len(shards)


def _is_shard(split: str, value: Any) -> bool:
    """Return whether a value is the entry of a shard of ``split``."""
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("tar", "index")):
        return False
    tar, index = value["tar"], value["index"]
    return (
        SHARD_NAME.fullmatch(tar) is not None
        and tar.endswith(".tar")
        and tar.rpartition("-")[0] == split
        and index == tar.removesuffix(".tar") + ".json"
        and isinstance(value.get("sha256"), str)
        and all(_is_count(value.get(name)) for name in ("size_bytes", "samples", "frames"))
        and _is_number(value.get("seconds"))
    )


def is_valid_sidecar(value: Any, *, tar: str) -> bool:
    """Return whether a JSON value is a complete index, of our format and version, of the shard ``tar``."""
    if not has_shard_format(value) or value.get("version") != SHARD_VERSION or value.get("tar") != tar:
        return False
    samples, size = value.get("samples"), value.get("size_bytes")
    return (
        _is_count(size)
        and all(isinstance(value.get(name), str) for name in ("sha256", "inputs"))
        and isinstance(samples, list)
        and len(samples) > 0
        and _is_count(value.get("clips"), least=len(samples))
        and _are_left_out(value.get("left_out"))
        and all(_is_sample(sample, size) for sample in samples)
    )


def _is_sample(value: Any, size: int) -> bool:
    """Return whether a value is a sample in the index of a tar of ``size`` bytes."""
    if not isinstance(value, dict):
        return False
    return (
        all([isinstance(value.get(name), str) for name in ("key", "id", "text", "language", "signer")])
        and _KEY.fullmatch(value["key"]) is not None
        and _is_count(value.get("frames"), least=1, most=MAX_FRAMES)
        and _is_number(value.get("fps"))
        and value["fps"] > 0
        and _is_count(value.get("width"), least=1, most=MAX_PIXELS)
        and _is_count(value.get("height"), least=1, most=MAX_PIXELS)
        and value["width"] * value["height"] <= MAX_PIXELS
        and _are_members(value.get("members"), size)
    )


def _are_members(value: Any, size: int) -> bool:
    """Return whether all byte ranges lie inside a tar of ``size`` bytes and together do not exceed it."""
    if not isinstance(value, dict) or "txt" not in value or "json" not in value:
        return False
    total = 0
    for span in value.values():
        if type(span) is not list or len(span) != 2:
            return False
        offset, length = span
        if (
            type(offset) is not int
            or type(length) is not int
            or offset < 0
            or not 0 <= length <= size - offset
        ):
            return False
        total += length
    return total <= size


def _are_left_out(value: Any) -> bool:
    """Return whether a value is a list of left out samples."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and entry.keys() == {"id", "split", "reason"}
        and all(isinstance(text, str) for text in entry.values())
        for entry in value
    )


def _is_count(value: Any, *, least: int = 0, most: int = _MOST) -> bool:
    """Return whether a value is an integer in a range."""
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number from 0 to the largest accepted one."""
    return type(value) in (int, float) and 0 <= value <= _MOST and math.isfinite(value)
