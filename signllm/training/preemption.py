"""A signal sets a flag; the ranks agree on it at a step boundary.

Saving inside a signal handler would deadlock: a checkpoint is a collective and only some ranks may have got
the signal. So the handler does nothing but remember, and :func:`signllm.training.loop.fit` adds the flag to
the reduction it makes in every step anyway. Slurm sends SIGUSR2 (submitit's default) or SIGTERM; both mean
"save and leave".
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class PreemptionFlag:
    """Context manager: while it is open, SIGUSR2 and SIGTERM set ``requested`` instead of ending the process.

    The handlers that were there (submitit's, a shell's) come back on leaving. Outside the main thread
    Python cannot install handlers; then the flag stays what ``request()`` makes it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def request(self) -> None:
        """Ask for a checkpoint and an early, orderly end."""
        self.requested = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> PreemptionFlag:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._previous = {}
