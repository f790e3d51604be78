"""One dataset sharded by many jobs: each encodes a slice of the clips, a merge numbers the shards.

Where a shard ends depends on the bytes of every clip before it, so slices cannot number their shards
themselves. Slice ``i/n`` is written as shards of its own into ``OUT/slices/i-of-n``; the merge reads the
encoded samples back in the dataset's order and writes the very bytes that one run without slices writes. It
copies and encodes nothing, and needs the room of the shards a second time until it is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from signllm.data.index import ShardIndex
from signllm.data.remote import read_file
from signllm.data.sample_encoding import EncodeConfig, EncodedSample
from signllm.data.shards import (
    ShardConfig,
    drop_duplicates,
    prepare_annotations,
    recorded_options,
    write_shards,
)
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, safe_key
from signllm.data.tar import MANIFEST
from signllm.errors import UsageError

_FOLDER, _DONE = "slices", ".slices.done"


@dataclass(frozen=True)
class Slice:
    """Slice ``number`` of ``count``; numbers begin at 1."""

    number: int
    count: int

    def __str__(self) -> str:
        """Return what ``--slice`` takes."""
        return f"{self.number}/{self.count}"


def parse_slice(text: str) -> Slice:
    """Return the slice that ``i/n`` names.

    Raises:
        UsageError: not two numbers with 1 <= i <= n.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"slice = {text!r}", remedy="i/n with 1 <= i <= n, e.g. --slice 3/8")
    return Slice(int(number), int(count))


def write_slice(annotations: Annotations, out: Path, part: Slice, config: ShardConfig) -> dict[str, Any]:
    """Write the shards of one slice below ``out``; return its manifest.

    The budget of ``max_bad`` is that of the whole dataset; the merge holds all slices to it together. A slice
    may be empty: where more slices than clips were asked for, or where no clip of it can be used.

    Raises:
        UsageError: as :func:`~signllm.data.shards.write_shards`.
    """
    clips, within = _select_slice(annotations, part, config), _slice_config(annotations, config)
    return write_shards(clips, _slice_folder(out, part), within, may_be_empty=True)


def unfinished_slices(
    annotations: Annotations, out: Path, count: int, config: ShardConfig
) -> tuple[Slice, ...]:
    """Return which of ``count`` slices a run of many jobs has still to write; none after the merge either.

    Options are compared with those of the manifests. A clip that changed since goes unnoticed here: the merge
    brings its slice up to date.

    Raises:
        UsageError: as :func:`~signllm.data.shards.prepare_annotations`.
    """
    prepare_annotations(annotations, config)
    if not (out / _FOLDER).exists() and _is_made(out, config):
        return ()
    within = _slice_config(annotations, config)
    return tuple(part for part in _make_slices(count) if not _is_made(_slice_folder(out, part), within))


def _is_made(folder: Path, config: ShardConfig) -> bool:
    try:
        made = json.loads(read_file(folder / MANIFEST))["made"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(made == json.loads(json.dumps(recorded_options(config))))


def _make_slices(count: int) -> list[Slice]:
    return [Slice(number, count) for number in range(1, count + 1)]


def merge_slices(annotations: Annotations, out: Path, count: int, config: ShardConfig) -> dict[str, Any]:
    """Write the shards of ``out`` from its finished slices, remove the slices, return the manifest.

    A slice whose inputs changed since is brought up to date first.

    Raises:
        UsageError: a slice is not finished, or as :func:`~signllm.data.shards.write_shards`.
    """
    shutil.rmtree(out / _DONE, ignore_errors=True)
    if (out / MANIFEST).is_file() and not (out / _FOLDER).exists():
        return write_shards(annotations, out, config)  # merged already: everything is kept
    parts = _make_slices(count)
    missing = [part for part in parts if not (_slice_folder(out, part) / MANIFEST).is_file()]
    if missing:
        named = ", ".join(map(str, missing[:10]))
        raise UsageError(
            f"{len(missing)} of {count} slices are not finished: {named}",
            where=out / _FOLDER,
            remedy="run the same command with --slice for each of these, then --merge again; "
            "after `signllm launch`, its logs say why, and the same launch again does what is missing",
        )
    for part in parts:
        write_slice(annotations, out, part, config)
    encoded = _SliceSamples([_slice_folder(out, part) for part in parts])
    manifest = write_shards(annotations, out, config, encode=encoded)
    (out / _FOLDER).rename(out / _DONE)  # killed from here on, the next merge finds all or nothing
    shutil.rmtree(out / _DONE)
    return manifest


def _slice_folder(out: Path, part: Slice) -> Path:
    return out / _FOLDER / f"{part.number}-of-{part.count}"


def _slice_config(annotations: Annotations, config: ShardConfig) -> ShardConfig:
    total = len(annotations.samples) + len(annotations.left_out)
    # a slice is already split, and its samples lie in shards that nobody keeps
    return replace(config, max_bad=str(config.bad_allowed(total)), split_by="dataset")


def _select_slice(annotations: Annotations, part: Slice, config: ShardConfig) -> Annotations:
    """Return the clips of a slice: neighbours, which often share a recording."""
    clips, _ = drop_duplicates(prepare_annotations(annotations, config).samples)
    first, last = (len(clips) * number // part.count for number in (part.number - 1, part.number))
    return Annotations(samples=tuple(clips[first:last]))


class _SliceSamples:
    """The samples of slices, and what they left out: in place of encoding."""

    def __init__(self, folders: Sequence[Path]) -> None:
        indexes = [ShardIndex(folder) for folder in folders]
        self._places = {
            (name, sample.key): (split, number)
            for index in indexes
            for name in index.splits
            for split in [index.split(name)]
            for number, sample in enumerate(split.samples)
        }
        self._left_out = {
            (entry["split"], entry["id"]): LeftOutSample(**entry)
            for index in indexes
            for entry in index.manifest["left_out"]
        }

    def __call__(
        self, clips: Sequence[SourceSample], config: EncodeConfig, workers: int
    ) -> Generator[EncodedSample | LeftOutSample]:
        """Yield what a slice has made of each clip."""
        for clip in clips:
            place = self._places.get((clip.split, safe_key(clip.id)))
            if place is None:
                yield self._left_out[clip.split, clip.id]
                continue
            split, number = place
            members = split.read(number)
            meta = json.loads(members["json"]) | {"text": members["txt"].decode()}
            yield EncodedSample(key=split.samples[number].key, members=members, meta=meta)
