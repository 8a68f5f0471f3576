"""Speed and memory, as ratios taken in one run: machines differ, and are busy.

usage: python -m benchmarks.bench [SOURCE] [--images N]

SOURCE is as for the worker; real images are what counts.
"""

import argparse
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx2
import numpy as np
import psutil
from PIL import Image

from image_search.embedding import Embedder
from image_search.images import Pixels
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.weights import choose_weights
from worker.ingest import ingest
from worker.sources import Source, open_source

PORT = 8765
QUERIES = 200
TURNS = 5
MEBI = 1024 * 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="sample", metavar="SOURCE")
    parser.add_argument("--images", type=int, default=10_000, metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMAGE_SEARCH_DATA_DIR"] = folder
        settings = load_settings()
        embedder = Embedder(choose_weights(settings.weights), settings.input_size)
        source = open_source(arguments.source, split="train", data_dir=settings.data_dir)
        pixels = [
            np.asarray(item.content)
            for item in itertools.islice(source.items(), 20 * settings.batch_size)
            if not isinstance(item.content, bytes | Exception)
        ]
        if not pixels:
            sys.exit("the benchmark needs a source of pixels: cifar10, its archive, or sample")
        print(f"{source.name}, {embedder.model}, {os.cpu_count()} cores\n")
        index = bench_ingest(source, arguments.images, pixels, embedder, settings)
        bench_search(pixels, embedder, index, settings)
        bench_worker_memory(arguments.source, arguments.images)


def bench_ingest(
    source: Source, limit: int, pixels: list[Pixels], embedder: Embedder, settings: Settings
) -> VectorIndex:
    """Ingest end to end against the bare embedding rate, in turns."""
    total = min(limit, source.total)
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
    index = create_index(settings, manifest)
    embedder.warm_up()
    seconds: dict[str, list[float]] = {"ingest": [], "bare": []}
    size = settings.batch_size

    def bare() -> None:
        for start in range(0, len(pixels), size):
            embedder.embed(np.stack(pixels[start : start + size]))

    items = source.items()
    bounds = np.linspace(0, total, TURNS + 1).astype(int)
    for turn, count in enumerate(np.diff(bounds)):
        part = Source(source.name, int(count), partial(itertools.islice, items, int(count)))
        timed(seconds["bare"], bare)
        timed(seconds["ingest"], lambda: ingest(part, index, embedder, settings))  # noqa: B023
        if turn == TURNS - 1:
            timed(seconds["ingest"], index.flush)
            timed(seconds["bare"], bare)
    ingest_rate = 1000 * total / sum(seconds["ingest"])
    bare_rate = 1000 * len(pixels) * len(seconds["bare"]) / sum(seconds["bare"])
    print(
        f"ingest of {total:,} images, batches of {size}: {ingest_rate:.0f} images/s\n"
        f"bare embedding, in turns with it: {bare_rate:.0f} images/s\n"
        f"=> ratio {ingest_rate / bare_rate:.3f} (at least 0.9)\n"
    )
    return index


def bench_search(
    pixels: list[Pixels], embedder: Embedder, index: VectorIndex, settings: Settings
) -> None:
    """POST /search of one client against its parts, each query in turn."""
    images = [np.asarray(image) for image in pixels[:QUERIES]]
    files = [encode(image) for image in images]
    took: dict[str, list[float]] = {"search": [], "embed": [], "query": []}
    with service() as process, httpx2.Client(base_url=f"http://127.0.0.1:{PORT}") as client:
        wait_for_service(client)

        def search(file: bytes) -> None:
            client.post("/search", files={"image": file}).raise_for_status()

        reader = open_index(settings)
        for warm_up in range(10):
            search(files[warm_up])
        for image, file in zip(images, files, strict=True):
            timed(took["search"], lambda: search(file))  # noqa: B023
            timed(took["embed"], lambda: embedder.embed(image[np.newaxis]))  # noqa: B023
            embedding = embedder.embed(image[np.newaxis])[0]
            timed(took["query"], lambda: reader.query(embedding, 10))  # noqa: B023
        rss = psutil.Process(process.pid).memory_info().rss / MEBI
    median = {name: statistics.median(times) for name, times in took.items()}
    parts = median["embed"] + median["query"]
    more = median["search"] - parts
    print(
        f"POST /search, one client, {index.count():,} images: p50 {median['search']:.1f} ms\n"
        f"bare embedding {median['embed']:.1f} ms + bare query {median['query']:.1f} ms\n"
        f"=> {more:+.1f} ms (at most +5), ratio {median['search'] / parts:.2f}\n"
        f"service: {rss:.0f} MiB resident (under 1,536)\n"
    )


def bench_worker_memory(source: str, limit: int) -> None:
    """The most memory that a worker process has resident."""
    with tempfile.TemporaryDirectory() as folder:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", "ingest", source, "--limit", str(limit)],
            env={**os.environ, "IMAGE_SEARCH_DATA_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        most = 0.0
        while worker.poll() is None:
            most = max(most, psutil.Process(worker.pid).memory_info().rss / MEBI)
            time.sleep(0.05)
    print(f"worker: at most {most:.0f} MiB resident (under 2,048), exit code {worker.returncode}")


def timed(times: list[float], work: Callable[[], object]) -> None:
    """Append the milliseconds that `work` takes."""
    started = time.perf_counter()
    work()
    times.append(1000 * (time.perf_counter() - started))


def encode(image: Pixels) -> bytes:
    """A PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@contextmanager
def service() -> Iterator["subprocess.Popen[bytes]"]:
    """A service process on PORT."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**os.environ, "IMAGE_SEARCH_PORT": str(PORT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_for_service(client: httpx2.Client) -> None:
    """Wait until it is ready, at most two minutes."""
    for _ in range(600):
        try:
            if client.get("/health").status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    sys.exit("the service did not become ready")


if __name__ == "__main__":
    main()
