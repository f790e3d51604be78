"""Several ranks on this machine: ``--ranks N`` runs the verb N times through torch's elastic launcher.

The ranks share standard output and error; only rank 0 writes there. A rank that fails writes its message into
the error file that torch names in its environment, the others are stopped, and the message of the first
failure comes out here, once. Several machines are the business of ``signllm launch`` (submitit), not of this
file.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from signllm.atomic_files import NO_SPACE, REMEDY
from signllm.errors import RunFailedError, UsageError

USAGE, FAILED = 2, 1
OUR_FAULT = "this is a fault of ours"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
RANK_FAILED = "RankFailedError"
"""Name of the error by which a rank says that another one failed (:mod:`signllm.training.failures`)."""
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SAVE_WITHIN_S = 50
"""Ranks that were asked to leave are killed after it, and so are those that wait for one that died."""


class StoppedEarlyError(RunFailedError):
    """The machine asked for an end (a signal), all ranks saved and left: the same command continues."""


def is_first_rank() -> bool:
    """Say whether this process speaks to the user: alone, or rank 0 of several."""
    return int(os.environ.get("RANK", "0")) == 0


def run_local_ranks(
    arguments: Sequence[str],
    *,
    ranks: int,
    environment: Mapping[str, str] | None = None,
    module: str = "signllm",
) -> None:
    """Run ``signllm ARGUMENTS`` as ``ranks`` processes here and wait for them.

    Each rank gets its share of the processor's cores as ``OMP_NUM_THREADS``, unless the caller's environment
    names one.

    Args:
        arguments: the verb and its options, without ``--ranks``.
        ranks: how many processes, at least 1.
        environment: variables that the ranks get beside the caller's own.
        module: Python module that each rank runs; by default the command line.

    SIGTERM, SIGINT and SIGUSR2 sent to this process are passed on: the ranks save and leave.

    Raises:
        UsageError: a rank refused the user's input, or ``ranks`` is below 1.
        StoppedEarlyError: this process or a rank was asked to leave.
        RunFailedError: a rank failed otherwise.
    """
    if ranks < 1:
        raise UsageError(f"--ranks is {ranks}", remedy="give 1 or more")
    shares = {"OMP_NUM_THREADS": str(max(1, usable_cores() // ranks)), _SHUTDOWN: str(SAVE_WITHIN_S)}
    with environment_variables({**shares, **os.environ, **(environment or {})}):
        _launch([sys.executable, "-m", module, *arguments], ranks)


def _launch(command: Sequence[str], ranks: int) -> None:
    from signllm.training.rank_memory import FOLDER_VARIABLE

    with (
        tempfile.TemporaryDirectory(prefix="signllm-ranks-", ignore_cleanup_errors=True) as folder,
        environment_variables({**os.environ, FOLDER_VARIABLE: folder}),
    ):
        _launch_elastic(command, ranks, Path(folder))


def _launch_elastic(command: Sequence[str], ranks: int, memory_folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would report failures in its own way beside ours; each of its modules has a level of its own.
    for name in [
        name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")
    ]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )

    def pass_on(number: int, frame: Any) -> None:
        raise SignalException(f"got {number}", signal.Signals(number))

    before = signal.signal(signal.SIGUSR2, pass_on)  # torch passes SIGTERM and SIGINT on, not this one
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        raise _first_failure(error, memory_folder) from None
    except SignalException as stop:
        raise StoppedEarlyError(f"stopped by {stop.sigval.name}; the same command continues a run") from None
    finally:
        signal.signal(signal.SIGUSR2, before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt in glibc's malloc.h
_TRIM_BYTES, _MMAP_BYTES = (1 << 31) - 1, 1 << 30


def reuse_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation instead of returning them (Linux).

    By default every block above 32 MiB comes from the system anew, and the system clears each of its pages at
    the first touch. A batch of frames needs dozens of such blocks in every step: clearing them was a fifth of
    the time of a small image backbone and half of that of a larger one. The price is that a process keeps up
    to 2 GiB that it does not use at the moment; the peak rose by a tenth where it was measured. Whoever sets
    one of glibc's variables, such as ``MALLOC_TRIM_THRESHOLD_``, has decided otherwise.

    Returns:
        Whether the allocator was set.
    """
    import ctypes

    is_set = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
    is_set = is_set or "_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not is_set else None
    if mallopt is None:  # another system, or a C library that has no such setting
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_TRIM_THRESHOLD, _TRIM_BYTES))


