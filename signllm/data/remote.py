"""Bytes of a shard, from a file or from any address: ``http(s)://`` by range requests, others by ``fsspec``.

HTTP needs nothing but the standard library (fsspec's needs aiohttp). Storage that is away is waited for
(:mod:`signllm.storage`); a span comes whole or not at all. A server that ignores ranges is read from the
beginning, as far as the span reaches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from signllm.data.tar import MANIFEST
from signllm.errors import UsageError
from signllm.storage import StorageError, is_transient, wait_for_storage

T = TypeVar("T")

TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_CHUNK_BYTES, _FETCHED_BYTES = 1 << 20, 1 << 26
_REFUSED_BYTES = 2048
_read_before: set[str] = set()
"""Addresses that this process has read."""


class IncompleteResponseError(ConnectionError):
    """An answer that is not the one asked for, or only a part of it: another request may be answered."""


def is_address(path: Path | str) -> bool:
    """Tell an address (``https://...``) from a path."""
    return isinstance(path, str) and re.match(r"[A-Za-z][\w+.-]*://", path) is not None


def join_address(root: Path | str, name: str) -> Path | str:
    """Return a file of a folder."""
    return root / name if isinstance(root, Path) else f"{root}/{name}"


def read_file(path: Path | str) -> bytes:
    """Return all bytes of a file, waiting for its storage.

    Raises:
        FileNotFoundError: there is none.
        OSError, UsageError: it cannot be read.
        StorageError: its storage stayed away.
    """
    if isinstance(path, Path):
        return wait_for_storage(path.read_bytes, path)
    return _fetch_with_waits(path, lambda: _fetch(path, 0, None, None), exists=False)


def read_bytes(
    path: Path | str, start: int, size: int, *, exists: bool = False, file_bytes: int | None = None
) -> bytes:
    """Return ``size`` bytes from ``start`` on, waiting for the storage; fewer only if the file ends before.

    Args:
        path: of the file, or its address.
        start: first byte.
        size: in bytes.
        exists: the file was there when the dataset was opened; where it is absent now, it is waited for.
            A server that has the manifest and not this file, and never had it, is not waited for.
        file_bytes: size of the whole file, where it is known: one of another size at an address is refused.

    Raises:
        FileNotFoundError: there is none.
        OSError, UsageError: it cannot be read, or has changed; the message names the file.
        StorageError: its storage stayed away.
    """
    if isinstance(path, Path):
        return wait_for_storage(lambda: _read_local(path, start, size), path, exists=exists)
    return _fetch_with_waits(path, lambda: _fetch(path, start, size, file_bytes), exists=exists)


def _read_local(path: Path, start: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        parts, left = [], size
        while left > 0 and (data := file.read(left)):  # one call may give less, after a signal for instance
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


def download(address: str, into: Path) -> None:
    """Copy a file from an address to the disk, a span at a time.

    Raises:
        FileNotFoundError: there is none.
        OSError, UsageError: it cannot be read, or not be written.
        StorageError: its storage stayed away.
    """
    with into.open("wb") as copy:
        while data := read_bytes(address, copy.tell(), _FETCHED_BYTES):
            copy.write(data)
            if len(data) < _FETCHED_BYTES:
                break


def _fetch_with_waits(address: str, fetch: Callable[[], bytes], *, exists: bool) -> bytes:
    """Fetch from an address, waiting for its storage; say what is wrong where waiting does not help."""

    def attempt() -> bytes:
        try:
            data = fetch()
        except FileNotFoundError as error:
            if exists and (address in _read_before or not _has_manifest(address)):
                raise IncompleteResponseError(str(error)) from error
            raise
        _read_before.add(address)
        return data

    try:
        return wait_for_storage(attempt, address)
    except (FileNotFoundError, StorageError, UsageError):
        raise
    except HTTPError as error:
        raise UsageError(
            f"the server refuses: {error}",
            where=address,
            remedy="check the address and the rights; where a password, a token or a signed address has "
            "expired, renew it and give the same command again",
        ) from None
    except (URLError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"the server cannot be reached: {reason}", where=address, remedy="check the address"
        ) from None


def _has_manifest(address: str) -> bool:
    """Say whether the folder of a shard answers; one whose manifest is absent too is away as a whole."""
    try:
        return bool(_fetch(f"{address.rpartition('/')[0]}/{MANIFEST}", 0, 1, None))
    except Exception:
        return False


def _fetch(address: str, start: int, size: int | None, file_bytes: int | None) -> bytes:
    if address.startswith(("http://", "https://")):
        return _fetch_http(address, start, size, file_bytes)
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            _check_unchanged(address, getattr(file, "size", None), file_bytes)
            file.seek(start)
            return file.read() if size is None else file.read(size)
    except (OSError, UsageError):
        raise
    except Exception as error:
        if is_transient(error):  # aiohttp and botocore have errors of every kind
            raise
        raise UsageError(
            f"cannot be opened: {type(error).__name__}: {error}",
            where=address,
            remedy="install what fsspec asks for; check the address and the rights",
        ) from None


def _fetch_http(address: str, start: int, size: int | None, file_bytes: int | None) -> bytes:
    ranged = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    try:
        with urlopen(Request(address, headers=ranged), timeout=TIMEOUT_S) as answer:
            if size is None or answer.status != 206:
                _check_unchanged(address, answer.length, file_bytes)
                _skip(answer, start)
                return answer.read() if size is None else _read_exactly(answer, size)
            content_range = answer.headers.get("Content-Range", "")
            parts = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
            if parts is None or int(parts[1]) != start or int(parts[2]) >= start + size:
                raise IncompleteResponseError(f"another range than asked for: {content_range}")
            total = None if parts[3] == "*" else int(parts[3])
            _check_unchanged(address, total, file_bytes)
            data: bytes = answer.read(size)
            if len(data) != int(parts[2]) - start + 1:
                raise IncompleteResponseError(f"{len(data)} bytes of the range {content_range}")
            if len(data) < size and (total is None or total > start + len(data)):
                raise IncompleteResponseError(f"a part of the range only: {content_range}")
            return data
    except HTTPError as error:
        if error.code in (404, 410):
            error.close()
            raise FileNotFoundError(f"{error}: {address}") from None
        if error.code == 416:
            error.close()
            return b""  # the file ends before
        error.msg += _read_explanation(error)
        error.close()
        raise


def _check_unchanged(address: str, size_bytes: int | None, file_bytes: int | None) -> None:
    """Refuse a file of another size than its index says: what lies at a place in it is another sample.

    Raises:
        UsageError: it is one.
    """
    if size_bytes is not None and file_bytes is not None and size_bytes != file_bytes:
        raise UsageError(
            f"the file has changed: it has {size_bytes} bytes, and {file_bytes} by its index",
            where=address,
            remedy="put the file there that belongs to the index, or begin anew with the new dataset",
        )


def _read_explanation(error: HTTPError) -> str:
    """Return the code and the message by which S3 and its like explain a refusal."""
    try:
        text = error.read(_REFUSED_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError):
        return ""
    named = [re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    return "".join(f", {match[1]}" for match in named if match)


def _skip(answer: object, size: int) -> None:
    for begin in range(0, size, _CHUNK_BYTES):
        _read_exactly(answer, min(_CHUNK_BYTES, size - begin))


def _read_exactly(answer: object, size: int) -> bytes:
    """Read ``size`` bytes of an answer without ranges; fewer only where the answer was whole."""
    parts, left = [], size
    while left > 0:
        data: bytes = answer.read(min(left, _CHUNK_BYTES))  # type: ignore[attr-defined]
        if not data:
            break
        parts.append(data)
        left -= len(data)
    if left and getattr(answer, "length", None):
        raise IncompleteResponseError("the answer ends early")
    return b"".join(parts)
