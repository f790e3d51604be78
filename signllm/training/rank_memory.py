"""The memory that each rank uses, and the messages about ranks and workers that had too little of it.

The kernel kills a process that needs more memory than there is, and such a process says nothing itself. So
each rank leaves its memory in a small file, ``rank-R.memory.json``, which a rank that ends by itself removes.
The other ranks, or the process that started them, read the file of a rank that died. A starter of ours names
a folder for the files in the environment; under torchrun it is ``run/failures``.
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
LOOK_EVERY_S = 0.25
"""Between two looks at the memory: a batch that is too large fills it within seconds."""
WORKERS_EVERY = 8
"""Looks after which the worker processes are looked at."""
GROWTH, LEAST_GROWTH = 1.05, 32 << 20
"""How much more memory, as a ratio and in bytes, is worth writing the file again."""
SMALLER = (
    "a smaller batch (--training.batch-size, --batch-size) or more --training.accumulation, fewer frames at "
    "a time (--data.max-frames-per-batch, --vq-sign.encoder.frames-per-chunk), fewer --data.workers, "
    "--training.deepspeed zero3, or fewer ranks on this machine; on Slurm more --mem-gb"
)
SMALLER_ON_GPU = (
    "more --training.accumulation, a smaller batch (--training.batch-size, --batch-size), "
    "--training.deepspeed zero3, or more GPUs"
)
SHARED = "make /dev/shm larger (docker run --shm-size 8g), or read without worker processes: --data.workers 0"
CRASH = "PYTHONFAULTHANDLER=1 in the environment shows where it was; `signllm doctor` checks this machine"
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) "
    r"(?:is killed by signal: ([\w ]+)|exited unexpectedly(?: with (exit code \d+))?)"
)
_REFUSED_BYTES = re.compile(r"(?:can't allocate|not enough) memory: you tried to allocate (\d+) bytes")
_REFUSED_ON_GPU = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_OF_GPU = re.compile("CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED")
_SHARED_MEMORY = re.compile(r"unable to .*(?:shared memory|</?torch_|shm)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """The memory of a rank when its process last wrote it.

    Attributes:
        rank: number of the rank.
        host: name of its machine.
        pid: number of its process there.
        used_bytes: resident memory of the process.
        workers_bytes: resident memory of the processes that it started.
        machine_bytes: memory of the machine.
        free_bytes: memory of the machine that programs could still get.
        limit_bytes: what the process may use by its control group or ``ulimit``; None without a limit.
        oom_kills: processes that the machine's kernel had killed for lack of memory when the rank began.
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
        """Return it as the middle of a sentence: ``it used about 12.3 GB of the 16.0 GB of node7``."""
        workers = f" and its workers {gigabytes(self.workers_bytes)}" if self.workers_bytes else ""
        text = f"it used about {gigabytes(self.used_bytes)}{workers}"
        if self.limit_bytes is not None:
            text += f", its limit is {gigabytes(self.limit_bytes)}"
        machine = f"{gigabytes(self.free_bytes)} of {gigabytes(self.machine_bytes)}"
        return f"{text}, and {machine} were free on {self.host}"

    def has_died(self) -> bool | None:
        """Say whether its process is gone; None on another machine, from where it cannot be seen."""
        if self.host != socket.gethostname():
            return None
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def was_killed_by_kernel(self) -> bool:
        """Say whether the kernel of this machine has killed a process for lack of memory since it began."""
        now = _oom_kills()
        here = self.host == socket.gethostname()
        return here and self.oom_kills is not None and now is not None and now > self.oom_kills


