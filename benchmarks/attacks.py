"""Clients that mean harm, on the loopback, while honest ones search: who is answered, and how soon.

usage: python -m benchmarks.attacks SOURCE [--images N] [--seconds N] [KIND ...]

Each kind of attack goes on for `--seconds`, directly to a service that may have 1,024 files open,
and then through HAProxy with the gateway's configuration, where it is installed.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import httpx2
import numpy as np
import psutil
from PIL import Image

from benchmarks.hostile_images import Target
from benchmarks.measure import MEBI, Table, load_images, parser
from tests.support import ROOT
from tests.support.gateway import gateway
from tests.support.images import encode
from tests.support.processes import run as run_program
from tests.support.servers import find_free_port
from tests.support.waiting import wait_until

DESCRIPTORS = 1024
QUERIES = 100
SEARCHES_A_SECOND = 10
HEALTH_A_SECOND = 5
# So long an honest client waits: longer than the service takes for a request.
PATIENCE = 15.0
LEAST_ANSWERED = 0.95
MOST_SECONDS = {"searches": 2.0, "health": 1.0}
MOST_MEBI = 1024
# What an answer tells about the server if it tells too much.
SECRETS = (str(ROOT), sys.prefix, "site-packages", tempfile.gettempdir(), "Traceback")


# --- attackers ------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What attackers did, and what they were told: answers by status and code."""

    connections: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    leaks: int = 0

    def note(self, answer: bytes) -> None:
        """Count an answer, or that the connection was closed without one."""
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/") else "closed"
        with suppress(ValueError, KeyError, TypeError):
            status += " " + json.loads(body)["code"]
        self.answers[status] += 1
        self.leaks += any(secret.encode() in answer for secret in SECRETS)


class Attacker:
    """One connection after another; `send` is done on each, until it is closed or time is up."""

    def __init__(self, port: int, until: float, pause: float, tally: Tally) -> None:
        self._port, self._until, self._pause, self._tally = port, until, pause, tally
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._answer = b""

    async def run(self, send: "Callable[[Attacker], Awaitable[None]]") -> None:
        """Attack."""
        while time.monotonic() < self._until:
            self._answer = b""
            try:
                async with asyncio.timeout(self._until - time.monotonic()):
                    self._reader, self._writer = await asyncio.open_connection(
                        "127.0.0.1", self._port
                    )
                    self._tally.connections += 1
                    await send(self)
                    while await self.read(PATIENCE):
                        pass
                self._tally.note(self._answer)
            except TimeoutError:
                pass  # it is still served when the time is up
            except OSError:
                self._tally.note(self._answer)
            finally:
                if hasattr(self, "_writer"):
                    self._writer.transport.abort()
            await asyncio.sleep(self._pause)

    async def send(self, content: bytes) -> None:
        """Send it as fast as it is taken; raises OSError where it is not."""
        for start in range(0, len(content), 65536):
            self._writer.write(content[start : start + 65536])
            await self._writer.drain()

    async def read(self, seconds: float) -> bool:
        """Whether the connection is open after so long, or when something has come."""
        try:
            part = await asyncio.wait_for(self._reader.read(65536), seconds)
        except TimeoutError:
            return True
        self._answer += part
        return bool(part)


def head(path: str, media_type: str, length: int) -> bytes:
    """Of a POST request."""
    lines = f"Host: 127.0.0.1\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n"
    return f"POST {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()


def form(content: bytes) -> bytes:
    """A search for it."""
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = start + content + b"\r\n--b--\r\n"
    return head("/search", "multipart/form-data; boundary=b", len(body)) + body


def query(content: bytes) -> bytes:
    """A query by JSON."""
    return head("/query", "application/json", len(content)) + content


def drip(start: bytes, seconds: float) -> Callable[[Attacker], Awaitable[None]]:
    """`start`, and then a byte each so many seconds."""

    async def send(attacker: Attacker) -> None:
        await attacker.send(start)
        while await attacker.read(seconds):
            await attacker.send(b"a")

    return send


def whole(content: bytes) -> Callable[[Attacker], Awaitable[None]]:
    """All of it at once."""
    return lambda attacker: attacker.send(content)


