"""Several datasets as one: ``--data A:2,B:1`` mixes the folders or addresses A and B by weight.

A weight is how often an epoch uses each sample of that dataset, on average (:mod:`signllm.data.plan`);
without one it is 1. Ids get the dataset's name in front, so that equal ids of two datasets stay two samples;
every sample keeps its own language. A path that exists is taken as it is, commas and colons included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from signllm.data.index import ShardIndex, Split
from signllm.data.remote import is_address
from signllm.data.sample_table import SampleTable, ShardSample
from signllm.data.split_names import find_split
from signllm.errors import UsageError

_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")
_HOST_ONLY = re.compile(r"[A-Za-z][\w+.-]*://[^/]*")


class Mixture:
    """Folders of shards with weights, which opens as one :class:`~signllm.data.index.ShardIndex` does.

    Args:
        parts: name, weight and shards of each dataset.
    """

    def __init__(self, parts: Sequence[tuple[str, float, ShardIndex]]) -> None:
        self.parts = tuple(parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that any of them has."""
        return tuple(dict.fromkeys(name for _, _, index in self.parts for name in index.splits))

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands before the ids of each dataset."""
        return tuple(label for label, _, _ in self.parts)

    def checksums(self, name: str) -> tuple[str, ...]:
        """Return the sha256 of each shard of a split, of all datasets that have it."""
        having = [index for _, _, index in self.parts if name in index.splits]
        return tuple(checksum for index in having for checksum in index.checksums(name))

    def split(self, name: str) -> Split:
        """Return the split of all datasets that have it.

        Raises:
            UsageError: none has it, or a shard is missing.
        """
        name = find_split(name, self.splits) or name
        having = [part for part in self.parts if name in part[2].splits] or [self.parts[0]]
        opened = [(label, weight, index.split(name)) for label, weight, index in having]
        return Split(
            name=name,
            tars=tuple(tar for *_, split in opened for tar in split.tars),
            shard_sizes=tuple(size for *_, split in opened for size in split.shard_sizes),
            samples=SampleTable(_rename_samples([(label, split) for label, _, split in opened])),
            mixture=tuple((len(split.tars), weight) for _, weight, split in opened),
            tar_bytes=tuple(size for *_, split in opened for size in split.tar_bytes),
        )


def _rename_samples(splits: Sequence[tuple[str, Split]]) -> Iterator[ShardSample]:
    first = 0
    for label, split in splits:
        for sample in split.samples:
            yield dataclasses.replace(sample, id=f"{label}/{sample.id}", shard=first + sample.shard)
        first += len(split.tars)


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """What of a dataset decides the order of an epoch, wherever it lies and whatever its folder is called.

    Args:
        name: of the folder or address, for messages only.
        weight: in the mixture.
        samples: of the split.
        shards: of the split.
        sha256: of the shards' checksums and sizes.
    """

    name: str
    weight: float
    samples: int
    shards: int
    sha256: str


def read_dataset_records(shards: Path | str, name: str) -> list[DatasetRecord]:
    """Return the record of each dataset that has the split ``name``, in the order of the mixture.

    Raises:
        UsageError: as :func:`open_mixture`.
    """
    index = open_mixture(shards)
    parts = index.parts if isinstance(index, Mixture) else ((_folder_name(str(index.root)), 1.0, index),)
    return [_make_record(label, weight, part, name) for label, weight, part in parts if name in part.splits]


def list_dataset_differences(before: Sequence[DatasetRecord], after: Sequence[DatasetRecord]) -> list[str]:
    """List what makes another order of the data after than before; nothing if either side tells nothing."""
    if not before or not after:
        return []
    lines = []
    if len(before) != len(after):
        lines.append(f"datasets: {_join_names(before)} -> {_join_names(after)}")
    for old, new in zip(before, after, strict=False):
        if old.sha256 != new.sha256:
            lines.append(f"shards of {old.name}: {_describe_record(old)} -> {_describe_record(new)}")
        if old.weight != new.weight:
            lines.append(f"weight of {old.name}: {old.weight:g} -> {new.weight:g}")
    return lines


def _make_record(label: str, weight: float, index: ShardIndex, name: str) -> DatasetRecord:
    entries = index.manifest["splits"][name]["shards"]
    told = json.dumps([[entry["sha256"], entry["samples"]] for entry in entries])
    return DatasetRecord(
        name=label,
        weight=weight,
        samples=sum(entry["samples"] for entry in entries),
        shards=len(entries),
        sha256=hashlib.sha256(told.encode()).hexdigest(),
    )


def _join_names(datasets: Sequence[DatasetRecord]) -> str:
    return ", ".join(dataset.name for dataset in datasets)


def _describe_record(dataset: DatasetRecord) -> str:
    return f"{dataset.samples} samples in {dataset.shards} shards (sha256 {dataset.sha256[:8]})"


def open_mixture(shards: Path | str) -> ShardIndex | Mixture:
    """Open what ``--data`` names: one folder or address of shards, or several with weights.

    Raises:
        UsageError: one is not there, is named twice, or has no weight above 0.
    """
    named = parse_mixture(shards)
    if len(named) == 1:
        return ShardIndex(named[0][0])
    names = [name for name, _ in named]
    labels = [_folder_name(name) for name in names]
    if len(set(names)) < len(names):
        raise UsageError(f"a dataset is named twice: {shards}", where="--data", remedy="give it more weight")
    if len(set(labels)) < len(labels):
        labels = names
    return Mixture(
        [(label, weight, ShardIndex(name)) for label, (name, weight) in zip(labels, named, strict=True)]
    )


def make_absolute(shards: Path | str) -> str:
    """Return what ``--data`` names so that it means the same from any folder."""
    named = parse_mixture(shards)
    places = [name if is_address(name) else str(Path(name).resolve()) for name, _ in named]
    if len(named) == 1:
        return places[0]
    return ",".join(f"{place}:{weight:g}" for place, (_, weight) in zip(places, named, strict=True))


def _folder_name(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def parse_mixture(shards: Path | str) -> list[tuple[str, float]]:
    """Return the datasets that ``--data`` names, with their weights."""
    text = str(shards)
    if isinstance(shards, Path) or Path(text).exists():
        return [(text, 1.0)]
    named = []
    for part in filter(None, text.split(",")):
        found = _WEIGHTED.fullmatch(part)
        if found is None or (is_address(part) and _HOST_ONLY.fullmatch(part)):
            named.append((part, 1.0))  # http://host:8000 names a port
        else:
            named.append((found[1], float(found[2])))
    if not named or any(weight <= 0 for _, weight in named):
        raise UsageError(f"no weights above 0: {text}", where="--data", remedy="for example A:2,B:0.5")
    return named
