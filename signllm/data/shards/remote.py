"""Reading bytes from a file or an address, through the file systems of ``fsspec``.

Reads wait for unavailable storage (:mod:`signllm.storage`) and never return a part of a byte range.
``fsspec`` returns the body of any HTTP response, so each response is checked before its body is read.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from signllm.data.shards.tar import MANIFEST
from signllm.errors import UsageError
from signllm.storage import StorageError, wait_for_storage

if TYPE_CHECKING:
    from aiohttp import ClientResponse

TIMEOUT_S = 30.0
"""Seconds without data after which a connection counts as lost."""
_SKIPPED_BYTES, _FETCHED_BYTES = 1 << 20, 1 << 26
_EXPLANATION_BYTES = 2048
_addresses_read: set[str] = set()
"""Addresses that this process has read successfully."""


class IncompleteResponseError(ConnectionError):
    """A response that is incomplete or is not the requested one; repeating the request may help."""


class RangesIgnoredError(Exception):
    """The server answered a request for a byte range with the complete file."""


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
    return _fetch_with_waits(path, lambda: _fetch(path), exists=False)


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
        return _read_up_to(file, size)


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """Return the next ``size`` bytes of a file, or fewer at its end."""
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
    except ImportError as error:
        is_http = address.startswith(("http://", "https://"))
        raise UsageError(
            f"a package is not installed that reads this address: {error}",
            where=address,
            remedy="pip install 'signllm[remote]'" if is_http else "install the package",
        ) from None
    except Exception as error:  # the errors of aiohttp and botocore have no common base class
        raise UsageError(
            f"the address cannot be read: {_describe_error(error)}",
            where=address,
            remedy="check the address and the permissions; if a password, a token or a signed address has "
            "expired, renew it and give the same command again",
        ) from None


def _describe_error(error: Exception) -> str:
    """Return what a server or a library reports, with the HTTP status where there is one."""
    redirections = getattr(error, "history", None)
    status = redirections[-1].status if redirections else getattr(error, "status", None)
    if status is None:
        return f"{type(error).__name__}: {error}"
    return f"HTTP status {status}, {getattr(error, 'message', '') or type(error).__name__}"


def _has_manifest(address: str) -> bool:
    """Return whether the manifest next to a shard can be read; if not, the complete folder is unavailable."""
    try:
        return bool(_fetch(f"{address.rpartition('/')[0]}/{MANIFEST}", 0, 1))
    except Exception:
        return False


def _fetch(address: str, start: int = 0, size: int | None = None, file_bytes: int | None = None) -> bytes:
    """Read a byte range, or with ``size`` None a complete file, from an address, without waiting."""
    from fsspec.core import url_to_fs

    is_http = address.startswith(("http://", "https://"))
    stop = None if size is None else start + size
    check = partial(_check_response, start=start, stop=stop, file_bytes=file_bytes)
    files, path = url_to_fs(address, **(_http_options(check) if is_http else {}))
    if size is None or stop is None:
        return bytes(files.cat_file(path))
    try:
        if not is_http:  # over HTTP, the response to the range request states the size
            total = files.info(path)["size"]
            _check_unchanged(address, total, file_bytes)
            if total is not None and start >= total:
                return b""
        data = bytes(files.cat_file(path, start, stop))
    except EOFError:
        return b""
    except RangesIgnoredError:
        with files.open(path, block_size=0, size=stop) as stream:  # 0: one request and no buffer
            for begin in range(0, start, _SKIPPED_BYTES):
                _read_up_to(stream, min(_SKIPPED_BYTES, start - begin))
            data = _read_up_to(stream, size)
    if file_bytes is not None and len(data) < min(stop, file_bytes) - start:
        raise IncompleteResponseError(f"only {len(data)} of {size} bytes arrived")
    return data


def _http_options(check: Callable[[ClientResponse], Awaitable[None]]) -> dict[str, Any]:
    """Return options of fsspec's HTTP file system, which calls ``check`` for each response.

    Each read has a file system, and thereby connections, of its own: workers are forked, and must not share
    open connections with their parent.
    """
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    return {
        "skip_instance_cache": True,
        "headers": {"Accept-Encoding": "identity"},
        "client_kwargs": {"raise_for_status": check, "timeout": timeout, "trust_env": True},  # proxies
    }


async def _check_response(
    response: ClientResponse, *, start: int, stop: int | None, file_bytes: int | None
) -> None:
    """Check that a response is the requested one, before its body is read.

    Raises:
        EOFError: the file ends before the range.
        FileNotFoundError: the file does not exist.
        IncompleteResponseError: the response contains another range, or a part of the range.
        RangesIgnoredError: the response is the complete file.
        aiohttp.ClientResponseError: any other status.
        UsageError: the file has another size than its index states.
    """
    address = str(response.url)
    if response.status in (404, 410):
        raise FileNotFoundError(f"HTTP status {response.status}: {address}")
    if response.status == 416:
        raise EOFError
    if response.status >= 400:
        text = (await response.content.read(_EXPLANATION_BYTES)).decode("utf-8", "replace")
        # S3 and compatible object stores explain a refusal
        response.reason = ", ".join([response.reason or "", *re.findall(r"<(?:Code|Message)>([^<]+)<", text)])
        response.raise_for_status()
    if "Range" not in response.request_info.headers:
        _check_unchanged(address, response.content_length, file_bytes)
        return
    if response.status != 206:
        raise RangesIgnoredError
    content_range = response.headers.get("Content-Range", "")
    parts = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
    if parts is None or int(parts[1]) != start or stop is None or int(parts[2]) >= stop:
        raise IncompleteResponseError(f"the server sent another range than requested: {content_range}")
    total = None if parts[3] == "*" else int(parts[3])
    _check_unchanged(address, total, file_bytes)
    if int(parts[2]) + 1 < min(stop, total or stop):
        raise IncompleteResponseError(f"the server sent only a part of the range: {content_range}")


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