async def headers_without_end(attacker: Attacker) -> None:
    """At most 64 MiB of them."""
    await attacker.send(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    for _ in range(1024):
        await attacker.send(b"X-A: b\r\n" * 8192)


UNFINISHED_HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "
UNFINISHED_BODY = form(bytes(1_000_000))[:1000]
NEVER = 3600.0


@dataclass(frozen=True)
class Kind:
    """An attack: how many clients at once, what they do, and after what pause again."""

    name: str
    clients: int
    make: Callable[[], Sequence[Callable[[Attacker], Awaitable[None]]]]
    # Hundreds of clients need their time, too, and theirs is not what is measured.
    pause: float = 0.05


KINDS = {
    "heads": Kind(
        "600 clients that send a byte every 9 s", 600, lambda: [drip(UNFINISHED_HEAD, 9)], 1
    ),
    "unfinished": Kind(
        "1,100 requests that never end",
        1100,
        lambda: [drip(UNFINISHED_HEAD, NEVER), drip(UNFINISHED_BODY, NEVER)],
        1,
    ),
    "bodies": Kind("80 slow bodies, again and again", 80, lambda: [drip(UNFINISHED_BODY, 0.5)]),
    "large": Kind("80 bodies of 20 MB", 80, lambda: [whole(form(bytes(20_000_000)))]),
    "headers": Kind("40 times endless headers", 40, lambda: [headers_without_end]),
    "json": Kind(
        "8 times JSON of 16 MB: unknown keys, parts of a filter, examples, numbers",
        8,
        lambda: [
            whole(query(b"{" + b",".join(b'"key%d":1' % n for n in range(1_200_000)) + b"}")),
            whole(query(b'{"filter":{"$or":[' + b'{"k":1},' * 2_000_000 + b'{"k":1}]}}')),
            whole(query(b'{"positive":[' + b"{}," * 5_000_000 + b"{}]}")),
            whole(query(b'{"embedding":[' + b"1," * 8_000_000 + b"1]}")),
        ],
    ),
    "base64": Kind(
        "8 bodies of 14 MB of base64 that are not images",
        8,
        lambda: [whole(query(b'{"image":"' + b"QUJD" * 4_700_000 + b'"}'))],
    ),
}


def attack(kind: str, port: int, seconds: float) -> Tally:
    """All clients of a kind, for so many seconds; in a process of its own."""
    tally = Tally()
    deeds, pause = KINDS[kind].make(), KINDS[kind].pause

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(
                Attacker(port, until, pause, tally).run(deeds[number % len(deeds)])
                for number in range(KINDS[kind].clients)
            )
        )

    asyncio.run(all_of_them())
    return tally


# --- honest clients -------------------------------------------------------------------------------


@dataclass
class Honest:
    """Requests at a rate, each over a connection of its own, however long others take."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    async def run(
        self, rate: float, seconds: float, ask: Callable[[], Awaitable[httpx2.Response]]
    ) -> None:
        """Until the last one is answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(int(rate * seconds)):
                group.create_task(self._one(ask))
                await asyncio.sleep(1 / rate)

    async def _one(self, ask: Callable[[], Awaitable[httpx2.Response]]) -> None:
        started = time.perf_counter()
        try:
            response = await ask()
        except httpx2.TransportError as exc:
            self.failures[type(exc).__name__] += 1
            return
        if response.is_success:
            self.seconds.append(time.perf_counter() - started)
        else:
            self.failures[f"{response.status_code} {response.json()['code']}"] += 1

    @property
    def answered(self) -> float:
        """Their share."""
        return len(self.seconds) / (len(self.seconds) + self.failures.total())

    def milliseconds(self, share: float) -> float:
        """So many were answered within this time."""
        return 1000 * float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


async def be_honest(port: int, seconds: float, files: Sequence[bytes]) -> tuple[Honest, Honest]:
    """Searches and looks at /health, side by side."""
    searches, health = Honest(), Honest()
    feed = cycle(files)
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        timeout=PATIENCE,
        trust_env=False,
        limits=httpx2.Limits(max_keepalive_connections=0),
    ) as client:
        await asyncio.gather(
            searches.run(
                SEARCHES_A_SECOND,
                seconds,
                lambda: client.post("/search?thumbnails=false", files={"image": next(feed)}),
            ),
            health.run(HEALTH_A_SECOND, seconds, lambda: client.get("/health")),
        )
    return searches, health


# --- the service -------------------------------------------------------------------------------


class Server:
    """A service process whose log is a file."""

    def __init__(self, folder: str, log: Path) -> None:
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        environ = {
            "IMAGE_SEARCH_DATA_DIR": folder,
            "IMAGE_SEARCH_PORT": str(self.port),
            "IMAGE_SEARCH_WEIGHTS": "bundled",
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                env={**os.environ, **environ},
                stdout=output,
                stderr=output,
            )
        if sys.platform == "linux":
            limits = (DESCRIPTORS, DESCRIPTORS)
            psutil.Process(self.process.pid).rlimit(psutil.RLIMIT_NOFILE, limits)

    def tracebacks(self) -> int:
        """How many its log holds."""
        return self._log.read_text(errors="replace").count("Traceback")

    def log_bytes(self) -> int:
        """The size of its log."""
        return self._log.stat().st_size


