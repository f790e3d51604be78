"""The index of a folder of shards: the texts and properties of all samples, and their bytes by random access.

The index is the JSON file next to each tar, so no tar is scanned. A read opens the tar, reads one byte range
and closes it. No file handle therefore has to survive a fork, a pickle or a moved file, and on a local disk
opening costs only 10 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from signllm.data.shards.remote import is_address, join_address, read_bytes, read_file
from signllm.data.shards.sample_table import SampleTable, ShardSample
from signllm.data.shards.shard_json import SHARD_VERSION, has_shard_format, is_valid_manifest, parse_sidecar
from signllm.data.shards.tar import MANIFEST, read_sidecar
from signllm.data.split_names import find_split, standardize_splits
from signllm.data.text_files import parse_json
from signllm.data.weighted_dataset import WeightedDataset
from signllm.errors import UsageError
from signllm.storage import StorageError


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset: its samples in the order of the shards.

    Args:
        name: name of the split, such as ``train``, ``dev`` or ``test``.
        tars: paths of the shards, or their addresses (str).
        shard_sizes: number of samples of each shard.
        samples: all samples, shard by shard.
        mixture: number of shards and weight of each dataset of a mixture, in the order of ``tars``; () for a
            single dataset.
        tar_bytes: size of each shard in bytes according to its index; () if unknown.
    """

    name: str
    tars: tuple[Any, ...]
    shard_sizes: tuple[int, ...]
    samples: SampleTable = field(repr=False)
    mixture: tuple[tuple[int, float], ...] = ()
    tar_bytes: tuple[int, ...] = ()

    @property
    def datasets(self) -> tuple[WeightedDataset, ...]:
        """Datasets that an epoch is mixed from."""
        ends = np.cumsum([shards for shards, _ in self.mixture]).tolist()
        return tuple(
            WeightedDataset(shard_sizes=self.shard_sizes[end - shards : end], weight=weight)
            for end, (shards, weight) in zip(ends, self.mixture, strict=True)
        ) or (WeightedDataset(shard_sizes=self.shard_sizes),)

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

        The read waits for unavailable storage.

        Raises:
            StorageError: the tar cannot be read, which says nothing about the sample.
            UsageError: the tar is shorter than its index states.
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
                remedy="find the damage with `signllm shards verify`",
            )
        return {
            name: span[offset - start : offset - start + size]
            for name, (offset, size) in sample.members.items()
        }


def _describe_unreadable(tar: Path | str, error: OSError | UsageError) -> str:
    """Return the message for a shard that stays unreadable however long one waits."""
    if isinstance(error, UsageError):
        return f"a shard cannot be read: {error}"
    reason = error.strerror or str(error)
    return (
        f"a shard cannot be read: {reason}\n  where:  {tar}\n"
        "  remedy: restore the shard or its permissions, then repeat the same command, which continues"
    )


class ShardIndex:
    """A folder of shards that ``signllm shard`` wrote.

    Args:
        root: folder that contains ``manifest.json``, or its address (``http://``, ``s3://``, ...).

    Raises:
        UsageError: the folder does not exist, is unfinished, or has another version or a damaged manifest.
    """

    def __init__(self, root: Path | str) -> None:
        self.root: Path | str = str(root).rstrip("/") if is_address(root) else Path(root)
        self.manifest = self._read_manifest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; ``val`` of older shards is called ``dev``."""
        return tuple(self.manifest["splits"])

    def checksums(self, name: str) -> tuple[str, ...]:
        """Return the sha256 of each shard of a split."""
        return tuple(entry["sha256"] for entry in self.manifest["splits"][name]["shards"])

    def split(self, name: str) -> Split:
        """Return one split with all its samples; ``val`` and ``validation`` mean ``dev``.

        Raises:
            UsageError: there is no such split, or one of its shards is missing or incomplete.
        """
        split = find_split(name, self.splits)
        if split is None:
            raise UsageError(
                f"there is no split {name!r}",
                where=self.root,
                remedy=f"give one of: {', '.join(self.splits)}",
            )
        entries = self.manifest["splits"][split]["shards"]
        sizes: list[int] = []

        def samples() -> Iterator[ShardSample]:
            for shard, entry in enumerate(entries):
                described = self._load_sidecar(entry)["samples"]
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
        """Return the validated manifest with the standard names of the splits."""
        path = join_address(self.root, MANIFEST)
        try:
            manifest = parse_json(read_file(path))
        except FileNotFoundError:
            raise UsageError(
                f"there are no finished shards: {MANIFEST} is missing",
                where=self.root,
                remedy="run signllm shard FORMAT SRC OUT again; it keeps finished shards",
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the manifest cannot be read: {error}", where=path, remedy="run signllm shard again"
            ) from None
        if not has_shard_format(manifest):
            raise UsageError(
                "the file is not a manifest of signllm shards", where=path, remedy="run signllm shard"
            )
        if manifest.get("version") != SHARD_VERSION:
            raise UsageError(
                f"the shards have version {manifest.get('version')}, this signllm reads {SHARD_VERSION}",
                where=path,
                remedy="run signllm shard again into a new folder",
            )
        if not is_valid_manifest(manifest):
            raise UsageError("the manifest is damaged", where=path, remedy="run signllm shard again")
        manifest["splits"] = _standardize_names(manifest["splits"])
        return manifest

    def _load_sidecar(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the index of the shard of a manifest entry."""
        sidecar = _read_sidecar(join_address(self.root, entry["index"]))
        if sidecar is None or sidecar["sha256"] != entry["sha256"]:
            raise UsageError(
                "a shard is missing, incomplete, or not the one of the manifest",
                where=join_address(self.root, entry["tar"]),
                remedy="run signllm shard again, which keeps complete shards and writes this one again",
            )
        return sidecar


def _standardize_names(splits: dict[str, Any]) -> dict[str, Any]:
    """Return the splits of a manifest under their standard names; older shards use ``val`` for ``dev``."""
    names = standardize_splits(splits)
    renamed: dict[str, Any] = {}
    for name, entry in splits.items():
        renamed[name if names[name] in renamed else names[name]] = entry
    return renamed


def _read_sidecar(path: Path | str) -> dict[str, Any] | None:
    """Return the index of a shard, None if it is missing or invalid.

    The size of a tar at an address is not checked here, because reading from it checks the size.
    """
    if isinstance(path, Path):
        return read_sidecar(path)
    try:
        data = read_file(path)
    except FileNotFoundError:
        return None
    return parse_sidecar(data, tar=path.rpartition("/")[2].removesuffix("json") + "tar")


def _make_shard_sample(fields: dict[str, Any], shard: int) -> ShardSample:
    """Return a sample of the index as an object."""
    named = ("key", "id", "text", "language", "signer", "frames", "fps", "width", "height")
    members = {extension: (offset, size) for extension, (offset, size) in fields["members"].items()}
    return ShardSample(**{name: fields[name] for name in named}, shard=shard, members=members)
