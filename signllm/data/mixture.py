"""Several datasets as one: ``--data A:2,B:1`` mixes the folders or addresses A and B by weight.

A weight is how often an epoch uses each sample of that dataset, on average (:mod:`signllm.data.plan`);
without one it is 1. Ids get the dataset's name in front, so that equal ids of two datasets stay two samples;
every sample keeps its own language. A path that exists is taken as it is, commas and colons included.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from signllm.data.index import ShardIndex, Split
from signllm.data.remote import is_address
from signllm.data.sample_table import SampleTable, ShardSample
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

    def checksums(self, name: str) -> tuple[str, ...]:
        """Return the sha256 of each shard of a split, of all datasets that have it."""
        having = [index for _, _, index in self.parts if name in index.splits]
        return tuple(checksum for index in having for checksum in index.checksums(name))

    def split(self, name: str) -> Split:
        """Return the split of all datasets that have it.

        Raises:
            UsageError: none has it, or a shard is missing.
        """
        having = [part for part in self.parts if name in part[2].splits] or [self.parts[0]]
        opened = [(label, weight, index.split(name)) for label, weight, index in having]
        return Split(
            name=name,
            tars=tuple(tar for *_, split in opened for tar in split.tars),
            shard_sizes=tuple(size for *_, split in opened for size in split.shard_sizes),
            samples=SampleTable(_renamed([(label, split) for label, _, split in opened])),
            mixture=tuple((len(split.tars), weight) for _, weight, split in opened),
        )


def _renamed(splits: Sequence[tuple[str, Split]]) -> Iterator[ShardSample]:
    first = 0
    for label, split in splits:
        for sample in split.samples:
            yield dataclasses.replace(sample, id=f"{label}/{sample.id}", shard=first + sample.shard)
        first += len(split.tars)


def open_mixture(shards: Path | str) -> ShardIndex | Mixture:
    """Open what ``--data`` names: one folder or address of shards, or several with weights.

    Raises:
        UsageError: one is not there, is named twice, or has no weight above 0.
    """
    named = parse_mixture(shards)
    if len(named) == 1:
        return ShardIndex(named[0][0])
    names = [name for name, _ in named]
    labels = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    if len(set(names)) < len(names):
        raise UsageError(f"a dataset is named twice: {shards}", where="--data", remedy="give it more weight")
    if len(set(labels)) < len(labels):
        labels = names
    return Mixture(
        [(label, weight, ShardIndex(name)) for label, (name, weight) in zip(labels, named, strict=True)]
    )


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
