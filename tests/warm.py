"""Python processes that start as forks of a server that has the libraries imported.

The imports of torch, DeepSpeed and transformers are most of what a test on several ranks costs. :func:`run`
and :func:`run_ranks` run a module and wait for it; :func:`python` returns a program that takes the place of
``sys.executable`` in the command of a subprocess, of a launcher or of a job of Slurm
(:mod:`tests.fork_client`). What each way of starting ranks does itself (``--ranks``, ``launch``, torchrun,
``train.sbatch``) is tested at least once with fresh interpreters.

Run as a program this file is the server. It has one thread, and it ends with its standard input; the forks
end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import marshal
import os
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from signllm.distributed.local_ranks import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
FIXED = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
"""What libraries read when they are imported: the same for all forks."""
RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
READ_AT_IMPORT = (
    "ATEN_", "DNNL_", "DS_", "GLIBC_", "HF_", "HUGGINGFACE_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_",
    "ONEDNN_", "PYTHON", "TORCHDYNAMO_", "TORCH_LOGS", "TRANSFORMERS_", "TRITON_", "XDG_",
)  # fmt: skip
"""How the variables begin that decide what an import does: a fork cannot have another value of them."""
PRELOADED = (
    "multiprocessing.resource_tracker",  # starts the real interpreter, as does the next
    "multiprocessing.spawn",
    "submitit",
    "deepspeed",
    "torch._dynamo",  # what the decorators of DeepSpeed's Muon import when the first engine is made
    "torch._inductor.compile_fx",
    "torch.distributed.run",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.resnet.modeling_resnet",
    "signllm.cluster.rank",
    "signllm.inference.evaluate",
    "signllm.stages.compose",
    "signllm.stages.finetune",
    "signllm.stages.pretrain",
    "signllm.verbs",
)
"""Modules that ranks import."""
_LARGEST = 1 << 20
ENDS_WITHIN_S, GRACE_S = 600.0, 10.0
"""Time until ranks are killed; time that the others have to end by themselves, then after SIGTERM."""


@dataclass(frozen=True)
class Ended:
    """How processes ended.

    Attributes:
        codes: exit codes by rank; a signal's number below 0, as in ``Popen.returncode``.
        stdout: what the ranks wrote there, rank after rank.
        stderr: the same of standard error.
    """

    codes: list[int]
    stdout: str
    stderr: str


def python() -> str:
    """Return the path of a program that is used like ``sys.executable`` and starts as a fork.

    It is a process of its own, which passes signals on and ends as the fork ends; :func:`fork_of` returns the
    process that does the work. It runs the real interpreter instead where a variable that libraries read at
    their import differs from the server's (``OMP_NUM_THREADS=1``), or where the code is another checkout's.
    """
    return str(_server() / "python")


def fork_of(process: int) -> int:
    """Return the process that does the work of a :func:`python` process; the same where it was refused."""
    path = _server() / f"fork-of-{process}"
    return int(path.read_text()) if path.exists() else process


def run(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Ended:
    """Run ``python -m MODULE ARGUMENTS`` without the variables of a launcher; as :func:`run_ranks`."""
    return _run(module, arguments, [environment or {}])


def run_ranks(module: str, *arguments: str, ranks: int) -> Ended:
    """Run ``python -m MODULE ARGUMENTS`` on ranks that can meet.

    When the first ends badly, the others have time to report it and to end. Then they are asked to leave, as
    by torchrun, and at last killed.
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
        started = []
        for own, outputs in zip(environments, written, strict=True):
            connection = _connect(module, arguments, {**plain, **own}, [file.fileno() for file in outputs])
            started.append(files.enter_context(connection))
        codes = _wait(started)
        return Ended(codes, *(_read(files) for files in zip(*written, strict=True)))


