"""Reading bytes from a file or an address: ``http(s)://`` by range requests, other addresses by ``fsspec``.

HTTP needs only the standard library (fsspec would need aiohttp). Reads wait for unavailable storage
(:mod:`signllm.storage`) and never return a part of a byte range. From a server that ignores ranges, the file
is read from its start to the end of the range.
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
"""Seconds without data after which a connection counts as lost."""
_CHUNK_BYTES, _FETCHED_BYTES = 1 << 20, 1 << 26
_EXPLANATION_BYTES = 2048
_addresses_read: set[str] = set()
"""Addresses that this process has read successfully."""


class IncompleteResponseError(ConnectionError):
    """A response that is incomplete or is not the requested one; repeating the request may help."""


def is_address(path: Path | str) -> bool:
    """Return whether a path is an address (``https://...``)."""
    return isinstance(path, str) and re.match(r"[A-Za-z][\w+.-]*://", path) is not None


def join_address(root: Path | str, name: str) -> Path | str:
    """Return the path or the address of a file in a folder."""
    return root / name if isinstance(root, Path) else f"{root}/{name}"


def read_file(path: Path | str) -> bytes:
    """Return all bytes of a file, waiting for its storage.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError, UsageError: it cannot be read.
        StorageError: its storage stayed unavailable.
    """
    if isinstance(path, Path):
        return wait_for_storage(path.read_bytes, path)
    return _fetch_with_waits(path, lambda: _fetch(path, 0, None, None), exists=False)


def read_bytes(
    path: Path | str, start: int, size: int, *, exists: bool = False, file_bytes: int | None = None
) -> bytes:
    """Return ``size`` bytes from ``start`` on, waiting for the storage; fewer only if the file ends earlier.

    Args:
        path: path of the file, or its address.
        start: number of the first byte.
        size: number of bytes.
        exists: whether the file existed when the dataset was opened. Then the read waits if it is absent,
            unless the server has the manifest and this process has never read the file.
        file_bytes: size of the complete file if known; a file of another size at an address is refused.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError, UsageError: it cannot be read, or has changed; the message names the file.
        StorageError: its storage stayed unavailable.
    """
    if isinstance(path, Path):
        return wait_for_storage(lambda: _read_local(path, start, size), path, exists=exists)
    return _fetch_with_waits(path, lambda: _fetch(path, start, size, file_bytes), exists=exists)


def _read_local(path: Path, start: int, size: int) -> bytes:
    """Return ``size`` bytes of a local file, or fewer at its end."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        parts, left = [], size
        while left > 0 and (data := file.read(left)):  # a call may return less, for example after a signal
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


def download(address: str, into: Path) -> None:
    """Copy a file from an address to the disk, one byte range at a time.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError, UsageError: it cannot be read, or the copy cannot be written.
        StorageError: its storage stayed unavailable.
    """
    with into.open("wb") as copy:
        while data := read_bytes(address, copy.tell(), _FETCHED_BYTES):
            copy.write(data)
            if len(data) < _FETCHED_BYTES:
                break


def _fetch_with_waits(address: str, fetch: Callable[[], bytes], *, exists: bool) -> bytes:
    """Call ``fetch``, waiting for the storage; turn errors that waiting does not change into usage errors."""

    def attempt() -> bytes:
        try:
            data = fetch()
        except FileNotFoundError as error:
            if exists and (address in _addresses_read or not _has_manifest(address)):
                raise IncompleteResponseError(str(error)) from error
            raise
        _addresses_read.add(address)
        return data

    try:
        return wait_for_storage(attempt, address)
    except (FileNotFoundError, StorageError, UsageError):
        raise
    except HTTPError as error:
        raise UsageError(
            f"the server refuses the request: {error}",
            where=address,
            remedy="check the address and the permissions; if a password, a token or a signed address has "
            "expired, renew it and give the same command again",
        ) from None
    except (URLError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"the server cannot be reached: {reason}", where=address, remedy="check the address"
        ) from None


def _has_manifest(address: str) -> bool:
    """Return whether the manifest next to a shard can be read; if not, the complete folder is unavailable."""
    try:
        return bool(_fetch(f"{address.rpartition('/')[0]}/{MANIFEST}", 0, 1, None))
    except Exception:
        return False


def _fetch(address: str, start: int, size: int | None, file_bytes: int | None) -> bytes:
    """Read a byte range, or with ``size`` None a complete file, from an address, without waiting."""
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
        if is_transient(error):  # the errors of aiohttp and botocore have no common base class
            raise
        raise UsageError(
            f"the file cannot be opened: {type(error).__name__}: {error}",
            where=address,
            remedy="install the packages that fsspec requires; check the address and the permissions",
        ) from None


def _fetch_http(address: str, start: int, size: int | None, file_bytes: int | None) -> bytes:
    """Read a byte range, or with ``size`` None a complete file, over HTTP."""
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
                raise IncompleteResponseError(
                    f"the server sent another range than requested: {content_range}"
                )
            total = None if parts[3] == "*" else int(parts[3])
            _check_unchanged(address, total, file_bytes)
            data: bytes = answer.read(size)
            if len(data) != int(parts[2]) - start + 1:
                raise IncompleteResponseError(f"only {len(data)} bytes of the range {content_range} arrived")
            if len(data) < size and (total is None or total > start + len(data)):
                raise IncompleteResponseError(f"the server sent only a part of the range: {content_range}")
            return data
    except HTTPError as error:
        if error.code in (404, 410):
            error.close()
            raise FileNotFoundError(f"{error}: {address}") from None
        if error.code == 416:
            error.close()
            return b""  # the file ends before the range
        error.msg += _read_explanation(error)
        error.close()
        raise


def _check_unchanged(address: str, size_bytes: int | None, file_bytes: int | None) -> None:
    """Check that a file has the size that its index states, because otherwise its byte offsets are wrong.

    Raises:
        UsageError: the sizes differ.
    """
    if size_bytes is not None and file_bytes is not None and size_bytes != file_bytes:
        raise UsageError(
            f"the file has changed: it has {size_bytes} bytes, but {file_bytes} according to its index",
            where=address,
            remedy="restore the file that belongs to the index, or start a new run with the new dataset",
        )


def _read_explanation(error: HTTPError) -> str:
    """Return the code and the message with which S3 and compatible object stores explain a refusal."""
    try:
        text = error.read(_EXPLANATION_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError):
        return ""
    matches = [re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    return "".join(f", {match[1]}" for match in matches if match)


def _skip(answer: object, size: int) -> None:
    """Read and discard the first bytes of a response."""
    for begin in range(0, size, _CHUNK_BYTES):
        _read_exactly(answer, min(_CHUNK_BYTES, size - begin))


def _read_exactly(answer: object, size: int) -> bytes:
    """Read ``size`` bytes of a response without ranges; fewer only at the end of a complete response."""
    parts, left = [], size
    while left > 0:
        data: bytes = answer.read(min(left, _CHUNK_BYTES))  # type: ignore[attr-defined]
        if not data:
            break
        parts.append(data)
        left -= len(data)
    if left and getattr(answer, "length", None):
        raise IncompleteResponseError("the response ends early")
    return b"".join(parts)
