"""The service over HTTP: latency, throughput, overload, memory, time to ready.

usage: python -m benchmarks.serving SOURCE [--images N]
"""

import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle

import httpx2
import numpy as np
import psutil
from PIL import Image

from benchmarks.engines import bare_onnx_runtime_process
from benchmarks.measure import MEBI, Table, load_images, run, timed
from image_search.embedding import Embedder
from image_search.index import VectorIndex
from image_search.settings import load_settings
from image_search.stores import open_index
from image_search.values import Pixels

PORT = 8765
QUERIES = 5000
ALONE = 200
CONCURRENCIES = (1, 8, 32, 128)
SECONDS_PER_CONCURRENCY = 8.0
OVERLOAD_SECONDS = 60.0
OVERLOAD = 10  # times the capacity
OVERLOAD_CONNECTIONS = 640
SOAK_REQUESTS = 20_000
FULL_BATCH = 32
BOUNDARY = "a-boundary-of-requests"


def measure(source: str, images: int) -> list[Table]:
    """All of it, over an index of the first `images` of the train split."""
    queries, _ = load_images(source, "test", QUERIES)
    requests = [search_request(as_png(image)) for image in queries]
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "IMAGE_SEARCH_DATA_DIR": folder}
        worker = [sys.executable, "-m", "worker", "ingest", source, "--limit", str(images)]
        subprocess.run(worker, env=environ, check=True, stdout=subprocess.DEVNULL)
        index = open_index(load_settings(data_dir=folder))
        model, maxima = index.manifest.model, index.manifest.activation_maxima
        embedder = Embedder.load(model.weights, model.input_size, maxima, index.load_recipe())
        embedder.warm_up()
        with service(environ) as (process, seconds_to_ready):
            tables = [
                start(process, seconds_to_ready),
                asyncio.run(alone(queries, embedder, index, requests)),
            ]
            loaded, capacity, p99 = throughput(queries, embedder, requests)
            tables.append(loaded)
            tables.append(overload(process, requests, capacity, p99))
            tables.append(soak(process, requests))
    return tables


def start(process: psutil.Process, seconds: float) -> Table:
    """Time to ready and memory, beside a bare ONNX Runtime process."""
    service_mebi = process.memory_info().rss / MEBI
    ort_seconds, ort_mebi = bare_onnx_runtime_process()
    return Table(
        "Start",
        ["process", "seconds to ready", "MiB resident"],
        [
            ["service", f"{seconds:.1f}", f"{service_mebi:.0f}"],
            ["bare ONNX Runtime, float32", f"{ort_seconds:.1f}", f"{ort_mebi:.0f}"],
        ],
        [],
        {"seconds to ready": seconds, "MiB resident": service_mebi},
    )


async def alone(
    queries: Pixels, embedder: Embedder, index: VectorIndex, requests: list[bytes]
) -> Table:
    """One client against the bare parts, each query in turn."""
    took: dict[str, list[float]] = {"search": [], "embed": [], "query": []}
    connection = await asyncio.open_connection("127.0.0.1", PORT)
    for image, request in zip(queries[:ALONE], requests[:ALONE], strict=True):
        started = time.perf_counter()
        await exchange(connection, request)
        took["search"].append(time.perf_counter() - started)
        took["embed"].append(timed(lambda: embedder.embed(image[np.newaxis])))  # noqa: B023
        embedding = embedder.embed(image[np.newaxis])[0]
        took["query"].append(timed(lambda: index.query(embedding, 10)))  # noqa: B023
    connection[1].close()
    p50 = {name: 1000 * statistics.median(seconds) for name, seconds in took.items()}
    more = p50["search"] - p50["embed"] - p50["query"]
    return Table(
        f"POST /search, one client, {index.count():,} images: p50 in ms",
        ["POST /search", "bare embedding", "bare query", "more than both"],
        [[*(f"{p50[name]:.1f}" for name in took), f"{more:+.1f}"]],
        [f"{more:+.1f} ms over its parts (at most +2)"],
        {"p50": p50["search"], "more than its parts": more},
    )


