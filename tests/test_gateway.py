"""The gateway's own configuration, in HAProxy: what slow clients may do to others."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from image_search.settings import Settings
from tests.support.gateway import gateway
from tests.support.servers import ServiceThread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")

MANY = 40
HEAD = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: "
BODY = (
    b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
)


@pytest.fixture
def service(settings: Settings) -> Iterator[ServiceThread]:
    """Without an index: it answers all the same."""
    with ServiceThread(settings) as service:
        yield service


@pytest.mark.slow
@pytest.mark.parametrize("start", [HEAD, BODY], ids=["heads", "bodies"])
def test_slow_clients_are_closed_however_often_a_byte_comes(
    service: ServiceThread, tmp_path: Path, start: bytes
) -> None:
    changes = {"timeout http-request 10s": "timeout http-request 300ms"}
    with gateway(service.address[1], tmp_path, changes) as port, ExitStack() as stack:
        url = f"http://127.0.0.1:{port}/metrics"
        wait_until(lambda: is_up(url))
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in range(MANY)
        ]
        for connection in waiting:
            connection.sendall(start)
            connection.settimeout(0)

        def all_are_closed() -> bool:
            for connection in list(waiting):
                try:
                    connection.send(b"a")
                    if not connection.recv(65536):
                        waiting.remove(connection)
                except BlockingIOError:
                    pass
                except OSError:
                    waiting.remove(connection)
            return not waiting

        assert httpx2.get(url, trust_env=False).is_success
        wait_until(all_are_closed)
        assert httpx2.get(url, trust_env=False).is_success


@pytest.mark.slow
def test_more_slow_clients_than_the_service_has_connections(
    service: ServiceThread, tmp_path: Path
) -> None:
    """The gateway holds them, and the service never hears of them."""
    with gateway(service.address[1], tmp_path) as port, ExitStack() as stack:
        url = f"http://127.0.0.1:{port}/metrics"
        wait_until(lambda: is_up(url))
        for _ in range(600):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            stack.enter_context(connection).sendall(HEAD)
        for _ in range(5):
            assert httpx2.get(url, trust_env=False).is_success


def is_up(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).is_success
    except httpx2.TransportError:
        return False
