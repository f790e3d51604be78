"""Mixtures of several datasets: ``--data A:2,B:1`` mixes the folders or addresses A and B by weight.

The weight of a dataset is the average number of times that an epoch uses each of its samples
(:mod:`signllm.data.loading.plan`); the default is 1. The name of the dataset is prefixed to each id, so that
equal ids of two datasets remain different samples. Every sample keeps its own language. The path of an
existing folder may contain commas and colons.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from signllm.data.shards.index import ShardIndex, Split
from signllm.data.shards.remote import is_address
from signllm.data.shards.sample_table import SampleTable, ShardSample
from signllm.data.split_names import find_split
from signllm.errors import UsageError
from signllm.validation import validated

_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")
_HOST_ONLY = re.compile(r"[A-Za-z][\w+.-]*://[^/]*")


class Mixture:
    """The datasets that ``--data`` names: usually one, or several with weights.

    The texts and properties of a split are read when it is first asked for, and kept.

    Args:
        parts: name, weight and index of each dataset.
        source: the value of ``--data``, for messages.
    """

    def __init__(self, parts: Sequence[tuple[str, float, ShardIndex]], *, source: str) -> None:
        self.parts, self.source = tuple(parts), source
        self._splits: dict[str, Split] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that any of the datasets has."""
        return tuple(dict.fromkeys(name for _, _, index in self.parts for name in index.splits))

    @property
    def labels(self) -> tuple[str, ...]:
        """Prefix of the ids of each dataset; () for a single dataset, whose ids have no prefix."""
        return tuple(label for label, _, _ in self.parts) if len(self.parts) > 1 else ()

    def checksums(self, name: str) -> tuple[str, ...]:
        """Return the sha256 of each shard of a split, of all datasets that have the split."""
        indexes = [index for _, _, index in self.parts if name in index.splits]
        return tuple(checksum for index in indexes for checksum in index.checksums(name))

    def records(self, name: str) -> list[DatasetRecord]:
        """Return the record of each dataset that has the split ``name``, in order."""
        return [_make_record(*part, name) for part in self.parts if name in part[2].splits]

    def split(self, name: str) -> Split:
        """Return one split that contains the split of this name of all datasets that have it.

        Raises:
            UsageError: no dataset has the split, or a shard is missing.
        """
        name = find_split(name, self.splits) or name
        if name not in self._splits:
            self._splits[name] = self._read_split(name)
        return self._splits[name]

    def _read_split(self, name: str) -> Split:
        parts = [part for part in self.parts if name in part[2].splits] or [self.parts[0]]
        opened = [(label, weight, index.split(name)) for label, weight, index in parts]
        if not self.labels:
            return opened[0][2]
        return Split(
            name=name,
            tars=tuple(tar for *_, split in opened for tar in split.tars),
            shard_sizes=tuple(size for *_, split in opened for size in split.shard_sizes),
            samples=SampleTable(_rename_samples([(label, split) for label, _, split in opened])),
            mixture=tuple((len(split.tars), weight) for _, weight, split in opened),
            tar_bytes=tuple(size for *_, split in opened for size in split.tar_bytes),
        )


def _rename_samples(splits: Sequence[tuple[str, Split]]) -> Iterator[ShardSample]:
    """Yield the samples of several splits with prefixed ids and the numbers of their shards."""
    first = 0
    for label, split in splits:
        for sample in split.samples:
            yield dataclasses.replace(sample, id=f"{label}/{sample.id}", shard=first + sample.shard)
        first += len(split.tars)


@validated
class DatasetRecord:
    """The properties of a dataset that determine the sample order, independent of its path.

    Args:
        name: name of the folder or address, for messages only.
        weight: weight in the mixture.
        samples: number of samples of the split.
        shards: number of shards of the split.
        sha256: sha256 of the checksums and sizes of the shards.
    """

    name: str
    weight: float
    samples: int
    shards: int
    sha256: str


def list_dataset_differences(before: Sequence[DatasetRecord], after: Sequence[DatasetRecord]) -> list[str]:
    """Return the differences that change the sample order, as text; none if a list of records is empty."""
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
    """Return the record of a dataset for the split ``name``."""
    entries = index.manifest["splits"][name]["shards"]
    content = json.dumps([[entry["sha256"], entry["samples"]] for entry in entries])
    return DatasetRecord(
        name=label,
        weight=weight,
        samples=sum(entry["samples"] for entry in entries),
        shards=len(entries),
        sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


def _join_names(datasets: Sequence[DatasetRecord]) -> str:
    return ", ".join(dataset.name for dataset in datasets)


def _describe_record(dataset: DatasetRecord) -> str:
    """Return the size and the checksum of a dataset as text."""
    return f"{dataset.samples} samples in {dataset.shards} shards (sha256 {dataset.sha256[:8]})"


def open_mixture(shards: Path | str) -> Mixture:
    """Open the shards that ``--data`` names: one folder or address, or several with weights.

    Raises:
        UsageError: a folder does not exist or is named twice, or a weight is not above 0.
    """
    datasets = parse_mixture(shards)
    names = [name for name, _ in datasets]
    labels = [_folder_name(name) for name in names]
    if len(set(names)) < len(names):
        raise UsageError(
            f"a dataset is named twice: {shards}", where="--data", remedy="give it a larger weight instead"
        )
    if len(set(labels)) < len(labels):
        labels = names
    weights = [weight for _, weight in datasets] if len(datasets) > 1 else [1.0]
    parts = zip(labels, weights, map(ShardIndex, names), strict=True)
    return Mixture(list(parts), source=str(shards))


def make_absolute(shards: Path | str) -> str:
    """Return a value of ``--data`` with absolute paths, which means the same in every working directory."""
    datasets = parse_mixture(shards)
    paths = [name if is_address(name) else str(Path(name).resolve()) for name, _ in datasets]
    if len(datasets) == 1:
        return paths[0]
    return ",".join(f"{path}:{weight:g}" for path, (_, weight) in zip(paths, datasets, strict=True))


def _folder_name(name: str) -> str:
    """Return the last part of a path or an address."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def parse_mixture(shards: Path | str) -> list[tuple[str, float]]:
    """Return the folder or address, and the weight, of each dataset in a value of ``--data``."""
    text = str(shards)
    if isinstance(shards, Path) or Path(text).exists():
        return [(text, 1.0)]
    datasets = []
    for part in filter(None, text.split(",")):
        match = _WEIGHTED.fullmatch(part)
        if match is None or (is_address(part) and _HOST_ONLY.fullmatch(part)):
            datasets.append((part, 1.0))  # the number in http://host:8000 is a port, not a weight
        else:
            datasets.append((match[1], float(match[2])))
    if not datasets or any(weight <= 0 for _, weight in datasets):
        raise UsageError(
            f"a weight is not above 0: {text}", where="--data", remedy="write for example A:2,B:0.5"
        )
    return datasets
