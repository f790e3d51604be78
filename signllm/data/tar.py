"""One shard on disk: a tar written by ``webdataset.TarWriter`` under a temporary name, its index last.

The tar is read back once: for the byte offsets of its members, for its sha256, and as proof that it lies on
the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from signllm.atomic_files import atomic_write
from signllm.data.sample_encoding import EncodedSample
from signllm.data.shard_json import (
    SHARD_FORMAT,
    SHARD_NAME,
    SHARD_VERSION,
    has_shard_format,
    is_valid_sidecar,
    parse_json,
)
from signllm.data.source_samples import LeftOutSample
from signllm.errors import UsageError
from signllm.storage import wait_for_storage

MANIFEST = "manifest.json"
_PART_NAME = re.compile(r"\.(\w+-\d{6,}\.(tar|json)|manifest\.json)\.part")


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Hold a folder for one writer; the lock goes with the process, however that ends.

    Raises:
        UsageError: another process writes there.
    """
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another signllm shard writes into this folder", where=out, remedy="wait for it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Return a shard's index if it is whole, one of ours, and its tar has the size it says; else None.

    Raises:
        StorageError: the storage stayed away, which says nothing about the shard.
    """
    try:
        sidecar = parse_json(wait_for_storage(path.read_bytes, path))
        size_bytes = wait_for_storage(path.with_suffix(".tar").stat, path).st_size
    except (OSError, ValueError):
        return None
    whole = (
        is_valid_sidecar(sidecar, tar=path.with_suffix(".tar").name) and sidecar["size_bytes"] == size_bytes
    )
    return sidecar if whole else None


def remove_stale_shards(out: Path, kept: set[str]) -> None:
    """Remove our shards that are no longer wanted and what interrupted runs left; no other file."""
    names = sorted(path.name for path in out.iterdir())
    for name in names:
        if _PART_NAME.fullmatch(name):
            (out / name).unlink(missing_ok=True)
        elif (
            SHARD_NAME.fullmatch(name)
            and name.endswith(".json")
            and name not in kept
            and _is_shard_json(out / name)
        ):
            (out / name).unlink(missing_ok=True)
            (out / name).with_suffix(".tar").unlink(missing_ok=True)


def _is_shard_json(path: Path) -> bool:
    try:
        return has_shard_format(parse_json(path.read_bytes()))
    except (OSError, ValueError):
        return False


class ShardFile:
    """A shard being written; left without :meth:`close`, nothing remains of it."""

    def __init__(self, out: Path, split: str, number: int) -> None:
        from webdataset.writer import TarWriter

        self.path = out / f"{split}-{number:06d}.tar"
        self.part = out / f".{self.path.name}.part"
        self.samples: list[dict[str, Any]] = []
        self.size_bytes = 0
        self._file = self.part.open("wb")
        self._writer = TarWriter(self._file, encoder=False, mtime=0)

    def __enter__(self) -> ShardFile:
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the temporary file unless :meth:`close` made a shard of it."""
        with contextlib.suppress(OSError, ValueError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self.part.unlink(missing_ok=True)

    def write(self, sample: EncodedSample) -> None:
        """Append a sample."""
        self._writer.write({"__key__": sample.key, **sample.members})
        self.samples.append({"key": sample.key, **sample.meta})
        self.size_bytes += sum(len(data) + 512 for data in sample.members.values())

    def close(
        self, *, inputs: str, source_count: int, left_out: Sequence[LeftOutSample]
    ) -> dict[str, Any] | None:
        """Finish the shard: tar in place, then its index; return its manifest entry, None without samples.

        Args:
            inputs: fingerprint of the clips and the configuration, by which a later run knows the shard
                again.
            source_count: number of source samples that the shard covers, including those left out.
            left_out: those left out.
        """
        if not self.samples:
            return None
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sidecar_path = self.path.with_suffix(".json")
        sidecar = {
            "format": SHARD_FORMAT,
            "version": SHARD_VERSION,
            "tar": self.path.name,
            "size_bytes": self.part.stat().st_size,
            "sha256": hash_file(self.part),
            "inputs": inputs,
            "clips": source_count,
            "left_out": [asdict(entry) for entry in left_out],
            "samples": self._with_members(),
        }
        sidecar_path.unlink(missing_ok=True)  # an older index must never stand beside the new tar
        self.part.replace(self.path)
        atomic_write(sidecar_path, json.dumps(sidecar, ensure_ascii=False).encode("utf-8"))
        return make_manifest_entry(sidecar)

    def _with_members(self) -> list[dict[str, Any]]:
        members = list_tar_members(self.part)
        return [sample | {"members": members[sample["key"]]} for sample in self.samples]


def list_tar_members(path: Path) -> dict[str, dict[str, list[int]]]:
    """Return key → extension → [byte offset, size] of a tar's members.

    Raises:
        tarfile.TarError: not a whole tar of plain files, each once, one behind the other.
        OSError, StorageError: it cannot be read.
    """
    return wait_for_storage(lambda: _list_tar_members_once(path), path)


def _list_tar_members_once(path: Path) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = {}
    end, size_bytes = 0, path.stat().st_size
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=cast(BinaryIO, _BoundedFile(file)), mode="r:") as tar,
        ):
            for member in tar:
                # tarfile believes sizes: a negative one leads it back to where it has been, for ever
                if not member.isreg() or member.size < 0 or member.offset_data < end:
                    raise tarfile.ReadError(f"{member.name[:100]!r} is no plain file behind the one before")
                end = member.offset_data + member.size
                if end > size_bytes:
                    raise tarfile.ReadError(f"{member.name[:100]!r} ends behind the tar")
                key, _, extension = member.name.partition(".")
                if extension in found.setdefault(key, {}):
                    raise tarfile.ReadError(f"{member.name[:100]!r} stands twice")
                found[key][extension] = [member.offset_data, member.size]
    except (ValueError, OverflowError, RecursionError) as error:  # tarfile's own on absurd headers
        raise tarfile.ReadError(f"damaged header: {error}") from None
    return found


class _BoundedFile:
    """A file whose reads stay within it: tarfile asks for as many bytes as a header declares."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size_bytes = file, os.fstat(file.fileno()).st_size
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        return self._file.read(max(0, min(size, self._size_bytes - self._file.tell())))


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, waiting for its storage."""

    def digest() -> str:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    return wait_for_storage(digest, path)


def make_manifest_entry(sidecar: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of a shard: names, sizes, checksum, counts."""
    tone_mapped = sum("tone_mapped_from" in sample for sample in sidecar["samples"])
    entry = {
        "tar": sidecar["tar"],
        "index": Path(sidecar["tar"]).with_suffix(".json").name,
        "size_bytes": sidecar["size_bytes"],
        "sha256": sidecar["sha256"],
        "samples": len(sidecar["samples"]),
        "frames": sum(sample["frames"] for sample in sidecar["samples"]),
        "seconds": round(sum(sample["frames"] / sample["fps"] for sample in sidecar["samples"]), 3),
    }
    return entry | ({"tone_mapped": tone_mapped} if tone_mapped else {})
