"""Several ranks on this machine: ``--ranks N`` runs a verb in N processes with torch's elastic launcher.

The ranks share standard output and standard error, where only rank 0 writes. A rank that fails writes its
message into the error file that torch names in its environment; the others are stopped, and the launcher
raises the message of the first failure, once. Several machines are handled by ``signllm launch`` (submitit).
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
INTERNAL_ERROR = "internal error of signllm"
"""Begins the message about an exception that is neither the user's fault nor the machine's."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_LAUNCHER = "SIGNLLM_LAUNCHER"
"""Environment variable by which a launcher gives its ranks its process id."""
RANK_FAILED = "RankFailedError"
"""Name of the exception by which a rank reports that another one failed."""
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SHUTDOWN_TIMEOUT_S = 50
"""Seconds after which ranks that were asked to stop, or that wait for a dead rank, are killed."""


class StoppedEarlyError(RunFailedError):
    """A signal preempted the job: all ranks have saved and stopped, and the same command continues."""


def is_first_rank() -> bool:
    """Return whether this process writes to the user: it runs alone or is rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def run_local_ranks(
    arguments: Sequence[str],
    *,
    ranks: int,
    environment: Mapping[str, str] | None = None,
    module: str = "signllm",
) -> None:
    """Run ``signllm ARGUMENTS`` in ``ranks`` processes on this machine and wait for them.

    Each rank gets its share of the processor's cores as ``OMP_NUM_THREADS``, unless the caller's environment
    sets it. SIGTERM, SIGINT and SIGUSR2 are forwarded: the ranks save and stop.

    Args:
        arguments: the verb and its options, without ``--ranks``.
        ranks: number of processes, at least 1.
        environment: variables of the ranks in addition to the caller's environment.
        module: Python module that each rank runs; by default the command line.

    Raises:
        UsageError: a rank refused the user's input, or ``ranks`` is below 1.
        StoppedEarlyError: this process or a rank was asked to stop.
        RunFailedError: a rank failed for another reason.
    """
    if ranks < 1:
        raise UsageError(f"--ranks is {ranks}", remedy="give 1 or more")
    shares = {"OMP_NUM_THREADS": str(max(1, usable_cores() // ranks)), _SHUTDOWN: str(SHUTDOWN_TIMEOUT_S)}
    with environment_variables({**shares, **os.environ, **(environment or {})}):
        _launch([sys.executable, "-m", module, *arguments], ranks)


def _launch(command: Sequence[str], ranks: int) -> None:
    from signllm.distributed.rank_memory import FOLDER_VARIABLE

    with (
        tempfile.TemporaryDirectory(prefix="signllm-ranks-", ignore_cleanup_errors=True) as folder,
        environment_variables({**os.environ, FOLDER_VARIABLE: folder, _LAUNCHER: str(os.getpid())}),
    ):
        _launch_elastic(command, ranks, Path(folder))


def _launch_elastic(command: Sequence[str], ranks: int, memory_folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would also report failures in its own way; each of its modules has a log level of its own.
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

    def forward(number: int, frame: Any) -> None:
        raise SignalException(f"got {number}", signal.Signals(number))

    before = signal.signal(signal.SIGUSR2, forward)  # torch forwards SIGTERM and SIGINT only
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        raise _first_failure(error, memory_folder) from None
    except SignalException as stop:
        raise StoppedEarlyError(f"stopped by {stop.sigval.name}; the same command continues a run") from None
    finally:
        signal.signal(signal.SIGUSR2, before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt in glibc's malloc.h
_TRIM_BYTES, _MMAP_BYTES = (1 << 31) - 1, 1 << 30  # 2 GiB, 1 GiB


def reuse_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation (Linux).

    By default every block above 32 MiB comes from the system, which clears each of its pages at the first
    access. A batch of frames needs dozens of such blocks in every step: clearing them took a fifth of the
    time with a small image backbone and half of it with a larger one. In exchange a process keeps up to 2 GiB
    that it does not use at the moment; the measured peak rose by a tenth. If one of glibc's variables is set,
    such as ``MALLOC_TRIM_THRESHOLD_``, nothing is changed.

    Returns:
        Whether the allocator was configured.
    """
    import ctypes

    is_set = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
    is_set = is_set or "_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not is_set else None
    if mallopt is None:  # another system, or a C library that has no such setting
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_TRIM_THRESHOLD, _TRIM_BYTES))


