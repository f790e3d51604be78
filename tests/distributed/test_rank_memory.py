"""A rank that is killed is named with its signal and its memory, however it was started."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from signllm.distributed import local_ranks, rank_memory
from signllm.distributed.local_ranks import FAILED, describe_error
from signllm.distributed.rank_memory import (
    FOLDER_VARIABLE,
    MemoryRecorder,
    RankMemory,
    describe_deaths,
    describe_memory_error,
    measure_memory,
    read_memory,
)
from signllm.errors import RunFailedError
from tests import warm
from tests.distributed.dying_rank import BALLAST

MODULE = "tests.distributed.dying_rank"
ROOT = Path(__file__).resolve().parents[2]
MEMORY = RankMemory(
    rank=0,
    host="node7",
    pid=1,
    used_bytes=12_300_000_000,
    machine_bytes=16_000_000_000,
    free_bytes=100_000_000,
)


def expect_killed(text: str, rank: int = 0) -> None:
    """Check that the text names the rank, its signal, its memory, a remedy, and not what followed from it."""
    assert f"rank {rank} was killed" in text, text
    assert "signal 9" in text
    assert "for lack of memory" in text
    used = re.search(r"it used about ([\d.]+) GB", text)
    assert used is not None, text
    assert float(used[1]) * 1e9 >= BALLAST * 0.99
    assert "--training.batch-size" in text
    assert "internal error of signllm" not in text
    assert "closed by peer" not in text
    assert "Traceback" not in text


@pytest.fixture
def started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (*warm.RANK, FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("started_here")
def test_ranks_that_were_started_here(tmp_path: Path) -> None:
    """As `--ranks 2` does it: the process that started them sees the signal."""
    with pytest.raises(RunFailedError) as failed:
        local_ranks._launch([sys.executable, "-m", MODULE, str(tmp_path), "SIGKILL", "0"], 2)
    expect_killed(str(failed.value))
    assert "(signal 9)" in str(failed.value)
    assert describe_error(failed.value)[1] == 1
    assert not list(tmp_path.glob("signllm-ranks-*"))


@pytest.mark.usefixtures("started_here")
def test_ranks_of_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", MODULE, str(tmp_path), "SIGKILL", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    expected = done.stderr[done.stderr.index("rank 0 was killed") :].partition("\n-----")[0]
    expect_killed(expected)
    assert "closed by peer" not in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr


def test_ranks_of_any_launcher(tmp_path: Path) -> None:
    """As `srun` of train.sbatch starts them: only the other rank can say something."""
    done = warm.run_ranks(MODULE, str(tmp_path), "SIGKILL", "0", ranks=2)
    assert done.codes == [-signal.SIGKILL, FAILED]
    expect_killed(done.stderr)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("MEMORY", ("too little memory", "1125899.9 GB", "it uses about")),
        ("WORKER", ("a worker of the data loader", "signal 9", "for lack of memory", "--data.workers")),
    ],
)
def test_memory_that_a_rank_does_not_get_is_one_message(
    how: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    done = warm.run_ranks(MODULE, str(tmp_path), how, "1", ranks=2)
    assert done.codes == [FAILED, FAILED]
    assert "Traceback" not in done.stderr
    assert "internal error of signllm" not in done.stderr
    assert "rank-1 failed first" in done.stderr
    for words in expected:
        assert done.stderr.count(words) >= 2, "both ranks say it"


class Failure:
    """What torch knows of a rank that ended badly."""

    def __init__(self, code: int, second: int, kind: str | None = None, when: float = 0.0) -> None:
        self.exitcode, self.timestamp = code, second
        extra = {"kind": kind, "time": when}
        self.message = {"message": f"{kind} says why", "extraInfo": extra} if kind else f"signal {-code}"


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({0: Failure(-9, 10), 1: Failure(1, 10, "RankFailedError", 10.2)}, "rank 0 was killed (signal 9)"),
        ({0: Failure(-9, 10), 1: Failure(1, 10, "StoppedEarlyError", 10.2)}, "rank 0 was killed (signal 9)"),
        ({0: Failure(-9, 10), 1: Failure(-6, 10)}, "rank 0 was killed (signal 9)"),
        ({0: Failure(-15, 10), 1: Failure(-11, 10)}, "rank 1 crashed (signal 11, SIGSEGV)"),
        ({0: Failure(-9, 60), 1: Failure(1, 10, "ValueError", 10.2)}, "ValueError says why"),
        ({0: Failure(-6, 10), 1: Failure(1, 10, "ValueError", 10.2)}, "ValueError says why"),
        ({0: Failure(1, 9, "RankFailedError", 9.0), 1: Failure(1, 9, "KeyError", 9.5)}, "KeyError says why"),
        ({0: Failure(-7, 10)}, "rank 0 crashed (signal 7, SIGBUS)"),
    ],
)
def test_the_rank_that_died_first_is_named(
    failures: Mapping[int, Failure], expected: str, tmp_path: Path
) -> None:
    error = type("ChildFailed", (), {"failures": failures})
    assert expected in str(local_ranks._first_failure(error, tmp_path))


def test_a_death_is_described_by_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = describe_deaths({0: MEMORY}, 9, where="compose")
    assert "rank 0 was killed (signal 9), probably for lack of memory: it used about 12.3 GB" in expected
    assert "0.1 GB of 16.0 GB" in expected
    assert "node7" in expected
    assert "compose" in expected
    assert "most likely by signal 9" in describe_deaths({0: MEMORY})
    limited = replace(MEMORY, limit_bytes=13 * 10**9, workers_bytes=4 * 10**9)
    assert "its limit is 13.0 GB" in describe_deaths({3: limited}, 9)
    assert "its workers 4.0 GB" in describe_deaths({3: limited}, 9)
    assert "/dev/shm" in describe_deaths({0: None}, signal.SIGBUS)
    assert "SIGSEGV" in describe_deaths({0: None}, signal.SIGSEGV)
    assert "memory" not in describe_deaths({0: None}, signal.SIGTERM)
    here = replace(MEMORY, host=socket.gethostname(), oom_kills=3)
    monkeypatch.setattr(rank_memory, "_oom_kills", lambda: 4)
    assert "was killed (signal 9), for lack of memory" in describe_deaths({0: here})


CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
    "1.2 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
)
SHM = (
    "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory."
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "too little memory"),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"), "7.45 GiB"),
        (RuntimeError("std::bad_alloc"), "too little memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "4.0 GB",
        ),
        (torch.OutOfMemoryError(CUDA), "2.00 GiB"),
        (RuntimeError("CUDA error: out of memory"), "memory of the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), "signal 9"),
        (RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "), "(process 71) was killed"),
        (RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"), "process 71, 72"),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Segmentation fault. "),
            "Segmentation fault",
        ),
        (RuntimeError(SHM), "--shm-size"),
        (RuntimeError("unable to write to file </torch_71_2>: No space left on device (28)"), "--shm-size"),
        (
            RuntimeError("unable to mmap 64 bytes from file </torch_71_2>: Cannot allocate memory (12)"),
            "/dev/shm",
        ),
    ],
)
def test_lack_of_memory_is_one_message_with_the_remedy(error: Exception, expected: str) -> None:
    message, code = describe_error(error)
    assert expected in message
    assert "remedy" in message
    assert "Traceback" not in message
    assert code == FAILED


@pytest.mark.parametrize(
    "error", [ValueError("memory"), RuntimeError("shapes differ"), OSError(errno.ENOENT, "no such file", "x")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert describe_memory_error(error) is None


def test_the_file_is_gone_when_a_rank_ends_by_itself(tmp_path: Path) -> None:
    recorder = MemoryRecorder(tmp_path / "failures", 2)
    recorder.start()
    while read_memory(tmp_path / "failures", 2) is None:
        pass
    memory = read_memory(tmp_path / "failures", 2)
    assert memory is not None
    assert (memory.rank, memory.pid, memory.has_died()) == (2, os.getpid(), False)
    assert 0 < memory.used_bytes < memory.machine_bytes
    recorder.end()
    assert not (tmp_path / "failures").exists()
    assert read_memory(tmp_path / "failures", 2) is None
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert replace(measure_memory(0), pid=gone.pid).has_died()
    assert replace(measure_memory(0), host="another").has_died() is None


@pytest.mark.skipif(sys.platform != "linux", reason="the list of children is Linux's")
def test_worker_processes_are_counted() -> None:
    before = rank_memory._memory_of_children()
    code = "import sys; held = b'x' * (100 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert rank_memory._memory_of_children() - before >= 100 << 20


def test_a_run_that_is_not_there_gets_no_file(tmp_path: Path) -> None:
    recorder = MemoryRecorder(tmp_path / "run" / "failures", 0)
    recorder._written = 0
    recorder._write()
    recorder.end()
    assert not list(tmp_path.iterdir())
