"""Waiting for storage: what is worth another try, how long, and what a user hears of it."""

from __future__ import annotations

import errno
import http.client
import itertools
import logging
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientPayloadError,
    ClientResponseError,
    InvalidURL,
    ServerDisconnectedError,
    ServerTimeoutError,
    TooManyRedirects,
)
from multidict import CIMultiDict

from signllm import storage
from signllm.command import run_on_ranks
from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.errors import UsageError
from signllm.storage import (
    StorageError,
    is_transient,
    requested_delay_s,
    storage_wait_policy,
    wait_for_storage,
)
from tests.clock import Clock


def http_error(status: int, **headers: str) -> ClientResponseError:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return ClientResponseError(Mock(), (), status=status, message="words", headers=named)


class ClientError(Exception):
    """Return an error as botocore raises it."""

    def __init__(self, code: str, status: int | None = None, **headers: str) -> None:
        super().__init__(code)
        metadata = {"HTTPStatusCode": status} if status else {}
        self.response = {"Error": {"Code": code}, "ResponseMetadata": metadata | {"HTTPHeaders": headers}}


def os_error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), "/data/x.tar")


def without_address(error: Exception) -> str:
    """Return the representation of an error, equal in every process that runs these tests."""
    return re.sub(r"<Mock id='\d+'>", "...", repr(error))