def prepare_rank() -> None:
    """Let this rank be killed together with the launcher that started it, if any, and record its memory.

    The launcher gives every rank a session of its own. If only the launcher were killed, the ranks would
    continue to train, next to those of the same command started again, in the same folder.
    """
    launcher = os.environ.pop(_LAUNCHER, None)  # what this rank starts has another parent
    if _ERROR_FILE in os.environ:
        from signllm.distributed.rank_memory import record_memory

        end_with_parent(None if launcher is None else int(launcher))
        record_memory(None, int(os.environ.get("RANK", "0")))


def end_with_parent(parent: int | None = None) -> None:
    """Let the system kill this process when its parent process ends in any way (Linux).

    Args:
        parent: process id of the parent. If it has ended before this call, this process ends at once. None
            takes the process that started this one by :mod:`multiprocessing`, if any.
    """
    import ctypes
    import multiprocessing

    starter = multiprocessing.parent_process()
    if parent is None and starter is not None:
        parent = starter.pid
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if parent is not None and os.getppid() != parent:
            os._exit(FAILED)


def leave_process_group() -> None:
    """Leave the process group, if this process has joined one: no other rank waits for it any more."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process as ``sys.exit`` would but, if torch is loaded, without finalizing the interpreter.

    Threads of gloo outlive the process group as long as anything, for example DeepSpeed, still refers to it.
    If the interpreter is finalized meanwhile, the process is sometimes aborted (signal 6), and a finished job
    counts as failed. The first parts of finalization are done here: joining threads, ``atexit`` functions,
    and flushing output.
    """
    if "torch" in sys.modules:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        exit_without_finalizing(code)
    sys.exit(code)


def exit_without_finalizing(code: int) -> NoReturn:
    """Flush standard output and standard error, and end the process at once."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message about an exception for the user, and the exit code."""
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, RunFailedError):
        return str(error), FAILED
    from signllm.distributed.rank_memory import describe_memory_error

    if (lack := describe_memory_error(error)) is not None:
        return lack, FAILED
    if isinstance(error, OSError):
        where = f"\n  where:  {error.filename}" if error.filename else ""
        remedy = f"\n  remedy: {REMEDY}" if error.errno in NO_SPACE else ""
        return f"{error.strerror or error}{where}{remedy}", FAILED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues a run", FAILED
    return f"{INTERNAL_ERROR}\n{''.join(traceback.format_exception(error))}", FAILED


def started_by_torchrun() -> bool:
    """Return whether torchrun itself started this rank, rather than :func:`run_local_ranks`."""
    from signllm.distributed.rank_memory import FOLDER_VARIABLE

    return _ERROR_FILE in os.environ and FOLDER_VARIABLE not in os.environ


def report_failure(error: BaseException, message: str) -> bool:
    """Write ``message`` for the process that started this rank; return False if none collects it.

    The file is the one that ``torch.distributed.run`` names, in its format, so that torch's own tools can
    read it too.
    """
    path = os.environ.get(_ERROR_FILE)
    if path is None:
        return False
    # torchrun prints this field for every rank; a complete message is more useful there than the call stack.
    is_internal = message.startswith(INTERNAL_ERROR)
    extra = {
        "py_callstack": "".join(traceback.format_exception(error)) if is_internal else message,
        "timestamp": str(int(time.time())),
        "time": time.time(),
        "kind": type(error).__name__,
    }
    with open(path, "w") as file:
        json.dump({"message": {"message": message, "extraInfo": extra}}, file)
    return True


def _first_failure(error: Any, memory_folder: Path) -> Exception:
    """Return one exception for torch's report of the failed ranks: about the first one that failed."""
    failures = error.failures
    rank = min(failures, key=lambda r: (_is_consequence(failures[r]), _failure_time(failures[r]), r))
    failure = failures[rank]
    if not isinstance(failure.message, dict) and failure.exitcode < 0:
        from signllm.distributed.rank_memory import describe_deaths, read_memory

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
    """Return whether a rank ended because of another one: it was stopped, or it lost the connection."""
    if not isinstance(failure.message, dict):
        return bool(failure.exitcode == -signal.SIGTERM)
    return bool(failure.message["extraInfo"].get("kind") == RANK_FAILED)


def _failure_time(failure: Any) -> float:
    """Return when a rank failed, in seconds.

    Ranks that report a message report the time with its fraction, because others follow at once. For a rank
    that a signal ended only the second is known, rounded down. NCCL aborts a process when another rank is
    gone, so an abort is counted as the last event of its second.
    """
    if isinstance(failure.message, dict):
        return float(failure.message["extraInfo"].get("time", failure.timestamp))
    return float(failure.timestamp) + (failure.exitcode == -signal.SIGABRT)


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside the block, and restore them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
