"""Checkpoints are written in the background, by a thread of rank 0, while training continues.

Only one write runs at a time: the next one waits for it, so memory holds at most one copy of what is saved.
The thread takes part in no collective. An exception in it is kept until the training thread calls
:meth:`BackgroundWriter.wait`. ``failed`` is set before that, so that the ranks can agree to stop at the next
step instead of at the next save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BackgroundWriter:
    """Runs one write at a time in a thread of its own.

    Attributes:
        failed: whether the last write raised; :meth:`wait` will raise the same exception.
        wrote_s: duration of the last finished write in seconds.
    """

    def __init__(self) -> None:
        self.failed = False
        self.wrote_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Start ``write`` and return at once; :meth:`wait` must have been called for the write before."""
        assert self._thread is None, "wait() comes first"
        self._thread = threading.Thread(target=self._work, args=(write,), name="checkpoint writer")
        self._thread.start()

    def _work(self, write: Callable[[], object]) -> None:
        begun = time.perf_counter()
        try:
            write()
        except BaseException as error:
            self._error, self.failed = error, True
        self.wrote_s = time.perf_counter() - begun

    def finish(self) -> None:
        """Wait for the current write; raise nothing, because another exception is already being raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait for the current write.

        Raises:
            BaseException: what the write raised.
        """
        self.finish()
        error, self._error, self.failed = self._error, None, False
        if error is not None:
            raise error