@pytest.mark.parametrize(
    "error",
    [
        *map(os_error, ["ESTALE", "EIO", "ETIMEDOUT", "EAGAIN", "ECONNRESET", "EHOSTDOWN", "ENOTCONN"]),
        *map(os_error, ["ENETUNREACH", "EREMOTEIO", "ENOLINK", "EBUSY", "ECONNREFUSED"]),
        *map(http_error, [408, 425, 429, 500, 502, 503, 504]),
        ClientConnectorError(Mock(), ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        ClientConnectorDNSError(Mock(), socket.gaierror(socket.EAI_AGAIN, "Temporary failure")),
        ClientConnectorSSLError(Mock(), ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred")),
        ssl.SSLEOFError("EOF occurred"),
        ServerTimeoutError("30 s without data"),
        ClientPayloadError("half of the body"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half"),
        http.client.RemoteDisconnected("closed"),
        ClientError("SlowDown"),
        ClientError("InternalError", 500),
        ServerDisconnectedError(),
    ],
    ids=without_address,
)
def test_what_is_worth_another_try(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        *map(os_error, ["EACCES", "EPERM", "EISDIR", "ENOSPC"]),
        *map(http_error, [302, 400, 401, 403, 416]),
        ClientConnectorCertificateError(Mock(), ssl.SSLCertVerificationError(1, "self-signed certificate")),
        InvalidURL("port"),
        TooManyRedirects(Mock(), ()),
        ClientError("AccessDenied", 403),
        UsageError("no"),
        ValueError("no"),
    ],
    ids=without_address,
)
def test_what_another_try_would_not_change(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_transient(error, exists=True)


@pytest.mark.parametrize(
    "error",
    [
        os_error("ENOENT"),
        os_error("ENOTDIR"),
        http_error(404),
        FileNotFoundError("memory://x"),
        ClientConnectorDNSError(Mock(), socket.gaierror(socket.EAI_NONAME, "Name not known")),
    ],
    ids=without_address,
)
def test_what_is_absent_is_waited_for_only_where_it_was(error: Exception) -> None:
    assert not is_transient(error)
    assert is_transient(error, exists=True)


def test_the_delay_that_a_server_requests() -> None:
    assert requested_delay_s(http_error(429, Retry_After="15")) == 15
    assert requested_delay_s(http_error(429, Retry_After="-3")) == 0
    assert requested_delay_s(http_error(429, Retry_After="soon")) == 0
    assert requested_delay_s(http_error(503)) == 0
    assert requested_delay_s(ClientError("SlowDown", 503, **{"retry-after": "7"})) == 7
    now = time.time()
    date = http_error(503, Retry_After=formatdate(now + 40, usegmt=True))
    assert requested_delay_s(date) == pytest.approx(40, abs=2)
    skewed = http_error(
        503, Date=formatdate(now - 7200, usegmt=True), Retry_After=formatdate(now - 7190, usegmt=True)
    )
    assert requested_delay_s(skewed) == 10
    past = http_error(503, Retry_After=formatdate(now - 40, usegmt=True))
    assert requested_delay_s(past) == 0


class Away:
    """A read that fails until a given time of the clock."""

    def __init__(self, clock: Clock, seconds: float, error: Exception) -> None:
        self.clock, self.until_s, self.error, self.tries = clock, clock.now_s + seconds, error, 0

    def __call__(self) -> str:
        self.tries += 1
        if self.clock.now_s < self.until_s:
            raise self.error
        return "data"


def test_reads_are_retried_with_growing_delays(clock: Clock) -> None:
    began_s, read = clock.now_s, Away(clock, 300, os_error("ESTALE"))
    assert wait_for_storage(read, "x.tar") == "data"
    assert 300 <= clock.now_s - began_s < 340
    assert read.tries < 25


def test_a_server_gets_no_request_before_the_requested_delay(clock: Clock) -> None:
    began_s, read = clock.now_s, Away(clock, 15, http_error(429, Retry_After="15"))
    assert wait_for_storage(read, "x.tar") == "data"
    assert read.tries == 2
    assert 15 <= clock.now_s - began_s < 20


def test_after_the_limit_the_error_states_the_file_and_the_time(clock: Clock) -> None:
    began_s, read = clock.now_s, Away(clock, 1e9, http_error(503, Retry_After="3600"))
    with storage_wait_policy(120), pytest.raises(StorageError) as caught:
        wait_for_storage(read, "http://host/x.tar")
    assert clock.now_s - began_s == pytest.approx(120, abs=1)
    for fact in ("120 s", "503", "http://host/x.tar", "storage-timeout-s"):
        assert fact in str(caught.value)
    assert not isinstance(caught.value, UsageError | OSError)


def test_without_waiting_the_first_failure_ends_the_read(clock: Clock) -> None:
    began_s, read = clock.now_s, Away(clock, 1, os_error("EIO"))
    with storage_wait_policy(0), pytest.raises(StorageError):
        wait_for_storage(read, "x.tar")
    assert (read.tries, clock.now_s) == (1, began_s)


def test_a_users_mistake_does_not_wait(clock: Clock) -> None:
    began_s, read = clock.now_s, Away(clock, 1, os_error("ENOENT"))
    with pytest.raises(FileNotFoundError):
        wait_for_storage(read, "wrong.tar")
    assert clock.now_s == began_s


def test_on_wait_is_called_twice_a_second_and_can_end_the_wait(clock: Clock) -> None:
    instants: list[float] = []

    def leave() -> None:
        instants.append(clock.now_s)
        if len(instants) == 100:
            raise KeyboardInterrupt

    with storage_wait_policy(on_wait=leave), pytest.raises(KeyboardInterrupt):
        wait_for_storage(Away(clock, 1e9, os_error("EIO")), "x.tar")
    gaps = [after - before for before, after in itertools.pairwise(instants)]
    assert max(gaps) <= 0.5 + 1e-6


def test_random_generators_of_others_stay_as_they_were(clock: Clock) -> None:
    before = random.getstate()
    wait_for_storage(Away(clock, 20, os_error("ESTALE")), "x.tar")
    assert random.getstate() == before


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_outage_gives_one_message_at_its_start_and_one_at_its_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    wait_for_storage(Away(clock, 3, os_error("ESTALE")), "hiccup.tar")
    assert messages(caplog) == []
    wait_for_storage(Away(clock, 200, os_error("ESTALE")), "x.tar")
    gone, back = messages(caplog)
    assert "x.tar" in gone
    assert os.strerror(errno.ESTALE) in gone
    assert time.strftime("%H:%M:%S", time.localtime(clock.time() - 200))[:4] in gone
    assert "x.tar" in back
    assert "back" in back


def test_a_server_that_throttles_every_read_is_announced_once_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(16):
        wait_for_storage(Away(clock, 15, http_error(429, Retry_After="15")), "x.tar")
    assert 6 <= len(messages(caplog)) <= 10  # two for each of the four or five minutes


OTHER_READER = """
import os, sys
from signllm import storage
from signllm.command import run_on_ranks
print(storage._announcer.acquire(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets")
def test_only_one_reader_of_a_job_announces_an_outage(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"test-{os.getpid()}")

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", OTHER_READER], capture_output=True, text=True)
        return done.stdout.strip()

    assert storage._announcer.acquire()
    assert other() == "False"
    clock.sleep(61)
    wait_for_storage(lambda: "data", "x.tar")  # the next read lets others speak
    assert other() == "True"


def test_where_is_named_by_path(tmp_path: Path, clock: Clock) -> None:
    with storage_wait_policy(5), pytest.raises(StorageError, match=r"train-000003\.tar"):
        wait_for_storage(Away(clock, 1e9, os_error("ESTALE")), tmp_path / "train-000003.tar")


def test_a_verb_that_waits_for_storage_stops_on_a_signal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    asked_s, sleep = clock.now_s + 10, clock.sleep

    def sleep_and_ask(seconds: float) -> None:
        sleep(seconds)
        if clock.now_s >= asked_s and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGTERM)

    asked: list[bool] = []
    monkeypatch.setattr(clock, "sleep", sleep_and_ask)

    def work() -> None:
        wait_for_storage(Away(clock, 1e9, os_error("ESTALE")), "manifest.json")

    with pytest.raises(StoppedEarlyError):
        run_on_ranks("pretrain", [], 1, work)
    assert clock.now_s <= asked_s + 1
    with pytest.raises(StorageError):
        run_on_ranks("pretrain", [], 1, work, storage_timeout_s=5)
    assert clock.now_s < asked_s + 8
