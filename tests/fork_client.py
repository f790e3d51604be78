"""A Python interpreter that starts as a fork of a process that has the libraries imported.

:mod:`tests.warm` writes this file, below a first line that names the real interpreter, as a program called
``python`` next to the socket of its server. The program takes the arguments of an interpreter, passes its
standard streams, directory, environment and signals on to the fork, and ends as the fork ends. What the
server refuses, because the environment or the code differs from its own, runs in the real interpreter.

It imports as little as possible, because it starts several hundred times in a test run.
"""

import os
import signal
import socket
import sys
from marshal import dumps

FORWARDED = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGCONT,
}


def main() -> None:
    """Run the program that the arguments name, in a fork if possible."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until there is somebody to forward them to
    ignored = [int(number) for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    if "RANK" in os.environ:
        _end_with_parent()
    connection = _request(ignored)
    if connection is None:
        for number in FORWARDED:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: _forward(connection, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    ended = connection.recv(100)
    code = int(ended) if ended else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _request(ignored: "list[int]") -> "socket.socket | None":
    """Return the connection to the fork that was asked for; None where the server is gone or refuses."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "socket"))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        request = {
            "process": os.getpid(),
            "parent": os.getppid(),
            "arguments": sys.argv[1:],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "ignored": ignored,
            "cores": list(os.sched_getaffinity(0)),
        }
        socket.send_fds(connection, [dumps(request)], [0, 1, 2])
        return connection if connection.recv(1000) == b"started" else None
    except OSError:
        return None


def _forward(connection: socket.socket, number: int) -> None:
    try:
        connection.send(str(number).encode())
    except OSError:  # the fork has just ended
        pass


def _end_with_parent() -> None:
    """Let the system kill this process with its launcher: the fork asks for that, but has another parent."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
