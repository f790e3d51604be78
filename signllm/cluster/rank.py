"""What runs on each rank of a job: submitit runs the verb; after a preemption, rank 0 requeues the job.

DeepSpeed's launcher needs ssh and a host file. Slurm already knows the hosts, so a rank takes its number and
the rendezvous address from Slurm's environment. (submitit's defaults would hide the GPUs that Slurm
assigned.) A preempted verb has saved at a step boundary on all ranks and raises StoppedEarlyError; the next
attempt resumes.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

from signllm.cluster.job_logs import NEXT_ATTEMPT, job_memory_folder
from signllm.cluster.site_environment import RANK_VARIABLES
from signllm.distributed.local_ranks import (
    StoppedEarlyError,
    describe_error,
    end_process,
    exit_without_finalizing,
    leave_process_group,
)
from signllm.distributed.rank_memory import FOLDER_VARIABLE, record_memory
from signllm.errors import RunFailedError

PORTS = range(20_000, 32_768)
LEAVE_AFTER_S = 30.0


@dataclass(frozen=True)
class VerbOnRank:
    """The function that submitit runs on every rank: one verb, from its argument list.

    It has no state, so the pickle of the first attempt serves every later one.
    """

    arguments: tuple[str, ...]
    run: Callable[[Sequence[str]], None]

    def __call__(self) -> None:
        """Run the verb as this rank, and requeue the job if it was preempted."""
        rank_environment()
        _begin_attempt()
        end = _End()
        atexit.register(end)  # called after torch's functions, because it is registered before them
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            signal.signal(
                signal.SIGTERM, signal.SIG_DFL
            )  # submitit ignores it, which is right for Slurm only
        _explain_failed_requeue()
        try:
            try:
                self.run(self.arguments)
                leave_process_group()
                end.is_near = True
            except StoppedEarlyError as stop:
                print(f"signllm: {stop}", file=sys.stderr, flush=True)
                _requeue(stop)
        except Exception as error:
            _end_log_with(*describe_error(error))
            raise

    def checkpoint(self) -> Any:
        """Let submitit requeue the job if the warning comes outside of training; the verb then resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _begin_attempt() -> None:
    """Mark the attempt in the log, and record the memory of this rank next to the log."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.global_rank == 0 and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        print(NEXT_ATTEMPT, file=sys.stderr, flush=True)
    os.environ[FOLDER_VARIABLE] = str(job_memory_folder(job.paths.folder, job.job_id))
    record_memory(None, job.global_rank)


class _End:
    """Ends the process when submitit has finished; see :func:`end_process`."""

    is_near = False

    def __call__(self) -> None:
        """Exit, unless submitit failed to write the result."""
        if self.is_near and not hasattr(sys, "last_value"):
            exit_without_finalizing(0)


def _end_log_with(message: str, code: int) -> None:
    """Write a message as the end of a rank's log; the traceback is also in the job's result."""
    print(f"signllm: {message}", file=sys.stderr, flush=True)
    for handler in logging.getLogger("submitit").handlers:
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setLevel(logging.CRITICAL)
    sys.excepthook = lambda *_: sys.exit(code)


def rank_environment() -> None:
    """Set ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` from the job.

    ``CUDA_VISIBLE_DEVICES`` stays as Slurm set it, and values inherited from an outer job are overwritten.
    Node names may not resolve, so Slurm's address of the first node is preferred to its name.

    Jobs of one cluster are numbered consecutively, so jobs that share a node get different ports; all
    attempts of a job have the same port. A ``MASTER_PORT`` in the profile's environment is kept.

    Raises:
        RunFailedError: the port of the first rank is in use.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    os.environ.setdefault("MASTER_PORT", str(rendezvous_port(job.raw_job_id)))

    for name in RANK_VARIABLES[:5]:
        os.environ.pop(name, None)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    elif "SLURM_LAUNCH_NODE_IPADDR" in os.environ:
        os.environ["MASTER_ADDR"] = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    if os.environ["RANK"] == "0":
        _require_free(int(os.environ["MASTER_PORT"]))


def rendezvous_port(job: str) -> int:
    """Return the port of a job's first rank, below 32768, above which Linux assigns ports to any program."""
    return PORTS[int(job) % len(PORTS)]


def _require_free(port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise RunFailedError(
            f"the ranks cannot use port {port} for their rendezvous: {error.strerror}\n"
            f"  where:  {socket.gethostname()}\n"
            f"  remedy: launch again, or set MASTER_PORT in the profile's environment"
        ) from None


class NotQueuedAgainError(RunFailedError):
    """A job stopped early, and Slurm cannot requeue it, so the user has to launch it again."""

    def __init__(self, what_is_kept: str, reason: str) -> None:
        kept = what_is_kept.removeprefix("asked to stop: ").partition(";")[0]
        super().__init__(
            f"{kept}; give the same launch command again, because Slurm cannot requeue this job: {reason}"
        )


def _explain_failed_requeue() -> None:
    """Make submitit's signal handler raise one plain message if it cannot requeue the job.

    submitit's handler gets the signal before the verb has installed its own.
    """
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    handler = signal.getsignal(number)
    if not callable(handler):
        return

    def handle(number: int, frame: FrameType | None) -> None:
        from submitit.core.utils import UncompletedJobError

        try:
            handler(number, frame)
        except (OSError, subprocess.SubprocessError, UncompletedJobError) as error:
            reason = _reason_of(error)
            raise NotQueuedAgainError("what is done is kept", reason) from None

    signal.signal(number, handle)


def _reason_of(error: Exception) -> str:
    """Return why requeueing failed, from the exception that it raised."""
    if isinstance(error, FileNotFoundError):
        return "there is no scontrol on this node"
    if isinstance(error, subprocess.CalledProcessError):
        return f"`{' '.join(error.cmd)}` ended with exit code {error.returncode} (above)"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"`{' '.join(error.cmd)}` did not answer within {error.timeout:g} s"
    return str(error).strip().rstrip(".")


def _requeue(stop: StoppedEarlyError) -> None:
    """End a saved attempt: rank 0 requeues the job, the others exit, and none writes a result.

    Raises:
        NotQueuedAgainError: on rank 0. Its exit code makes the job fail, so that no job that depends on its
            success starts.
    """
    from submitit import JobEnvironment

    environment = JobEnvironment()
    leave_process_group()
    if environment.global_rank == 0:
        try:
            environment._requeue(1)
        except SystemExit as end:  # without a scheduler the exit code asks for another attempt
            end_process(cast(int, end.code))
        except (OSError, subprocess.SubprocessError) as error:
            raise NotQueuedAgainError(str(stop), _reason_of(error)) from None
    elif os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(LEAVE_AFTER_S)  # a task that leaves first could end the job before it is queued again
    end_process(0)
