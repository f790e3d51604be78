"""The memory that each rank uses, and messages about ranks and workers that ran out of it.

The kernel kills a process if the machine has too little memory, and a killed process reports nothing.
Therefore each rank records its memory in a small file, ``rank-R.memory.json``, which it removes when it ends
normally. The other ranks, or the launcher, read the file of a rank that died. Our launchers name a folder for
these files in the environment; under torchrun it is ``run/failures``.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

FOLDER_VARIABLE = "SIGNLLM_RANK_MEMORY"
SAMPLE_INTERVAL_S = 0.25
"""Seconds between two measurements: a batch that is too large fills the memory within seconds."""
WORKERS_EVERY = 8
"""Number of measurements after which the worker processes are measured too."""
GROWTH, LEAST_GROWTH = 1.05, 32 << 20
"""Growth of the memory, as a ratio and in bytes, after which the file is written again."""
REDUCE_MEMORY = (
    "a smaller batch (--training.batch-size, --batch-size) or more --training.accumulation, fewer frames at "
    "a time (--data.max-frames-per-batch, --vq-sign.encoder.frames-per-chunk), fewer --data.workers, "
    "--training.deepspeed zero3, or fewer ranks on this machine; on Slurm more --mem-gb"
)
REDUCE_GPU_MEMORY = (
    "more --training.accumulation, a smaller batch (--training.batch-size, --batch-size), "
    "--training.deepspeed zero3, or more GPUs"
)
ENLARGE_SHARED_MEMORY = (
    "make /dev/shm larger (docker run --shm-size 8g), or read without worker processes: --data.workers 0"
)
FIND_CRASH = (
    "PYTHONFAULTHANDLER=1 in the environment shows where it was; `signllm doctor` checks this machine"
)
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) "
    r"(?:is killed by signal: ([\w ]+)|exited unexpectedly(?: with (exit code \d+))?)"
)
_REFUSED_BYTES = re.compile(r"(?:can't allocate|not enough) memory: you tried to allocate (\d+) bytes")
_REFUSED_ON_GPU = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_GPU_OUT_OF_MEMORY = re.compile("CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_SHARED_MEMORY = re.compile(r"unable to .*(?:shared memory|</?torch_|shm)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """The memory of a rank when its process wrote it last.

    Attributes:
        rank: number of the rank.
        host: name of its machine.
        pid: process number there.
        used_bytes: resident memory of the process.
        workers_bytes: resident memory of its child processes.
        machine_bytes: memory of the machine.
        free_bytes: memory of the machine that programs could still allocate.
        limit_bytes: limit of the process's control group or ``ulimit``; None without a limit.
        oom_kills: processes that the machine's kernel had killed for lack of memory when the rank started.
    """

    rank: int
    host: str
    pid: int
    used_bytes: int
    workers_bytes: int = 0
    machine_bytes: int
    free_bytes: int
    limit_bytes: int | None = None
    oom_kills: int | None = None

    def describe(self) -> str:
        """Return part of a sentence: ``it used about 12.3 GB, and 1 GB of 16 GB were free on node7``."""
        workers = f" and its workers {format_gigabytes(self.workers_bytes)}" if self.workers_bytes else ""
        text = f"it used about {format_gigabytes(self.used_bytes)}{workers}"
        if self.limit_bytes is not None:
            text += f", its limit is {format_gigabytes(self.limit_bytes)}"
        machine = f"{format_gigabytes(self.free_bytes)} of {format_gigabytes(self.machine_bytes)}"
        return f"{text}, and {machine} were free on {self.host}"

    def has_died(self) -> bool | None:
        """Return whether the process has ended; None on another machine, from where it cannot be seen."""
        if self.host != socket.gethostname():
            return None
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def was_killed_by_kernel(self) -> bool:
        """Return whether this kernel has killed a process for lack of memory since the rank started."""
        now = _oom_kills()
        here = self.host == socket.gethostname()
        return here and self.oom_kills is not None and now is not None and now > self.oom_kills


def format_gigabytes(count: int) -> str:
    """Return a number of bytes as text, ``12.3 GB``; small numbers have more digits."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2g} GB"


