"""Shards as a table: every sample's text and description, and its bytes by one random read.

The index is the json beside each tar (design 4.3), so nothing scans a tar. A read opens the tar, takes one
span of bytes and closes it again: no handle survives a fork, a pickle or a moved file, and on a local disk
opening costs 10 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from signllm.data.plan import Dataset
from signllm.data.remote import is_address, join_address, read_bytes, read_file
from signllm.data.sample_table import SampleTable, ShardSample
from signllm.data.shard_json import (
    SHARD_VERSION,
    has_shard_format,
    is_valid_manifest,
    is_valid_sidecar,
    parse_json,
)
from signllm.data.split_names import find_split, standardize_splits
from signllm.data.tar import MANIFEST, read_sidecar
from signllm.errors import UsageError
from signllm.storage import StorageError


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset: its samples in the order of the shards.

    Args:
        name: ``train``, ``dev``, ``test``, ...
        tars: the shards: paths, or addresses (str).
        shard_sizes: samples in each shard.
        samples: all samples, shard by shard.
        mixture: shards and weight of each dataset of a mixture, in the order of ``tars``; () is one dataset.
        tar_bytes: size of each shard by its index; () is unknown.
    """

    name: str
    tars: tuple[Any, ...]
    shard_sizes: tuple[int, ...]
    samples: SampleTable = field(repr=False)
    mixture: tuple[tuple[int, float], ...] = ()
    tar_bytes: tuple[int, ...] = ()

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """What an epoch is mixed of."""
        ends = np.cumsum([shards for shards, _ in self.mixture]).tolist()
        return tuple(
            Dataset(shard_sizes=self.shard_sizes[end - shards : end], weight=weight)
            for end, (shards, weight) in zip(ends, self.mixture, strict=True)
        ) or (Dataset(shard_sizes=self.shard_sizes),)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def select_shard(self, shard: int) -> Split:
        """Return the samples of one shard as a split of its own."""
        first = sum(self.shard_sizes[:shard])
        samples = self.samples[first : first + self.shard_sizes[shard]]
        return Split(
            name=self.name,
            tars=(self.tars[shard],),
            shard_sizes=(len(samples),),
            tar_bytes=self.tar_bytes[shard : shard + 1],
            samples=SampleTable(replace(sample, shard=0) for sample in samples),
        )

    def read(self, index: int) -> dict[str, bytes]:
        """Return the members of a sample by extension: ``mp4`` (or ``0001.png`` ...), ``txt``, ``json``.

        Storage that is away is waited for.

        Raises:
            StorageError: the tar cannot be read: nothing is wrong with this sample.
            UsageError: the tar is shorter than its index says.
        """
        sample = self.samples[index]
        tar = self.tars[sample.shard]
        start = min(offset for offset, _ in sample.members.values())
        stop = max(offset + size for offset, size in sample.members.values())
        tar_bytes = self.tar_bytes[sample.shard] if self.tar_bytes else None
        try:
            span = read_bytes(tar, start, stop - start, exists=True, file_bytes=tar_bytes)
        except (OSError, UsageError) as error:
            raise StorageError(_describe_unreadable(tar, error)) from error
        if len(span) < stop - start:
            raise UsageError(
                f"the shard ends before sample {sample.id}",
                where=tar,
                remedy="`signllm shards verify` names the damage",
            )
        return {
            name: span[offset - start : offset - start + size]
            for name, (offset, size) in sample.members.items()
        }


def _describe_unreadable(tar: Path | str, error: OSError | UsageError) -> str:
    """Return the message for a shard that waiting does not help to read."""
    if isinstance(error, UsageError):
        return f"a shard cannot be read: {error}"
    reason = error.strerror or str(error)
    return (
        f"a shard cannot be read: {reason}\n  where:  {tar}\n"
        "  remedy: put the shard back or mend the rights, then give the same command again, which continues"
    )


