"""Writing and reading one shard: a tar of ``webdataset.TarWriter``, and its index ("sidecar"), written last.

The tar is written under a temporary name and read back once, which gives the byte offsets of its members and
its sha256 and proves that it is on the disk.
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
from signllm.data.shards.sample_encoding import EncodedSample
from signllm.data.shards.shard_json import (
    SHARD_FORMAT,
    SHARD_NAME,
    SHARD_VERSION,
    has_shard_format,
    parse_sidecar,
)
from signllm.data.source_samples import LeftOutSample
from signllm.data.text_files import parse_json
from signllm.errors import UsageError
from signllm.storage import wait_for_storage

MANIFEST = "manifest.json"
_PART_NAME = re.compile(r"\.(\w+-\d{6,}\.(tar|json)|manifest\.json)\.part")


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock a folder for one writer; the lock is released when the process ends for any reason.

    Raises:
        UsageError: another process writes into the folder.
    """
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another signllm shard writes into this folder",
                where=out,
                remedy="wait until it has finished",
            ) from None
        except OSError:
            pass  # the file system has no locks
        yield
    finally:
        os.close(handle)


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Return the index of a shard, None if it is missing or invalid or its tar has another size.

    Raises:
        StorageError: the storage stayed unavailable, which says nothing about the shard.
    """
    try:
        data = wait_for_storage(path.read_bytes, path)
        size_bytes = wait_for_storage(path.with_suffix(".tar").stat, path).st_size
    except OSError:
        return None
    sidecar = parse_sidecar(data, tar=path.with_suffix(".tar").name)
    return sidecar if sidecar is not None and sidecar["size_bytes"] == size_bytes else None


def remove_stale_shards(out: Path, kept: set[str]) -> None:
    """Remove the shards that are not in ``kept``, and the unfinished files of interrupted runs.

    Files that ``signllm shard`` did not write stay.

    Args:
        out: folder of the shards.
        kept: names of the index files of the shards to keep.
    """
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
    """A shard that is being written; leaving the context without :meth:`close` removes it.

    Args:
        out: folder of the shards.
        split: name of the split.
        number: number of the shard in the split.
    """

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
        """Remove the temporary file unless :meth:`close` has renamed it."""
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
        """Finish the shard: rename the tar, then write its index.

        Args:
            inputs: fingerprint of the samples and the configuration, by which a later run recognises the
                shard.
            source_count: number of source samples that the shard covers, including those left out.
            left_out: samples that were left out.

        Returns:
            The entry of the shard in the manifest, None if the shard has no samples.
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
            "samples": self._add_members(),
        }
        sidecar_path.unlink(missing_ok=True)  # there must never be an older index next to the new tar
        self.part.replace(self.path)
        atomic_write(sidecar_path, json.dumps(sidecar, ensure_ascii=False).encode("utf-8"))
        return make_manifest_entry(sidecar)

    def _add_members(self) -> list[dict[str, Any]]:
        """Return the properties of the samples with the byte ranges of their members."""
        members = list_tar_members(self.part)
        return [sample | {"members": members[sample["key"]]} for sample in self.samples]


def list_tar_members(path: Path) -> dict[str, dict[str, list[int]]]:
    """Return [byte offset, size] of each member of a tar, by key and extension.

    Raises:
        tarfile.TarError: the tar is incomplete, or contains other members than consecutive, distinct plain
            files.
        OSError, StorageError: it cannot be read.
    """
    return wait_for_storage(lambda: _list_tar_members_once(path), path)


def _list_tar_members_once(path: Path) -> dict[str, dict[str, list[int]]]:
    members: dict[str, dict[str, list[int]]] = {}
    end, size_bytes = 0, path.stat().st_size
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=cast(BinaryIO, _BoundedFile(file)), mode="r:") as tar,
        ):
            for member in tar:
                # tarfile does not check sizes; a negative size would make it read the same members without
                # end.
                if not member.isreg() or member.size < 0 or member.offset_data < end:
                    raise tarfile.ReadError(
                        f"{member.name[:100]!r} is not a plain file after the previous one"
                    )
                end = member.offset_data + member.size
                if end > size_bytes:
                    raise tarfile.ReadError(f"{member.name[:100]!r} ends after the end of the tar")
                key, _, extension = member.name.partition(".")
                if extension in members.setdefault(key, {}):
                    raise tarfile.ReadError(f"{member.name[:100]!r} occurs twice")
                members[key][extension] = [member.offset_data, member.size]
    except (ValueError, OverflowError, RecursionError) as error:  # tarfile raises them for damaged headers
        raise tarfile.ReadError(f"a header is damaged: {error}") from None
    return members


class _BoundedFile:
    """A file that never reads more bytes than it has; tarfile requests as many as a header declares."""

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
    """Return the entry of a shard in the manifest: names, sizes, checksum and counts."""
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
