"""Messages about storage between the processes and threads that read and those that take their results."""

from __future__ import annotations

import time
from multiprocessing.sharedctypes import RawArray

from signllm.storage import CHECKED_EVERY_S, StorageError

_ENDED, _LAST_WAIT_S = 0, 1


class SharedWaits:
    """Two numbers in memory that forked and spawned processes share."""

    def __init__(self) -> None:
        self._numbers = RawArray("d", 2)

    def report(self) -> None:
        """Note that a read waits: what :func:`signllm.storage.storage_wait_policy` calls while it does.

        Raises:
            StorageError: nobody wants its result any more.
        """
        self._numbers[_LAST_WAIT_S] = time.monotonic()
        if self._numbers[_ENDED]:
            raise StorageError("the result is not wanted any more")

    def is_waiting(self) -> bool:
        """Say whether some read waited a moment ago."""
        last_s = self._numbers[_LAST_WAIT_S]
        return bool(last_s) and time.monotonic() - last_s < 4 * CHECKED_EVERY_S

    def end(self) -> None:
        """Let reads that wait give up: their process is to leave soon."""
        self._numbers[_ENDED] = 1.0