@contextmanager
def server(folder: str, log: Path) -> Iterator[Server]:
    """A service process, which is killed in the end."""
    running = Server(folder, log)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


# --- tables ---------------------------------------------------------------------------------------


def measure(source: str, count: int, seconds: float, kinds: Sequence[str]) -> Iterator[Table]:
    """Each kind of attack, over an index of the first `count` images of the train split."""
    queries, _ = load_images(source, "test", QUERIES)
    files = [encode(Image.fromarray(pixels)) for pixels in queries]
    with tempfile.TemporaryDirectory() as folder:
        code, _, errors = run_program(
            *("worker", "ingest", source, "--limit", str(count)), IMAGE_SEARCH_DATA_DIR=folder
        )
        if code:
            sys.exit(errors)
        log = Path(folder, "log")
        with server(folder, log) as running, ExitStack() as stack:
            ways = {"directly to the service": running.port}
            if shutil.which("haproxy"):
                public = stack.enter_context(gateway(running.port, Path(folder)))
                ways["through the gateway"] = public
            else:
                print("HAProxy is not installed: no attack goes through the gateway\n", flush=True)
            target = Target(running.process.pid, running.url)
            wait_until(lambda: is_healthy(running.port))
            asyncio.run(be_honest(running.port, 3, files))
            target.resident = target.process.memory_info().rss
            for way, port in ways.items():
                wait_until(partial(is_healthy, port))
                yield attacks(way, port, target, running, seconds, kinds, files)


def is_healthy(port: int) -> bool:
    """Whether /health says so."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
    except httpx2.TransportError:
        return False


def attacks(
    way: str,
    port: int,
    target: Target,
    running: Server,
    seconds: float,
    kinds: Sequence[str],
    files: Sequence[bytes],
) -> Table:
    """Each kind by one way."""
    rows, notes, leaks, most_mebi, log_bytes = [], [], 0, 0.0, running.log_bytes()
    everything = [("none", None), *((KINDS[kind].name, kind) for kind in kinds)]
    for name, kind in everything:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool, target.peak_memory() as peak:
            tally = Tally()
            if kind is not None:
                attacking = pool.submit(attack, kind, port, seconds + 3)
                time.sleep(3)  # until all have come
            searches, health = asyncio.run(be_honest(port, seconds, files))
            if kind is not None:
                tally = attacking.result()
        leaks += tally.leaks
        most_mebi = max(most_mebi, peak.bytes / MEBI)
        rows.append(
            [
                name,
                f"{100 * searches.answered:.1f}",
                f"{searches.milliseconds(0.5):.0f}",
                f"{searches.milliseconds(0.99):.0f}",
                f"{100 * health.answered:.1f}",
                f"{health.milliseconds(0.99):.0f}",
                f"{(peak.bytes - target.resident) / MEBI:.0f}",
            ]
        )
        failures = searches.failures + health.failures
        if tally.connections or failures:
            notes.append(
                f"{name}: {tally.connections:,} connections; attackers were told "
                f"{listed(tally.answers)}; honest clients that failed: {listed(failures)}"
            )
    return Table(
        f"Attacks {way}; the service holds {target.resident / MEBI:.0f} MiB at rest",
        [
            *("attack", "searches answered, %", "p50 ms", "p99 ms"),
            *("/health answered, %", "p99 ms", "additional MiB"),
        ],
        rows,
        [
            *notes,
            f"answered: at least {100 * LEAST_ANSWERED:.0f} %; p99 of searches: at most "
            f"{MOST_SECONDS['searches']:.0f} s, of /health {MOST_SECONDS['health']:.0f} s",
            f"{most_mebi:.0f} MiB at most in all (at most {MOST_MEBI:,})",
            f"{running.tracebacks()} tracebacks in the log (0), which grew by "
            f"{running.log_bytes() - log_bytes:,} bytes; {leaks} answers that tell about the "
            "server (0)",
        ],
    )


def listed(counts: Counter[str]) -> str:
    """Most common first."""
    return ", ".join(f"{count} x {what}" for what, count in counts.most_common()) or "nothing"


def main() -> None:
    """The command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=15, help="(%(default)s)")
    arguments.add_argument(
        "kinds", metavar="KIND", nargs="*", default=list(KINDS), help=", ".join(KINDS)
    )
    given: argparse.Namespace = arguments.parse_intermixed_args()
    for table in measure(given.source, given.images, given.seconds, given.kinds):
        print(table, flush=True)


if __name__ == "__main__":
    main()
