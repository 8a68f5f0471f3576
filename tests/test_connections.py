"""Connections: what no client may do to others, over real sockets."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from image_search.settings import Settings
from service import connections, healthcheck
from tests.support.servers import ServiceThread
from tests.support.waiting import wait_until


@pytest.fixture
def service(settings: Settings) -> Iterator[ServiceThread]:
    """Without an index: it answers all the same."""
    with ServiceThread(settings) as service:
        yield service


def connect(service: ServiceThread, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(service.address, timeout=60)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection; empty where nothing comes."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def problem(received: bytes) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    response = httpx2.Response(int(head.split()[1]), content=body)
    assert b"application/problem+json" in head
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    return problem


HEAD = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
ENDLESS = {
    "a header": HEAD + b"X-A: ",
    "headers": HEAD + b"X-A: b\r\n",
    "an address": b"GET /",
    "a name": HEAD,
    "trailers": b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\nX-A: ",
    "an extension": b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"\r\n1;a=",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_does_not_end_is_cut_off(service: ServiceThread, kind: str) -> None:
    part = b"X-A: b\r\n" * 1000 if kind == "headers" else b"a" * 8000
    with connect(service, ENDLESS[kind]) as connection:
        sent = 0
        try:
            while sent < 10_000_000:
                connection.sendall(part)
                sent += len(part)
        except OSError:
            pass
    assert sent < 10_000_000


def test_a_head_that_is_too_large_is_told(service: ServiceThread) -> None:
    for head in (
        HEAD + b"X-A: " + b"a" * 66_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(101)) + b"\r\n",
        HEAD + b"X-A: " + b"a" * 66_000,
    ):
        with connect(service, head) as connection:
            assert problem(answer(connection))["code"] == "headers_too_large"


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost\r\n\r\n"])
def test_what_is_no_http_gets_problem_details(service: ServiceThread, data: bytes) -> None:
    with connect(service, data) as connection:
        assert problem(answer(connection))["code"] == "bad_request"


SLOW = {
    "nothing": b"",
    "a head": HEAD,
    "empty lines": b"\r\n",
    "the body of a request that is answered": b"POST /nothing HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 1000\r\n\r\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW)
def test_requests_that_do_not_end_are_closed_however_often_a_byte_comes(
    service: ServiceThread, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SECONDS_FOR_HEAD", 0.3)
    monkeypatch.setattr(connections, "SECONDS_AFTER_ANSWER", 0.3)
    with connect(service, SLOW[kind]) as connection:

        def is_closed() -> bool:
            try:
                if kind != "nothing":
                    connection.send(b"\r\n" if kind == "empty lines" else b"a")
                connection.settimeout(0.02)
                return connection.recv(65536) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_closed)


def test_a_connection_is_kept_for_several_requests(service: ServiceThread) -> None:
    connection = http.client.HTTPConnection(*service.address, timeout=60)
    connection.connect()
    socket_ = connection.sock
    for _ in range(3):
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        response.read()
        assert (response.status, connection.sock) == (200, socket_)
    connection.close()


def test_of_too_many_connections_the_oldest_without_a_request_is_closed(
    service: ServiceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(service, HEAD)) for _ in range(5)]
        waiting += [stack.enter_context(connect(service, HEAD)) for _ in range(2)]
        response = httpx2.get(f"{service.url}/metrics", trust_env=False)
        assert response.status_code == 200
        for connection in waiting[:3]:
            assert answer(connection) == b""
        for connection in waiting[3:]:
            connection.sendall(b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_many_may_come_while_the_service_is_busy(
    service: ServiceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx2.get(f"{service.url}/metrics", trust_env=False).is_success
    go_on = threading.Event()
    connection_made = connections.LimitedProtocol.connection_made

    def made(self: connections.LimitedProtocol, transport: Any) -> None:
        go_on.wait(60)
        connection_made(self, transport)

    monkeypatch.setattr(connections.LimitedProtocol, "connection_made", made)
    with ExitStack() as stack:
        stack.callback(go_on.set)
        for _ in range(500):
            # Were there no room for it, it would wait until the service goes on.
            stack.enter_context(socket.create_connection(service.address, timeout=20))


@pytest.mark.long
def test_json_is_refused_while_it_is_read(settings: Settings, service: ServiceThread) -> None:
    head = b"POST /query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n\r\n" % settings.max_upload_bytes
    with connect(service, head + length + b"[" + b"1," * 1_100_000) as connection:
        # The rest of it never comes.
        received = problem(answer(connection))
        assert received["code"] == "upload_too_large"


def test_the_health_check_asks_this_machine_and_no_proxy(
    service: ServiceThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tests' proxies lead nowhere.
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("IMAGE_SEARCH_PORT", str(service.address[1]))
    assert healthcheck.main() == 1
    assert re.match("(starting|no_index): ", capsys.readouterr().out)
