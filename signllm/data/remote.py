"""Bytes of a shard, from a file or from any address: ``http(s)://`` by range requests, others by ``fsspec``.

HTTP needs nothing but the standard library (fsspec's needs aiohttp). What is worth another try (a dropped
connection, a short answer, 5xx) is tried again, each time after twice the wait; a span comes whole or not at
all. A server that ignores ranges is read from the beginning, as far as the span reaches.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from signllm.errors import UsageError

TRIES = 5
FIRST_WAIT_S = 0.5
TIMEOUT_S = 30.0
_CHUNK_BYTES, _FETCHED_BYTES = 1 << 20, 1 << 26
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}
_log = logging.getLogger(__name__)


def is_address(path: Path | str) -> bool:
    """Tell an address (``https://...``) from a path."""
    return isinstance(path, str) and re.match(r"[A-Za-z][\w+.-]*://", path) is not None


def beside(root: Path | str, name: str) -> Path | str:
    """Return a file of a folder."""
    return root / name if isinstance(root, Path) else f"{root}/{name}"


def read_file(path: Path | str) -> bytes:
    """Return all bytes of a file.

    Raises:
        FileNotFoundError: there is none.
        OSError, UsageError: it cannot be read.
    """
    return path.read_bytes() if isinstance(path, Path) else _patiently(path, lambda: _fetch(path, 0, None))


def read_span(path: Path | str, start: int, size: int) -> bytes:
    """Return ``size`` bytes from ``start`` on; fewer only if the file ends before.

    Raises:
        OSError, UsageError: it cannot be read; the message names the file.
    """
    if isinstance(path, Path):
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)
    return _patiently(path, lambda: _fetch(path, start, size))


def fetch(address: str, into: Path) -> None:
    """Copy a file from an address to the disk, a span at a time.

    Raises:
        FileNotFoundError: there is none.
        OSError, UsageError: it cannot be read, or not be written.
    """
    with into.open("wb") as copy:
        while data := read_span(address, copy.tell(), _FETCHED_BYTES):
            copy.write(data)
            if len(data) < _FETCHED_BYTES:
                break


def _patiently(address: str, fetch: Callable[[], bytes]) -> bytes:
    for attempt in range(TRIES):
        try:
            return fetch()
        except (OSError, HTTPException) as error:
            if isinstance(error, FileNotFoundError):
                raise
            if isinstance(error, HTTPError) and error.code not in _WORTH_ANOTHER_TRY:
                raise UsageError(
                    f"the server refuses: {error}", where=address, remedy="check the address and the rights"
                ) from None
            reason = f"{type(error).__name__}: {error}"
        if attempt + 1 < TRIES:
            _log.info("%s: %s; trying again", address, reason)
            time.sleep(FIRST_WAIT_S * 2**attempt)
    raise UsageError(
        f"{TRIES} tries to read failed, the last: {reason}", where=address, remedy="check the connection"
    )


def _fetch(address: str, start: int, size: int | None) -> bytes:
    if address.startswith(("http://", "https://")):
        return _fetch_http(address, start, size)
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            file.seek(start)
            return file.read() if size is None else file.read(size)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"cannot be opened: {error}", where=address, remedy="install what fsspec asks for"
        ) from None


def _fetch_http(address: str, start: int, size: int | None) -> bytes:
    ranged = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    try:
        with urlopen(Request(address, headers=ranged), timeout=TIMEOUT_S) as answer:
            if size is None or answer.status != 206:
                _skip(answer, start)
                return answer.read() if size is None else _read_exactly(answer, size)
            told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != start or int(told[2]) >= start + size:
                raise OSError(f"another range than asked for: {answer.headers.get('Content-Range')}")
            data = answer.read(size)
            if len(data) != int(told[2]) - start + 1:
                raise OSError(f"{len(data)} bytes of the range {told[0]}")
            if len(data) < size and (told[3] == "*" or int(told[3]) > start + len(data)):
                raise OSError(f"a part of the range only: {told[0]}")
            return data
    except HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(f"{error}: {address}") from None
        if error.code == 416:
            return b""  # the file ends before
        raise


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
        raise OSError("the answer ends early")
    return b"".join(parts)
