"""Shards as a table: every sample's text and description, and its bytes by one random read.

The index is the json beside each tar (design 4.3), so nothing scans a tar. A read opens the tar, takes one
span of bytes and closes it again: no handle survives a fork, a pickle or a moved file, and on a local disk
opening costs 10 microseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signllm.data.plan import Dataset
from signllm.data.tar import MANIFEST, SHARD_FORMAT, SHARD_VERSION, read_sidecar
from signllm.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSample:
    """One sample of a split.

    Args:
        key: WebDataset key, a harmless form of ``id``.
        id: the dataset's own name.
        text: the reference sentence.
        language: the spoken language, in English.
        signer: name of the signer, "" if unknown.
        frames: number of frames.
        fps: frames per second.
        width: pixels.
        height: pixels.
        shard: place of its tar in :attr:`Split.tars`.
        members: extension → (byte offset, size) in that tar.
    """

    key: str
    id: str
    text: str
    language: str
    signer: str
    frames: int
    fps: float
    width: int
    height: int
    shard: int
    members: dict[str, tuple[int, int]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a dataset: its samples in the order of the shards.

    Args:
        name: ``train``, ``dev``, ``test``, ...
        tars: the shards.
        shard_sizes: samples in each shard.
        samples: all samples.
    """

    name: str
    tars: tuple[Path, ...]
    shard_sizes: tuple[int, ...]
    samples: tuple[ShardSample, ...] = field(repr=False)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """What an epoch is mixed of."""
        return (Dataset(shard_sizes=self.shard_sizes),)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def read(self, index: int) -> dict[str, bytes]:
        """Return the members of a sample by extension: ``mp4`` (or ``0001.png`` ...), ``txt``, ``json``.

        Raises:
            OSError: the tar cannot be read.
            UsageError: the tar is shorter than its index says.
        """
        sample = self.samples[index]
        start = min(offset for offset, _ in sample.members.values())
        stop = max(offset + size for offset, size in sample.members.values())
        with self.tars[sample.shard].open("rb", buffering=0) as tar:
            tar.seek(start)
            span = tar.read(stop - start)
        if len(span) < stop - start:
            raise UsageError(
                f"the shard ends before sample {sample.id}",
                where=self.tars[sample.shard],
                remedy="`signllm shards verify` names the damage",
            )
        return {
            name: span[offset - start : offset - start + size]
            for name, (offset, size) in sample.members.items()
        }


class ShardIndex:
    """A folder of shards, as ``signllm shard`` wrote it.

    Args:
        root: the folder that holds ``manifest.json``.

    Raises:
        UsageError: no such folder, not finished, another version, a shard missing or of another size than its
            index says.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.manifest = self._read_manifest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest["splits"])

    def split(self, name: str) -> Split:
        """Return one split with all its samples.

        Raises:
            UsageError: no such split, or a shard of it is missing or not whole.
        """
        if name not in self.manifest["splits"]:
            raise UsageError(
                f"no split {name!r}", where=self.root, remedy=f"one of: {', '.join(self.splits)}"
            )
        entries = self.manifest["splits"][name]["shards"]
        sidecars = [self._sidecar(entry) for entry in entries]
        return Split(
            name=name,
            tars=tuple(self.root / entry["tar"] for entry in entries),
            shard_sizes=tuple(len(sidecar["samples"]) for sidecar in sidecars),
            samples=tuple(
                _sample(fields, shard)
                for shard, sidecar in enumerate(sidecars)
                for fields in sidecar["samples"]
            ),
        )

    def _read_manifest(self) -> dict[str, Any]:
        path = self.root / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
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
        if not isinstance(manifest, dict) or manifest.get("format") != SHARD_FORMAT:
            raise UsageError("not a manifest of signllm shards", where=path, remedy="run signllm shard")
        if manifest.get("version") != SHARD_VERSION:
            raise UsageError(
                f"shards of version {manifest.get('version')}, this signllm reads {SHARD_VERSION}",
                where=path,
                remedy="run signllm shard again into a new folder",
            )
        return manifest

    def _sidecar(self, entry: dict[str, Any]) -> dict[str, Any]:
        sidecar = read_sidecar(self.root / entry["index"])
        if sidecar is None or sidecar["sha256"] != entry["sha256"]:
            raise UsageError(
                "a shard is missing, not whole, or not the one of the manifest",
                where=self.root / entry["tar"],
                remedy="run signllm shard again: whole shards are kept, this one is made anew",
            )
        return sidecar


def _sample(fields: dict[str, Any], shard: int) -> ShardSample:
    named = ("key", "id", "text", "language", "signer", "frames", "fps", "width", "height")
    members = {extension: (offset, size) for extension, (offset, size) in fields["members"].items()}
    return ShardSample(**{name: fields[name] for name in named}, shard=shard, members=members)
