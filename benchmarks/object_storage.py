"""An index in object storage beside the same one in a folder.

usage: python -m benchmarks.object_storage [--images N] [--delay MS]

The server is moto's on loopback, and each request to it is delayed. The vectors are random points
around a few centres. Searches of both are timed in turns: at first, nobody else writes, and then
another process commits to both once a second.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import boto3
import numpy as np

from benchmarks.measure import Table, in_turns, timed
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest, ModelSpec
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIMENSION
from tests.support.object_storage import KEYS
from tests.support.servers import find_free_port
from tests.support.waiting import wait_until

FOLDER, BUCKET = "folder", "object storage"
MODEL = ModelSpec(
    weights="none", fingerprint="0" * 16, input_size=32, preprocessing=1, precision="float32"
)
CENTRES = 100
THUMBNAIL = bytes(2500)
AT_ONCE = 5000
BATCH = 128
TOP_K = 10
ROUNDS, CALLS = 20, 20
ROUNDS_ALONE = 15
SECONDS_BETWEEN = 0.4
COMMITS = 10
ASKED_RATIO = 1.5


def records(first: int, count: int) -> list[Record]:
    """Records that are the same in each run."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION))
    noise = np.random.default_rng(first + 1).standard_normal((count, DIMENSION))
    rows = (centres[np.arange(first, first + count) % CENTRES] + noise).astype(np.float32)
    return [
        Record(f"r{first + n:07d}", row, f"label {n % 10}", {"number": n}, THUMBNAIL)
        for n, row in enumerate(rows)
    ]


# --- the server -----------------------------------------------------------------------------------