def throughput(
    queries: Pixels, embedder: Embedder, requests: list[bytes]
) -> tuple[Table, float, float]:
    """Searches a second by concurrency; also the capacity and the p99 of a full batch."""
    rows, figures, bare_rates = [], {}, []
    feed = cycle(requests)
    capacity = p99 = 0.0
    for concurrency in CONCURRENCIES:
        seconds = timed(
            lambda: [embedder.embed(queries[i : i + FULL_BATCH]) for i in range(0, 640, FULL_BATCH)]
        )
        bare_rates.append(640 / seconds)
        load = asyncio.run(closed_loop(feed, concurrency, SECONDS_PER_CONCURRENCY))
        rate = len(load.accepted) / SECONDS_PER_CONCURRENCY
        counts = [str(load.refused), str(load.failed)]
        rows.append([str(concurrency), f"{rate:,.0f}", *load.quantiles(), *counts])
        figures[f"searches a second @ {concurrency}"] = rate
        if concurrency == FULL_BATCH:
            capacity, p99 = rate, load.quantile(0.99)
    bare = statistics.median(bare_rates)
    figures["of the bare engine"] = capacity / bare
    table = Table(
        "POST /search, many clients",
        ["clients", "searches a second", "p50 ms", "p99 ms", "refused", "failed"],
        rows,
        [
            f"bare engine at batch {FULL_BATCH}, in turns with them: {bare:,.0f} images/s; "
            f"{FULL_BATCH} clients get {capacity / bare:.2f} of it (at least 0.85)"
        ],
        figures,
    )
    return table, capacity, p99


def overload(process: psutil.Process, requests: list[bytes], capacity: float, p99: float) -> Table:
    """Ten times the capacity for a minute, and the rate right after."""
    feed = cycle(requests)
    before = process.memory_info().rss / MEBI
    load = asyncio.run(open_loop(feed, OVERLOAD * capacity, OVERLOAD_SECONDS))
    after = process.memory_info().rss / MEBI
    again = asyncio.run(closed_loop(feed, FULL_BATCH, SECONDS_PER_CONCURRENCY))
    rate_after = len(again.accepted) / SECONDS_PER_CONCURRENCY
    times = load.quantile(0.99) / p99
    return Table(
        f"{OVERLOAD} times the capacity for {OVERLOAD_SECONDS:.0f} s",
        ["offered/s", "accepted/s", "refused/s", "p50 ms", "p99 ms", "MiB before", "MiB after"],
        [
            [
                f"{load.offered / OVERLOAD_SECONDS:,.0f}",
                f"{len(load.accepted) / OVERLOAD_SECONDS:,.0f}",
                f"{load.refused / OVERLOAD_SECONDS:,.0f}",
                *load.quantiles(),
                f"{before:.0f}",
                f"{after:.0f}",
            ]
        ],
        [
            f"p99 of the accepted is {times:.1f} times that of {FULL_BATCH} clients (at most 4)",
            f"right after, {FULL_BATCH} clients get {rate_after / capacity:.2f} of before",
            f"{load.failed} neither accepted nor refused",
        ],
        {"p99 over that of a full batch": times, "rate after": rate_after / capacity},
    )


