"""The programs as users run them: processes of their own."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent, indent
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


# Imported once, by a process that is forked for each program: half of what a program costs.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *(f"worker.commands.{name}" for name in ("ingest", "evaluate", "refit", "duplicates")),
        *("image_search.engines.openvino", "pyarrow.dataset", "service.app"),
    ]
)


def run(*command: str, **environ: str) -> tuple[int, str, str]:
    """Run it to its end; returns its exit code, output and errors, which hold no traceback."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        variables = {**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled", **environ}
        process = _CONTEXT.Process(target=_run_module, args=(command, variables, *files))
        process.start()
        process.join(300)
        assert process.exitcode is not None, "it did not end"
        out, err = (file.read_text() for file in files)
    assert "Traceback" not in err
    return process.exitcode, out, err


def _run_module(command: Sequence[str], variables: Mapping[str, str], out: Path, err: Path) -> None:
    """What `python -m` does, in a process that has imported most of it."""
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = command[1:]
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


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


class Fork:
    """A process that `forks` started."""

    def __init__(self, line: str, ended: Callable[[], str]) -> None:
        self._pid = int(line)
        self._ended = ended

    def is_running(self) -> bool:
        """Whether it has not ended by itself; a process that has ended is waited for at once."""
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """End it as `kill -9` does, and wait until it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Wait until it has ended."""
        assert self._ended() == "ended\n"


_FORKING = """
import os, sys
{imports}
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
{body}
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@contextmanager
def forks(imports: str, body: str) -> Iterator[Callable[[], Fork]]:
    """A program that imports once; each call runs `body` in a process of its own."""
    program = _FORKING.format(imports=imports, body=indent(dedent(body), " " * 8))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled", "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def fork() -> Fork:
            stdin.write("\n")
            stdin.flush()
            return Fork(stdout.readline(), stdout.readline)

        yield fork
        stdin.close()
