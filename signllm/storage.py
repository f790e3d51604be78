"""Waiting for storage: which errors are worth another try, for how long, and one message per outage.

Shards, videos and checkpoints lie on NFS, Lustre, FUSE and HTTP servers, all of which go away for seconds or
minutes. Every read of such a file goes through :func:`wait_for_storage`, which reads again, after growing
waits, until the storage is back or the limit has passed. The limit, and what is to happen meanwhile, are set
by :func:`storage_wait_policy` for everything that is read inside it. After the limit :class:`StorageError`
ends the run: storage that is away says nothing about a sample, so no sample is replaced or left out for it.

The waits are drawn from a random generator of this module alone; training's generators are not touched.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from signllm.errors import RunFailedError

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 600.0
"""Half an hour is when collectives of other ranks give up, a quarter when the watchdog does; this is less."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
ANNOUNCED_AFTER_S = 5.0
"""A shorter wait is a hiccup, which nobody needs to hear of."""
ANNOUNCED_EVERY_S = 60.0
"""A server that throttles makes every read wait; it is announced once in this time."""
CHECKED_EVERY_S = 0.5
TRANSIENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN EBUSY ECOMM ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR EIO ENETDOWN "
        "ENETRESET ENETUNREACH ENOBUFS ENOLINK ENOTCONN EPIPE EPROTO EREMOTEIO ESHUTDOWN ESTALE ETIMEDOUT"
    ).split()
    if hasattr(errno, name)
)
"""What a file system or a connection answers while its other end is away."""
ABSENT_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})
"""What an unmounted folder answers; transient only for a file that is known to exist."""
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
ABSENT_STATUSES = frozenset({404, 410})
TRANSIENT_CODES = frozenset(
    "InternalError RequestLimitExceeded RequestTimeout ServiceUnavailable SlowDown Throttling "
    "ThrottlingException".split()
)
"""Codes in the answers of S3 and its like."""
TRANSIENT_CLASSES = frozenset(
    "ChunkedEncodingError ClientConnectionError ClientPayloadError ConnectionClosedError ConnectTimeoutError "
    "EndpointConnectionError HTTPException IncompleteReadError ProtocolError ReadTimeoutError "
    "ResponseStreamingError SSLError".split()
)
"""Errors of http.client, ssl, aiohttp, botocore, requests and urllib3 that are no OSError with a number."""
PERMANENT_CLASSES = frozenset({"InvalidURL", "SSLCertVerificationError", "UnknownProtocol"})
log = logging.getLogger(__name__)
_random = random.Random()


class StorageError(RunFailedError):
    """Storage stayed away for longer than the limit, or refuses a file that it had; no sample is at fault."""


class DataLostError(StorageError):
    """The storage of the batches stayed away; raised by all ranks alike, before any of them takes a batch."""


@dataclass(frozen=True)
class StorageWaitPolicy:
    """How long reads wait for storage.

    Attributes:
        timeout_s: seconds that one read waits; 0 does not wait.
        on_wait: called at least twice a second while a read waits; what it raises ends the wait.
    """

    timeout_s: float = DEFAULT_TIMEOUT_S
    on_wait: Callable[[], None] = lambda: None


_patience: ContextVar[StorageWaitPolicy] = ContextVar("patience")


