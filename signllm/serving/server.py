"""The HTTP server of ``signllm serve``: a web page, its script and style, and ``POST /translate``.

    GET  /            the page
    GET  /about       JSON: name of the model, its language, known languages, limits
    POST /translate   bytes of a video; ?language=&candidates=&cut=whole|pauses|windows&seconds=
                      responds with lines of JSON (:mod:`signllm.serving.service`)

The server is meant for users of this machine. A page of another site in the same browser must not use it: a
request must name this host (against DNS rebinding) and, if it states an origin, come from this page. An
uploaded video is stored in a temporary folder under a fixed name, and deleted after the response.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import socket
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from signllm.errors import UsageError
from signllm.inference.translate import Translator
from signllm.languages import LANGUAGES
from signllm.serving.service import CUTS, MOST_CANDIDATES, Service, TranslationRequest

log = logging.getLogger(__name__)
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    translator: Translator,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    largest_mb: int = 500,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until interrupted.

    Args:
        translator: the loaded model.
        name: name of the model, for the page.
        host: address to listen at; a loopback address is reachable only from this machine.
        port: port to listen at; 0 chooses a free one.
        largest_mb: largest upload in 10^6 bytes.
        ready: function that is called with the address when the server accepts requests.

    Raises:
        UsageError: the port is in use or not allowed, or the address does not exist.
    """
    listening = listen(host, port)
    address = f"http://{_format_host(host)}:{listening.getsockname()[1]}"
    if not is_loopback(host):
        log.warning("%s: anyone who can reach this machine can use the model; there is no password", address)
    app = make_application(translator, name, host=host, largest_mb=largest_mb)
    web.run_app(app, sock=listening, print=lambda _: ready(address), access_log=None)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

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


def make_application(translator: Translator, name: str, *, host: str, largest_mb: int) -> web.Application:
    """Return the web application for one model; the arguments are those of :func:`serve`."""
    service = Service(translator)
    pages = {path: _read_package_file(file) for path, file in FILES.items()}

    async def page(request: web.Request) -> web.Response:
        body, kind = pages[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def about(request: web.Request) -> web.Response:
        usual = translator.config.generation.language or "English"
        return web.json_response(
            {
                "name": name,
                "language": usual,
                "languages": [language.name for language in LANGUAGES],
                "most_candidates": MOST_CANDIDATES,
                "cuts": CUTS,
                "largest_mb": largest_mb,
            }
        )

    async def translate(request: web.Request) -> web.StreamResponse:
        settings = TranslationRequest.from_query(request.query)
        with tempfile.TemporaryDirectory(prefix="signllm-") as folder:
            video = Path(folder) / "upload"
            await _receive_video(request, video, largest_mb)
            return await _stream_lines(request, service, video, settings)

    app = web.Application(middlewares=[_origin_check(host), _report_errors])
    app.add_routes([web.get(path, page) for path in FILES])
    app.add_routes([web.get("/about", about), web.post("/translate", translate)])
    app.on_shutdown.append(_shutdown_handler(service))
    return app


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _format_host(host: str) -> str:
    """Return a host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def _read_package_file(file: str) -> tuple[bytes, str]:
    """Return the contents and the content type of a file of this package."""
    body = resources.files("signllm.serving").joinpath(file).read_bytes()
    return body, TYPES[file.rpartition(".")[2]]


def _shutdown_handler(service: Service) -> Callable[[web.Application], Awaitable[None]]:
    """Return the function that stops a running translation when the server shuts down."""

    async def stop_service(_: web.Application) -> None:
        service.stop.set()

    return stop_service


def _origin_check(host: str) -> Any:
    """Return the middleware that refuses requests of other sites in the same browser."""

    @web.middleware
    async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
        requested = request.host.rpartition(":")[0] or request.host
        if is_loopback(host) and not is_loopback(requested.strip("[]")):
            return _error_response(
                403, f"the request is for {requested!r}", "open the address that serve has printed"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"{request.scheme}://{request.host}":
            return _error_response(403, f"the request comes from {origin!r}", "use the page of this server")
        return await handler(request)

    return check_origin


@web.middleware
async def _report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return errors as JSON, and add the common headers to every response."""
    try:
        response = await handler(request)
    except UsageError as error:
        return _error_response(400, error.what, error.remedy or "", where=str(error.where or ""))
    except web.HTTPRequestEntityTooLarge as error:
        return _error_response(413, error.text or "", "send a shorter video, or raise --largest-mb")
    except web.HTTPException as error:
        return _error_response(error.status, error.reason, "")
    if not response.prepared:
        response.headers.update(HEADERS)
    return response


def _error_response(status: int, what: str, remedy: str, *, where: str = "") -> web.Response:
    """Return an error as a JSON response."""
    body = {"error": {"what": what, "where": where, "remedy": remedy}}
    return web.json_response(body, status=status, headers=HEADERS)


async def _receive_video(request: web.Request, video: Path, largest_mb: int) -> None:
    """Write the body of a request to a file.

    Raises:
        UsageError: the body is empty.
        HTTPRequestEntityTooLarge: the body is larger than allowed; the rest of it is not read.
    """
    size, most = 0, largest_mb * 10**6
    declared = request.content_length or 0
    with video.open("wb") as file:
        if declared <= most:
            async for chunk in request.content.iter_chunked(1 << 20):
                size += len(chunk)
                if size > most:
                    break
                await asyncio.to_thread(file.write, chunk)
    if max(size, declared) > most:
        raise web.HTTPRequestEntityTooLarge(most, size, text=f"the video is larger than {largest_mb} MB")
    if not size:
        raise UsageError("there is no video", where="the request's body", remedy="send the bytes of a video")


async def _stream_lines(
    request: web.Request, service: Service, video: Path, settings: TranslationRequest
) -> web.StreamResponse:
    """Send the lines of a translation as soon as each is available."""
    response = web.StreamResponse(headers={**HEADERS, "Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    name = unquote(request.headers.get("X-Name", ""))[:200] or "the video"
    try:
        async with aclosing(service.translate(video, name, settings)) as lines:
            async for line in lines:
                await response.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        await response.write_eof()
    except ConnectionError:
        log.info("%s: the client has disconnected", name)
    return response
