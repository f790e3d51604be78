"""Waiting for unavailable storage: which errors are retried, for how long, and one message per outage.

Shards, videos and checkpoints lie on NFS, Lustre, FUSE and HTTP servers, all of which can become unavailable
for seconds or minutes. Every read of such a file goes through :func:`wait_for_storage`, which retries after
growing delays until the storage is available again or the limit has passed. :func:`storage_wait_policy` sets
the limit, and a function to call during waits, for all reads inside its block. After the limit
:class:`StorageError` ends the run. Unavailable storage says nothing about a sample, so no sample is replaced
or left out because of it.

The random part of the delays comes from a generator of this module, so the generators of training do not
change.
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
from typing import Any, BinaryIO, NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from signllm.errors import RunFailedError

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 600.0
"""Less than the 15 minutes of the watchdog and the 30 minutes after which collectives of other ranks fail."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
ANNOUNCED_AFTER_S = 5.0
"""Shorter waits are common and are not reported."""
ANNOUNCED_EVERY_S = 60.0
"""Shortest time between two messages; a server that limits the request rate makes every read wait."""
CHECKED_EVERY_S = 0.5
TRANSIENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN EBUSY ECOMM ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR EIO ENETDOWN "
        "ENETRESET ENETUNREACH ENOBUFS ENOLINK ENOTCONN EPIPE EPROTO EREMOTEIO ESHUTDOWN ESTALE ETIMEDOUT"
    ).split()
    if hasattr(errno, name)
)
"""Error numbers that a file system or a connection returns while its server is unavailable."""
ABSENT_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})
"""Error numbers of an unmounted folder; they count as transient only for a file that is known to exist."""
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
ABSENT_STATUSES = frozenset({404, 410})
TRANSIENT_CODES = frozenset(
    "InternalError RequestLimitExceeded RequestTimeout ServiceUnavailable SlowDown Throttling "
    "ThrottlingException".split()
)
"""Error codes in the responses of S3 and compatible object stores."""
TRANSIENT_CLASSES = frozenset(
    "ChunkedEncodingError ClientConnectionError ClientPayloadError ConnectionClosedError ConnectTimeoutError "
    "EndpointConnectionError HTTPException IncompleteReadError ProtocolError ReadTimeoutError "
    "ResponseStreamingError".split()
)
"""Exceptions of http.client, aiohttp, botocore, requests and urllib3 that carry no error number."""
PERMANENT_CLASSES = frozenset({"InvalidURL", "SSLCertVerificationError", "UnknownProtocol"})
log = logging.getLogger(__name__)
_random = random.Random()


class StorageError(RunFailedError):
    """Storage stayed unavailable for longer than the limit, or refuses a file that it had before.

    The error says nothing about the sample that was to be read.
    """


class DataLostError(StorageError):
    """The storage of the training data stayed unavailable for some rank.

    All ranks raise it at the same step, before any of them trains on the next batch.
    """


@dataclass(frozen=True)
class StorageWaitPolicy:
    """How long reads wait for unavailable storage.

    Attributes:
        timeout_s: longest wait of one read in seconds; 0 does not wait.
        on_wait: function that is called at least twice a second during a wait; an exception that it raises
            ends the wait.
    """

    timeout_s: float = DEFAULT_TIMEOUT_S
    on_wait: Callable[[], None] = lambda: None


_policy: ContextVar[StorageWaitPolicy] = ContextVar("storage_wait_policy")