def measure_memory(rank: int) -> RankMemory:
    """Return the memory of this process."""
    memory = psutil.virtual_memory()
    return RankMemory(
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        used_bytes=psutil.Process().memory_info().rss,
        machine_bytes=memory.total,
        free_bytes=memory.available,
        limit_bytes=_limit(memory.total),
        oom_kills=_oom_kills(),
    )


class MemoryRecorder(threading.Thread):
    """A thread that keeps the file of this rank's memory up to date while the memory grows."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(name="memory recorder", daemon=True)
        self.path = _path(folder, rank)
        self._pid = os.getpid()
        self._memory = measure_memory(rank)
        self._written = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Measure and write until :meth:`end` is called."""
        process, measurements = psutil.Process(), 0
        while True:
            workers = self._memory.workers_bytes
            if measurements % WORKERS_EVERY == 0:
                workers = _memory_of_children()
            measurements += 1
            used = process.memory_info().rss
            if used + workers > max(self._written * GROWTH, self._written + LEAST_GROWTH):
                free = psutil.virtual_memory().available
                self._memory = replace(self._memory, used_bytes=used, workers_bytes=workers, free_bytes=free)
                self._write()
            if self._ended.wait(SAMPLE_INTERVAL_S):
                return

    def _write(self) -> None:
        if not self.path.parent.parent.is_dir():  # there is no run folder (yet)
            return
        with suppress(OSError):  # a full disk is reported elsewhere
            self.path.parent.mkdir(exist_ok=True)
            unfinished = self.path.with_suffix(".part")
            unfinished.write_text(json.dumps(asdict(self._memory)), encoding="utf-8")
            os.replace(unfinished, self.path)
            self._written = self._memory.used_bytes + self._memory.workers_bytes

    def end(self) -> None:
        """Stop and remove the file: this rank ends normally and can report why."""
        if os.getpid() != self._pid:
            return
        self._ended.set()
        with suppress(RuntimeError):  # it was never started
            self.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # succeeds only if the folder is empty


def record_memory(folder: Path | None, rank: int) -> None:
    """Record the memory of this process until it ends; does nothing if it is recorded already.

    Args:
        folder: folder for the file, used if the launcher has named none in the environment; None records
            nothing then.
        rank: number of this rank.
    """
    folder = memory_folder(folder)
    if folder is None or any(isinstance(thread, MemoryRecorder) for thread in threading.enumerate()):
        return
    recorder = MemoryRecorder(folder, rank)
    with suppress(OSError):
        recorder.path.unlink(missing_ok=True)
    atexit.register(recorder.end)
    recorder.start()


def memory_folder(folder: Path | None) -> Path | None:
    """Return the folder of the files: that of the launcher if there is one, else ``folder``."""
    from_launcher = os.environ.get(FOLDER_VARIABLE)
    return Path(from_launcher) if from_launcher else folder


def read_memory(folder: Path | None, rank: int) -> RankMemory | None:
    """Return the recorded memory of a rank; None if there is no record, as after a normal end."""
    if folder is None:
        return None
    try:
        read = json.loads(_path(folder, rank).read_text(encoding="utf-8"))
        return RankMemory(**read)
    except (OSError, ValueError, TypeError):
        return None


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.memory.json"


def describe_deaths(
    ranks: Mapping[int, RankMemory | None], number: int | None = None, *, where: object | None = None
) -> str:
    """Return the message about ranks that were killed or crashed without a report of their own.

    Args:
        ranks: the recorded memory by rank, or None without a record.
        number: the signal that ended them. None if nobody could see it; then it is most likely SIGKILL,
            because a crash leaves a message.
        where: what the ranks were doing.
    """
    lines = [_describe_death(rank, number, memory) for rank, memory in ranks.items()]
    if where is not None:
        lines.append(f"  where:  {where}")
    remedy = REDUCE_MEMORY
    if number is not None and number != signal.SIGKILL:
        remedy = ENLARGE_SHARED_MEMORY if number == signal.SIGBUS else FIND_CRASH if number in CRASHES else ""
    if remedy:
        lines.append(f"  remedy: {remedy}")
    return "\n".join(lines)


