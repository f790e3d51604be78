"""``python -m MODULE`` without its start: a fork of a process that has the libraries imported.

The imports of torch, DeepSpeed and transformers are most of what a test on several ranks costs. This is for
processes whose own start is not what is tested; what starts ranks for users (``--ranks``, ``launch``,
torchrun, ``train.sbatch``) is tested with fresh interpreters.

Run as a program this file is the process that forks. It has one thread, reads requests from its standard
input, and ends with it; what it forked ends with it too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from signllm.training.local_ranks import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
FIXED = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
"""What libraries read when they are imported: the same for all."""
RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LARGEST = 1 << 20
ENDS_WITHIN_S, GRACE_S = 600.0, 10.0
"""Until ranks are killed; until those are that were asked to leave."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Ended:
    """The exit codes by rank, a signal's number below 0 as ``Popen`` tells it; what they wrote, by rank."""

    codes: list[int]
    stdout: str
    stderr: str


def run(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Ended:
    """Run ``python -m MODULE ARGUMENTS`` without the variables of a launcher; as :func:`run_ranks`."""
    return _run(module, arguments, [environment or {}])


def run_ranks(module: str, *arguments: str, ranks: int) -> Ended:
    """Run ``python -m MODULE ARGUMENTS`` on ranks that can meet.

    As with torchrun, when the first ends badly the others are asked to leave, and killed if they do not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return _run(module, arguments, own)


def _run(module: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]]) -> Ended:
    plain = {name: value for name, value in os.environ.items() if name not in RANK}
    with contextlib.ExitStack() as files:
        written = [[files.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in environments]
        started = [
            _Process(module, arguments, {**plain, **own}, [file.fileno() for file in outputs])
            for own, outputs in zip(environments, written, strict=True)
        ]
        codes = _codes(started)
        return Ended(codes, *(_told(files) for files in zip(*written, strict=True)))


def _told(files: Sequence[IO[bytes]]) -> str:
    """Return what the ranks wrote, one rank after the other: in one file their lines would meet."""
    for file in files:
        file.seek(0)
    return "".join(file.read().decode(errors="replace") for file in files)


def _codes(started: Sequence[_Process]) -> list[int]:
    """Wait for all; nothing of them is left."""
    codes: dict[int, int] = {}
    give_up = time.monotonic() + ENDS_WITHIN_S
    while len(codes) < len(started):
        left = {one.told: number for number, one in enumerate(started) if number not in codes}
        ready, _, _ = select.select(list(left), [], [], max(0.0, give_up - time.monotonic()))
        for told in ready:
            codes[left.pop(told)] = code = int(os.read(told, 100))
            os.close(told)
            if code:
                give_up = min(give_up, time.monotonic() + GRACE_S)
        if any(codes.values()) or not ready:
            for number in left.values():
                with contextlib.suppress(ProcessLookupError):  # it has just ended, and will tell
                    os.kill(started[number].pid, signal.SIGTERM if ready else signal.SIGKILL)
    return [codes[number] for number in range(len(started))]


class _Process:
    """A process that runs a module; a line at the end of ``told`` is its exit code."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        outputs: Sequence[int],
    ) -> None:
        self.told, theirs = os.pipe()
        request = json.dumps([module, list(arguments), {**environment, **FIXED}])
        with _lock:
            socket.send_fds(_forker(), [request.encode()], [theirs, *outputs])
        os.close(theirs)
        self.pid = int(os.read(self.told, 100))


@functools.cache
def _forker() -> socket.socket:
    """Return the way to the process that forks, started with the first request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    plain = {name: value for name, value in os.environ.items() if name not in RANK}
    environment = {**plain, **FIXED, "PYTHONPATH": str(ROOT)}
    with theirs:
        subprocess.Popen([sys.executable, "-m", "tests.warm"], stdin=theirs, cwd=ROOT, env=environment)
    return ours


def _preload() -> None:
    """Import what ranks import; starts no thread."""
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, ResNetModel  # noqa: F401

    import signllm.evaluation.evaluate
    import signllm.stages.compose
    import signllm.stages.finetune
    import signllm.stages.pretrain  # noqa: F401


def _serve(requests: socket.socket) -> None:
    """Fork for every request, until nobody can ask any more."""
    _preload()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: the lock that another one holds would stay locked in a fork"
    gc.freeze()  # a collection in a fork would touch, so copy, all of its memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        request, descriptors, *_ = socket.recv_fds(requests, _LARGEST, 3)
        if not request:
            return
        told, *outputs = descriptors
        if os.fork() == 0:
            end_with_parent()
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(*json.loads(request), told, outputs)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(
    module: str, arguments: list[str], environment: dict[str, str], told: int, outputs: list[int]
) -> None:
    """Fork the process itself, and tell its number and how it ended: only a parent learns that."""
    child = os.fork()
    if child:
        os.write(told, str(child).encode())
        _, status = os.waitpid(child, 0)
        os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    end_with_parent()
    os.close(told)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for place, output in enumerate(outputs, start=1):
        os.dup2(output, place)
        os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # to tear down what was imported touches, so copies, all of its memory: 2 s


if __name__ == "__main__":
    _serve(socket.socket(fileno=os.dup(0)))
    os._exit(0)
