"""A signal asks a job to leave; the ranks agree on it at a boundary, and all leave with StoppedEarlyError.

Slurm sends SIGUSR2 (submitit's default) or SIGTERM, a person Ctrl-C: all mean "save and leave". A checkpoint
is a collective and only some ranks may have got the signal, so saving inside the handler would deadlock. The
handler only remembers. A verb opens one flag around all it does (:func:`asked_to_leave`), and it is asked

- in every training step, within the reduction that the loop makes anyway;
- by :func:`leave_together` where ranks are in step: between batches of validation and translation, before an
  engine is built;
- at once in work that a rank does for itself (:meth:`PreemptionFlag.at_once`): encoding a shard, composing
  words. Nothing collective is under way there and files are whole or absent, so it is left wherever it is.

SIGTERM or Ctrl-C once more ends the process as if nothing had been installed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from signllm.training.local_ranks import StoppedEarlyError
from signllm.training.watchdog import beat

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
INSISTING = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""Slurm and launchers both pass a signal on: the same one within this time is the same request."""
NOTICE = b"signllm: asked to stop: leaving at the next boundary; once more ends it at once\n"


class LeaveAtOnce(BaseException):
    """Raised by the handler inside :meth:`PreemptionFlag.at_once`, which makes it a StoppedEarlyError.

    No error by its name: like KeyboardInterrupt, ``except Exception`` lets it by.
    """


class PreemptionFlag:
    """Context manager: while it is open, a signal sets ``requested`` instead of ending the process.

    The handlers that were there (submitit's, a shell's) come back on leaving. Outside the main thread
    Python cannot install handlers; then the flag stays what ``request()`` makes it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raising = False
        self._asked_at: dict[int, float] = {}
        self._previous: dict[int, object] = {}

    def request(self) -> None:
        """Ask for a checkpoint and an early, orderly end."""
        self.requested = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Leave the block wherever it is once this process is asked to; no collective belongs inside.

        Raises:
            StoppedEarlyError: asked before or inside the block.
        """
        if self.requested:
            raise stopped_early()
        try:
            self._raising = threading.current_thread() is threading.main_thread()
            yield
        except LeaveAtOnce:
            raise stopped_early() from None
        finally:
            self._raising = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; the handler."""
        now = time.monotonic()
        first = self._asked_at.setdefault(number, now)
        if number in INSISTING and now - first > ECHO_S:
            self.__exit__(None, None, None)
            signal.raise_signal(number)
            return
        if not self.requested and os.environ.get("RANK", "0") == "0":
            os.write(2, NOTICE)
        self.requested = True
        if self._raising:
            self._raising = False
            raise LeaveAtOnce

    def __enter__(self) -> PreemptionFlag:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._previous = {}


@contextmanager
def asked_to_leave() -> Iterator[PreemptionFlag]:
    """Give out the flag that is open in this process, or open one for the block."""
    found = _open_flag()
    if found is not None:
        yield found
        return
    with PreemptionFlag() as flag:
        yield flag


def _open_flag() -> PreemptionFlag | None:
    """Return the flag whose handler is installed: the process's handlers are the one record of it."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, PreemptionFlag) else None


def stopped_early() -> StoppedEarlyError:
    """Return what all ranks raise where they leave between two saved states."""
    return StoppedEarlyError("asked to stop: what is done is kept; the same command continues")


def leave_together(device: torch.device) -> None:
    """Leave if any rank was asked to: one small reduction (all ranks). Nothing where no flag is open.

    Raises:
        StoppedEarlyError: on all ranks.
    """
    beat()
    with asked_to_leave() as flag:
        asked = torch.tensor(float(flag.requested), device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(asked)
    if asked.item():
        raise stopped_early()
