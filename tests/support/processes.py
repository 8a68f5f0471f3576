"""The programs as users run them: processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2


def start(*command: str, **environ: str) -> "subprocess.Popen[str]":
    """Start a module with arguments, on the bundled weights."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*command: str, **environ: str) -> tuple[int, str, str]:
    """Run it to its end; returns its exit code, output and errors, which hold no traceback."""
    process = start(*command, **environ)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    return process.returncode, out, err


class Service:
    """A service process and its address."""

    def __init__(self, port: int, **environ: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = start("service", IMAGE_SEARCH_PORT=str(port), **environ)

    def health(self) -> int:
        try:
            return httpx2.get(f"{self.url}/health").status_code
        except httpx2.TransportError:
            assert self.process.poll() is None, self.process.communicate()[1]
            return 0

    def search(self, content: bytes, **parameters: Any) -> Any:
        response = httpx2.post(
            f"{self.url}/search", files={"image": content}, params=parameters, timeout=30
        )
        assert response.status_code == 200, response.text
        return response.json()

    def count(self) -> int:
        return int(httpx2.get(f"{self.url}/health").json()["count"])


@contextmanager
def service(port: int, **environ: str) -> Iterator[Service]:
    """A service process, which is killed in the end."""
    running = Service(port, **environ)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