def begin_rank() -> None:
    """Let this rank be killed with the launcher that started it, if one did, and leave its memory for it.

    The launcher gives every rank a session of its own: were it killed alone, they would go on training, next
    to those of the same command given again, into the same folder.
    """
    if _ERROR_FILE in os.environ:
        from signllm.training.rank_memory import record_memory

        end_with_parent()
        record_memory(None, int(os.environ.get("RANK", "0")))


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it is gone, however that ended (Linux)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def leave_ranks() -> None:
    """Leave the process group, if this process is in one: nobody waits for this rank any more."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process as ``sys.exit`` would but, where torch is loaded, leave the interpreter whole.

    Threads of gloo outlive the process group as long as anybody, DeepSpeed for one, still knows it. Where
    they meet an interpreter that ends, the process is now and then aborted (signal 6): the work is done, and
    the job counts as failed. What that end begins with is done here: threads, ``atexit``, open lines.
    """
    if "torch" in sys.modules:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        leave_interpreter(code)
    sys.exit(code)


def leave_interpreter(code: int) -> NoReturn:
    """Write what is unwritten, and end the process here."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def message_of(error: BaseException) -> tuple[str, int]:
    """Return what the user is told of an exception, in one message, and the exit code."""
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, RunFailedError):
        return str(error), FAILED
    from signllm.training.rank_memory import describe_memory_error

    if (lack := describe_memory_error(error)) is not None:
        return lack, FAILED
    if isinstance(error, OSError):
        where = f"\n  where:  {error.filename}" if error.filename else ""
        remedy = f"\n  remedy: {REMEDY}" if error.errno in NO_SPACE else ""
        return f"{error.strerror or error}{where}{remedy}", FAILED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues a run", FAILED
    return f"{OUR_FAULT}\n{''.join(traceback.format_exception(error))}", FAILED


def collected_by_torchrun() -> bool:
    """Say whether torchrun itself started this rank, not a starter of ours that uses its launcher."""
    from signllm.training.rank_memory import FOLDER_VARIABLE

    return _ERROR_FILE in os.environ and FOLDER_VARIABLE not in os.environ


def report_failure(error: BaseException, message: str) -> bool:
    """Leave ``message`` for the process that started this rank; False where nobody collects it.

    The file is the one that ``torch.distributed.run`` names, in its format, so that torch's own tools read it
    too.
    """
    path = os.environ.get(_ERROR_FILE)
    if path is None:
        return False
    # torchrun prints the call stack of every rank: where the message says all, it is printed instead.
    ours = message.startswith(OUR_FAULT)
    extra = {
        "py_callstack": "".join(traceback.format_exception(error)) if ours else message,
        "timestamp": str(int(time.time())),
        "time": time.time(),
        "kind": type(error).__name__,
    }
    with open(path, "w") as file:
        json.dump({"message": {"message": message, "extraInfo": extra}}, file)
    return True


def _first_failure(error: Any, memory_folder: Path) -> Exception:
    """Turn torch's account of the failed ranks into one message: that of the first, or why it left none."""
    failures = error.failures
    rank = min(failures, key=lambda r: (_is_consequence(failures[r]), _moment(failures[r]), r))
    failure = failures[rank]
    if not isinstance(failure.message, dict) and failure.exitcode < 0:
        from signllm.training.rank_memory import describe_deaths, read_memory

        return RunFailedError(describe_deaths({rank: read_memory(memory_folder, rank)}, -failure.exitcode))
    if not isinstance(failure.message, dict):
        return RunFailedError(f"rank {rank} ended with exit code {failure.exitcode}: {failure.message}")
    message = failure.message["message"]
    if failure.exitcode == USAGE:
        return UsageError(message)
    if failure.message["extraInfo"].get("kind") == StoppedEarlyError.__name__:
        return StoppedEarlyError(message)
    return RunFailedError(f"rank {rank} failed: {message}")


def _is_consequence(failure: Any) -> bool:
    """Say whether a rank ended because another one did: it was asked to, or it lost the connection."""
    if not isinstance(failure.message, dict):
        return bool(failure.exitcode == -signal.SIGTERM)
    return bool(failure.message["extraInfo"].get("kind") == RANK_FAILED)


def _moment(failure: Any) -> float:
    """Return when a rank failed, in seconds.

    Ranks that say when do so to the fraction, for others follow at once. Of those that a signal ended only
    the second is known, rounded down; NCCL aborts a process when another rank is gone, so that signal is the
    last of its second.
    """
    if isinstance(failure.message, dict):
        return float(failure.message["extraInfo"].get("time", failure.timestamp))
    return float(failure.timestamp) + (failure.exitcode == -signal.SIGABRT)


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the process environment for what is started inside, and put it back afterwards."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
