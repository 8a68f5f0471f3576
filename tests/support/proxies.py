"""Proxies on loopback, and a certificate for servers behind them."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Proxy:
    """Its address, and the first line and headers of each request that it was sent."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen: list[tuple[str, dict[str, str]]] = []

    def tunnels(self) -> set[str]:
        """The hosts with ports that CONNECT was asked for."""
        return {line.split()[1] for line, _ in self.seen if line.startswith("CONNECT ")}


@contextmanager
def proxy(tunnels_to: tuple[str, int] | None = None) -> Iterator[Proxy]:
    """A proxy that forwards plain requests, and connects all tunnels to one address."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            running.seen.append((self.requestline, dict(self.headers)))
            self.close_connection = True
            if tunnels_to is None:
                self.send_error(403)
                return
            with socket.create_connection(tunnels_to) as server:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pass_on, args=(server, self.connection))
                back.start()
                _pass_on(self.connection, server)
                back.join()

        def do_POST(self) -> None:
            running.seen.append((self.requestline, dict(self.headers)))
            target = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = HTTPConnection(target.netloc)
            path = target.path + (f"?{target.query}" if target.query else "")
            connection.request(self.command, path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running = Proxy(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until either side has no more to say."""
    with suppress(OSError):
        while content := source.recv(65_536):
            target.sendall(content)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def certificate(folder: Path, hosts: Sequence[str]) -> Path:
    """A file with a new key and its certificate, which signs itself, for these hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    names = [
        x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        for host in hosts
    ]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(pem)
    )
    return file