@contextmanager
def storage_wait_policy(
    timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Set how the reads of this thread wait inside the block; None keeps the previous setting."""
    token = set_storage_wait_policy(timeout_s, on_wait)
    try:
        yield
    finally:
        _policy.reset(token)


def set_storage_wait_policy(
    timeout_s: float | None = None, on_wait: Callable[[], None] | None = None
) -> Token[StorageWaitPolicy]:
    """Set how the reads of this thread wait from now on; :func:`storage_wait_policy` does so for a block."""
    before = _policy.get(StorageWaitPolicy())
    return _policy.set(
        StorageWaitPolicy(before.timeout_s if timeout_s is None else timeout_s, on_wait or before.on_wait)
    )


def storage_timeout_s() -> float:
    """Return the longest time in seconds that a read of this thread waits for storage."""
    return _policy.get(StorageWaitPolicy()).timeout_s


def wait_for_storage(read: Callable[[], T], where: Path | str, *, exists: bool = False) -> T:
    """Call ``read`` and return its result; while the storage is unavailable, wait and call it again.

    Args:
        read: function that reads a file; it may be called several times.
        where: path or address of the file, for messages.
        exists: whether the file existed before; then it can be absent only because its storage is.

    Raises:
        StorageError: the storage was unavailable for longer than the limit.
        Exception: any exception of ``read`` that a retry would not change.
    """
    outage = _Outage(where, _policy.get(StorageWaitPolicy()))
    retrying = Retrying(
        retry=retry_if_exception(lambda error: is_transient(error, exists=exists)),
        wait=outage.choose_delay_s,
        stop=lambda attempts: outage.lasted_s() >= outage.policy.timeout_s,
        sleep=outage.wait,
        retry_error_callback=outage.fail,
    )
    try:
        result = retrying(read)
        outage.end()
        return result
    finally:
        _announcer.release_when_due()


class WaitingFile:
    """A local file for libraries that do not retry: each of its reads waits for unavailable storage.

    FFmpeg takes a failed read for the end of the file or for damage. A file whose handle has become stale is
    reopened at the same position.

    Args:
        path: path of the file, which must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._file: BinaryIO | None = None
        self._position = 0
        self._size_bytes = self._use_file(lambda file: os.fstat(file.fileno()).st_size)

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the file."""

        def read_at_position(file: BinaryIO) -> bytes:
            file.seek(self._position)
            return file.read(size)

        data = self._use_file(read_at_position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def close(self) -> None:
        """Close the file; a later read reopens it."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _use_file(self, use: Callable[[BinaryIO], T]) -> T:
        """Return what ``use`` returns for the open file, waiting for its storage."""

        def attempt() -> T:
            if self._file is None:
                self._file = self.path.open("rb")
            try:
                return use(self._file)
            except OSError:
                self.close()
                raise

        return wait_for_storage(attempt, self.path, exists=True)


def is_transient(error: BaseException, *, exists: bool = False) -> bool:
    """Return whether a read that raised ``error`` may succeed later.

    Args:
        error: exception that the read raised.
        exists: whether the file existed before.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & PERMANENT_CLASSES:
        return False
    status = _status(error)
    if status is not None:
        return status in TRANSIENT_STATUSES or (exists and status in ABSENT_STATUSES)
    cause = getattr(error, "os_error", error)  # aiohttp wraps the error of the socket
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN or exists
    if "SSLError" in names:
        return True  # its error number is one of OpenSSL
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS or (exists and error.errno in ABSENT_ERRNOS)
    if isinstance(error, FileNotFoundError):
        return exists
    if isinstance(error, TimeoutError | ConnectionError) or names & TRANSIENT_CLASSES:
        return True
    return _code(error) in TRANSIENT_CODES


def _response(error: BaseException) -> Mapping[str, Any]:
    """Return the server's response that botocore attaches to an error; empty for other libraries."""
    response = getattr(error, "response", None)
    return response if isinstance(response, Mapping) else {}


def _code(error: BaseException) -> str:
    """Return the error code of an S3 response, "" if there is none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, requests, gcsfs or botocore."""
    if _code(error) in TRANSIENT_CODES:
        return 503
    botocore_status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    objects = (error, getattr(error, "response", None))
    values = (getattr(source, name, None) for source in objects for name in ("status", "status_code", "code"))
    return next((value for value in values if type(value) is int and value >= 100), botocore_status)


def requested_delay_s(error: BaseException) -> float:
    """Return the delay in seconds that a server requests (``Retry-After``), 0 if it requests none.

    If the header is a date, the delay counts from the server's own clock where the response states it.
    """
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    headers = headers or _response(error).get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    values = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    text = values.get("retry-after", "")
    with suppress(ValueError):
        return min(max(0.0, float(text)), 1e9)
    return max(0.0, (_parse_date(text) or 0.0) - (_parse_date(values.get("date", "")) or time.time()))


def _parse_date(date: str) -> float | None:
    """Return the Unix time of an HTTP date, None if it is not a date."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


class _Outage:
    """The waits of one read: how long they may last together, and whether they were announced.

    The limit counts from the first failure, because an attempt that succeeds may also last for long.

    Args:
        where: path or address of the file.
        policy: longest wait, and the function to call during it.
    """

    def __init__(self, where: Path | str, policy: StorageWaitPolicy) -> None:
        self.where, self.policy = where, policy
        self.began_s: float | None = None
        self.error: Any = None
        self.announced = False

    def lasted_s(self) -> float:
        """Return the time in seconds since the first failed attempt, 0 if none has failed."""
        return 0.0 if self.began_s is None else time.monotonic() - self.began_s

    def choose_delay_s(self, attempts: RetryCallState) -> float:
        """Return the time in seconds until the next attempt: growing, at least what the server requests."""
        assert attempts.outcome is not None
        self.error = attempts.outcome.exception()
        self.began_s = time.monotonic() if self.began_s is None else self.began_s
        growing_s = wait_exponential(multiplier=FIRST_DELAY_S, exp_base=1.5, max=LONGEST_DELAY_S)(attempts)
        # The random part keeps the readers of a job from retrying all at the same moment.
        delay_s = max(growing_s, requested_delay_s(self.error)) * (1 + 0.25 * _random.random())
        return min(delay_s, self.policy.timeout_s - self.lasted_s())

    def _format_error(self) -> str:
        strerror: str | None = getattr(self.error, "strerror", None)
        return strerror or f"{type(self.error).__name__}: {self.error}".replace("\n", " ")

    def wait(self, delay_s: float) -> None:
        """Wait, call the policy's function meanwhile, and announce the outage if it is a long one."""
        until_s = time.monotonic() + delay_s
        while (rest_s := until_s - time.monotonic()) > 0:
            self.policy.on_wait()
            if self.lasted_s() >= ANNOUNCED_AFTER_S and not self.announced and _announcer.acquire():
                self.announced = True
                self._announce()
            time.sleep(min(rest_s, CHECKED_EVERY_S))
        self.policy.on_wait()

    def _announce(self) -> None:
        began_s = time.time() - self.lasted_s()
        instants_s = (began_s, began_s + self.policy.timeout_s)
        began, ends = (time.strftime("%H:%M:%S", time.localtime(instant_s)) for instant_s in instants_s)
        log.warning(
            f"waiting for storage on {socket.gethostname()}: {self.where}: {self._format_error()}; "
            f"unavailable since {began}, the run ends if it is not back by {ends}"
        )

    def fail(self, attempts: RetryCallState) -> NoReturn:
        """Raise the error that ends the run."""
        raise StorageError(
            f"storage did not answer within {self.policy.timeout_s:g} s, the last answer was "
            f"{self._format_error()}\n  where:  {self.where}\n"
            "  remedy: when the storage is available again, repeat the same command, which continues; "
            "--data.storage-timeout-s (of shard: --storage-timeout-s) sets the longest wait"
        ) from self.error

    def end(self) -> None:
        """Log that the storage is available again: as a warning if the outage was announced by one."""
        if self.announced:
            log.warning("storage is back after %.0f s: %s", self.lasted_s(), self.where)
        elif self.began_s is not None:
            log.info("storage answered after %.1f s: %s", self.lasted_s(), self.where)


class _Announcer:
    """Decides which one process of a job on this machine announces an outage that all readers wait for.

    The lock is an abstract Unix socket, whose name only one process at a time can bind. It leaves no file
    behind and is released when the process ends for any reason. The process keeps it for a while after the
    message, which limits how often a message is written. On systems without abstract sockets every process
    writes its own message.
    """

    def __init__(self) -> None:
        self._lock: tuple[int, float, socket.socket] | None = None

    def acquire(self) -> bool:
        """Return whether this process may write a message now."""
        self.release_when_due()
        if self._lock is not None:
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
        self._lock = os.getpid(), time.monotonic(), lock
        return True

    def release_when_due(self) -> None:
        """Release the lock some time after the last message, or if it was inherited through a fork."""
        if self._lock is None:
            return
        process, since_s, lock = self._lock
        if process != os.getpid() or time.monotonic() - since_s > ANNOUNCED_EVERY_S:
            lock.close()
            self._lock = None


_announcer = _Announcer()
