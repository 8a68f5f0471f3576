"""Servers on the loopback: the service in process and in a thread, and others for clients."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

import httpx2
from fastapi.testclient import TestClient

from image_search.settings import Settings
from service.app import create_app
from service.connections import LimitedServer
from tests.support.waiting import wait_until

SERVICE_KEY: Final = "key of the tests"


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the service ----------------------------------------------------------------------------------


@contextmanager
def serve(settings: Settings) -> Iterator[TestClient]:
    """The service in process, without a socket."""
    app = create_app(settings)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


def wait_for(client: TestClient, status: int, code: str | None = None) -> dict[str, Any]:
    """Wait until /health answers so; returns the answer."""
    answers: list[tuple[int, dict[str, Any]]] = []

    def is_there() -> bool:
        response = client.get("/health")
        answers.append((response.status_code, response.json()))
        return answers[-1][0] == status and answers[-1][1].get("code") == code

    try:
        wait_until(is_there, 60)
    except AssertionError as exc:
        raise AssertionError(answers[-1]) from exc
    return answers[-1][1]


def upload(
    client: TestClient, content: bytes, media_type: str = "image/png", **parameters: Any
) -> Any:
    return client.post(
        "/search", files={"image": ("query", content, media_type)}, params=parameters
    )


def assert_problem(response: Any, status: int, code: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "code", "detail"}
    assert problem["status"] == status
    assert "Traceback" not in response.text


class ServiceThread:
    """The service in a thread, on a port of its own that listens from the beginning."""

    def __init__(
        self, settings: Settings, *, backlog: int = 128, seconds_to_end: int | None = None
    ) -> None:
        # Only with the protocol named does asyncio turn off Nagle's delay, 40 ms an answer.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(backlog)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._server = LimitedServer(create_app(settings), seconds_to_finish=seconds_to_end)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def start(self) -> None:
        self._thread.start()

    def terminate(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.terminate()
        self.join()
        self._listener.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        with httpx2.Client(trust_env=False, timeout=60) as client:
            wait_until(lambda: client.get(f"{self.url}/health").is_success)


# --- other servers --------------------------------------------------------------------------------


@contextmanager
def listen(handler: type[BaseHTTPRequestHandler]) -> Iterator[Any]:
    """A ThreadingHTTPServer of the standard library that logs nothing; its address is its `url`."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_: object) -> None: ...