def gigabytes(count: int) -> str:
    """Return a number of bytes as ``12.3 GB``, small ones with more digits."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2g} GB"


def measure(rank: int) -> RankMemory:
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
    """Keeps the file of this rank's memory up to date while it grows."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(name="memory recorder", daemon=True)
        self.path = _path(folder, rank)
        self._pid = os.getpid()
        self._memory = measure(rank)
        self._written = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Look and write until :meth:`end`."""
        process, looks = psutil.Process(), 0
        while True:
            workers = self._memory.workers_bytes
            if looks % WORKERS_EVERY == 0:
                workers = _memory_of_children()
            looks += 1
            used = process.memory_info().rss
            if used + workers > max(self._written * GROWTH, self._written + LEAST_GROWTH):
                free = psutil.virtual_memory().available
                self._memory = replace(self._memory, used_bytes=used, workers_bytes=workers, free_bytes=free)
                self._write()
            if self._ended.wait(LOOK_EVERY_S):
                return

    def _write(self) -> None:
        if not self.path.parent.parent.is_dir():  # a run folder that is not there yet, or never will be
            return
        with suppress(OSError):  # a full disk has its own message
            self.path.parent.mkdir(exist_ok=True)
            unfinished = self.path.with_suffix(".part")
            unfinished.write_text(json.dumps(asdict(self._memory)), encoding="utf-8")
            os.replace(unfinished, self.path)
            self._written = self._memory.used_bytes + self._memory.workers_bytes

    def end(self) -> None:
        """Remove the file: this rank ends by itself and can say why."""
        if os.getpid() != self._pid:
            return
        self._ended.set()
        with suppress(RuntimeError):  # it was never started
            self.join()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # where nothing else was left in it


def record_memory(folder: Path | None, rank: int) -> None:
    """Begin to record the memory of this process until it ends; again, or without a folder, nothing.

    Args:
        folder: where, if the starter of this rank has named no other in its environment.
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
    """Return the folder of the files: the starter's, else ``folder``."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else folder


def read_memory(folder: Path | None, rank: int) -> RankMemory | None:
    """Return what a rank has left; None where it left nothing, or ended by itself."""
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
    """Return the message about ranks that ended without a word, killed or crashed.

    Args:
        ranks: their numbers and their memory, if they have left it.
        number: the signal that ended them; None where nobody could see it, which is most likely SIGKILL: a
            crash leaves a line of its own.
        where: what they did.
    """
    lines = [_describe_death(rank, number, memory) for rank, memory in ranks.items()]
    if where is not None:
        lines.append(f"  where:  {where}")
    remedy = SMALLER
    if number is not None and number != signal.SIGKILL:
        remedy = SHARED if number == signal.SIGBUS else CRASH if number in CRASHES else ""
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
    """Return the message about an error that says that memory was lacking; None for any other."""
    text, kind = str(error), type(error).__name__
    if kind == "BrokenProcessPool":
        killed = "a worker process was killed (most likely by signal 9), probably for lack of memory"
        return f"{killed}\n  remedy: {SMALLER}"
    if kind == "OutOfMemoryError" or _OF_GPU.search(text):
        size = _REFUSED_ON_GPU.search(text)
        request = f": {size[1]} more could not be had" if size else ""
        return f"the memory of the GPU is used up (CUDA out of memory){request}\n  remedy: {SMALLER_ON_GPU}"
    worker = _WORKER.search(text) if isinstance(error, RuntimeError) else None
    if worker:
        return _describe_worker(worker[1], worker[2] or worker[3], shared="shared memory" in text)
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text):
        return f"the memory that processes share is used up: {text.splitlines()[0]}\n  remedy: {SHARED}"
    refused = _REFUSED_BYTES.search(text)
    lacking = isinstance(error, MemoryError) or "std::bad_alloc" in text
    lacking = lacking or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not refused and not lacking:
        return None
    size_text = f"{gigabytes(int(refused[1]))} more could not be had" if refused else text.partition("\n")[0]
    here = measure(int(os.environ.get("RANK", "0")))
    figures = here.describe().replace("it used", "it uses").replace("were free", "are free")
    lack = size_text or "no more could be had"
    return f"this process has too little memory: {lack}; {figures}\n  remedy: {SMALLER}"


def _describe_worker(pid: str, how: str | None, *, shared: bool) -> str:
    """Return the message about a process of the data loader that died."""
    worker = f"a worker of the data loader (process {pid})"
    if how is None or how.startswith("Killed"):
        by = "signal 9" if how else "most likely by signal 9"
        return f"{worker} was killed ({by}), probably for lack of memory\n  remedy: {SMALLER}"
    how = how.strip()
    remedy = SHARED if shared or how.startswith("Bus error") else CRASH
    return f"{worker} crashed ({how})\n  remedy: {remedy}"


def _memory_of_children() -> int:
    """Return the memory of the processes that the main thread has started (Linux; elsewhere 0).

    The kernel has a list of them. psutil would look at every process of the machine, which takes 0.1 s where
    there are thousands.
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
    """Return how many processes the kernel of this machine has killed for lack of memory (Linux)."""
    try:
        counter = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(counter[1]) if counter else None


def _limit(machine_bytes: int) -> int | None:
    """Return the smallest limit on this process's memory, of its control group or ``ulimit -v``."""
    limits = [_limit_of_group()]
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits.append(None if soft == resource.RLIM_INFINITY else soft)
    return min((limit for limit in limits if limit is not None and limit < machine_bytes), default=None)


def _limit_of_group() -> int | None:
    """Return the memory limit of this process's control group, of version 2 or 1 (Linux)."""
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