def _connect(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], outputs: Sequence[int]
) -> socket.socket:
    """Return the connection to a new fork that runs a module."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(_server() / "socket"))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    request = {
        "arguments": ["-m", module, *arguments],
        "environment": {**environment, **FIXED, "PYTHONPATH": str(ROOT)},
        "folder": str(ROOT),
        "ignored": [],
        "cores": list(os.sched_getaffinity(0)),
        "process": 0,
    }
    with open(os.devnull) as nothing:
        socket.send_fds(connection, [marshal.dumps(request)], [nothing.fileno(), *outputs])
    answer = connection.recv(1000)
    assert answer == b"started", f"the server of forks: {answer!r}"
    return connection


def _read(files: Sequence[IO[bytes]]) -> str:
    """Return what the ranks wrote, one rank after the other: in one file their lines would meet."""
    for file in files:
        file.seek(0)
    return "".join(file.read().decode(errors="replace") for file in files)


def _wait(started: Sequence[socket.socket]) -> list[int]:
    """Wait for all processes and return their exit codes; none of them is left."""
    codes: dict[int, int] = {}
    signals = [signal.SIGTERM, signal.SIGKILL]
    give_up = time.monotonic() + ENDS_WITHIN_S
    while len(codes) < len(started):
        left = {one: number for number, one in enumerate(started) if number not in codes}
        ready, _, _ = select.select(list(left), [], [], max(0.0, give_up - time.monotonic()))
        for connection in ready:
            try:
                answer = connection.recv(100)
            except ConnectionResetError:  # it was killed before it had read the last signal
                answer = b""
            codes[left.pop(connection)] = code = int(answer or 1)
            if code:
                give_up = min(give_up, time.monotonic() + GRACE_S)
        if not ready:
            number = signals.pop(0) if any(codes.values()) and len(signals) > 1 else signal.SIGKILL
            give_up = time.monotonic() + GRACE_S
            for connection in left:
                with contextlib.suppress(OSError):  # it has just ended
                    connection.send(str(int(number)).encode())
    return [codes[number] for number in range(len(started))]


@functools.cache
def _server() -> Path:
    """Return the folder of the server's socket; start the server with the first call."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n" + (ROOT / "tests" / "fork_client.py").read_text())
    program.chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if name not in RANK}
    environment = {**plain, **FIXED, "PYTHONPATH": str(ROOT)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(128)
        command = [sys.executable, "-m", "tests.warm", str(folder), str(listener.fileno())]
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd=ROOT, env=environment, pass_fds=[listener.fileno()]
        )
    _server_input.append(server.stdin)
    return folder


_server_input: list[IO[bytes] | None] = []
"""The end of the pipe whose other end is the server's standard input: the server ends when it is closed."""


def _preload() -> None:
    """Import what ranks import; starts no thread."""
    for module in PRELOADED:
        importlib.import_module(module)


class _Server:
    """Forks for every request, until its standard input is closed."""

    def __init__(self, folder: Path, listener: socket.socket, environment: Mapping[str, str]) -> None:
        self.folder, self.listener = folder, listener
        self.environment = environment
        self.selector = selectors.DefaultSelector()
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        self.selector.register(listener, selectors.EVENT_READ)
        self.connections: dict[socket.socket, tuple[int, int] | None] = {}  # connection -> process, pidfd

    def serve(self) -> dict[str, Any] | None:
        """Answer requests; returns the request in the fork that is to serve it, None at the end."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == sys.stdin.fileno():
                    return None
                if key.fileobj is self.listener:
                    connection, _address = self.listener.accept()
                    self.connections[connection] = None
                    self.selector.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    if (request := self._receive(key.fileobj)) is not None:
                        return request
                else:
                    self._report_end(key.data)

    def _receive(self, connection: socket.socket) -> dict[str, Any] | None:
        """Read a request, a signal's number, or the end of the client; returns the request in a new fork."""
        known = self.connections.get(connection)
        if known is None:
            return self._begin(connection)
        try:
            message = connection.recv(100)
        except OSError:
            message = b""
        with contextlib.suppress(ProcessLookupError):
            os.kill(known[0], int(message) if message else signal.SIGKILL)
        if not message:
            self.selector.unregister(connection)
        return None

    def _begin(self, connection: socket.socket) -> dict[str, Any] | None:
        try:
            message, streams, *_ = socket.recv_fds(connection, _LARGEST, 3)
        except OSError:
            message, streams = b"", []
        request = marshal.loads(message) if message else None
        refusal = "no request" if request is None else self._refusal(request)
        if request is None or refusal:
            with contextlib.suppress(OSError):
                connection.send(f"refused: {refusal}".encode())
            self._close(connection)
            for stream in streams:
                os.close(stream)
            return None
        child = os.fork()
        if child == 0:
            end_with_parent()
            for other in (self.listener, *self.connections):
                other.close()
            for known in self.connections.values():
                if known is not None:
                    os.close(known[1])
            self.selector.close()
            return {**request, "streams": streams, "program": str(self.folder / "python")}
        if request["process"]:
            (self.folder / f"fork-of-{request['process']}").write_text(str(child))
        pidfd = os.pidfd_open(child)
        self.connections[connection] = child, pidfd
        self.selector.register(pidfd, selectors.EVENT_READ, connection)
        with contextlib.suppress(OSError):
            connection.send(b"started")
        for stream in streams:
            os.close(stream)
        return None

    def _report_end(self, connection: socket.socket) -> None:
        """Send the exit code of a fork to its client."""
        known = self.connections[connection]
        assert known is not None
        process, pidfd = known
        _, status = os.waitpid(process, 0)
        self.selector.unregister(pidfd)
        os.close(pidfd)
        with contextlib.suppress(OSError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(connection)
        del self.connections[connection]
        connection.close()

    def _refusal(self, request: Mapping[str, Any]) -> str:
        """Return why a fork would import something else than a fresh interpreter; "" if it would not."""
        words, environment = list(request["arguments"]), request["environment"]
        while words and words[0] == "-u":
            words.pop(0)
        if not words or (words[0] not in ("-c", "-m") and words[0].startswith("-")):
            return f"arguments {words[:1]}"
        variables = _import_variables(environment)
        if not Path("/dev/nvidiactl").exists():
            variables.setdefault("DS_ACCELERATOR", "cpu")  # what DeepSpeed finds where no GPU is
        differing = dict(variables.items() ^ self.environment.items())
        if differing:
            return f"variables {', '.join(differing)}"
        own = Path(words[0]).parent if words[0] not in ("-c", "-m") else Path(request["folder"])
        for path in (own, *map(Path, filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))):
            for name in ("signllm/__init__.py", "sitecustomize.py"):
                if (path / name).exists() and path.resolve() != ROOT:
                    return f"code in {path}"
        return ""


