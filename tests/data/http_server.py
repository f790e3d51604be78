"""An HTTP server on loopback that answers ranges, and misbehaves when it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Ranges as a server should, and the mischief that ``server.mischief`` names, on tars only."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        path = Path(self.translate_path(self.path))
        server.asked[path.name] += 1
        mischief = server.mischief if path.suffix == ".tar" else ""
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

    def answer(
        self, status: int, data: bytes, headers: dict[str, str], mischief: str = "", first_try: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if mischief == "truncates" and first_try else data)
        if mischief == "truncates":
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    mischief = ""
    asked: Counter[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder, in a thread, for as long as the block lasts."""
    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked = Counter()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