class ShardIndex:
    """A folder of shards, as ``signllm shard`` wrote it.

    Args:
        root: the folder that holds ``manifest.json``, or its address (``http://``, ``s3://``, ...).

    Raises:
        UsageError: no such folder, not finished, another version, a shard missing or of another size than its
            index says.
    """

    def __init__(self, root: Path | str) -> None:
        self.root: Path | str = str(root).rstrip("/") if is_address(root) else Path(root)
        self.manifest = self._read_manifest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; ``val`` of older shards is ``dev``."""
        return tuple(self.manifest["splits"])

    def checksums(self, name: str) -> tuple[str, ...]:
        """Return the sha256 of each shard of a split."""
        return tuple(entry["sha256"] for entry in self.manifest["splits"][name]["shards"])

    def split(self, name: str) -> Split:
        """Return one split with all its samples; ``val`` or ``validation`` is ``dev``.

        Raises:
            UsageError: no such split, or a shard of it is missing or not whole.
        """
        split = find_split(name, self.splits)
        if split is None:
            raise UsageError(
                f"no split {name!r}", where=self.root, remedy=f"one of: {', '.join(self.splits)}"
            )
        entries = self.manifest["splits"][split]["shards"]
        sizes: list[int] = []

        def samples() -> Iterator[ShardSample]:
            for shard, entry in enumerate(entries):
                described = self._sidecar(entry)["samples"]
                sizes.append(len(described))
                yield from (_make_shard_sample(fields, shard) for fields in described)

        table = SampleTable(samples())
        return Split(
            name=split,
            tars=tuple(join_address(self.root, entry["tar"]) for entry in entries),
            shard_sizes=tuple(sizes),
            samples=table,
            tar_bytes=tuple(entry["size_bytes"] for entry in entries),
        )

    def _read_manifest(self) -> dict[str, Any]:
        path = join_address(self.root, MANIFEST)
        try:
            manifest = parse_json(read_file(path))
        except FileNotFoundError:
            raise UsageError(
                f"no finished shards: there is no {MANIFEST}",
                where=self.root,
                remedy="signllm shard FORMAT SRC OUT writes it last; run it again: finished shards are kept",
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"unreadable manifest: {error}", where=path, remedy="run signllm shard again"
            ) from None
        if not has_shard_format(manifest):
            raise UsageError("not a manifest of signllm shards", where=path, remedy="run signllm shard")
        if manifest.get("version") != SHARD_VERSION:
            raise UsageError(
                f"shards of version {manifest.get('version')}, this signllm reads {SHARD_VERSION}",
                where=path,
                remedy="run signllm shard again into a new folder",
            )
        if not is_valid_manifest(manifest):
            raise UsageError("a damaged manifest", where=path, remedy="run signllm shard again")
        manifest["splits"] = _standardize_names(manifest["splits"])
        return manifest

    def _sidecar(self, entry: dict[str, Any]) -> dict[str, Any]:
        sidecar = _read_sidecar(join_address(self.root, entry["index"]))
        if sidecar is None or sidecar["sha256"] != entry["sha256"]:
            raise UsageError(
                "a shard is missing, not whole, or not the one of the manifest",
                where=join_address(self.root, entry["tar"]),
                remedy="run signllm shard again: whole shards are kept, this one is made anew",
            )
        return sidecar


def _standardize_names(splits: dict[str, Any]) -> dict[str, Any]:
    """Return the splits of shards that may be older than our names, whose ``val`` is ``dev`` now."""
    names = standardize_splits(splits)
    renamed: dict[str, Any] = {}
    for name, entry in splits.items():
        renamed[name if names[name] in renamed else names[name]] = entry
    return renamed


def _read_sidecar(path: Path | str) -> dict[str, Any] | None:
    """Return a shard's index; of an address the tar's size is not asked for, a read would tell."""
    if isinstance(path, Path):
        return read_sidecar(path)
    try:
        sidecar = parse_json(read_file(path))
    except (FileNotFoundError, ValueError):
        return None
    return (
        sidecar
        if is_valid_sidecar(sidecar, tar=path.rpartition("/")[2].removesuffix("json") + "tar")
        else None
    )


def _make_shard_sample(fields: dict[str, Any], shard: int) -> ShardSample:
    named = ("key", "id", "text", "language", "signer", "frames", "fps", "width", "height")
    members = {extension: (offset, size) for extension, (offset, size) in fields["members"].items()}
    return ShardSample(**{name: fields[name] for name in named}, shard=shard, members=members)
