"""The HTTP server of ``signllm serve``: the page, and ``POST /translate`` for scripts.

    GET  /            the page (:mod:`signllm.serving.page`)
    GET  /about       JSON: name of the model, its language, known languages, limits
    POST /translate   bytes of a video; ?language=&candidates=&cut=whole|pauses|windows&seconds=
                      responds with lines of JSON (:mod:`signllm.serving.service`)

The server is meant for users of this machine, or for those of a reverse proxy in front of it. A page of
another site in the same browser must not use it (:class:`RequestGuard`). Videos are stored in temporary
folders.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote

import gradio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount

from signllm.errors import UsageError
from signllm.inference.translate import Translator
from signllm.languages import LANGUAGES
from signllm.serving.page import build_page, page_options
from signllm.serving.request_guard import RequestGuard, error_response, is_loopback
from signllm.serving.service import CUTS, MOST_CANDIDATES, Line, Service, TranslationRequest

log = logging.getLogger(__name__)
SHUTDOWN_S = 5
"""Seconds that open responses get when the server is stopped."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where and how the page is served.

    Attributes:
        host: address to listen at; a loopback address is reachable only from this machine.
        port: port to listen at; 0 chooses a free one.
        public_url: address at which browsers open the page, if it is behind a reverse proxy.
        certificate: file with the certificate (and its chain) to serve https with; None serves http.
        key: file with the private key of the certificate; None if the certificate's file contains it.
        largest_mb: largest upload in 10^6 bytes.
        examples: videos that a visitor may choose.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    largest_mb: int = 500
    examples: Sequence[Path] = ()


def serve(
    translator: Translator, name: str, config: ServeConfig, *, ready: Callable[[str], None] = print
) -> None:
    """Serve the page until interrupted.

    Args:
        translator: the loaded model.
        name: name of the model, for the page.
        config: where and how the page is served.
        ready: function that is called with the address when the server accepts requests.

    Raises:
        UsageError: the port is in use or not allowed, the address does not exist, or the certificate cannot
            be used.
    """
    _check_certificate(config)
    with (
        closing(listen(config.host, config.port)) as listening,
        tempfile.TemporaryDirectory(prefix="signllm-page-") as uploads,
    ):
        scheme = "https" if config.certificate else "http"
        address = f"{scheme}://{_format_host(config.host)}:{listening.getsockname()[1]}"
        if not is_loopback(config.host):
            log.warning(
                "%s: anyone who can reach this machine can use the model; there is no password", address
            )
        service = Service(translator)
        app, end_streams = make_application(service, name, config, Path(uploads))
        options = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.key,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        server = _Server(options, service, end_streams, lambda: ready(config.public_url or address))
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        UsageError: the port is in use or not allowed, or the address does not exist.
    """
    if not 0 <= port < 1 << 16:
        raise UsageError(
            f"port {port} is out of range", where="--port", remedy="give 1 to 65535, or 0 for a free one"
        )
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"port {port} is in use" if is_taken else f"cannot listen at {host}, port {port}: {error}",
            where="--port" if is_taken else "--host, --port",
            remedy="give another --port, or 0 for a free one",
        ) from None
    return listening


def make_application(
    service: Service, name: str, config: ServeConfig, uploads: Path
) -> tuple[RequestGuard, Callable[[], None]]:
    """Return the web application for one model, and the function that ends the streams to open pages.

    The page writes videos into ``uploads``.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    language = service.translator.config.generation.language or "English"
    running: set[asyncio.Task[None]] = set()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/about")
    async def about() -> dict[str, Any]:
        return {
            "name": name,
            "language": language,
            "languages": [item.name for item in LANGUAGES],
            "most_candidates": MOST_CANDIDATES,
            "cuts": CUTS,
            "largest_mb": config.largest_mb,
        }

    @app.post("/translate")
    async def translate(request: Request) -> Response:
        settings = TranslationRequest.from_query(request.query_params)
        folder = tempfile.TemporaryDirectory(prefix="signllm-")
        try:
            video = Path(folder.name) / "upload"
            problem = await _receive_video(request, video, config.largest_mb)
        except BaseException:
            folder.cleanup()
            raise
        if problem is not None:
            folder.cleanup()
            return problem
        title = unquote(request.headers.get("X-Name", ""))[:200] or "the video"
        lines: asyncio.Queue[Line | None] = asyncio.Queue()

        async def work() -> None:
            with folder:
                try:
                    async with aclosing(service.translate(video, title, settings)) as results:
                        async for line in results:
                            lines.put_nowait(line)
                finally:
                    lines.put_nowait(None)

        task = asyncio.create_task(work())
        running.add(task)
        task.add_done_callback(running.discard)
        return StreamingResponse(_format_lines(lines, task), media_type="application/x-ndjson")

    @app.exception_handler(UsageError)
    async def report_usage_error(request: Request, error: UsageError) -> Response:
        return error_response(400, error.what, error.remedy or "", where=str(error.where or ""))

    page = build_page(service, name, language, config.examples, uploads)
    gradio.mount_gradio_app(app, page, path="/", **page_options(config.largest_mb, config.public_url))
    guard = RequestGuard(app, host=config.host, public_url=config.public_url, largest_mb=config.largest_mb)
    pages: Any = next(route.app for route in app.routes if isinstance(route, Mount))
    return guard, lambda: pages.stop_event.set()


async def _receive_video(request: Request, video: Path, largest_mb: int) -> JSONResponse | None:
    """Write the body of a request to a file; return the response if it is too large.

    Raises:
        UsageError: the body is empty.
    """
    size = 0
    with video.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > largest_mb * 10**6:
                return error_response(
                    413,
                    f"the video is larger than {largest_mb} MB",
                    "send a shorter video, or raise --largest-mb",
                )
            await asyncio.to_thread(file.write, chunk)
    if not size:
        raise UsageError("there is no video", where="the request's body", remedy="send the bytes of a video")
    return None


async def _format_lines(lines: asyncio.Queue[Line | None], task: asyncio.Task[None]) -> AsyncIterator[bytes]:
    """Yield each line as soon as it is available; stop the translation if the client disconnects."""
    try:
        while (line := await lines.get()) is not None:
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
    finally:
        task.cancel()


class _Server(uvicorn.Server):
    """A server that reports when it is ready, and that a signal ends without an error."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        end_streams: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.service, self.end_streams, self.ready = service, end_streams, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end_streams()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        self.service.stop.set()


def _check_certificate(config: ServeConfig) -> None:
    """Check that https can be served with the certificate.

    Raises:
        UsageError: the files do not exist or do not belong together.
    """
    if config.certificate is None:
        if config.key is not None:
            raise UsageError(
                "there is a key without a certificate",
                where="--ssl-keyfile",
                remedy="give --ssl-certfile too",
            )
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the certificate cannot be used: {error}",
            where=f"--ssl-certfile {config.certificate}",
            remedy="give a certificate and its private key in PEM files: --ssl-certfile, --ssl-keyfile",
        ) from None


def _format_host(host: str) -> str:
    """Return a host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host
