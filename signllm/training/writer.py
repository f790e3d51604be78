"""Checkpoints written beside training: the ranks gather, then a thread of rank 0 writes while steps go on.

One write at a time: the next waits for the one before, so at most one copy of what is saved lies in memory.
The thread makes no collective. What it raises is kept until :meth:`Writer.wait` is called, in the thread that
trains; ``failed`` tells it beforehand, so that the ranks can agree to stop soon and not at the next save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Writer:
    """Does one piece of writing at a time in a thread of its own.

    Attributes:
        failed: the last piece raised; :meth:`wait` will raise it.
        wrote_s: seconds that the last finished piece took.
    """

    def __init__(self) -> None:
        self.failed = False
        self.wrote_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Begin ``write`` and return; the piece before must have been waited for."""
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
        """Wait until nothing is being written; raise nothing: another error is already on its way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            BaseException: what the writing raised.
        """
        self.finish()
        error, self._error, self.failed = self._error, None, False
        if error is not None:
            raise error