def _import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that decide what imports do.

    The path of modules is set in the fork. Gradio sets ``HF_HUB_DISABLE_TELEMETRY`` in the process that tests
    the page; without a network it changes nothing.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in ("PYTHONPATH", "HF_HUB_DISABLE_TELEMETRY")
    }


def _be_interpreter(request: Mapping[str, Any]) -> NoReturn:
    """Run in this fork what the arguments of an interpreter name, and end the process."""
    for place, stream in enumerate(request["streams"]):
        os.dup2(stream, place)
        os.close(stream)
    os.setsid()  # what the client's group is sent the client forwards
    os.sched_setaffinity(0, request["cores"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if request["process"]:  # submitit knows a job by the shell that started its program
        os.getppid = lambda: request["parent"]
    tempfile.tempdir = None  # it was found in the environment of the server
    words = list(request["arguments"])
    sys.orig_argv = [request["program"], *words]
    sys.executable = request["program"]
    if unbuffered := words[0] == "-u":
        words = [word for number, word in enumerate(words) if number or word != "-u"]
    unbuffered |= bool(os.environ.get("PYTHONUNBUFFERED"))
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(write_through=unbuffered, line_buffering=stream is sys.stderr)
    added = [path for path in request["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = added + [path for path in sys.path if path not in ("", str(ROOT))]
    code = 1
    try:
        _run_program(words, request["folder"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException as error:
        try:  # a program may have set how an exception that nobody catches is shown
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code % 256)  # to tear down what was imported touches, so copies, all of its memory: 2 s


def _run_program(words: list[str], folder: str) -> None:
    """Run ``-m MODULE``, ``-c CODE`` or a script with its arguments, as the interpreter does."""
    kind = words[0]
    if kind == "-m":
        sys.path.insert(0, folder)
        sys.argv[:] = ["-m", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *words[2:]]
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv[:] = words
        runpy.run_path(kind, run_name="__main__")


def _main() -> None:
    folder, listener = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    environment = _import_variables(os.environ)
    _preload()  # sets variables
    sys.stdout.flush()
    sys.stderr.flush()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: the lock that another one holds would stay locked in a fork"
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, so copy, all of its memory
    request = _Server(folder, listener, environment).serve()
    if request is not None:
        _be_interpreter(request)


if __name__ == "__main__":
    _main()
    os._exit(0)
