"""Sharding one dataset by many jobs: each job encodes a slice of the samples, then a merge writes the shards.

The end of a shard depends on the bytes of all samples before it, so slices cannot determine the final shards.
Slice ``i/n`` is written as separate shards into ``OUT/slices/i-of-n``. The merge reads the encoded samples in
the order of the dataset and writes the same bytes as one run without slices. It encodes nothing, and needs
the disk space of the shards a second time until it is finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from signllm.data.shards.index import ShardIndex
from signllm.data.shards.remote import read_file
from signllm.data.shards.sample_encoding import EncodeConfig, EncodedSample
from signllm.data.shards.tar import MANIFEST
from signllm.data.shards.writing import (
    ShardConfig,
    drop_duplicates,
    prepare_annotations,
    recorded_options,
    write_shards,
)
from signllm.data.source_samples import Annotations, LeftOutSample, SourceSample, safe_key
from signllm.errors import UsageError

_FOLDER, _DONE = "slices", ".slices.done"


@dataclass(frozen=True)
class Slice:
    """Slice ``number`` of ``count``; numbers start at 1."""

    number: int
    count: int

    def __str__(self) -> str:
        """Return the value of ``--slice`` for this slice."""
        return f"{self.number}/{self.count}"


def parse_slice(text: str) -> Slice:
    """Return the slice of a text ``i/n``.

    Raises:
        UsageError: the text does not consist of two numbers with 1 <= i <= n.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(
            f"slice = {text!r} is not valid", remedy="give i/n with 1 <= i <= n, for example --slice 3/8"
        )
    return Slice(int(number), int(count))


def write_slice(annotations: Annotations, out: Path, part: Slice, config: ShardConfig) -> dict[str, Any]:
    """Write the shards of one slice below ``out``; return its manifest.

    ``max_bad`` allows each slice as many left out samples as the complete dataset; the merge applies the
    limit to all slices together. A slice may be empty, if there are more slices than samples or none of its
    samples can be used.

    Raises:
        UsageError: as :func:`~signllm.data.shards.writing.write_shards`.
    """
    selected = _select_slice(annotations, part, config)
    return write_shards(
        selected, _slice_folder(out, part), _slice_config(annotations, config), may_be_empty=True
    )


def unfinished_slices(
    annotations: Annotations, out: Path, count: int, config: ShardConfig
) -> tuple[Slice, ...]:
    """Return which of ``count`` slices a run of many jobs has still to write; none after the merge either.

    Options are compared with those of the manifests. A sample that changed since goes unnoticed here: the
    merge brings its slice up to date.

    Raises:
        UsageError: as :func:`~signllm.data.shards.writing.prepare_annotations`.
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
    """Write the final shards from finished slices, remove the slices, and return the manifest.

    A slice whose inputs have changed is updated first.

    Args:
        annotations: annotations of the complete dataset.
        out: folder of the shards.
        count: number of slices.
        config: how the shards are made.

    Raises:
        UsageError: a slice is unfinished, or as :func:`~signllm.data.shards.writing.write_shards`.
    """
    shutil.rmtree(out / _DONE, ignore_errors=True)
    if (out / MANIFEST).is_file() and not (out / _FOLDER).exists():
        return write_shards(annotations, out, config)  # the slices were merged before; all shards are kept
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
    (out / _FOLDER).rename(out / _DONE)  # so that an interrupted removal leaves no incomplete set of slices
    shutil.rmtree(out / _DONE)
    return manifest


def _slice_folder(out: Path, part: Slice) -> Path:
    """Return the folder of a slice."""
    return out / _FOLDER / f"{part.number}-of-{part.count}"


def _slice_config(annotations: Annotations, config: ShardConfig) -> ShardConfig:
    """Return the configuration for writing one slice."""
    total = len(annotations.samples) + len(annotations.left_out)
    # The splits are already made, and the limit of left out samples is that of the complete dataset.
    return replace(config, max_bad=str(config.bad_allowed(total)), split_by="dataset")


def _select_slice(annotations: Annotations, part: Slice, config: ShardConfig) -> Annotations:
    """Return the annotations of a slice: consecutive samples, which often share a recording."""
    samples, _ = drop_duplicates(prepare_annotations(annotations, config).samples)
    first, last = (len(samples) * number // part.count for number in (part.number - 1, part.number))
    return Annotations(samples=tuple(samples[first:last]))


class _SliceSamples:
    """Replaces the encoding of samples during a merge: it yields the samples that the slices have encoded.

    Args:
        folders: folders of the slices.
    """

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
        self, sources: Sequence[SourceSample], config: EncodeConfig, workers: int
    ) -> Generator[EncodedSample | LeftOutSample]:
        """Yield the encoded sample of each source sample, or the reason why it was left out."""
        for source in sources:
            place = self._places.get((source.split, safe_key(source.id)))
            if place is None:
                yield self._left_out[source.split, source.id]
                continue
            split, number = place
            members = split.read(number)
            meta = json.loads(members["json"]) | {"text": members["txt"].decode()}
            yield EncodedSample(key=split.samples[number].key, members=members, meta=meta)
