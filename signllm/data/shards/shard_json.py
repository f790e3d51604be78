"""Validation of the JSON files next to the tars: manifests, and the index ("sidecar") of each shard.

The types below declare what ``signllm shard`` writes, and a file that differs from it is refused. Code that
gets a validated manifest or index can rely on names, types and ranges: names stay inside the folder, every
byte range lies inside its tar, and numbers are finite. No number in a file can cause a large allocation,
because the size of a shard bounds that of its samples.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from signllm.data.source_samples import KEY_LENGTH, is_safe_split
from signllm.data.video.frame_folder import MAX_PIXELS
from signllm.data.video.pictures import MAX_FRAMES

SHARD_FORMAT = "signllm-shards"
SHARD_VERSION = 1
SHARD_NAME = re.compile(r"\w+-\d{6,}\.(tar|json)")
_MOST = 1 << 53
"""Largest accepted number; no file is larger, and up to here float represents every integer exactly."""

_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Number = Annotated[float, Field(ge=0, le=_MOST)]
_Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_Key = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_][A-Za-z0-9_-]{{0,{KEY_LENGTH - 1}}}$")]
_ByteRange = Annotated[list[_Count], Field(min_length=2, max_length=2)]
"""Offset and length of a member in the tar, in bytes."""


class _LeftOut(TypedDict):
    """A sample that was left out."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    id: str
    split: str
    reason: str


class _Sample(TypedDict):
    """A sample in the index of a shard."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    key: _Key
    id: str
    text: str
    language: str
    signer: str
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    fps: Annotated[float, Field(gt=0, le=_MOST)]
    width: _Pixels
    height: _Pixels
    members: dict[str, _ByteRange]


class _Sidecar(TypedDict):
    """The index of a shard."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    format: Literal["signllm-shards"]
    version: Literal[1]
    tar: str
    size_bytes: _Count
    sha256: str
    inputs: str
    samples: Annotated[list[_Sample], Field(min_length=1)]
    clips: _Count
    left_out: list[_LeftOut]


class _Shard(TypedDict):
    """A shard in a manifest."""

    tar: str
    index: str
    sha256: str
    size_bytes: _Count
    samples: _Count
    frames: _Count
    seconds: _Number


class _Split(TypedDict):
    """A split in a manifest."""

    shards: Annotated[list[_Shard], Field(min_length=1)]


class _Manifest(TypedDict):
    """A manifest; that of a slice may have no splits."""

    splits: dict[str, _Split]
    made: dict[str, Any]
    clips_in_source: _Count
    left_out: list[_LeftOut]
    warnings: NotRequired[list[Any]]


def has_shard_format(value: Any) -> bool:
    """Return whether a JSON value is a manifest or an index of any version of our format."""
    return isinstance(value, dict) and value.get("format") == SHARD_FORMAT


def is_valid_manifest(value: dict[str, Any]) -> bool:
    """Return whether a manifest of our format has all fields and consistent names."""
    try:
        _validator(_Manifest).validate_python(value, strict=True)
    except ValidationError:
        return False
    return all(
        is_safe_split(name)
        and all(_is_named_after(name, shard) for shard in split["shards"])
        and len({shard["tar"] for shard in split["shards"]}) == len(split["shards"])
        for name, split in value["splits"].items()
    )


def parse_sidecar(data: bytes | str, *, tar: str) -> dict[str, Any] | None:
    """Return the index of the shard ``tar`` from its JSON, None if it is no complete index of this version.

    pydantic reads and checks the text in one pass, because a dataset may have millions of samples.
    """
    try:
        sidecar: dict[str, Any] = _validator(_Sidecar).validate_json(data, strict=True)
    except ValidationError:
        return None
    is_complete = sidecar["tar"] == tar and sidecar["clips"] >= len(sidecar["samples"])
    return sidecar if is_complete and all(_fits(sample, sidecar) for sample in sidecar["samples"]) else None


def _fits(sample: dict[str, Any], sidecar: dict[str, Any]) -> bool:
    """Return whether the frames are not too large, and all byte ranges lie inside the tar.

    Together the members are no larger than the tar, so an index cannot make a reader allocate more.
    """
    members, size_bytes = sample["members"], sidecar["size_bytes"]
    return (
        sample["width"] * sample["height"] <= MAX_PIXELS
        and "txt" in members
        and "json" in members
        and all(offset + length <= size_bytes for offset, length in members.values())
        and sum(length for _, length in members.values()) <= size_bytes
    )


@functools.cache
def _validator(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _is_named_after(split: str, shard: dict[str, Any]) -> bool:
    """Return whether the files of a shard have the names of a shard of ``split``."""
    tar = shard["tar"]
    return (
        SHARD_NAME.fullmatch(tar) is not None
        and tar.endswith(".tar")
        and tar.rpartition("-")[0] == split
        and shard["index"] == tar.removesuffix(".tar") + ".json"
    )
