"""An HTTP server on the loopback address that supports ranges and simulates faults on request."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Answers range requests, and simulates the fault that ``server.mischief`` names for tars only."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        path = Path(self.translate_path(self.path))
        server.asked[path.name] += 1
        mischief = server.mischief if path.suffix == ".tar" else ""
        refusal = server.rule(path) or (server.refusals.popleft() if server.refusals else None)
        if refusal is not None:
            self.refuse(*refusal)
            return
        if not path.is_file():
            self.send_error(404)
            return
        if mischief == "down" or (mischief == "busy" and server.asked[path.name] % 3):
            self.send_error(503)
            return
        if mischief == "forbidden":
            self.send_error(403)
            return
        first_try = server.asked[path.name] % 2 == 1
        if mischief == "drops" and first_try:
            self.close_connection = True
            return
        data, ranged = path.read_bytes(), self.headers.get("Range")
        if ranged is None or mischief == "ignores ranges":
            self.answer(200, data, {})
            return
        start, _, stop = ranged.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(stop), len(data) - 1)
        if first > last:
            self.send_error(416)
            return
        part = data[first : last + 1]
        if mischief == "wrong range" and first_try:
            first, last = first + 1, last + 1
        self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, mischief, first_try)

    def refuse(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Answer with an error, or with status 0 not at all."""
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer(
        self, status: int, data: bytes, headers: dict[str, str], mischief: str = "", first_try: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if mischief == "stalls" and first_try:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.resumed.wait(20)  # type: ignore[attr-defined]
            self.close_connection = True
            return
        self.wfile.write(data[: len(data) // 2] if mischief == "truncates" and first_try else data)
        if mischief == "truncates":
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


Refusal = tuple[int, dict[str, str]] | tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """A server that records its requests; it has a list of the next refusals, and a rule to refuse paths."""

    daemon_threads = True
    mischief = ""
    asked: Counter[str]
    refusals: deque[Refusal]
    resumed: threading.Event

    rule: Callable[[Path], Refusal | None] = staticmethod(lambda path: None)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Server]:
    """Serve a folder in a thread while the block runs."""
    server = Server(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    server.asked, server.refusals, server.resumed = Counter(), deque(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