def pass_on(port: int, server_port: int, seconds: float, requests: "Synchronized[int]") -> None:
    """Listen on `port`, and hand each request on after so many seconds."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port)
        is_answered = True

        async def forth() -> None:
            nonlocal is_answered
            while content := await reader.read(1 << 20):
                if is_answered:
                    is_answered = False
                    requests.value += 1
                    await asyncio.sleep(seconds)
                server_writer.write(content)
                await server_writer.drain()
            server_writer.close()

        async def back() -> None:
            nonlocal is_answered
            while content := await server_reader.read(1 << 20):
                is_answered = True
                writer.write(content)
                await writer.drain()
            writer.close()

        await asyncio.gather(forth(), back(), return_exceptions=True)

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def storage(milliseconds: float) -> Iterator[tuple[dict[str, str], "Synchronized[int]"]]:
    """The variables that lead to a bucket whose server is far, and how many requests it had."""
    server_port, port = find_free_port(), find_free_port()
    requests: Synchronized[int] = multiprocessing.Value("i", 0)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server_port)]
    proxy = multiprocessing.Process(
        target=pass_on, args=(port, server_port, milliseconds / 1000, requests)
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        proxy.start()
        url = f"http://127.0.0.1:{port}"
        try:
            client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
            wait_until(lambda: created(client, "benchmark"))
            yield {"IMAGE_SEARCH_S3_ENDPOINT": url}, requests
        finally:
            proxy.kill()
            server.kill()


def created(client: Any, bucket: str) -> bool:
    """Whether the server was there to make it."""
    try:
        client.create_bucket(Bucket=bucket)
    except client.exceptions.ClientError:
        raise
    except Exception:  # of any kind while it starts
        return False
    return True


# --- what is measured -----------------------------------------------------------------------------


def fill(settings: Settings, images: int) -> None:
    """Make the index."""
    manifest = Manifest.new(MODEL, settings.metric, settings.namespace)
    with create_index(settings, manifest) as index:
        for first in range(0, images, AT_ONCE):
            index.upsert(records(first, min(AT_ONCE, images - first)))
        index.flush()


def write(every: list[Settings], first: int) -> None:
    """Commit to each once a second, until it is ended."""
    indexes = [open_index(settings) for settings in every]
    while True:
        for index in indexes:
            index.upsert(records(first, 8))
        first += 8
        time.sleep(1)


def searches(index: VectorIndex) -> Callable[[], object]:
    """Each call searches for another vector."""
    queries = iter(np.random.default_rng(5).permutation(1 << 16))
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION))

    def search() -> object:
        number = int(next(queries))
        noise = np.random.default_rng(1 << 20 | number).standard_normal(DIMENSION)
        query = (centres[number % CENTRES] + noise).astype(np.float32)
        return index.query(query, TOP_K)

    return search


def is_in_memory(index: Any) -> bool:
    """Whether searches are answered from memory."""
    return index._resident.view() is not None


def measure(images: int, milliseconds: float) -> Table:
    """Opening, searches and commits of both."""
    rows: list[list[str]] = []
    ratios: dict[str, float] = {}

    def add(what: str, seconds: dict[str, list[float]], *, is_asked: bool = False) -> None:
        p50 = {name: statistics.median(times) * 1000 for name, times in seconds.items()}
        ratio = p50[BUCKET] / p50[FOLDER]
        rows.append([what, f"{p50[FOLDER]:.2f}", f"{p50[BUCKET]:.2f}", f"{ratio:.2f}"])
        if is_asked:
            ratios[what] = ratio

    with tempfile.TemporaryDirectory() as folder, storage(milliseconds) as (environ, requests):
        os.environ.update(environ, XDG_CACHE_HOME=f"{folder}/cache")
        both = {
            FOLDER: load_settings(store="embedded", data_dir=Path(folder) / "data"),
            BUCKET: load_settings(store="embedded", data_dir="s3://benchmark/data"),
        }
        for settings in both.values():
            fill(settings, images)
        before = requests.value
        opening = {name: [timed(lambda s=s: open_index(s).close())] for name, s in both.items()}  # type: ignore[misc]
        of_opening = requests.value - before
        add("open", opening)
        indexes = {name: open_index(settings) for name, settings in both.items()}
        peers = {name: searches(index) for name, index in indexes.items()}
        add("first search", {name: [timed(peer)] for name, peer in peers.items()})
        for index in indexes.values():
            wait_until(lambda index=index: is_in_memory(index), 600)  # type: ignore[misc]
        add("search", in_turns(peers, ROUNDS, CALLS), is_asked=True)
        alone: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(ROUNDS_ALONE):
            for name, peer in peers.items():
                time.sleep(SECONDS_BETWEEN)
                alone[name].append(timed(peer))
        add("search, one in 0.8 s", alone, is_asked=True)
        writer = multiprocessing.Process(target=write, args=(list(both.values()), images))
        writer.start()
        count = indexes[BUCKET].count()
        wait_until(lambda: indexes[BUCKET].count() > count)
        add("search while another writes", in_turns(peers, ROUNDS, CALLS), is_asked=True)
        writer.kill()
        writer.join()
        commits: dict[str, list[float]] = {name: [] for name in indexes}
        before = requests.value
        for number in range(COMMITS):
            for name, index in indexes.items():
                new = records(2 * images + number * BATCH, BATCH)
                commits[name].append(timed(lambda index=index, new=new: index.upsert(new)))  # type: ignore[misc]
        of_commits = (requests.value - before) / COMMITS
        add(f"commit of {BATCH} records", commits)
        for index in indexes.values():
            index.close()
    worst = max(ratios.values())
    return Table(
        f"{images:,} records, {milliseconds:g} ms for each request to object storage; p50 in ms",
        ["", FOLDER, BUCKET, "ratio"],
        rows,
        [
            f"searches take {worst:.2f} times as long at most (at most {ASKED_RATIO} is asked)",
            f"requests: {of_opening} to open, {of_commits:.0f} for a commit",
        ],
        {f"{what}, {BUCKET} / {FOLDER}": ratio for what, ratio in ratios.items()},
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000, metavar="N", help="(%(default)s)")
    parser.add_argument("--delay", type=float, default=20, metavar="MS", help="(%(default)s)")
    arguments = parser.parse_args()
    os.environ.update(KEYS)
    multiprocessing.set_start_method("spawn")
    print(measure(arguments.images, arguments.delay))


if __name__ == "__main__":
    main()
