"""Upserts through the Pinecone adapter against sequential batches, on the tests' emulator.

usage: python -m benchmarks.pinecone_upserts [--vectors N] [--delay SECONDS]

Both send the same records to the same server, which adds a delay to each request, in turns. The
server counts the most requests of one namespace in a second, of which Pinecone allows 100.
"""

import argparse
import base64
import multiprocessing
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from pinecone import Pinecone

from image_search.index import Record
from image_search.manifest import Manifest, ModelSpec
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION
from tests.support.pinecone import API_KEY, Answer, PineconeEmulator
from worker.ingest import RECORDS_PER_COMMIT as COMMIT

SEQUENTIAL_BATCH = 100
THUMBNAIL = bytes(1_800)
TURNS = 3
SMALL_BYTES = 100_000  # the manifest is stored for real


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=24_576, metavar="N")
    parser.add_argument("--delay", type=float, default=0.06, metavar="SECONDS")
    arguments = parser.parse_args()
    model = ModelSpec(
        weights="none", fingerprint="0" * 16, input_size=32, preprocessing=1, precision="float32"
    )
    with emulator_process(arguments.delay) as (host, count):
        os.environ["PINECONE_API_KEY"] = API_KEY
        settings = load_settings(store="pinecone", pinecone_host=host)
        index = create_index(settings, Manifest.new(model, "cosine", settings.namespace))
        seconds = {"adapter": 0.0, "sequential": 0.0}
        sent = {"adapter": 0, "sequential": 0}
        per_turn = arguments.vectors // TURNS // COMMIT * COMMIT
        with closing(Pinecone(api_key=API_KEY, host=host)) as client, index:
            described = client.describe_index(settings.index)
            with closing(client.Index(host=str(described.host))) as plain:
                for turn in range(TURNS):
                    for start in range(0, per_turn, COMMIT):
                        batch = records(turn * per_turn + start, COMMIT)
                        started = time.perf_counter()
                        index.upsert(batch)
                        seconds["adapter"] += time.perf_counter() - started
                        sent["adapter"] += len(batch)
                    for start in range(0, per_turn // 8, SEQUENTIAL_BATCH):
                        batch = records(start, SEQUENTIAL_BATCH)
                        started = time.perf_counter()
                        plain.upsert(vectors=[as_vector(record) for record in batch])
                        seconds["sequential"] += time.perf_counter() - started
                        sent["sequential"] += len(batch)
                    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    print(
                        f"after {sent['adapter']:,} vectors: {memory // 1024:,} MiB",
                        file=sys.stderr,
                    )
        most = count()
        rates = {name: sent[name] / seconds[name] for name in sent}
        print(
            f"server delay {1000 * arguments.delay:.0f} ms: sequential batches of "
            f"{SEQUENTIAL_BATCH} {rates['sequential']:,.0f} vectors/s, adapter "
            f"{rates['adapter']:,.0f} vectors/s\n"
            f"=> {rates['adapter'] / rates['sequential']:.1f} times (at least 6), with at most "
            f"{most} upserts to a namespace in a second (Pinecone allows 100)"
        )


@contextmanager
def emulator_process(delay: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """An emulator that shares neither memory nor interpreter lock with what is measured.

    Yields its address, and what counts the most upserts to a namespace within a second.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, delay))
    process.start()

    def count() -> int:
        ours.send("count")
        return int(ours.recv())

    try:
        yield ours.recv(), count
    finally:
        ours.send(None)
        process.join()


class CountingEmulator(PineconeEmulator):
    """Counts the records of an upsert and waits: the client is measured, not the server."""

    def __init__(self) -> None:
        super().__init__()
        self._times: defaultdict[bytes, list[float]] = defaultdict(list)

    def respond(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer | None:
        """Answer upserts from their text alone."""
        if not target.endswith("/vectors/upsert") or len(body) < SMALL_BYTES:
            return super().respond(method, target, headers, body)
        self._times[body[body.rindex(b"]") :]].append(time.monotonic())
        time.sleep(self.delay)
        return Answer(200, b'{"upsertedCount":%d}' % body.count(b'"values":'), {})

    def most_in_a_second(self) -> int:
        """The most upserts of one namespace."""
        most = 0
        for times in map(np.sort, self._times.values()):
            most = max(most, *(np.searchsorted(times, times + 1) - np.arange(len(times))))
        return int(most)


def serve(connection: Connection, delay: float) -> None:
    """Run an emulator with one index until None is received; sends its address, and counts."""
    with CountingEmulator() as emulator:
        emulator.put_index("images")
        emulator.delay = delay
        connection.send(emulator.host)
        while connection.recv() is not None:
            connection.send(emulator.most_in_a_second())


def as_vector(record: Record) -> dict[str, Any]:
    """What a straightforward client sends."""
    thumbnail = base64.b64encode(record.thumbnail).decode()
    metadata = {**record.metadata, "label": record.label, "thumbnail": thumbnail}
    return {"id": record.id, "values": record.embedding.tolist(), "metadata": metadata}


def records(first: int, count: int) -> list[Record]:
    """Random records with a thumbnail, numbered from `first`."""
    rows = np.random.default_rng(first).random((count, DIMENSION), np.float32)
    return [
        Record(f"r{first + i:07d}", row, "label", {"source": "bench"}, THUMBNAIL)
        for i, row in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
