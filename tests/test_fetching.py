"""Fetching URLs: images are fetched, and no address that is not public is connected to."""

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from image_search.settings import load_settings
from service import fetching
from service.fetching import Address, fetch_image, is_public
from service.problems import ProblemError
from service.routes import search
from tests.support.images import QUERY, encode
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.servers import assert_problem, listen, serve, wait_for

PICTURE = encode(QUERY)
LIMIT = 1_000_000


class Site(BaseHTTPRequestHandler):
    """Paths name what is answered; `seen` are the Host headers of all requests."""

    def do_GET(self) -> None:
        seen: list[str] = self.server.seen  # type: ignore[attr-defined]
        seen.append(self.headers["Host"])
        kind, _, rest = self.path[1:].partition("/")
        if kind == "picture":
            self.answer(200, PICTURE)
        elif kind == "hops":
            number = int(rest)
            self.answer(302, location=f"/hops/{number - 1}" if number else "/picture")
        elif kind == "to":
            self.answer(301, location=rest)
        elif kind == "zipped":
            self.answer(200, PICTURE, encoding="gzip")
        elif kind == "large":
            self.answer(200, bytes(LIMIT + 1))
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                pass
        else:
            self.answer(404)

    def answer(
        self, status: int, body: bytes = b"", location: str = "", encoding: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Any]:
    with listen(Site) as server:
        server.seen = []
        yield server


def fetch(url: str, allowed: Any = lambda _: True, max_bytes: int = LIMIT) -> bytes:
    return asyncio.run(fetch_image(url, max_bytes=max_bytes, allowed=allowed))


def refused(url: str, reason: str, **options: Any) -> None:
    with pytest.raises(ProblemError) as caught:
        fetch(url, **options)
    assert caught.value.code == "url_not_fetched"
    assert reason in caught.value.detail


def test_an_image_is_fetched_through_three_redirects_and_no_more(server: Any) -> None:
    assert fetch(f"{server.url}/picture") == PICTURE
    assert fetch(f"{server.url}/hops/2") == PICTURE
    refused(f"{server.url}/hops/3", "redirects")
    refused(f"{server.url}/nothing", "404")


def test_size_and_time_are_limited(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("large", "endless"):
        refused(f"{server.url}/{path}", "1,000,000")
    refused(f"{server.url}/zipped", "compresses")
    monkeypatch.setattr(fetching, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(f"http://127.0.0.1:{silent.getsockname()[1]}/", "0.2 seconds")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "0.0.0.0"),
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
        *("[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[ff02::1]", "255.255.255.255"),
        *("168.63.129.16", "192.0.0.1", "192.88.99.1", "100.100.100.200", "198.18.0.1"),
        *("[fec0::1]", "[3fff::1]", "[5f00::1]", "[100::1]", "[::7f00:1]", "[64:ff9b:1::1]"),
        *("[2001::7f00:1]", "[2001:db8::1]", "[2600::5efe:7f00:1]", "[fd00:ec2::254]"),
        *("[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    ],
)
def test_addresses_that_are_not_public_are_refused(server: Any, host: str) -> None:
    # Not octal for all who read it: 177.0.0.1 is public, and nobody answers there.
    reason = "not" if host == "0177.0.0.1" else "public"
    refused(f"http://{host}:{server.server_port}/picture", reason, allowed=is_public)
    first = iter([True])  # the server that redirects
    refused(
        f"{server.url}/to/http://{host}:{server.server_port}/picture",
        reason,
        allowed=lambda address: next(first, False) or is_public(address),
    )
    assert server.seen == [f"127.0.0.1:{server.server_port}"], "only the redirect was asked for"


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url", ["ftp://example.org/x", "file:///etc/passwd", "http://", "x", "http://u:p@example.org/"]
)
def test_other_urls_are_refused(url: str) -> None:
    refused(url, "", allowed=is_public)


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to these addresses, one answer after the other; returns what was asked."""
    asked: list[str] = []
    left = list(answers)

    def getaddrinfo(host: str, port: int, **__: Any) -> list[Any]:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_that_resolves_to_a_private_address_among_others_is_refused(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    refused(f"http://cat.example:{server.server_port}/picture", "public", allowed=is_public)
    assert server.seen == []


def test_the_connection_goes_to_the_address_that_was_checked(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that changes its address after the check: nobody asks for it a second time.
    asked = resolver(monkeypatch, ["127.0.0.1"], ["192.0.2.1"])
    checked: list[Address] = []

    def allowed(address: Address) -> bool:
        checked.append(address)
        return True

    url = f"http://cat.example:{server.server_port}/picture"
    assert fetch(url, allowed=allowed) == PICTURE
    # The connection asks for the numbers of the address alone.
    assert [host for host in asked if host != "127.0.0.1"] == ["cat.example"]
    assert checked == [ipaddress.ip_address("127.0.0.1")]
    assert server.seen == [f"cat.example:{server.server_port}"]


def test_a_proxy_of_the_environment_is_not_asked(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    assert fetch(f"{server.url}/picture") == PICTURE


@pytest.mark.slow
def test_queries_take_urls_when_the_operator_allows_it(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_fakes(monkeypatch)
    settings = load_settings(fetch_urls=True)
    fill(settings, FakeEmbedder())
    body = {"url": f"{server.url}/picture"}
    with serve(settings) as client:
        wait_for(client, 200)
        assert_problem(client.post("/query", json=body), 422, "url_not_fetched")
        assert server.seen == []
        with monkeypatch.context() as patch:
            anywhere = partial(fetch_image, allowed=lambda _: True)
            patch.setattr(search, "fetch_image", anywhere)
            found = client.post("/query", json=body)
        uploaded = client.post("/search", files={"image": PICTURE})
        assert [m["id"] for m in found.json()["matches"]] == [
            m["id"] for m in uploaded.json()["matches"]
        ]
    with serve(load_settings()) as client:
        wait_for(client, 200)
        assert_problem(client.post("/query", json=body), 403, "urls_disabled")


def test_slow_name_servers_keep_nothing_else_from_being_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        assert answered.wait(60)
        return []

    async def many() -> None:
        fetches = [
            asyncio.create_task(fetch_image(f"http://{number}.example/", max_bytes=LIMIT))
            for number in range(40)
        ]
        await asyncio.sleep(0.05)
        # What queries by id share with all that is synchronous.
        await asyncio.to_thread(answered.set)
        await asyncio.gather(*fetches, return_exceptions=True)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(many())
    assert answered.is_set()


def test_one_tls_context_does_for_all(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    create = ssl.create_default_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(args)
        return create(*args, **options)

    fetch(f"{server.url}/picture")
    monkeypatch.setattr(ssl, "create_default_context", counted)
    fetch(f"{server.url}/picture")
    assert made == []
