"""Information about storage waits that readers share with the process that needs their results."""

from __future__ import annotations

import time
from multiprocessing.sharedctypes import RawArray

from signllm.storage import CHECKED_EVERY_S, StorageError

_ENDED, _LAST_WAIT_S = 0, 1


class SharedWaits:
    """Shared memory in which readers record their waits, and the consumer that it no longer needs results.

    The memory is shared with forked and with spawned processes.
    """

    def __init__(self) -> None:
        self._numbers = RawArray("d", 2)

    def report(self) -> None:
        """Record that a read waits; the ``on_wait`` of :func:`signllm.storage.storage_wait_policy`.

        Raises:
            StorageError: the result of the read is no longer needed.
        """
        self._numbers[_LAST_WAIT_S] = time.monotonic()
        if self._numbers[_ENDED]:
            raise StorageError("the result is no longer needed")

    def is_waiting(self) -> bool:
        """Return whether some read has recently been waiting."""
        last_s = self._numbers[_LAST_WAIT_S]
        return bool(last_s) and time.monotonic() - last_s < 4 * CHECKED_EVERY_S

    def end(self) -> None:
        """Make all waiting reads stop, because their process is about to end."""
        self._numbers[_ENDED] = 1.0