@contextmanager
def storage_wait_policy(
    timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Set how reads of this thread wait inside the block; None keeps what was set before."""
    token = set_storage_wait_policy(timeout_s, on_wait)
    try:
        yield
    finally:
        _patience.reset(token)


def set_storage_wait_policy(
    timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
) -> Token[StorageWaitPolicy]:
    """Set how reads of this thread wait from now on; :func:`storage_wait_policy` does so for a block."""
    before = _patience.get(StorageWaitPolicy())
    return _patience.set(
        StorageWaitPolicy(before.timeout_s if timeout_s is None else timeout_s, on_wait or before.on_wait)
    )


def storage_timeout_s() -> float:
    """Return how many seconds a read of this thread waits for storage."""
    return _patience.get(StorageWaitPolicy()).timeout_s


def wait_for_storage(read: Callable[[], T], where: Path | str, *, exists: bool = False) -> T:
    """Return what ``read`` returns; while storage is away, wait and call it again.

    Args:
        read: reads a file, and may do so several times.
        where: what is read, for messages.
        exists: the file was there before, so that it can only be absent because its storage is.

    Raises:
        StorageError: storage was away for longer than the limit.
        Exception: what ``read`` raises and another try would not change.
    """
    outage: _Outage | None = None
    try:
        while True:
            try:
                result = read()
            except Exception as error:
                if not is_transient(error, exists=exists):
                    raise
                outage = outage or _Outage(where, _patience.get(StorageWaitPolicy()))
                outage.wait(error)
                continue
            if outage is not None:
                outage.end()
            return result
    finally:
        _announcer.release_when_due()


class WaitingFile:
    """A local file whose reads wait for its storage: what a library reads that knows no patience.

    FFmpeg takes a failed read for the end of the file or for damage. A file whose handle is stale is opened
    anew, at the same place.

    Args:
        path: of the file, which must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._file: BinaryIO | None = None
        self._place = 0
        self._size_bytes = self._on_file(lambda file: os.fstat(file.fileno()).st_size)

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes; fewer only at the end."""

        def read_here(file: BinaryIO) -> bytes:
            file.seek(self._place)
            return file.read(size)

        data = self._on_file(read_here)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size_bytes}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        """Return the present place."""
        return self._place

    def close(self) -> None:
        """Close the file; another read opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _on_file(self, work: Callable[[BinaryIO], T]) -> T:
        def attempt() -> T:
            if self._file is None:
                self._file = self.path.open("rb")
            try:
                return work(self._file)
            except OSError:
                self.close()
                raise

        return wait_for_storage(attempt, self.path, exists=True)


def is_transient(error: BaseException, *, exists: bool = False) -> bool:
    """Say whether the same read may succeed later.

    Args:
        error: what it raised.
        exists: the file was there before.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = getattr(error, "reason", None)
    if names & PERMANENT_CLASSES:
        return False
    if "URLError" in names and isinstance(reason, BaseException):
        return is_transient(reason, exists=exists)
    status = _status(error)
    if status is not None:
        return status in TRANSIENT_STATUSES or (exists and status in ABSENT_STATUSES)
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN or exists
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS or (exists and error.errno in ABSENT_ERRNOS)
    if isinstance(error, FileNotFoundError):
        return exists
    if isinstance(error, TimeoutError | ConnectionError) or names & TRANSIENT_CLASSES:
        return True
    return _code(error) in TRANSIENT_CODES


def _answer(error: BaseException) -> Mapping[str, Any]:
    """Return what botocore keeps of a server's answer; nothing for other libraries."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, Mapping) else {}


def _code(error: BaseException) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of urllib, aiohttp, requests, gcsfs or botocore."""
    if _code(error) in TRANSIENT_CODES:
        return 503
    of_answer = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    holders = (error, getattr(error, "response", None))
    values = [getattr(holder, name, None) for holder in holders for name in ("code", "status", "status_code")]
    return next((value for value in (of_answer, *values) if type(value) is int and value >= 100), None)


def requested_delay_s(error: BaseException) -> float:
    """Return the seconds after which a server asks to be called again (``Retry-After``); 0 if it does not.

    A date counts from the server's own clock, if the answer tells it.
    """
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    headers = headers or _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    named = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    text = named.get("retry-after", "")
    with suppress(ValueError):
        return min(max(0.0, float(text)), 1e9)
    return max(0.0, (_instant_s(text) or 0.0) - (_instant_s(named.get("date", "")) or time.time()))


def _instant_s(date: str) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


class _Outage:
    """One read that waits: when it began, how long it may last, and whether it was announced.

    Args:
        where: what is read.
        allowed: the limit, and what happens meanwhile.
    """

    def __init__(self, where: Path | str, allowed: StorageWaitPolicy) -> None:
        self.where, self.allowed = where, allowed
        self.began_s = time.monotonic()
        self.delay_s = FIRST_DELAY_S
        self.announced = False

    def wait(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            StorageError: the limit has passed.
        """
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".replace("\n", " ")
        left_s = self.began_s + self.allowed.timeout_s - time.monotonic()
        if left_s <= 0:
            raise StorageError(
                f"storage did not answer within {self.allowed.timeout_s:g} s, the last answer was {reason}\n"
                f"  where:  {self.where}\n"
                "  remedy: when it is back, give the same command again, which continues; "
                "--data.storage-timeout-s (of shard: --storage-timeout-s) sets how long to wait"
            ) from error
        # the random part keeps the readers of a job from asking all at once when the storage is back
        delay_s = max(self.delay_s, requested_delay_s(error)) * (1 + 0.25 * _random.random())
        self.delay_s = min(1.5 * self.delay_s, LONGEST_DELAY_S)
        until_s = time.monotonic() + min(delay_s, left_s)
        while (rest_s := until_s - time.monotonic()) > 0:
            self.allowed.on_wait()
            due_s = time.monotonic() - self.began_s >= ANNOUNCED_AFTER_S
            if due_s and not self.announced and _announcer.acquire():
                self.announced = True
                log.warning("%s", self._announcement(reason))
            time.sleep(min(rest_s, CHECKED_EVERY_S))
        self.allowed.on_wait()

    def _announcement(self, reason: str) -> str:
        began_s = time.time() - (time.monotonic() - self.began_s)
        began, ends = (
            time.strftime("%H:%M:%S", time.localtime(instant_s))
            for instant_s in (began_s, began_s + self.allowed.timeout_s)
        )
        return (
            f"waiting for storage on {socket.gethostname()}: {self.where}: {reason}; away since {began}, "
            f"the run ends if it is not back by {ends}"
        )

    def end(self) -> None:
        """Report that the storage is back, if its absence was reported."""
        waited_s = time.monotonic() - self.began_s
        if self.announced:
            log.warning("storage is back after %.0f s: %s", waited_s, self.where)
        else:
            log.info("storage answered after %.1f s: %s", waited_s, self.where)


class _Announcer:
    """Lets one process of a job on this machine speak of an outage, where all its readers wait.

    A name that one process at a time can bind is the lock (an abstract socket of Linux): it leaves no file
    behind and goes with the process, however that ends. It is kept for a while after the message, which
    bounds how often one is written. Where there are no such names, every process speaks.
    """

    def __init__(self) -> None:
        self._held: tuple[int, float, socket.socket] | None = None

    def acquire(self) -> bool:
        """Say whether this process may write a message now."""
        self.release_when_due()
        if self._held is not None:
            return False
        names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
        job = next((os.environ[name] for name in names if os.environ.get(name)), str(os.getpgrp()))
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0signllm-storage-{os.getuid()}-{job}"[:100])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                lock.close()
                return False
        self._held = os.getpid(), time.monotonic(), lock
        return True

    def release_when_due(self) -> None:
        """Let others speak, some time after this process did; a forked process never spoke itself."""
        if self._held is None:
            return
        process, since_s, lock = self._held
        if process != os.getpid() or time.monotonic() - since_s > ANNOUNCED_EVERY_S:
            lock.close()
            self._held = None


_announcer = _Announcer()