def soak(process: psutil.Process, requests: list[bytes]) -> Table:
    """Memory over many requests, of which the first tenth warms up."""
    feed = cycle(requests)
    mebi, failed = [], 0
    for _ in range(10):
        load = asyncio.run(closed_loop(feed, FULL_BATCH, count=SOAK_REQUESTS // 10))
        mebi.append(process.memory_info().rss / MEBI)
        failed += load.failed + load.refused
    return Table(
        f"{SOAK_REQUESTS:,} requests",
        ["after", *(f"{(i + 1) * SOAK_REQUESTS // 10:,}" for i in range(10))],
        [["MiB resident", *(f"{value:.0f}" for value in mebi)]],
        [f"{mebi[-1] - mebi[0]:+.0f} MiB from the first tenth to the last; {failed} failed"],
        {"MiB of growth": mebi[-1] - mebi[0]},
    )


def search_request(file: bytes) -> bytes:
    """A whole HTTP request that searches for an image file."""
    body, content_type = image_form(file)
    headers = f"Host: 127.0.0.1:{PORT}\r\nContent-Type: {content_type}\r\n"
    headers += f"Content-Length: {len(body)}\r\n\r\n"
    return b"POST /search HTTP/1.1\r\n" + headers.encode() + body


def as_png(image: Pixels) -> bytes:
    """The file of uint8 RGB [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def image_form(file: bytes) -> tuple[bytes, str]:
    """The body of a search with an image file, and its content type."""
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    files = {"image": ("image", file, "application/octet-stream")}
    headers = {"Content-Type": content_type}
    request = httpx2.Request("POST", "http://127.0.0.1/", files=files, headers=headers)
    return request.read(), content_type


@contextmanager
def service(environ: dict[str, str]) -> Iterator[tuple[psutil.Process, float]]:
    """A service process on PORT that is ready, and the seconds that it took."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**environ, "IMAGE_SEARCH_PORT": str(PORT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{PORT}/health").is_success:
                    break
            except httpx2.TransportError:
                pass  # it does not listen yet
            if process.poll() is not None or time.perf_counter() - started > 120:
                sys.exit("the service did not become ready")
            time.sleep(0.02)
        yield psutil.Process(process.pid), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


# --- clients: they cost as little as they can, as they share the processors with the service ------


@dataclass
class Load:
    """What came of some requests; `accepted` holds seconds."""

    accepted: list[float] = field(default_factory=list)
    offered: int = 0
    refused: int = 0
    failed: int = 0

    def quantile(self, share: float) -> float:
        """Seconds."""
        return float(np.quantile(self.accepted, share)) if self.accepted else 0.0

    def quantiles(self) -> list[str]:
        """p50 and p99 in milliseconds."""
        return [f"{1000 * self.quantile(share):.1f}" for share in (0.5, 0.99)]

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        if status == httpx2.codes.OK:
            self.accepted.append(seconds)
        elif status == httpx2.codes.SERVICE_UNAVAILABLE:
            self.refused += 1
        else:
            self.failed += 1


async def closed_loop(
    feed: Iterator[bytes], concurrency: int, seconds: float = np.inf, count: float = np.inf
) -> Load:
    """Clients that send one request after another, for some seconds or so many in all."""
    load = Load()
    deadline = time.perf_counter() + seconds

    async def client() -> None:
        connection = await asyncio.open_connection("127.0.0.1", PORT)
        while time.perf_counter() < deadline and load.offered < count:
            load.offered += 1
            started = time.perf_counter()
            status = await exchange(connection, next(feed))
            load.add(status, time.perf_counter() - started)
        connection[1].close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return load


async def open_loop(feed: Iterator[bytes], rate: float, seconds: float) -> Load:
    """Requests at a rate, whatever becomes of them; those that no connection is free for wait."""
    load = Load()
    started = time.perf_counter()

    async def client() -> None:
        connection: Streams | None = None
        while (elapsed := time.perf_counter() - started) < seconds:
            due = load.offered / rate
            if due > elapsed:
                await asyncio.sleep(due - elapsed)
                continue
            load.offered += 1
            sent = time.perf_counter()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", PORT)
                load.add(await exchange(connection, next(feed)), time.perf_counter() - sent)
            except (OSError, asyncio.IncompleteReadError):
                load.failed += 1
                connection = None
        if connection:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(OVERLOAD_CONNECTIONS)))
    return load


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def exchange(connection: Streams, request: bytes) -> int:
    """Send a request, read the whole answer; returns the status."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head[9:12])


if __name__ == "__main__":
    run(measure, __doc__)