def _describe_death(rank: int, number: int | None, memory: RankMemory | None) -> str:
    figures = f": {memory.describe()}" if memory else ""
    if number in (None, signal.SIGKILL):
        certain = memory is not None and memory.was_killed_by_kernel()
        by = "signal 9" if number or certain else "most likely by signal 9"
        reason = "for lack of memory" if certain else "probably for lack of memory"
        return f"rank {rank} was killed ({by}), {reason}{figures}"
    assert number is not None
    verb = "crashed" if number in CRASHES else "was ended"
    return f"rank {rank} {verb} (signal {number}, {_signal_name(number)}){figures}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"


def describe_memory_error(error: BaseException) -> str | None:
    """Return the message about an error that was caused by lack of memory; None for any other error."""
    text, kind = str(error), type(error).__name__
    if kind == "BrokenProcessPool":
        killed = "a worker process was killed (most likely by signal 9), probably for lack of memory"
        return f"{killed}\n  remedy: {REDUCE_MEMORY}"
    if kind == "OutOfMemoryError" or _GPU_OUT_OF_MEMORY.search(text):
        size = _REFUSED_ON_GPU.search(text)
        request = f": {size[1]} more could not be had" if size else ""
        return (
            f"the memory of the GPU is used up (CUDA out of memory){request}\n  remedy: {REDUCE_GPU_MEMORY}"
        )
    worker = _WORKER.search(text) if isinstance(error, RuntimeError) else None
    if worker:
        return _describe_worker(worker[1], worker[2] or worker[3], shared="shared memory" in text)
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text):
        reason = text.splitlines()[0]
        return f"the memory that processes share is used up: {reason}\n  remedy: {ENLARGE_SHARED_MEMORY}"
    refused = _REFUSED_BYTES.search(text)
    lacking = isinstance(error, MemoryError) or "std::bad_alloc" in text
    lacking = lacking or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not refused and not lacking:
        return None
    size_text = (
        f"{format_gigabytes(int(refused[1]))} more could not be had" if refused else text.partition("\n")[0]
    )
    here = measure_memory(int(os.environ.get("RANK", "0")))
    figures = here.describe().replace("it used", "it uses").replace("were free", "are free")
    lack = size_text or "no more could be had"
    return f"this process has too little memory: {lack}; {figures}\n  remedy: {REDUCE_MEMORY}"


def _describe_worker(pid: str, how: str | None, *, shared: bool) -> str:
    """Return the message about a worker process of the data loader that died."""
    worker = f"a worker of the data loader (process {pid})"
    if how is None or how.startswith("Killed"):
        by = "signal 9" if how else "most likely by signal 9"
        return f"{worker} was killed ({by}), probably for lack of memory\n  remedy: {REDUCE_MEMORY}"
    how = how.strip()
    remedy = ENLARGE_SHARED_MEMORY if shared or how.startswith("Bus error") else FIND_CRASH
    return f"{worker} crashed ({how})\n  remedy: {remedy}"


def _memory_of_children() -> int:
    """Return the memory of the child processes of the main thread (Linux; elsewhere 0).

    The kernel lists them. psutil would look at every process of the machine, which takes 0.1 s if there are
    thousands.
    """
    total = 0
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return 0
    for child in children:
        with suppress(psutil.Error):
            total += psutil.Process(int(child)).memory_info().rss
    return total


def _oom_kills() -> int | None:
    """Return the number of processes that this machine's kernel has killed for lack of memory (Linux)."""
    try:
        counter = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(counter[1]) if counter else None


def _limit(machine_bytes: int) -> int | None:
    """Return the smallest limit on this process's memory, set by its control group or by ``ulimit -v``."""
    limits = [_limit_of_group()]
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits.append(None if soft == resource.RLIM_INFINITY else soft)
    return min((limit for limit in limits if limit is not None and limit < machine_bytes), default=None)


def _limit_of_group() -> int | None:
    """Return the memory limit of this process's control group, version 2 or 1 (Linux)."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in groups:
        _, kinds, place = line.split(":", 2)
        if kinds == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in kinds.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / place.lstrip("/")
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                limits.append(int((group / name).read_text()))
            if group == root:
                break
    return min(limits, default=None)
