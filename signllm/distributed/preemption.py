"""Preemption: a signal asks the job to stop, and all ranks stop together at a step boundary.

Slurm sends SIGUSR2 (submitit's default) or SIGTERM, and a person presses Ctrl-C; each means "save and leave".
A checkpoint is a collective, and the signal may have reached some ranks only, so saving inside the handler
would deadlock. The handler therefore only sets a flag. A verb opens one flag for all that it does
(:func:`preemption_flag`), and the flag is read

- in every training step, as part of the all-reduce that the loop needs anyway;
- by :func:`stop_if_preempted` where all ranks are at the same place: between batches of validation and
  translation, and before an engine is built;
- at any moment in work that a rank does alone (:meth:`PreemptionFlag.interruptible`), such as encoding a
  shard or composing words. No collective runs there and files are written atomically, so the work can stop
  anywhere.

All ranks then raise StoppedEarlyError. A second SIGTERM or Ctrl-C ends the process as if no handler was
installed.
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

from signllm.distributed.local_ranks import StoppedEarlyError
from signllm.distributed.watchdog import record_progress

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
INSISTENT_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""Slurm and the launcher both forward a signal; the same signal within this time is the same request."""
NOTICE = b"signllm: asked to stop: leaving at the next boundary; once more ends it at once\n"


class StopNow(BaseException):
    """Raised by the signal handler; :meth:`PreemptionFlag.interruptible` turns it into StoppedEarlyError.

    Like KeyboardInterrupt it derives from BaseException, so that ``except Exception`` does not catch it.
    """


class PreemptionFlag:
    """Context manager inside which a signal sets ``requested`` instead of ending the process.

    The previous handlers (submitit's or a shell's) are restored on exit. Outside the main thread Python
    cannot install handlers, so only ``request()`` sets the flag there.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raising = False
        self._asked_at: dict[int, float] = {}
        self._previous: dict[int, object] = {}

    def request(self) -> None:
        """Set the flag, as a signal would."""
        self.requested = True

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Leave the block at any point when a signal arrives; the block must not contain collectives.

        Raises:
            StoppedEarlyError: a signal arrived before or inside the block.
        """
        if self.requested:
            raise stopped_early_error()
        try:
            self._raising = threading.current_thread() is threading.main_thread()
            yield
        except StopNow:
            raise stopped_early_error() from None
        finally:
            self._raising = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: set the flag, or end the process if an insistent signal comes again."""
        now = time.monotonic()
        first = self._asked_at.setdefault(number, now)
        if number in INSISTENT_SIGNALS and now - first > ECHO_S:
            self.__exit__(None, None, None)
            signal.raise_signal(number)
            return
        if not self.requested and os.environ.get("RANK", "0") == "0":
            os.write(2, NOTICE)
        self.requested = True
        if self._raising:
            self._raising = False
            raise StopNow

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
def preemption_flag() -> Iterator[PreemptionFlag]:
    """Yield the flag that is open in this process, or open one for the block."""
    already_open = _open_flag()
    if already_open is not None:
        yield already_open
        return
    with PreemptionFlag() as flag:
        yield flag


def _open_flag() -> PreemptionFlag | None:
    """Return the open flag, which is the owner of the handler that is installed for SIGTERM."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, PreemptionFlag) else None


def stopped_early_error() -> StoppedEarlyError:
    """Return the error that all ranks raise when they stop between two saved states."""
    return StoppedEarlyError("asked to stop: what is done is kept; the same command continues")


def stop_if_preempted(device: torch.device) -> None:
    """Stop if any rank was preempted (all ranks); a process without an open flag continues.

    Costs one small all-reduce.

    Raises:
        StoppedEarlyError: on all ranks.
    """
    record_progress()
    with preemption_flag() as flag:
        requested = torch.tensor(float(flag.requested), device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(requested)
    if requested.item():
        raise stopped_early_error()
