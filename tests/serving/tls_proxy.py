"""A reverse proxy for tests: it ends https, and forwards each request over http to a server."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for this machine that nobody has signed, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, none))
    return certificate_file, key_file


class TlsProxy:
    """A proxy on a free port of this machine.

    Args:
        folder: folder for its certificate.
        prefix: path below which it serves; it is removed from requests, as by nginx's ``proxy_pass URL/``.
        forwards: whether it states the address of the visitor's request in ``X-Forwarded`` headers.
        keeps_host: whether it forwards the visitor's ``Host``.
    """

    def __init__(self, folder: Path, *, prefix: str = "", forwards: bool, keeps_host: bool) -> None:
        self.prefix, self.forwards, self.keeps_host, self.upstream = prefix, forwards, keeps_host, 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*write_certificate(folder))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.address = f"https://{self.host}{prefix}"

    @contextmanager
    def running(self, upstream: int) -> Iterator[None]:
        """Forward requests to a port of this machine."""
        self.upstream = upstream
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        serving = asyncio.start_server(self._forward, sock=self._listening, ssl=self._context)
        server = asyncio.run_coroutine_threadsafe(serving, loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(_end(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _forward(self, visitor: asyncio.StreamReader, response: asyncio.StreamWriter) -> None:
        """Forward one request; the connection ends after it, so that no second head needs to be parsed."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await visitor.readuntil(b"\r\n\r\n")
            answer, request = await asyncio.open_connection("127.0.0.1", self.upstream)
            request.write(self._rewrite(head.decode("latin-1").removesuffix("\r\n\r\n")).encode("latin-1"))
            directions = [
                asyncio.create_task(_copy(*pair)) for pair in ((visitor, request), (answer, response))
            ]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            request.close()
        response.close()

    def _rewrite(self, head: str) -> str:
        request, *headers = head.split("\r\n")
        method, path, version = request.split()
        path = path.removeprefix(self.prefix)
        replaced = ("connection:",) if self.keeps_host else ("connection:", "host:")
        lines = [f"{method} {path if path.startswith('/') else f'/{path}'} {version}", "Connection: close"]
        lines += [line for line in headers if not line.lower().startswith(replaced)]
        if not self.keeps_host:
            lines.append(f"Host: 127.0.0.1:{self.upstream}")
        if self.forwards:
            lines += ["X-Forwarded-Proto: https", f"X-Forwarded-Host: {self.host}"]
        return "\r\n".join(lines) + "\r\n\r\n"


async def _end(server: asyncio.Server) -> None:
    """Close the server, and cancel the requests that are still open."""
    server.close()
    open_requests = asyncio.all_tasks() - {asyncio.current_task()}
    for task in open_requests:
        task.cancel()
    await asyncio.gather(*open_requests, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
