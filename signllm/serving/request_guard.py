"""Which requests a server accepts: none of another site in the same browser, none that is too large."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # Gradio's page contains scripts and styles, and compiles templates; nothing is loaded from another host.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; object-src 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
FORM_BYTES = 1 << 20
"""Bytes of a request that are not the video: Gradio uploads it as part of a form."""


class RequestGuard:
    """Passes the requests to an application that it may answer, and adds the common headers.

    A request must name the host of this server (against DNS rebinding) and, if it states an origin, come from
    the page of this server. Behind a reverse proxy, that is the address that the proxy forwards in ``Host``
    or ``X-Forwarded-Host``, which scripts of other sites cannot set, or ``public_url``.

    Args:
        app: the application.
        host: address that the server listens at.
        public_url: address at which browsers open the page; its path is removed from requests.
        largest_mb: largest upload in 10^6 bytes.
    """

    def __init__(self, app: ASGIApp, *, host: str, public_url: str | None, largest_mb: int) -> None:
        self.app, self.host, self.largest_mb = app, host, largest_mb
        url = urlsplit(public_url or "")
        self.public_host, self.prefix = url.netloc, url.path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if self.prefix and f"{scope['path']}/".startswith(f"{self.prefix}/"):
            path = scope["path"].removeprefix(self.prefix) or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refuse(Headers(scope=scope)) or self.app
        await answer(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers) -> JSONResponse | None:
        """Return the response to a request that is refused, None if it is accepted."""
        requested = headers.get("host", "")
        name = urlsplit(f"//{requested}").hostname or ""
        if is_loopback(self.host) and not is_loopback(name) and requested != self.public_host:
            return error_response(
                403,
                f"the request is for {requested!r}",
                "open the address that serve has printed; behind a proxy, give it as --public-url",
            )
        origin = headers.get("origin")
        hosts = {requested, headers.get("x-forwarded-host", requested), self.public_host} - {""}
        if origin is not None and urlsplit(origin).netloc not in hosts:
            return error_response(
                403,
                f"the request comes from {origin!r}",
                "use the page of this server; behind a proxy, give its address as --public-url",
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.largest_mb * 10**6 + FORM_BYTES:
            return error_response(
                413,
                f"the video is larger than {self.largest_mb} MB",
                "send a shorter video, or raise --largest-mb",
            )
        return None


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def error_response(status: int, what: str, remedy: str, *, where: str = "") -> JSONResponse:
    """Return an error as a JSON response."""
    body: dict[str, Any] = {"error": {"what": what, "where": where, "remedy": remedy}}
    return JSONResponse(body, status_code=status)
